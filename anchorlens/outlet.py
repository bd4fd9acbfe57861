"""What is printed by a thread of its own, so that a reader who stands still, as ``less`` does, holds up nothing."""

import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

_LOOK = 0.1  # seconds between looks at whether the sweep was told to end
_PATIENCE = 1.0  # seconds for a reader, once it was


class Outlet:
    """What stdout or stderr is now, for text from any thread; in memory, as pytest keeps it, it is written at once."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        stream: Any = getattr(sys, name)
        self._stream = stream.mine() if hasattr(stream, "mine") else stream  # nodes.OfMainThread
        self._file, self._name = _file(self._stream), name
        self._trouble: OSError | None = None
        self._waiting: deque[bytes] = deque()
        self._changed, self._thread = threading.Condition(), None

    @property
    def behind(self) -> bool:
        """Whether there is text that its reader has not taken."""
        return bool(self._waiting)

    def say(self, line: str) -> None:
        """Print a line."""
        self.write(f"{line}\n")

    def write(self, text: str) -> None:
        """Print text, when it is its turn."""
        if self._stream is None:  # the process was started without it
            return
        if self._file is None:
            with self._noted():
                self._stream.write(text)
                self._stream.flush()
            return
        with self._changed:
            self._waiting.append(text.encode(self._stream.encoding, self._stream.errors or "strict"))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="printing", daemon=True)
                self._thread.start()

    def check(self) -> None:
        """Look whether all could be printed.

        Raises:
            OSError: if not, of stdout. Nobody has to read stderr: that changes nothing of a sweep.
        """
        if self._trouble is not None and self._name == "stdout":
            raise self._trouble

    def close(self, heed: Callable[[], None] | None) -> None:
        """Wait until all is read; without ``heed``, or when it raises, for a moment and never again."""
        until = time.monotonic() + _PATIENCE
        with self._changed:
            try:
                while self._waiting and (heed or time.monotonic() < until):
                    if heed and time.monotonic() > until:
                        heed()
                    self._changed.wait(_LOOK)
            finally:
                if self._waiting and self._file is not None:
                    _let_go(self._file)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                text = self._waiting[0]
            with self._noted():
                while text and (self._trouble is None or self._name == "stderr"):
                    text = text[self._written(text) :]
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _written(self, text: bytes) -> int:
        """How much was taken. Past Python's own buffers, which are locked, and asked for when the process ends."""
        try:
            return os.write(self._file, text)  # type: ignore[arg-type]
        except BlockingIOError:  # whoever shares it has made it so
            asked = select.poll()
            asked.register(self._file, select.POLLOUT)  # type: ignore[arg-type]
            asked.poll()
            return 0

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trouble = error


def _file(stream: Any) -> int | None:
    """The file descriptor of a stream that only encodes what is written to it."""
    buffer = getattr(stream, "buffer", None) if isinstance(stream, io.TextIOWrapper) else None
    if not isinstance(getattr(buffer, "raw", buffer), io.FileIO):
        return None
    stream.flush()
    return stream.fileno()


def _let_go(file: int) -> None:
    """Let all that is printed there from now on go nowhere."""
    with suppress(OSError):
        nowhere, same = os.open(os.devnull, os.O_WRONLY), os.fstat(file)
        for each in {file, 1, 2}:
            with suppress(OSError):
                if os.path.samestat(os.fstat(each), same):
                    os.dup2(nowhere, each)
        os.close(nowhere)
