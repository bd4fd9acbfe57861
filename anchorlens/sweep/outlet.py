"""What a sweep prints, such that a reader who stands still, as ``less`` does, never keeps it from being ended."""

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

_WHOLE = 4096  # bytes that a pipe which takes any takes at once (PIPE_BUF of Linux)
_LOOK = 0.1  # seconds between looks at whether the sweep was told to end
_PATIENCE = 1.0  # seconds for a reader, once it was


class Outlet:
    """Lines for stdout or stderr.

    Args:
        heed: called while the reader stands still, in the main thread; raises where the sweep was told to end.
    """

    def __init__(self, name: Literal["stdout", "stderr"], heed: Callable[[], None]) -> None:
        self._name, self._heed, self._hasty = name, heed, False
        self._lock, self._left = threading.Lock(), b""

    def hurry(self) -> None:
        """The sweep ends: from now on a reader is waited for a moment, and no more after that."""
        self._hasty = True

    def say(self, line: str) -> None:
        """Print a line; what a reader did not take when ``heed`` raised comes before the next one.

        Raises:
            OSError: if nobody reads stdout any more. Of stderr nobody has to, which changes nothing of a sweep.
        """
        try:
            self._say(f"{line}\n")
        except OSError:
            if self._name == "stdout":
                raise

    def _say(self, text: str) -> None:
        stream: Any = getattr(sys, self._name)
        stream = stream.mine() if hasattr(stream, "mine") else stream  # nodes.OfMainThread
        try:
            output = stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
        except OSError:  # it is kept in memory, as pytest does
            output = None
        if output is None:
            stream.write(text)
            stream.flush()
            return None
        until = time.monotonic() + _PATIENCE
        while not self._lock.acquire(timeout=_LOOK):  # another thread has a line for the same reader
            if self._waited(until):
                return _close(output)
        try:
            stream.flush()
            self._left += text.encode(stream.encoding, stream.errors or "strict")
            asked = select.poll()
            asked.register(output, select.POLLOUT)
            while self._left:
                if asked.poll(1000 * _LOOK):
                    self._left = self._left[os.write(output, self._left[:_WHOLE]) :]
                elif self._waited(until):
                    return _close(output)
        finally:
            self._lock.release()

    def _waited(self, until: float) -> bool:
        """Whether a reader was waited for long enough."""
        if not self._hasty and threading.current_thread() is threading.main_thread():
            self._heed()
        return self._hasty and time.monotonic() > until


def _close(output: int) -> None:
    """Let all that is printed from now on go nowhere."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        os.close(nowhere)
