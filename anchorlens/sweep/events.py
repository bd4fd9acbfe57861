"""What happens in a sweep: a line of JSON each, in a file that other processes read, and as people want to see it."""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import psutil

from anchorlens.claims import WAITS
from anchorlens.outlet import Outlet
from anchorlens.store import Run, StoreError, damage
from anchorlens.sweep.progress import Bar, cell, plain, seconds_left

FOLDER = "sweeps"  # in the store
_START = "%Y%m%dT%H%M%S"  # in names of files
_NAME = re.compile(r"\d{8}T\d{6}-\d+")  # of an events file
ENDS = ("done", "cached", "failed")
OVER = ("finished", "interrupted")


@runtime_checkable
class Watcher(Protocol):
    """Who is told of each event beside the file: ``anchorlens.tracking.Tracker``."""

    def see(self, say: Callable[..., None], event: str, more: Mapping[str, Any]) -> None:
        """An event; it may be answered with another by ``say``, from any thread."""
        ...

    def finish(self, *, hasty: bool, heed: Callable[[], None] = lambda: None) -> int:
        """End; how many runs could not be told. ``heed`` is called now and then, and may raise."""
        ...


class Events:
    """Writes events to ``<store>/sweeps/<start>-<process>.jsonl``, and to stdout or stderr.

    Names sort as the sweeps began: where the clock was set back, ``<start>`` is a second after the latest there.
    What cannot be written, on a full disk say, is written as soon as it can be; until then a sweep goes on.

    Args:
        root: the store.
        total: how many jobs there are.
        as_json: print each event on stdout; otherwise a bar on a terminal, and a line an event elsewhere.
        watcher: is told, too.
        heed: called between steps and while something is waited for; raises where the sweep was told to end
            (``stopping.stoppable``).

    Raises:
        StoreError: if nothing can be written there.
    """

    def __init__(
        self,
        root: Path,
        total: int,
        *,
        as_json: bool = False,
        watcher: Watcher | None = None,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        try:
            (root / FOLDER).mkdir(parents=True, exist_ok=True)
            self.path = root / FOLDER / f"{_after(_files(root)):{_START}}-{os.getpid()}.jsonl"
            self.path.touch()
        except OSError as error:
            raise StoreError(
                f"store {root}: cannot be written ({error.strerror}: {error.filename}), so nothing was started. Give a "
                "folder that you may write to, with room left, as --store."
            ) from error
        self._json, self._total, self._watcher, self._heed = as_json, total, watcher, heed
        self._out, self._err, self._hasty = Outlet("stdout"), Outlet("stderr"), False
        self._bar: Bar | None = None
        self._ended = self._worked = 0
        self._counts: dict[str, int] = {}
        self._since: float | None = None  # when the first run began
        self._lock = threading.Lock()
        self._unwritten, self._trouble = b"", ""

    def __enter__(self) -> "Events":
        if not self._json and sys.stderr is not None and sys.stderr.isatty():
            self._bar = Bar(self._total, self._stand, self._err)
        try:
            mine = {"process": os.getpid(), "born": _born(os.getpid())}
            self.say("begin", total=self._total, **mine, host=socket.gethostname())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self._json:
            counts = ", ".join(f"{self._counts.get(name, 0)} {name}" for name in ENDS)
            told = any(isinstance(each, KeyboardInterrupt) for each in error)  # which is said of any command
            again = "" if self._ended == self._total or told else "; the same command goes on"
            self._err.say(f"of {self._total} runs {counts}{again}. Results: {self.path.parents[1]}")  # below the bar
        if self._unwritten:
            self._write(b"")
        if self._unwritten:
            lacking = f"its last {self._unwritten.count(10)} events are only in what was printed"
            self._err.say(f"{self.path}: {self._trouble}; {lacking}. Results are not concerned.")
        for outlet in (self._out, self._err):
            outlet.close(None if self._hasty else self._heed)
        if not any(error):
            self._out.check()

    def heed(self) -> None:
        """Look whether the sweep is to end.

        Raises:
            KeyboardInterrupt: if it was told to.
            OSError: if what it says on stdout cannot be printed, as where the reader is gone.
        """
        self._heed()
        self._out.check()

    def say(self, event: str, **more: Any) -> None:
        """Something happened; ``job`` names the run that it happened to."""
        if self._watcher is not None and event == "finished":
            more["untracked"] = self._watcher.finish(hasty=False, heed=self.heed)
        elif self._watcher is not None and event == "interrupted":
            more["untracked"] = self._watcher.finish(hasty=True)
        moment = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "clock": round(time.monotonic(), 3)}
        line = json.dumps({"event": event, **moment, **more})
        with self._lock:
            trouble = self._write(line.encode() + b"\n")
            self._counts[event] = self._counts.get(event, 0) + 1
            self._ended += event in ENDS
            self._worked += event in ("done", "failed")
            if event == "started" and self._since is None:
                self._since = time.monotonic()
            if trouble:
                self._tell(trouble)
            if self._json:
                self._out.say(line)
            elif self._bar is None:
                self._err.say(plain(_said(event, more, self._ended, self._total)))
        if self._bar is not None:
            self._bar.see(event, more)
        if self._watcher is not None:
            self._watcher.see(self.say, event, more)

    def ending(self) -> None:
        """The sweep was told to end, which takes a while."""
        self._hasty = True
        if not self._json:
            self._tell("ending what goes on; what is done is kept")

    def _tell(self, line: str) -> None:
        self._err.say(line) if self._bar is None else self._bar.tell(line)

    def _stand(self) -> tuple[int, int, float]:
        return self._ended, self._worked, time.monotonic() - self._since if self._since else 0.0

    def _write(self, line: bytes) -> str:
        """Append to the file what is not there yet, in one write, so that whoever reads meanwhile meets whole lines.

        Returns:
            What is wrong with the file, the first time.
        """
        self._unwritten += line
        try:
            with self.path.open("ab", buffering=0) as file:
                while self._unwritten:  # a disk that becomes full takes a part
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
            self._trouble = ""
        except OSError as error:
            known, self._trouble = self._trouble, f"cannot be written ({error.strerror})"
            lags = "so `anchorlens status` lags behind until it can be. Make room, or make it writable"
            return "" if known else f"{self.path}: {self._trouble}, {lags}; the sweep goes on."
        return ""


def _files(root: Path) -> list[Path]:
    """Of the sweeps of a store, as they began."""
    return sorted((root / FOLDER).glob("*.jsonl"))


def _after(files: Sequence[Path]) -> datetime:
    """Now or, where that is not after the latest start of a sweep, a second after it."""
    now = datetime.now(UTC)
    for path in reversed(files):
        with suppress(ValueError):  # some other file
            latest = datetime.strptime(path.stem.partition("-")[0], _START).replace(tzinfo=UTC)
            return max(now, latest + timedelta(seconds=1))
    return now


def _said(event: str, more: Mapping[str, Any], ended: int, total: int) -> str:
    count = f"[{ended}/{total}] " if event in ENDS else ""
    detail = f": {more['error']}" if more.get("error") else ""
    took = f" ({more['seconds']:.1f} s)" if "seconds" in more else ""
    missed = f"; {more['untracked']} times a run was not tracked" if more.get("untracked") else ""
    what = f"{more['job']} {WAITS}" if event == "waits" else f"{event} {more.get('job', '')}".strip()
    return f"{count}{what}{took}{detail}{missed}"


def status(root: Path) -> dict[str, Any]:
    """How the latest sweep of a store stands, from its events; also while another process runs it.

    Returns:
        ``host``, on which it is: of another than this one it cannot be seen whether it died; ``total``, the number of
        runs that are ``done``, ``cached`` and ``failed``, those ``running`` by name with seconds so far, ``cells``:
        which code cell of how many each of them is in, ``waiting``: names of those that another process does, ``cut``:
        names of those that a sweep which was interrupted or died left in their midst, ``seconds_left`` where that can
        be told, ``errors`` by name, ``untracked`` by name where a sink failed, and ``state``: running, finished,
        interrupted or died.

    Raises:
        FileNotFoundError: if there has been none.
        StoreError: if its events cannot be read.
    """
    files = [path for path in _files(root) if _NAME.fullmatch(path.stem)]
    if not files:
        raise FileNotFoundError(f"{root}: no sweep has written here; start one with `anchorlens sweep GRID.yaml`.")
    lines = files[-1].read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # the last may be half written
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise StoreError(
            f"{files[-1]}: a line of it is no JSON ({error}), so how that sweep stands cannot be told. Results are not "
            "concerned: remove the file, and start the sweep again to see what is there."
        ) from error
    running: dict[str, dict[str, Any]] = {}
    waiting: dict[str, None] = {}  # in the order in which they came to it
    counts, errors, untracked, state = dict.fromkeys(ENDS, 0), {}, {}, "running"
    first: dict[str, Any] = {}
    for each in found:
        if each["event"] == "started":
            running[each["job"]] = each
            waiting.pop(each["job"], None)
            first = first or each
        elif each["event"] in ENDS:
            running.pop(each["job"], None)
            counts[each["event"]] += 1
            if each["event"] == "failed":
                errors[each["job"]] = each["error"]
        elif each["event"] == "waits":
            running.pop(each["job"], None)
            waiting[each["job"]] = None
        elif each["event"] == "untracked":
            untracked[each["job"]] = each["error"]
        elif each["event"] in OVER:
            state = each["event"]
    just = {"total": 0, "process": int(files[-1].stem.rpartition("-")[2])}  # starting, and has written nothing yet
    begin: dict[str, Any] = found[0] if found else just
    host = begin.get("host", socket.gethostname())
    here = host == socket.gethostname()
    if state == "running" and here and not _alive(begin["process"], begin.get("born")):
        state = "died"
    if state != "running":  # it may have ended between the storing of a run and the telling
        stored = [job for job, each in running.items() if "folder" in each and not damage(Run(Path(each["folder"])))]
        counts["done"] += len(stored)
        running = {job: each for job, each in running.items() if job not in stored}
    cut = [] if state == "running" else list(running)
    running, waiting = (running, waiting) if state == "running" else ({}, {})
    ages = {job: _since(each, here) for job, each in running.items()}
    cells = {job: cell(each.get("folder", "")) for job, each in running.items()}
    left = None
    if state == "running" and first:
        worked = counts["done"] + counts["failed"]
        left = seconds_left(worked, begin["total"] - sum(counts.values()), _since(first, here))
    stand = {"sweep": files[-1].stem, "host": host, "state": state, "total": begin["total"], **counts, "running": ages}
    stand |= {"cells": cells, "waiting": list(waiting), "cut": cut}
    return {**stand, "seconds_left": left, "errors": errors, "untracked": untracked}


def _since(event: Mapping[str, Any], here: bool) -> float:
    """Seconds since an event, by the clock that nobody sets; each machine has its own of that kind."""
    if not here:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(event["time"])).total_seconds())
    return max(0.0, time.monotonic() - event.get("clock", time.monotonic()))


def _alive(process: int, born: str | None) -> bool:
    """Whether a process is there, and is not a later one of the same number, as after the machine was started again."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not born or _born(process) in ("", born)


def _born(process: int) -> str:
    """Which of all that ever have this number a process is; empty where that is not to be seen.

    On Linux by which start of the machine and when after it, which no clock that is set can change.
    """
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):
            return "nobody"  # it has ended, and its parent has not heard of it
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {int(fields[19])}"
    with suppress(psutil.Error):
        return str(psutil.Process(process).create_time())
    return ""
