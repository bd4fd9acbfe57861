"""What happens in a sweep: a line of JSON each, in a file that other processes read, and as people want to see it."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anchorlens.store import StoreError
from anchorlens.sweep.progress import Bar, cell, plain, seconds_left

FOLDER = "sweeps"  # in the store
ENDS = ("done", "cached", "failed")
OVER = ("finished", "interrupted")


@runtime_checkable
class Watcher(Protocol):
    """Who is told of each event beside the file: ``anchorlens.tracking.Tracker``."""

    def see(self, say: Callable[..., None], event: str, more: Mapping[str, Any]) -> None:
        """An event; it may be answered with another by ``say``, from any thread."""
        ...

    def finish(self, *, hasty: bool) -> int:
        """End; how many runs could not be told."""
        ...


class Events:
    """Writes events to ``<store>/sweeps/<start>-<process>.jsonl``, and to stdout or stderr.

    Args:
        root: the store.
        total: how many jobs there are.
        as_json: print each event on stdout; otherwise a bar on a terminal, and a line an event elsewhere.
        watcher: is told, too.

    Raises:
        StoreError: if nothing can be written there.
    """

    def __init__(self, root: Path, total: int, *, as_json: bool = False, watcher: Watcher | None = None) -> None:
        self.path = root / FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise StoreError(
                f"store {root}: cannot be written ({error.strerror}: {error.filename}), so nothing was started. Give a "
                "folder that you may write to, with room left, as --store."
            ) from error
        self._json, self._total, self._watcher = as_json, total, watcher
        self._bar: Bar | None = None
        self._ended = self._worked = 0
        self._since: float | None = None  # when the first run began
        self._lock = threading.Lock()

    def __enter__(self) -> "Events":
        if not self._json and sys.stderr.isatty():
            self._bar = Bar(self._total, self._stand)
        try:
            self.say("begin", total=self._total, process=os.getpid())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, event: str, **more: Any) -> None:
        """Something happened; ``job`` names the run that it happened to."""
        if self._watcher is not None and event in OVER:
            more["untracked"] = self._watcher.finish(hasty=event == "interrupted")
        line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **more})
        with self._lock:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")  # one write, so that whoever reads meanwhile meets whole lines
            self._ended += event in ENDS
            self._worked += event in ("done", "failed")
            if event == "started" and self._since is None:
                self._since = time.monotonic()
            if self._json:
                print(line, flush=True)
            elif self._bar is None:
                print(plain(_said(event, more, self._ended, self._total)), file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.see(event, more)
        if self._watcher is not None:
            self._watcher.see(self.say, event, more)

    def _stand(self) -> tuple[int, int, float]:
        return self._ended, self._worked, time.monotonic() - self._since if self._since else 0.0


def _said(event: str, more: Mapping[str, Any], ended: int, total: int) -> str:
    count = f"[{ended}/{total}] " if event in ENDS else ""
    detail = f": {' '.join(more['error'].splitlines())}" if more.get("error") else ""
    took = f" ({more['seconds']:.1f} s)" if "seconds" in more else ""
    missed = f"; {more['untracked']} times a run was not tracked" if more.get("untracked") else ""
    what = f"{event} {more.get('job', '')}".strip()
    return f"{count}{what}{took}{detail}{missed}"


def status(root: Path) -> dict[str, Any]:
    """How the latest sweep of a store stands, from its events; also while another process runs it.

    Returns:
        ``total``, the number of runs that are ``done``, ``cached`` and ``failed``, those ``running`` by name with
        seconds so far, ``cells``: which code cell of how many each of them is in, ``seconds_left`` where that can be
        told, ``errors`` by name, ``untracked`` by name where a sink failed, and ``state``: running, finished,
        interrupted or died.

    Raises:
        FileNotFoundError: if there has been none.
    """
    files = sorted((root / FOLDER).glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{root}: no sweep has written here; start one with `anchorlens sweep GRID.yaml`.")
    lines = files[-1].read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    running: dict[str, dict[str, Any]] = {}
    counts, errors, untracked, state = dict.fromkeys(ENDS, 0), {}, {}, "running"
    first = ""
    for each in found:
        if each["event"] == "started":
            running[each["job"]] = each
            first = first or each["time"]
        elif each["event"] in ENDS:
            running.pop(each["job"], None)
            counts[each["event"]] += 1
            if each["event"] == "failed":
                errors[each["job"]] = each["error"]
        elif each["event"] == "untracked":
            untracked[each["job"]] = each["error"]
        elif each["event"] in OVER:
            state = each["event"]
    begin = found[0] if found else {"total": 0, "process": int(files[-1].stem.rpartition("-")[2])}  # just starting
    if state == "running" and not _alive(begin["process"]):
        state = "died"
    ages = {job: _since(each["time"]) for job, each in running.items()}
    cells = {job: cell(each.get("folder", "")) for job, each in running.items()}
    left = None
    if state == "running" and first:
        worked = counts["done"] + counts["failed"]
        left = seconds_left(worked, begin["total"] - sum(counts.values()), _since(first))
    stand = {"sweep": files[-1].stem, "state": state, "total": begin["total"], **counts, "running": ages}
    return {**stand, "cells": cells, "seconds_left": left, "errors": errors, "untracked": untracked}


def _since(then: str) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(then)).total_seconds())  # clocks may differ


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
