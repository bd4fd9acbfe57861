"""A clock that is set back, or was wrong, changes neither which sweep is the latest nor how long runs take."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from sweep_helpers import LIMITS, count, place, sweeps, undisturbed

from anchorlens import batch, claims, store
from anchorlens.sweep import Events, events, status

__all__ = ["place", "sweeps", "undisturbed"]  # fixtures
LEAPS = """
import os, sys, time
if "anchorlens.cli" in sys.orig_argv:
    wall = time.time
    time.time = lambda: wall() + 9999 * os.path.exists({sign!r})
"""  # the clock of the process that looks after a sweep is set forward by hours when a run says so
FRAME = pd.DataFrame({"value": [1.0]})
MOVES = [timedelta(days=-400), timedelta(seconds=-1), timedelta(0), timedelta(days=400)]


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock by so much, of what the package asks."""

    def put(move: timedelta) -> None:
        class Moved(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + move

        for module in (events, batch):
            monkeypatch.setattr(module, "datetime", Moved)

    return put


@pytest.mark.parametrize("move", MOVES)
def test_the_latest_sweep_is_the_one_that_began_last(tmp_path, clock, move):
    for total in (1, 2, 3, 4):
        with Events(tmp_path, total, as_json=True) as told:
            told.say("finished")
        assert status(tmp_path)["total"] == total
        clock(move * total)
    assert len(list((tmp_path / events.FOLDER).iterdir())) == 4


@pytest.mark.parametrize("move", MOVES)
def test_ages_of_runs_are_those_that_passed(tmp_path, clock, move):
    with Events(tmp_path, 1, as_json=True) as told:
        told.say("started", job="a")
        clock(move)
        assert 0 <= status(tmp_path)["running"]["a"] < 5


def test_a_sweep_of_another_machine_is_not_taken_for_dead_and_its_ages_are_by_the_clock_that_all_share(tmp_path):
    with Events(tmp_path, 1, as_json=True) as told:
        told.say("started", job="a")
    begin, started = map(json.loads, told.path.read_text().splitlines())
    ago = (datetime.now(UTC) - timedelta(seconds=60)).isoformat(timespec="seconds")
    away = [{**begin, "host": "elsewhere", "process": 4194303}, {**started, "clock": 5.0, "time": ago}]
    told.path.write_text("".join(f"{json.dumps(each)}\n" for each in away))
    found = status(tmp_path)
    assert (found["state"], found["host"]) == ("running", "elsewhere")
    assert 59 <= found["running"]["a"] < 65


@pytest.mark.parametrize(
    ("born", "state"),
    [(None, "running"), ("", "running"), ("an earlier start of the machine 42", "died")],
    ids=["written before it was told", "not to be seen", "another's"],
)
def test_a_sweep_whose_number_another_process_has_by_now_is_dead(tmp_path, born, state):
    with Events(tmp_path, 1, as_json=True) as told:
        told.say("started", job="a")
        assert status(tmp_path)["state"] == "running"
        begin, *rest = told.path.read_text().splitlines()
        changed = {**json.loads(begin), "born": born}
        if born is None:
            del changed["born"]
        told.path.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
        assert status(tmp_path)["state"] == state
        assert status(tmp_path)["cut"] == (["a"] if state == "died" else [])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_sweep_that_was_killed_is_dead_before_its_parent_has_heard_of_it(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Events(tmp_path, 1, as_json=True) as told:
        begin = json.loads(told.path.read_text())
        changed = {**begin, "process": child.pid, "born": events._born(child.pid)}
        told.path.write_text(json.dumps(changed) + "\n")
        assert status(tmp_path)["state"] == "running"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie, and stays one
        assert status(tmp_path)["state"] == "died"
    child.wait()


def test_processes_are_told_apart_by_when_they_began_also_where_there_is_no_proc(monkeypatch):
    processes = []
    for _ in range(2):
        processes.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        time.sleep(0.05)  # the kernel counts hundredths
    try:
        for _ in range(2):
            born = [events._born(each.pid) for each in processes]
            assert born == [events._born(each.pid) for each in processes]
            assert len({*born, ""}) == 3
            monkeypatch.setattr(events, "Path", lambda name: Path("/none"))
    finally:
        for each in processes:
            each.communicate(b"\n", timeout=20)
    assert events._born(processes[0].pid) == ""


def test_an_events_file_of_another_name_is_no_start_of_a_sweep(tmp_path):
    (tmp_path / events.FOLDER).mkdir()
    (tmp_path / events.FOLDER / "notes.jsonl").write_text("")
    with Events(tmp_path, 1, as_json=True) as told:
        assert told.path.name[:8] == f"{datetime.now(UTC):%Y%m%d}"


@pytest.mark.parametrize("move", MOVES)
def test_a_manifest_says_how_long_a_run_took(tmp_path, clock, move):
    target = store.Run(tmp_path / "2_1" / "abc")
    target.partial.mkdir(parents=True)
    started = batch.time.monotonic() - 2
    clock(move)
    made_of = {"inputs": {"device": "cpu", "dtype": "float32"}}
    told = batch._manifest(target, made_of, {}, started)
    assert told["seconds"] == pytest.approx(2, abs=0.5)
    began, ended = (datetime.fromisoformat(told[name]) for name in ("started", "finished"))
    assert 1 <= (ended - began).total_seconds() <= 3


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "{curly} {0}", "ünïcødé 標籤", "x=1", "100%", "$HOME"])
def test_how_a_try_ended_is_found_in_a_folder_of_any_name(tmp_path, name):
    target = store.Run(tmp_path / name / "abc")
    batch.note_failure(target, "took longer than the limit")
    assert batch.failure(target) == "took longer than the limit"
    with store.claiming(target):
        assert batch.failure(target) == "", "a new try has not failed"
        batch.note_failure(target, "somebody else's")
        assert batch.failure(target) == "", "another try is under way"


def test_a_try_of_a_run_that_is_there_has_not_failed(tmp_path):
    target = store.Run(tmp_path / "2_1" / "abc")
    target.final.mkdir(parents=True)
    (target.final / "manifest.json").write_text("{}")
    batch.note_failure(target, "died after it was done")
    assert not target.partial.exists()


def test_a_clock_that_is_set_forward_ends_no_run(undisturbed, sweeps):
    sign = sweeps.folder / "sign"
    sweeps.trouble.write_text(f"if limit == 2: Path({str(sign)!r}).touch(); time.sleep(2)")
    sweeps.begins_with(LEAPS.format(sign=str(sign)))
    code, said = sweeps.run("--time-limit", "60")
    assert (code, count(said, "done")) == (0, len(LIMITS)), said


def test_while_another_process_does_a_run_the_others_are_done_and_no_time_counts(undisturbed, sweeps):
    taken = store.Run(sweeps.store / "small" / sorted(undisturbed.tables())[0])
    with store.claiming(taken):
        sweep, said = sweeps.start("--time-limit", "8"), []
        began = datetime.now(UTC)
        while count(said, "done") < len(LIMITS) - 1 or not count(said, "waits"):
            said.append(json.loads(sweep.stdout.readline()))
        (waits,) = [event["job"] for event in said if event["event"] == "waits"]
        while (datetime.now(UTC) - began).total_seconds() < 12:
            stand = status(sweeps.store)
            assert (stand["state"], stand["waiting"], stand["running"]) == ("running", [waits], {})
        assert "failed" not in batch.failure(taken)
    code, rest = sweeps.ended(sweep)
    told = [event["event"] for event in said + rest if event.get("job") == waits]
    assert (code, told) == (0, ["started", "waits", "started", "done"]), sweeps.said.read_text()
    assert status(sweeps.store)["waiting"] == []
    sweeps.is_as(undisturbed.tables(), cached=3)


def test_a_wait_is_a_line_that_is_read(tmp_path, capsys):
    with Events(tmp_path, 1) as told:
        told.say("waits", job="2_3_extraction model=toy", folder="")
    assert f"2_3_extraction model=toy {claims.WAITS}\n" in capsys.readouterr().err


def test_a_run_that_waits_for_another_process_says_so(tmp_path, monkeypatch):
    def leave() -> None:
        raise InterruptedError

    said, until = io.StringIO(), time.monotonic() + 60
    monkeypatch.setattr(sys, "stderr", said)  # which can be read while another thread writes, as capsys' cannot
    planned = batch.plan("2_3_extraction", {"limit": 8}, tmp_path)
    with store.claiming(planned.target):
        with pytest.raises(InterruptedError):
            batch.run("2_3_extraction", {"limit": 8}, root=tmp_path, waits=leave)
        waiting = threading.Thread(target=batch.run, args=("2_3_extraction", {"limit": 8}), kwargs={"root": tmp_path})
        waiting.start()
        while not said.getvalue().endswith("\n"):
            assert time.monotonic() < until
            time.sleep(0.01)
        planned.target.write(FRAME, {"value": "float64"})
        planned.target.finish({})
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert said.getvalue() == f"2_3_extraction {claims.WAITS}\n"
