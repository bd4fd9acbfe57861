"""Whatever happens to a sweep: the same command again gives what an undisturbed one gives, and no process is left.

``ANCHORLENS_FAULTS=30`` (``make test-faults``) kills that often instead of once, and real runs too.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path
from textwrap import indent

import pytest
from sweep_helpers import LIMITS, Sweeps, count

from anchorlens import store

KILLS = int(os.environ.get("ANCHORLENS_FAULTS", "1"))
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
SEED_OF_CHANCE = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(place):
    (place / "undisturbed").mkdir()
    sweeps = Sweeps(place / "undisturbed")
    began = time.monotonic()
    code, events = sweeps.run()
    sweeps.took = time.monotonic() - began
    assert (code, count(events, "done")) == (0, len(LIMITS)), sweeps.said.read_text()
    sweeps.is_clean()
    return sweeps


@pytest.fixture
def sweeps(place, request):
    folder = place / f"{request.node.name}"[:80].replace("[", "-").replace("]", "")
    folder.mkdir()
    made = Sweeps(folder)
    yield made
    made.trouble.unlink(missing_ok=True)
    for each in made.processes():
        each.kill()


def kill(sweeps: Sweeps, what: str, moment: float) -> tuple[int, list[dict]]:
    """A sweep of which a process is killed ``moment`` seconds after its start, or when it is there; what came of it."""
    sweep = sweeps.start()
    time.sleep(moment)
    until = time.monotonic() + 30
    while sweep.poll() is None and time.monotonic() < until:
        if victim := sweeps.victim(what):
            victim.kill()
            break
        time.sleep(0.02)
    return sweeps.ended(sweep)


@pytest.mark.parametrize("n", range(KILLS))
@pytest.mark.parametrize("what", ["worker", "kernel", "scheduler"])
def test_killed_at_any_moment_nothing_is_lost(undisturbed, sweeps, what, n):
    moment = random.Random(f"{SEED_OF_CHANCE} {what} {n}").uniform(0, undisturbed.took)
    code, events = kill(sweeps, what, moment)
    sweeps.is_clean()
    assert what == "scheduler" or code == 0, f"after {moment:.2f} s: {events} {sweeps.said.read_text()}"
    done = count(events, "done")
    assert count(sweeps.is_as(undisturbed.tables(), cached=done), "cached") >= done


def test_a_notebook_that_hangs_or_ends_its_kernel_fails_alone(undisturbed, sweeps):
    sweeps.trouble.write_text("time.sleep(600) if limit == 2 else os._exit(3) if limit == 3 else None")
    code, events = sweeps.run("--time-limit", "7")
    assert (code, count(events, "done"), count(events, "retried"), count(events, "failed")) == (1, 1, 2, 2)
    errors = [event["error"] for event in events if event["event"] == "failed"]
    assert "limit of 7 s" in errors[0]
    assert "DeadKernelError" in errors[1]
    sweeps.is_clean()
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables(), cached=1)


def test_what_a_notebook_forks_does_not_outlive_the_sweep_and_what_it_prints_does_not_stop_it(undisturbed, sweeps):
    pid = sweeps.folder / "pid"
    prints = "for _ in range(100): print('x' * (1 << 20))\n"  # 100 MB
    sweeps.trouble.write_text(f"if limit == 1:\n  {prints}if limit == 2:\n{indent(FORKS.format(pid=str(pid)), '  ')}")
    code, events = sweeps.run()
    assert (code, count(events, "done")) == (0, 3), sweeps.said.read_text()
    assert pid.exists()
    assert any(path.stat().st_size > 100 << 20 for path in sweeps.store.glob("small/*/run.ipynb"))
    sweeps.is_as(undisturbed.tables(), cached=3)


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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    """One byte in the middle, which leaves a parquet file's footer as it was."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


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


@pytest.mark.parametrize("how", ["a file", "read-only"])
def test_a_store_that_cannot_be_written_is_said_before_anything_starts(sweeps, how):
    if how == "a file":
        sweeps.store.write_text("")
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        sweeps.store.mkdir(mode=0o500)
    code, events = sweeps.run()
    assert code != 0
    assert "nothing was started" in events[-1]["error"]
    assert sweeps.store.name in sweeps.said.read_text()
    sweeps.is_clean()


@pytest.mark.skipif(KILLS == 1, reason="takes a minute; make test-faults")
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
