"""Within the kernel: what a cell prints or displays is sent up to a size; then how much more there was, and the remedy.

All that is sent is held by whoever runs the notebook, and written again and again: without an end to it a cell that
prints in a loop, or displays one huge text, takes the memory of the machine, and with it every other run.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

KEPT = 10_000_000  # characters that one cell prints and that are sent; and as many that it displays
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


class _Displays:
    """What cells display beside what they print: figures, tables, and the value of a cell's last line."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()
        self._left_out = self._times = 0

    def kept(self, cell: str, data: Mapping[str, Any], *, update: bool = False) -> Mapping[str, Any]:
        """What is to be sent of one display: all of it where there is room, else the beginning of a text, or nothing.

        One that is left out says so in its place, the first time. An update takes the place of what it updates, as
        progress does, and so no room.
        """
        size = sum(map(_size, data.values()))
        room = max(0, KEPT - _MESSAGE - (0 if update else self._sent[cell]))
        if size <= room:
            if not update:
                self._sent[cell] += size + _MESSAGE
            return data
        text = data["text/plain"][:room] if list(data) == ["text/plain"] else ""
        if text and not update:
            self._sent[cell] = KEPT
        self._times += 1
        self._left_out += size - len(text)
        if self._times > 1:
            return {}
        said = f"[A cell displays {KEPT:,} characters; what is here beyond them is left out.]"
        return {"text/plain": f"{text}\n{said}" if text else said}

    def ended(self) -> str:
        """A cell has ended; what is to be said of that."""
        left_out, times = self._left_out, self._times
        self._left_out = self._times = 0
        self._sent.clear()
        if not times:
            return ""
        return (
            f"\n[{left_out:,} characters in {times} displays of this cell are left out. To have them all, let it write "
            "them to a file in the run's folder.]\n"
        )


def _size(value: Any) -> int:
    return len(value if isinstance(value, str | bytes) else json.dumps(value, default=str, skipkeys=True))


def begin() -> list[str]:
    """Bound what cells print and display from now on."""
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
    publisher, hook, displays = type(shell.display_pub), type(shell.displayhook), _Displays()
    publish_all, value_all = publisher.publish, hook.write_format_data

    def publish(publisher: Any, data: Any, metadata: Any = None, **more: Any) -> None:
        cell = publisher.parent_header.get("msg_id", "")
        kept = displays.kept(cell, data, update=more.get("update", False))
        if kept:
            publish_all(publisher, kept, metadata if kept is data else None, **more)

    def value(hook: Any, data: Any, metadata: Any = None) -> None:
        kept = displays.kept(hook.parent_header.get("msg_id", ""), data)
        value_all(hook, kept, metadata if kept is data else {})  # which is not sent where nothing is kept

    def ended(_: Any) -> None:
        limit.ended(sys.stderr)
        if said := displays.ended():
            sys.stderr.write(said)

    publisher.publish, hook.write_format_data = publish, value
    shell.events.register("post_run_cell", ended)
    if hasattr(shell, "_tee"):  # with which IPython keeps all that is printed once more, and hides the class's methods
        shell._tee = lambda channel: nullcontext()
    for each in (sys.stdout, sys.stderr):
        vars(each).pop("write", None)
    return []
