"""Draw figures as PNG in one browser that stays open, where plotly's own way starts one for each figure."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import psutil

FIGURES = 100  # that are drawn in a tab before it is loaded anew, so that it cannot grow for ever
PATIENCE = 90  # seconds, for the browser to start and for one figure

_held = SimpleNamespace(painters={})  # by process: a fork of the owner cannot use the owner's browser


def draw(figure: Mapping[str, Any], *, scale: int = 2) -> bytes:
    """The PNG of a figure in plotly's JSON, ``scale`` pixels for each of its own.

    Raises:
        Exception: of kaleido's, where the browser cannot be started, or does not draw it; the next call starts another
            browser, as it does where the browser has ended meanwhile.
    """
    return begin(figure, scale=scale)()


def begin(figure: Mapping[str, Any], *, scale: int = 2) -> Callable[[], bytes]:
    """As ``draw``, without waiting for the browser: what is given waits. Figures are drawn in the order of calls."""
    painter = current()
    if painter is not None and not painter.well():
        close()
        painter = None
    if painter is None:
        painter = _held.painters[os.getpid()] = Painter()
    waited = painter.begin(figure, scale=scale)

    def drawn() -> bytes:
        try:
            return waited()
        except BaseException as error:
            if current() is painter:
                close()
            else:
                painter.close()
            if isinstance(error, CancelledError):
                raise RuntimeError("the browser that was to draw a figure has ended: run the cell again.") from error
            raise

    return drawn


def current() -> "Painter | None":
    """The browser of this process, if one was started."""
    return _held.painters.get(os.getpid())


def close() -> None:
    """End the browser of this process, if there is one."""
    painter = _held.painters.pop(os.getpid(), None)
    if painter is not None:
        painter.close()


class Painter:
    """A browser of its own, and what it takes: ``threads`` and ``processes`` of this process."""

    def __init__(self) -> None:
        children, others = psutil.Process().children, set(threading.enumerate())
        before = set(children())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="painter", daemon=True)
        self._thread.start()
        self._kaleido: Any = None
        self.threads: set[threading.Thread] = set()
        self.processes: set[psutil.Process] = set()
        try:
            self._kaleido = self._begin(_opened())()
            self.begin({"data": [], "layout": {}}, scale=1)()  # then all that it takes is there
        except BaseException:
            self.close()
            raise
        self.threads, self.processes = set(threading.enumerate()) - others, set(children()) - before

    def well(self) -> bool:
        """Whether all of it goes on."""
        return all(each.is_alive() for each in self.threads) and all(each.is_running() for each in self.processes)

    def begin(self, figure: Mapping[str, Any], *, scale: int) -> Callable[[], bytes]:
        return self._begin(self._kaleido.calc_fig(dict(figure), opts={"format": "png", "scale": scale}))

    def close(self) -> None:
        family = [each for first in self.processes if first.is_running() for each in (first, *_descendants(first))]
        with suppress(Exception):  # it may not end by itself
            if self._kaleido is not None:
                self._begin(self._kaleido.close())()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _begin(self, what: Coroutine[Any, Any, Any]) -> Callable[[], Any]:
        waited = asyncio.run_coroutine_threadsafe(what, self._loop)

        def result() -> Any:
            try:
                return waited.result(PATIENCE)
            except BaseException:
                waited.cancel()
                raise

        return result


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


async def _opened() -> Any:
    from kaleido import Kaleido

    class Browser(Kaleido):
        """kaleido's, which loads its tab anew after each figure; plotly's script then takes three times as long.

        Figures do not depend on what was drawn before. Where another version of kaleido does that in another way, it is
        as slow as it was and no less right.
        """

        drawn = 0

        async def _return_kaleido_tab(self, tab: Any) -> None:
            self.drawn += 1
            if self.drawn % FIGURES and hasattr(self, "tabs_ready"):
                await self.tabs_ready.put(tab)
            else:
                await super()._return_kaleido_tab(tab)

    browser = Browser(n=1, mathjax=False, timeout=PATIENCE)  # with mathjax, the tab would look for it on the net
    try:
        await browser.open()
    except BaseException:
        await browser.close()
        raise
    return browser


atexit.register(close)
