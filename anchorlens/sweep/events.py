"""What happens in a sweep: a line of JSON each, in a file that other processes read, and as people want to see it."""

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anchorlens.store import StoreError

FOLDER = "sweeps"  # in the store
ENDS = ("done", "cached", "failed")


class Events:
    """Writes events to ``<store>/sweeps/<start>-<process>.jsonl``, and to stdout or stderr.

    Args:
        root: the store.
        total: how many jobs there are.
        as_json: print each event on stdout; otherwise a bar on a terminal, and a line an event elsewhere.

    Raises:
        StoreError: if nothing can be written there.
    """

    def __init__(self, root: Path, total: int, *, as_json: bool = False) -> None:
        self.path = root / FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise StoreError(
                f"store {root}: cannot be written ({error.strerror}: {error.filename}), so nothing was started. Give a "
                "folder that you may write to, with room left, as --store."
            ) from error
        self._json, self._bar, self._total, self._ended = as_json, None, total, 0
        self._started = time.monotonic()

    def __enter__(self) -> "Events":
        if not self._json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("runs", total=self._total)
            self._bar.start()
        self.say("begin", total=self._total, process=os.getpid())
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, event: str, **more: Any) -> None:
        """Something happened; ``job`` names the run that it happened to."""
        line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **more})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")  # one write, so that whoever reads meanwhile meets whole lines
        self._ended += event in ENDS
        if self._json:
            print(line, flush=True)
        elif self._bar is not None:
            shown = f"{event} {more.get('job', '')}".strip()
            self._bar.update(self._task, completed=self._ended, description=shown[:60])
        else:
            print(_said(event, more, self._ended, self._total), file=sys.stderr, flush=True)


def _said(event: str, more: Mapping[str, Any], ended: int, total: int) -> str:
    count = f"[{ended}/{total}] " if event in ENDS else ""
    detail = f": {more['error']}" if more.get("error") else ""
    took = f" ({more['seconds']:.1f} s)" if "seconds" in more else ""
    return f"{count}{event} {more.get('job', '')}{took}{detail}".rstrip()


def status(root: Path) -> dict[str, Any]:
    """How the latest sweep of a store stands, from its events; also while another process runs it.

    Returns:
        ``total``, the number of runs that are ``done``, ``cached`` and ``failed``, those ``running`` by name with
        seconds so far, ``errors`` by name, and ``state``: running, finished, interrupted or died.

    Raises:
        FileNotFoundError: if there has been none.
    """
    files = sorted((root / FOLDER).glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{root}: no sweep has written here; start one with `anchorlens sweep GRID.yaml`.")
    lines = files[-1].read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    running: dict[str, str] = {}
    counts, errors, state = dict.fromkeys(ENDS, 0), {}, "running"
    for each in found:
        if each["event"] == "started":
            running[each["job"]] = each["time"]
        elif each["event"] in ENDS:
            running.pop(each["job"], None)
            counts[each["event"]] += 1
            if each["event"] == "failed":
                errors[each["job"]] = each["error"]
        elif each["event"] in ("finished", "interrupted"):
            state = each["event"]
    begin = found[0] if found else {"total": 0, "process": int(files[-1].stem.rpartition("-")[2])}  # just starting
    if state == "running" and not _alive(begin["process"]):
        state = "died"
    now = datetime.now(UTC)
    ages = {job: (now - datetime.fromisoformat(since)).total_seconds() for job, since in running.items()}
    stand = {"sweep": files[-1].stem, "state": state, "total": begin["total"]}
    return {**stand, **counts, "running": ages, "errors": errors}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
