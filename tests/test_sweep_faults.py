"""Whatever happens to a sweep: the same command again gives what an undisturbed one gives, and no process is left.

``ANCHORLENS_FAULTS=30`` (``make test-faults``) kills that often instead of three times, and real runs too.
"""

import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import termios
import time
from contextlib import suppress
from pathlib import Path
from textwrap import indent

import psutil
import pytest
from sweep_helpers import KILLS, LIMITS, Sweeps, alter, count, cut, place, sweeps, undisturbed

from anchorlens import store
from anchorlens.sweep import status

__all__ = ["place", "sweeps", "undisturbed"]  # fixtures
FORKS = """\
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        Path({pid!r}).write_text(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not Path({pid!r}).exists():
    time.sleep(0.05)
"""
END = """
if "spawn_main" in " ".join(sys.orig_argv):
    import time
    from anchorlens.sweep import marks
    quick = marks.end
    marks.end = lambda mark: {}
"""  # what a worker whose sweep is gone does before it ends itself
BORN = """
if "spawn_main" in " ".join(sys.orig_argv):
    import time
    open({said!r}, "w").close()
    time.sleep(1)
"""  # what a worker does before anything of anchorlens
SEED_OF_CHANCE = 5


def kill(sweeps: Sweeps, what: str, moment: float) -> tuple[int, list[dict]]:
    """A sweep of which a process was killed ``moment`` seconds after its start, or when it was there; what came of it.

    Where the sweep had ended by then, as it may on a machine that is quicker now, it is done anew with half the time.
    """
    for _ in range(8):
        sweep = sweeps.start()
        time.sleep(moment)
        until = time.monotonic() + 30
        while sweep.poll() is None and time.monotonic() < until:
            if killed(sweeps.victim(what)):
                code, events = sweeps.ended(sweep)
                assert what != "scheduler" or code == -signal.SIGKILL, (code, events)
                return code, events
            time.sleep(0.02)
        sweeps.ended(sweep)
        shutil.rmtree(sweeps.store)
        moment /= 2
    raise AssertionError(f"no {what} was there to be killed")


def killed(victim: psutil.Process | None) -> bool:
    """Whether a process was there, and was killed and did not end by itself."""
    with suppress(psutil.NoSuchProcess, AttributeError):  # there was none, or it ended meanwhile
        running = victim.status() != psutil.STATUS_ZOMBIE
        victim.kill()
        return running
    return False


@pytest.mark.parametrize("n", range(KILLS))
@pytest.mark.parametrize("what", ["worker", "kernel", "scheduler"])
def test_killed_at_any_moment_nothing_is_lost(undisturbed, sweeps, what, n):
    moment = random.Random(f"{SEED_OF_CHANCE} {what} {n}").uniform(0, undisturbed.took)
    code, events = kill(sweeps, what, moment)
    sweeps.is_clean()
    assert what == "scheduler" or code == 0, f"after {moment:.2f} s: {events} {sweeps.said.read_text()}"
    done = count(events, "done")
    assert count(sweeps.is_as(undisturbed.tables(), cached=done), "cached") >= done


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("quick(mark) or time.sleep(3)", id="slowly, as where a run has started much"),
        pytest.param("quick(mark) or open('none')", id="with an error"),
    ],
)
def test_a_run_in_whose_midst_the_sweep_was_killed_has_not_failed(undisturbed, sweeps, end):
    said = sweeps.folder / "said"
    sweeps.trouble.write_text(f"Path({str(said)!r}).write_text('begun')\ntime.sleep(600)")
    sweeps.begins_with(END.format(end))
    sweep, until = sweeps.start(), time.monotonic() + 60
    while not said.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    sweep.kill()
    sweeps.ended(sweep)
    sweeps.is_clean()
    assert [each["state"] for each in sweeps.run("--dry-run")[1]] == ["new"] * len(LIMITS)
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables())


def test_a_notebook_that_hangs_or_ends_its_kernel_fails_alone(undisturbed, sweeps):
    sweeps.trouble.write_text("time.sleep(600) if limit == 2 else os._exit(3) if limit == 3 else None")
    code, events = sweeps.run("--time-limit", "15")
    assert (code, count(events, "done"), count(events, "retried"), count(events, "failed")) == (1, 1, 2, 2)
    errors = [event["error"] for event in events if event["event"] == "failed"]
    assert "limit of 15 s" in errors[0]
    assert "DeadKernelError" in errors[1]
    sweeps.is_clean()
    listed = sweeps.run("--dry-run")[1]
    assert [each["state"] for each in listed] == ["cached", "failed", "failed"]
    assert "limit of 15 s" in listed[1]["error"]
    assert "DeadKernelError" in listed[2]["error"]
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables(), cached=1)


def test_what_a_notebook_forks_does_not_outlive_the_sweep_and_what_it_prints_does_not_fill_memory(undisturbed, sweeps):
    pid = sweeps.folder / "pid"
    mega = 1000 if KILLS > 3 else 100
    prints = f"for _ in range({mega}): print('x' * 999_999)\n"
    sweeps.trouble.write_text(f"if limit == 1:\n  {prints}if limit == 2:\n{indent(FORKS.format(pid=str(pid)), '  ')}")
    sweep, most = sweeps.start(), 0
    while sweep.poll() is None:
        for what in ("worker", "kernel"):
            with suppress(psutil.Error, AttributeError):  # there is none
                most = max(most, sweeps.victim(what).memory_info().rss)
        time.sleep(0.05)
    code, events = sweeps.ended(sweep)
    assert (code, count(events, "done")) == (0, 3), sweeps.said.read_text()
    assert pid.exists()
    assert most < 400 << 20
    printed = max((path.read_text() for path in sweeps.store.glob("small/*/run.ipynb")), key=len)
    assert printed.count("x") == pytest.approx(10_000_000, abs=1000)
    assert f"[{(mega - 10) * 1_000_000:,} characters that this cell printed are left out." in printed
    sweeps.is_as(undisturbed.tables(), cached=3)


SLOW = pytest.mark.slow  # by a terminal it is met below


@pytest.mark.parametrize(
    "told", [signal.SIGTERM, *(pytest.param(told, marks=SLOW) for told in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_sweep_that_is_told_to_end_says_so_and_goes_on_later(undisturbed, sweeps, told):
    sweeps.trouble.write_text("time.sleep(600) if limit == 2 else None")
    sweeps.begin = lambda: signal.signal(told, signal.SIG_DFL)  # which a shell's background job may ignore
    sweep = sweeps.start()
    said = [sweep.stdout.readline() for _ in range(4)]  # begin, started, done, started
    time.sleep(0.5)
    sweep.send_signal(told)
    sweep.send_signal(told)
    code, events = sweeps.ended(sweep)
    assert code == 130, (said, events, sweeps.said.read_text())
    assert events[0]["event"] == "interrupted"
    assert "the same command goes on" in sweeps.said.read_text()
    sweeps.is_clean()
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables(), cached=1)


@pytest.mark.parametrize(("started", "closed"), [(1, False), pytest.param(2, False, marks=SLOW), (2, True)])
def test_a_closed_terminal_ends_a_sweep_as_well_as_ctrl_c_on_an_open_one(undisturbed, sweeps, started, closed):
    """Both meet all processes of the terminal: also a worker that is only just starting, of the first run."""

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)
        for told in (signal.SIGINT, signal.SIGHUP):
            signal.signal(told, signal.SIG_DFL)

    sweeps.trouble.write_text(f"time.sleep(600) if limit == {started} else None")
    sweeps.begin, born = begin, sweeps.folder / "born"
    sweeps.begins_with(BORN.format(said=str(born)))
    terminal, theirs = pty.openpty()
    process, shown, until = sweeps.start(terminal=theirs), b"", time.monotonic() + 120
    os.close(theirs)

    def look() -> bytes:
        assert time.monotonic() < until, shown
        with suppress(OSError):  # nobody has the other end any more
            return os.read(terminal, 4096) if select.select([terminal], [], [], 0.05)[0] else b""
        return b""

    while sum(path.read_text().count('"started"') for path in sweeps.store.glob("sweeps/*.jsonl")) < started:
        shown += look()
    while not born.exists():
        shown += look()
    os.close(terminal) if closed else os.write(terminal, b"\x03")
    while process.poll() is None:
        shown += b"" if closed else look()
    assert process.returncode == 130, shown
    if not closed:
        shown += look()
        os.close(terminal)
        assert b"ending what goes on; what is done is kept" in shown
        assert b"Traceback" not in shown
    found = status(sweeps.store)
    assert (found["state"], found["done"], len(found["cut"])) == ("interrupted", started - 1, 1)
    sweeps.is_clean()
    sweeps.trouble.unlink()
    sweeps.begin = None
    sweeps.is_as(undisturbed.tables(), cached=started - 1)


def test_a_sweep_whose_reader_stands_still_can_be_told_to_end(undisturbed, sweeps):
    sweeps.begin = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sweep = sweeps.start()
    fcntl.fcntl(sweep.stdout, 1031, 4096)  # F_SETPIPE_SZ of Linux: room for little
    until = time.monotonic() + 120
    while not any('"started"' in path.read_text() for path in sweeps.store.glob("sweeps/*.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=60) == 130
    assert status(sweeps.store)["state"] == "interrupted"
    sweep.stdout.close()
    sweeps.is_as(undisturbed.tables())


def test_a_worker_that_stands_still_ends_with_its_time(undisturbed, sweeps):
    sweeps.trouble.write_text("time.sleep(600) if limit == 3 else None")
    sweep = sweeps.start("--time-limit", "15")
    said = [sweep.stdout.readline() for _ in range(6)]  # the third run has started
    time.sleep(2)  # pebble counts from where the worker takes it
    sweeps.victim("worker").suspend()
    code, events = sweeps.ended(sweep)
    assert (code, events[0]["event"]) == (1, "failed"), (said, events)
    sweeps.is_clean()
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables(), cached=2)


def test_two_sweeps_of_one_store_do_each_run_once(undisturbed, sweeps):
    ended = [sweeps.ended(each) for each in [sweeps.start(), sweeps.start()]]
    assert [code for code, _ in ended] == [0, 0], sweeps.said.read_text()
    assert sum(count(events, "done") for _, events in ended) == len(LIMITS)
    sweeps.is_as(undisturbed.tables(), cached=3)


def test_what_a_killed_runner_left_beside_a_finished_run_is_removed(undisturbed, sweeps):
    shutil.copytree(undisturbed.store, sweeps.store)
    for path in list(sweeps.store.glob("small/*")):
        path.with_name(path.name + ".partial").mkdir()
    sweeps.is_as(undisturbed.tables(), cached=3)


def test_damaged_results_are_moved_aside_and_run_again(undisturbed, sweeps):
    shutil.copytree(undisturbed.store, sweeps.store)
    runs = sorted(path for path in sweeps.store.glob("small/*") if path.is_dir())
    cut(runs[0] / "results.parquet")
    cut(runs[1] / "manifest.json")
    cut(runs[2] / "run.ipynb")
    events = sweeps.is_as(undisturbed.tables())
    assert (count(events, "damaged"), count(events, "done")) == (3, 3)
    assert all(path.with_name(path.name + ".broken").is_dir() for path in runs)
    assert count(sweeps.run()[1], "cached") == 3


@pytest.mark.parametrize("name", ["results.parquet", "manifest.json", "run.ipynb"])
@pytest.mark.parametrize("how", [cut, Path.unlink, lambda path: path.write_bytes(b""), alter])
def test_damage_is_seen(undisturbed, tmp_path, name, how):
    whole = next(path for path in undisturbed.store.glob("small/*") if "." not in path.name)
    run = store.Run(Path(shutil.copytree(whole, tmp_path / whole.name)))
    assert store.damage(run) == ""
    how(run.final / name)
    if how is alter and name == "run.ipynb":  # may be opened and saved again
        return
    assert name in store.damage(run)


def test_a_result_from_before_there_were_sums_is_taken(undisturbed, tmp_path):
    whole = next(path for path in undisturbed.store.glob("small/*") if "." not in path.name)
    run = store.Run(Path(shutil.copytree(whole, tmp_path / whole.name)))
    (run.final / "manifest.json").write_text(json.dumps(store.manifest(run.final)))
    assert store.damage(run) == ""
    cut(run.final / "results.parquet")
    assert "results.parquet" in store.damage(run)


def test_a_store_that_is_a_file_is_said_before_anything_starts(sweeps):
    sweeps.store.write_text("")
    code, events = sweeps.run()
    assert code != 0
    assert "nothing was started" in events[-1]["error"]
    assert sweeps.store.name in sweeps.said.read_text()
    sweeps.is_clean()


@pytest.mark.skipif(KILLS == 3, reason="takes a minute; make test-faults")
@pytest.mark.parametrize("what", ["worker", "kernel", "scheduler"])
def test_killed_real_runs_give_the_same_tables(place, what):
    made = []
    for name in (f"real-{what}", f"real-{what}-killed"):
        (place / name).mkdir()
        made.append(Sweeps(place / name, "2_3_extraction"))
    assert made[0].run()[0] == 0
    kill(made[1], what, random.Random(f"{SEED_OF_CHANCE} {what}").uniform(6, 14))
    made[1].is_clean()
    made[1].is_as(made[0].tables())
