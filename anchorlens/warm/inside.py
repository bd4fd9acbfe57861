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
    torch.cuda.manual_seed_all(torch.initial_seed())  # as ``put_chance`` does after each run
    drawn = chance()
    own = [found.name for found in pkgutil.walk_packages(anchorlens.__path__, "anchorlens.")]
    for name in (*_HEAVY, *(each for each in own if each.split(".")[1] not in _NOT_IN_NOTEBOOKS)):
        importlib.import_module(name)
    for optimiser in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        optimiser([torch.zeros(1, requires_grad=True)])  # torch wraps the step of each when it is first made
    residents = Residents(models.load)
    models.load = residents.load
    if figures.has_browser():
        importlib.import_module("kaleido")
    kept = [(each, each.get()) for each in settings(shell)]
    start = _Start(residents, kept, drawn, Picture(), set(sys.modules), set(threading.enumerate()))
    gc.collect()
    gc.freeze()  # what was imported stays, and going over it again takes a second each time
    return start


def begin(folder: str) -> list[str]:
    """Make ready for a run in ``folder``; what stands in its way."""
    _start()
    os.chdir(folder)
    return []


def end() -> list[str]:
    """Set back what a run has set; what could not be."""
    import psutil
    import torch

    from anchorlens.figures import painting

    start, shell = _start(), _shell()
    drawing = painting.current()  # the browser that draws figures goes on from run to run
    threads, processes = (drawing.threads, drawing.processes) if drawing else (set(), set())
    strays = set(threading.enumerate()) - start.threads - threads
    said = [
        f"thread {each.name} ({type(each).__module__}.{type(each).__name__}) goes on"
        for each in strays
        if not _harmless(each)
    ]
    if left := set(psutil.Process().children()) - processes:
        said.append(f"processes go on: {', '.join(str(each.pid) for each in left)}")
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
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other workers may share the GPU
    return said


def close() -> list[str]:
    """End the browser that draws figures, whose folders would stay where this kernel is killed."""
    if painting := sys.modules.get("anchorlens.figures.painting"):
        painting.close()
    return []


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
