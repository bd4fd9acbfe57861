"""Within the kernel: what is noted before the first run, and what is set back after each."""

import gc
import importlib
import os
import pkgutil
import sys
import sysconfig
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_NOT_IN_NOTEBOOKS = ("cli", "toy", "warm")
_HEAVY = ("transformer_lens", "transformers.models.auto", "sklearn.metrics", "scipy.stats", "pyarrow.parquet", "tqdm")


@dataclass
class _Start:
    """How the kernel stood when everything was imported and nothing had run."""

    residents: Any
    settings: list[tuple[Any, Any]]  # each with what it was
    chance: tuple
    picture: Any
    modules: set[str]
    threads: set[threading.Thread]
    browser: Any

    def children(self) -> set[int]:
        """Processes that the kernel has started, but for the browser's."""
        import psutil

        mine = psutil.Process().children()
        return {each.pid for each in mine if self.browser is None or not self.browser.owns(each)}


class _Browser:
    """One browser for all figures as PNG, where each run would start its own for a second or two."""

    def __init__(self) -> None:
        import psutil

        from anchorlens.figures import painting

        before = set(psutil.Process().children())
        others = set(threading.enumerate())
        painting.start()
        self.threads = set(threading.enumerate()) - others
        self.processes = set(psutil.Process().children()) - before

    def owns(self, process: Any) -> bool:
        return process in self.processes

    def well(self) -> bool:
        return all(thread.is_alive() for thread in self.threads) and all(each.is_running() for each in self.processes)


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


@cache
def _start() -> _Start:
    import torch

    import anchorlens
    from anchorlens import figures, models
    from anchorlens.warm.resident import Residents
    from anchorlens.warm.settings import chance, settings
    from anchorlens.warm.traces import Picture

    shell = _shell()
    drawn = chance()
    own = [found.name for found in pkgutil.walk_packages(anchorlens.__path__, "anchorlens.")]
    for name in (*_HEAVY, *(each for each in own if each.split(".")[1] not in _NOT_IN_NOTEBOOKS)):
        importlib.import_module(name)
    for optimiser in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        optimiser([torch.zeros(1, requires_grad=True)])  # torch wraps the step of each when it is first made
    residents = Residents(models.load)
    models.load = residents.load
    browser = _Browser() if figures.has_browser() else None
    kept = [(each, each.get()) for each in settings(shell)]
    start = _Start(residents, kept, drawn, Picture(), set(sys.modules), set(threading.enumerate()), browser)
    gc.collect()
    gc.freeze()  # what was imported stays, and going over it again takes a second each time
    return start


def begin(folder: str) -> list[str]:
    """Make ready for a run in ``folder``; what stands in its way."""
    start = _start()
    os.chdir(folder)
    return [] if start.browser is None or start.browser.well() else ["its browser ended"]


def end() -> list[str]:
    """Set back what a run has set; what could not be."""
    start, shell = _start(), _shell()
    strays = {thread for thread in threading.enumerate() if thread not in start.threads and not _harmless(thread)}
    said = [f"thread {thread.name} ({type(thread).__module__}.{type(thread).__name__}) goes on" for thread in strays]
    if start.children():
        said.append(f"processes go on: {', '.join(map(str, sorted(start.children())))}")
    if start.browser is not None and not start.browser.well():
        said.append("its browser ended")
    shell.reset(new_session=True)
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)  # they hold the frames of a failed run
    shell._last_traceback = None
    said += _set_back(start)
    said += start.picture.replaced(shell.user_ns)  # after that, since some settings bind names
    start.residents.settle()
    for name in set(sys.modules) - start.modules:
        if not _installed(sys.modules[name]):
            del sys.modules[name]  # the notebook's own, read anew by the next
    start.modules |= set(sys.modules)
    start.picture.extend()
    gc.collect()
    return said


def _set_back(start: _Start) -> list[str]:
    from anchorlens.warm.settings import put_chance, quiet

    said = []
    quiet()
    for setting, was in start.settings:
        if setting.get() != was and setting.put is not None:
            setting.put(was)
        if setting.get() != was:
            said.append(f"{setting.name} stays changed")
    put_chance(start.chance)
    return said


def _harmless(thread: threading.Thread) -> bool:
    """Threads that the kernel itself starts when it needs them, and tqdm's, which watches its bars."""
    return type(thread).__module__.partition(".")[0] in ("zmq", "ipykernel", "IPython", "tqdm")


@cache
def _places() -> tuple[Path, ...]:
    own = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    more = {Path(entry).resolve() for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    return tuple(own | more)  # a virtual environment may see the packages of another, or of the system


def _installed(module: ModuleType) -> bool:
    """Whether a module is installed, built in, or of this package."""
    name, file = getattr(module, "__name__", "") or "", getattr(module, "__file__", None)
    if file is None or name.partition(".")[0] == "anchorlens":
        return True
    return any(Path(file).resolve().is_relative_to(place) for place in _places())
