"""Within the kernel: what a cell prints is sent up to a size; then how much more there was, and how to have it.

All that is sent is held by whoever runs the notebook, and written again and again: without an end to it a cell that
prints in a loop takes the memory of the machine, and with it every other run.
"""

import sys
from collections import Counter
from contextlib import nullcontext
from typing import Any

KEPT = 10_000_000  # characters that one cell prints and that are sent
_MESSAGE = 500  # characters that a message of its own, made by each flush, counts for
_LINE = 10_000  # characters of a line that is written over, as progress is, and may go on for hours


class _Limit:
    def __init__(self, stream: type) -> None:
        self._write, self._flush = stream.write, stream.flush
        self._sent: Counter[str] = Counter()
        self._left_out = self._over = 0

    def write(self, stream: Any, text: Any) -> int | None:
        if not isinstance(text, str):
            return self._write(stream, text)
        if text[:1] == "\r" and len(text) < _LINE and "\n" not in text:
            self._over = len(text)
            return self._write(stream, text)
        cell = stream.parent_header.get("msg_id", "")
        room = max(0, KEPT - self._sent[cell])
        self._sent[cell] += len(text)
        if "\n" in text:  # the line before it stays
            self._sent[cell], self._over = self._sent[cell] + self._over, 0
        if len(text) <= room:
            return self._write(stream, text)
        if not self._left_out:
            self._write(
                stream, f"{text[:room]}\n[This cell has printed {KEPT:,} characters; what follows is left out.]\n"
            )
        self._left_out += len(text) - room
        return len(text)

    def flush(self, stream: Any) -> None:
        cell = stream.parent_header.get("msg_id", "")
        self._sent[cell] += _MESSAGE
        if self._sent[cell] < KEPT or not self._left_out:
            self._flush(stream)

    def ended(self, stream: Any) -> None:
        """A cell has ended."""
        if self._left_out:
            self._write(
                stream,
                f"\n[{self._left_out:,} characters that this cell printed are left out. To have them all, let it write "
                "them to a file in the run's folder.]\n",
            )
        self._left_out = 0
        self._sent.clear()


def begin() -> list[str]:
    """Bound what cells print from now on."""
    from ipykernel.iostream import OutStream
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    stream: Any = OutStream
    if stream.write.__module__ == __name__:
        return []  # by an earlier run
    limit = _Limit(stream)

    def write(stream: Any, text: Any) -> int | None:
        return limit.write(stream, text)

    def flush(stream: Any) -> None:
        limit.flush(stream)

    stream.write, stream.flush = write, flush
    shell.events.register("post_run_cell", lambda _: limit.ended(sys.stderr))
    if hasattr(shell, "_tee"):  # with which IPython keeps all that is printed once more, and hides the class's methods
        shell._tee = lambda channel: nullcontext()
    for each in (sys.stdout, sys.stderr):
        vars(each).pop("write", None)
    return []
