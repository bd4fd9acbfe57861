"""The loop of a sweep: runs given to workers that answer, die, stand still or wait, until it is told to end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from anchorlens import batch, cli, sweep
from anchorlens.sweep import local, workers


class Silent:
    """Workers of which the first never answers and each other says that its run is done, or has failed."""

    def __init__(self, said: str = "done", kind: str = "ValueError", often: float = 0.0) -> None:
        self.said, self.kind, self.ended, self.started, self.often = said, kind, 0, 0, often

    def start(self, given, limit):
        self.started += 1
        future = Future()
        if self.started > 1 or self.said == "failed":
            answer = {"status": self.said, "kind": self.kind, "error": "wrong"}
            threading.Timer(self.often, future.set_result, (answer,)).start()
        return future

    def look(self, future):
        pass

    def outcome(self, future, limit):
        return dict(future.result())

    def end(self):
        self.ended += 1

    def close(self):
        self.end()

    def plan(self, notebook, given, root):
        return batch.plan(notebook, given, root)

    def hire(self, jobs, sign):
        return [self, self] if self.often else [self]


def told(folder: Path, crew: Silent, heed: Callable[[], None] = lambda: None, runs: int = 3, **how) -> list[dict]:
    given = [{"limit": n} for n in range(runs)]
    jobs = [
        sweep.Job("2_3_extraction", each, folder / "2_3_extraction" / str(n), "new") for n, each in enumerate(given)
    ]
    with sweep.Events(folder, len(jobs), heed=heed) as events:
        assert workers.run(jobs, folder, events, crew, **how) is False
    return [json.loads(line) for line in events.path.read_text().splitlines()]


def test_a_worker_that_never_answers_is_ended_after_its_time_and_the_sweep_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.2)
    monkeypatch.setattr(workers, "_LOOK", 0.05)
    crew = Silent()
    said = told(tmp_path, crew, limit=0.1)
    assert [each["event"] for each in said] == [
        *("begin", "started", "failed", "started", "done", "started", "done", "finished")
    ]
    assert "did not answer within the limit of 0.1 s and 0.2 s more" in said[2]["error"]
    assert crew.ended == 2, "once for the silent one, once at the end"


def test_the_limit_of_a_run_holds_however_often_others_end(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.2)
    monkeypatch.setattr(workers, "_LOOK", 0.1)
    crew = Silent(often=0.02)
    said = [each["event"] for each in told(tmp_path, crew, runs=100, limit=0.1)]
    assert (said.count("failed"), said.count("done")) == (1, 99)
    assert said[:-30].count("failed") == 1, "not when all others had ended"


@pytest.mark.parametrize(("fail_fast", "started"), [(True, 1), (False, 3)])
def test_a_failed_run_ends_the_sweep_only_if_that_is_asked_for(tmp_path, fail_fast, started):
    crew = Silent("failed")
    said = told(tmp_path, crew, fail_fast=fail_fast)
    assert (crew.started, said[-1]["left"]) == (started, 3 - started)


def test_a_run_whose_prompts_do_not_fit_into_memory_stops_no_other(tmp_path):
    """An analysis raises ``fitting.NoRoomError``, which is no want of a place for a worker."""
    crew = Silent("failed", "NoRoomError")
    said = told(tmp_path, crew)
    assert [each["event"] for each in said] == ["begin", *("started", "failed") * 3, "finished"]
    assert "NoRoomError" not in cli.shared.EXIT_CODES, "it is a run that failed: exit code 1"


def test_a_worker_that_stands_still_between_runs_holds_up_no_end(monkeypatch):
    monkeypatch.setattr(local, "_PATIENCE", 1)
    crew = local.Crew(1)
    (worker,) = crew.hire([sweep.Job("2_3_extraction", {}, Path("none"), "new")], Path("none"))
    worker._pool = worker._made()
    process = psutil.Process(worker._pool.schedule(os.getpid).result())
    process.suspend()
    ending = threading.Thread(target=crew.close, daemon=True)
    ending.start()
    ending.join(timeout=30)
    assert not ending.is_alive()
    assert not process.is_running()


def test_all_workers_end_at_once(monkeypatch):
    """Each kernel when all were asked to, and what their runs have started in one search for it, whatever fails."""
    asked, happened = [], []

    class Slow:
        def __init__(self, mark):
            self.mark = mark

        def stop(self):
            happened.append(f"stop {self.mark}")
            if self.mark == "b":
                raise RuntimeError("pebble could not end it")

        def closing(self):
            asked.append(Future())
            if len(asked) == 3:
                threading.Timer(0.2, closed).start()
            return asked[-1] if self.mark != "b" else None

    def closed():
        happened.append("closed")
        for each in asked:
            each.set_exception(OSError("it would not"))

    monkeypatch.setattr(local.marks, "end", lambda *marks: happened.append(marks))
    crew = local.Crew(3)
    monkeypatch.setattr(crew, "_every", [Slow(mark) for mark in "abc"])
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        crew.close()
    assert time.monotonic() - began < 5
    assert happened == ["closed", "stop c", "stop b", "stop a", ("a", "b", "c")]


class Deaf:
    """A pool whose only process has died before it was given a run, which it takes and never hears of."""

    active = True

    def __init__(self, raises: str = "") -> None:
        self.raises = raises

    def schedule(self, *given, **named):
        self.active = False
        if self.raises:
            raise RuntimeError(self.raises)
        return Future()

    def stop(self):
        pass

    join = stop


@pytest.mark.parametrize("raises", ["", "Unexpected error within the Pool"])
def test_a_worker_that_dies_before_its_pool_hears_of_a_run_is_replaced(tmp_path, monkeypatch, raises):
    monkeypatch.setattr(workers, "_LOOK", 0.05)
    made, pool = [Deaf(raises)], types.SimpleNamespace(active=True, stop=lambda: None, join=lambda: None)

    def schedule(*given, **named):
        future = Future()
        future.set_result({"status": "done"})
        return future

    pool.schedule = schedule  # each run, and at the end what closes the kernel
    monkeypatch.setattr(local.Worker, "_made", lambda self: made.pop() if made else pool)
    jobs = [sweep.Job("2_3_extraction", {"limit": 1}, tmp_path / "2_3_extraction" / "1", "new")]
    with sweep.Events(tmp_path, 1, as_json=True) as events:
        assert workers.run(jobs, tmp_path, events, local.Crew(1))
    said = [json.loads(line) for line in events.path.read_text().splitlines()]
    assert [each["event"] for each in said] == ["begin", "started", "retried", "started", "done", "finished"]
    assert "died before it began" in said[2]["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_tells_a_sweep_to_end_raises_where_it_is_heeded_alone(number):
    before = signal.signal(number, signal.default_int_handler)  # some of them may be ignored here
    try:
        with sweep.stoppable() as heed:
            heed()
            signal.raise_signal(number)
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                heed()
            code = f"import signal; assert signal.getsignal({number}) is not signal.SIG_IGN"
            assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "a worker that is just started"
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, signal.SIG_IGN)
        with sweep.stoppable() as heed:
            signal.raise_signal(number)
            heed()
    finally:
        signal.signal(number, before)


def test_a_sweep_that_is_told_to_end_while_it_gives_a_worker_its_run_ends_after_that(tmp_path, monkeypatch):
    """As pebble's queue wakes its reader: what is raised in that moment leaves the reader waiting for ever."""
    given, crew = [], Silent()

    def start(*run):
        signal.raise_signal(signal.SIGTERM)
        given.append(run)
        return Future()

    monkeypatch.setattr(crew, "start", start)
    monkeypatch.setattr(crew, "hire", lambda jobs, sign: [crew, crew])
    with sweep.stoppable() as heed, pytest.raises(KeyboardInterrupt):
        told(tmp_path, crew, heed)
    assert len(given) == 1, "the other worker is given none any more"
    assert happened(tmp_path) == ["begin", "started", "interrupted"]


def happened(store: Path) -> list[str]:
    return [json.loads(line)["event"] for line in next(store.glob("sweeps/*.jsonl")).read_text().splitlines()]


def test_a_sweep_that_waits_for_another_rests_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_LOOK", 0.05)
    monkeypatch.setattr(workers, "_HEED", 0.02)
    looks, crew = [], Silent("waits")
    crew.started = 1  # so that its worker answers
    monkeypatch.setattr(workers.claims, "owned", lambda folder: len(looks) < 20)

    def heed():
        looks.append(time.monotonic())
        if len(looks) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(tmp_path, crew, heed)
    assert looks[-1] - looks[0] > 0.15
    assert crew.started > 4, "each is given to a worker again when nobody has it"


def at(turn: int) -> Callable[[], None]:
    """What raises when it is asked for that time whether the sweep was told to end."""
    turns = iter([None] * turn)

    def heed() -> None:
        if next(turns, "over"):
            raise KeyboardInterrupt

    return heed


def test_a_sweep_looks_often_whether_it_was_told_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_LOOK", 60)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        told(tmp_path, Silent(), at(9))  # whose first worker never answers
    assert time.monotonic() - began < 30


def test_a_sweep_of_runs_that_are_there_can_be_told_to_end(tmp_path):
    jobs = [sweep.Job("2_3_extraction", {"limit": n}, tmp_path / "2_3_extraction" / str(n), "cached") for n in range(9)]
    with sweep.Events(tmp_path, 9, as_json=True, heed=at(3)) as events, pytest.raises(KeyboardInterrupt):
        workers.run(jobs, tmp_path, events, Silent())
    assert happened(tmp_path) == ["begin", *["cached"] * 3, "interrupted"]


def test_a_reproduction_that_is_told_to_end_when_all_is_done_makes_no_report(tmp_path, monkeypatch):
    def run(*given, **named):
        signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr(workers, "run", run)
    words = ["reproduce", "--model", "toy", "--seeds", "42", "--limit", "8", "-t", "sst2", "-n", "2_3_extraction"]
    result = CliRunner().invoke(cli.app, [*words, "--store", str(tmp_path)])
    assert result.exit_code == 130, result.output
    assert not (tmp_path / "report").exists()
