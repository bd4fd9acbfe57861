"""Runs told to MLflow or Weights & Biases, where somebody asked for it: after they have ended, beside the sweep.

Nothing that a sink does or fails to do touches a run: what could not be told is said,
and the same command tells it later.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from anchorlens.tracking.entries import Entry, done, failed
from anchorlens.tracking.sinks import SINKS, Sink, TrackingError, first_line, sink

__all__ = ["SINKS", "Tracker", "TrackingError", "log"]

RECORD = "tracked.ndjson"  # beside the events of sweeps: what was told where
PATIENCE = 120  # seconds at the end of a sweep for a sink that tells nothing more
HASTE = 5  # the same after Ctrl-C
FAILURES = 3  # in succession, after which a sink is not asked any more


def log(folder: Path, *names: str) -> None:
    """Tell sinks of one finished run: ``tracking.log(result.folder, "mlflow")``.

    Raises:
        TrackingError: if a sink cannot be used.
        store.StoreError: if the folder is no finished run.
    """
    entry = done(Path(folder))
    for name in names:
        to = sink(name)
        try:
            to.write(entry)
        finally:
            to.close()


class _Ended(NamedTuple):
    event: str
    job: str
    folder: Path
    error: str
    seconds: float


class Tracker:
    """Tells sinks of the runs of a sweep, in a thread of its own; each run once, by its key.

    Args:
        root: the store, which keeps a record of what was told.
        names: of sinks.
        given: parameters by folder of a run, for runs that fail and have no manifest.

    Raises:
        TrackingError: if a sink cannot be used; nothing was started then.
    """

    def __init__(self, root: Path, names: Sequence[str], given: Mapping[str, Mapping[str, Any]]) -> None:
        self._sinks = {name: sink(name) for name in dict.fromkeys(names)}
        self._given, self._record = given, root / "sweeps" / RECORD
        self._told = _read(self._record)
        self._failures = dict.fromkeys(self._sinks, 0)
        self._waiting: deque[_Ended] = deque()
        self._changed, self._over, self._moved = threading.Condition(), False, monotonic()
        self.untracked = 0
        self._say: Callable[..., None] = lambda event, **more: None
        self._closing = threading.Thread(target=self._close, name="tracking", daemon=True)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)  # ends with the sweep
        self._thread.start()

    def see(self, say: Callable[..., None], event: str, more: Mapping[str, Any]) -> None:
        """Take note of an event; ``say`` is what tells of a run that could not be tracked."""
        if event in ("done", "cached", "failed"):
            ended = _Ended(event, more["job"], Path(more["folder"]), more.get("error", ""), more.get("seconds", 0.0))
            with self._changed:
                self._say, self._moved = say, max(self._moved, monotonic())
                self._waiting.append(ended)
                self._changed.notify_all()

    def finish(self, *, hasty: bool = False, heed: Callable[[], None] = lambda: None) -> int:
        """Wait until all is told, as long as there is progress and ``heed``, called meanwhile, does not raise.

        In haste no longer than a moment, whether there is progress or not.

        Returns:
            How many times a sink was not told of a run.
        """
        patience = HASTE if hasty else PATIENCE
        with self._changed:
            began = self._moved = monotonic()
            while self._waiting and monotonic() - (began if hasty else self._moved) < patience:
                heed()
                self._changed.wait(0.2)
            self._over, stuck = True, bool(self._waiting)
            left = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._changed.notify_all()
        for ended in left:
            for name in self._sinks:
                self._untracked(ended, name, f"it did not answer within {patience} s at the end of the sweep")
        if stuck:
            return self.untracked
        if self._closing.ident is None:  # or it goes on since it was last told to end
            self._closing.start()
        until = monotonic() + patience
        while self._closing.is_alive() and monotonic() < until:
            heed()
            self._closing.join(0.2)
        if self._closing.is_alive():
            error = f"{', '.join(self._sinks)}: not closed within {patience} s; what is still to be sent may be lost"
            self._say("unclosed", error=error)
        return self.untracked

    def _close(self) -> None:
        for each in self._sinks.values():
            with suppress(Exception):
                each.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                ended = self._waiting[0]
            for name, to in self._sinks.items():
                self._tell(ended, name, to)
            with self._changed:
                if self._over:  # given up meanwhile, and said so
                    return
                self._waiting.popleft()
                self._moved = monotonic()
                self._changed.notify_all()

    def _tell(self, ended: _Ended, name: str, to: Sink) -> None:
        state = "failed" if ended.event == "failed" else "done"
        line = (name, to.where, ended.folder.name, state, ended.error)
        if line in self._told:
            return
        if self._failures[name] >= FAILURES:
            self._untracked(ended, name, f"it failed {FAILURES} times in succession and was not asked any more")
            return
        try:
            to.write(self._entry(ended))
        except Exception as error:
            self._failures[name] += 1
            self._untracked(ended, name, first_line(error))
            return
        self._failures[name] = 0
        with suppress(OSError), self._record.open("a", encoding="utf-8") as file:  # then it is asked again, once
            file.write(json.dumps(line) + "\n")

    def _entry(self, ended: _Ended) -> Entry:
        if ended.event == "failed":
            return failed(ended.folder, self._given.get(str(ended.folder), {}), ended.error, ended.seconds)
        return done(ended.folder)

    def _untracked(self, ended: _Ended, name: str, why: str) -> None:
        if self._over and self._thread is threading.current_thread():
            return  # said already
        self.untracked += 1
        remedy = f"The run itself is not touched; the same command with --track {name} tells it later."
        self._say("untracked", job=ended.job, folder=str(ended.folder), sink=name, error=f"{why}. {remedy}")


def _read(record: Path) -> set[tuple[str, ...]]:
    """What was told, as far as it can be read: what cannot is told again."""
    told = set()
    with suppress(OSError):
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                told.add(tuple(json.loads(line)))
    return told
