"""How far a sweep is: the cell that a run is in, the time left, and both on a terminal."""

import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anchorlens.claims import WAITS
from anchorlens.outlet import Outlet

_LOOK = 1.0  # seconds between looks at what runs do
_LARGEST = 50_000_000  # bytes of a notebook that is still looked into


def cell(folder: str) -> tuple[int, int] | None:
    """Which code cell of how many the run is in that will be in ``folder``; None where that cannot be seen now.

    The 0th: none has begun, since its kernel starts.
    The notebook is written into the partial folder when a code cell begins, wherever the worker is.
    """
    path = Path(f"{folder}.partial", "run.ipynb")
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # half written just now, or not there yet
        if path.stat().st_size > _LARGEST:
            return None
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        states = [each["metadata"]["papermill"]["status"] for each in cells if each["cell_type"] == "code"]
        return sum(state != "pending" for state in states), len(states)
    return None


def seconds_left(worked: int, left: int, seconds: float) -> float | None:
    """When all will be done, if the rest takes as long as what was done in ``seconds``; None before anything was.

    Args:
        worked: runs that have ended and took work: those that were there already, or come from elsewhere, say nothing.
        left: runs that have not ended.
    """
    return left * seconds / worked if worked else None


def plain(text: str) -> str:
    """Text on one line, without what a terminal would obey."""
    line = " ".join(text.splitlines())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


class Bar:
    """All runs on one line of a terminal, and below it each that is going on with its cell.

    Args:
        total: how many runs there are.
        stand: how many have ended, how many of these took work, and seconds since the first of them began.
        outlet: that of the terminal.
    """

    def __init__(self, total: int, stand: Callable[[], tuple[int, int, float]], outlet: Outlet) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        texts = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[said]")]
        self._outlet, console = outlet, Console(file=_Terminal(outlet))  # type: ignore[arg-type]
        self._progress = Progress(texts[0], BarColumn(bar_width=20), texts[1], console=console, auto_refresh=False)
        self._total, self._stand, self._over = total, stand, threading.Event()
        self._running: dict[str, tuple[Any, str, float]] = {}
        self._lock = threading.Lock()
        self._all = self._progress.add_task("runs", total=total, said="")
        self._width = max(20, self._progress.console.width - 50)
        self._progress.start()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._draw()
        self._progress.stop()

    def see(self, event: str, more: Mapping[str, Any]) -> None:
        """What happened to a run; what went wrong stays on the terminal, above the bar."""
        job = more.get("job", "")
        with self._lock:
            if event == "started":
                shown = shortened(plain(job), self._width)
                task = self._progress.add_task(shown, total=None, said="")
                self._running[job] = task, more["folder"], time.monotonic()
            elif job in self._running and event != "untracked":
                self._progress.remove_task(self._running.pop(job)[0])
        if event == "waits":
            self.tell(plain(f"{job} {WAITS}"))
        elif more.get("error"):
            self.tell(plain(f"{f'{event} {job}'.strip()}: {more['error']}"))
        self._draw()

    def tell(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            self._draw()

    def _draw(self) -> None:
        ended, worked, seconds = self._stand()
        left = seconds_left(worked, self._total - ended, seconds)
        said = f"{ended}/{self._total}" + (f", about {clock(left)} left" if left else "")
        with self._lock:
            self._progress.update(self._all, completed=ended, said=said)
            for task, folder, since in self._running.values():
                found, age = cell(folder), clock(time.monotonic() - since)
                if found and found[0] == 0:
                    self._progress.update(task, said=f"starting, {age}")
                elif found:
                    number, of = found
                    self._progress.update(task, total=of, completed=number - 1, said=f"cell {number}/{of}, {age}")
                else:
                    self._progress.update(task, said=age)
        if not self._outlet.behind:  # or frames pile up
            self._progress.refresh()


class _Terminal(io.TextIOBase):
    """For rich: one that takes all at once."""

    encoding = "utf-8"

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self._outlet.write(text)
        return len(text)


def shortened(text: str, width: int) -> str:
    """A long text without its middle: the notebook is at one end, what differs between runs mostly at the other."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[len(text) - (width - width // 2) :]}"


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
