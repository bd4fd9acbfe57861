"""One kernel for many runs: modules stay imported and models loaded, all else is between runs as it was at the start.

``inside`` sets back in the kernel what a notebook can set. Where it finds something that it cannot undo, or a run ends
in any other way than by its last cell or an error in a cell, the kernel is given up and the next run gets a fresh one.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ENGINE, COLD = "anchorlens", "anchorlens-cold"  # papermill's names for it, and for one that starts a kernel each time


class Kernel:
    """A kernel that outlives a run; started by the first one, ended by ``close`` or with this process.

    Attributes:
        starts: how many processes it has needed so far.
    """

    def __init__(self) -> None:
        self.starts = 0
        self._given_up: list[str] = []
        self._waits: list[Callable[[], list[str]]] = []  # for a run whose traces the kernel is still removing
        self._owner = os.getpid()
        self._manager: Any = None
        self._made_for: Any = None
        self._ending: weakref.finalize | None = None

    @property
    def given_up(self) -> list[str]:
        """Why each process before the present one was given up; waits until the last run's traces are removed."""
        self._settle()
        return self._given_up

    @property
    def pid(self) -> int | None:
        """The kernel's process, while there is one."""
        self._settle()
        return None if self._manager is None else self._manager.provisioner.pid

    def options(self, code: str) -> dict[str, Any]:
        """What ``papermill.execute_notebook`` takes to run in this kernel; ``code`` identifies the package's code.

        Imported modules stay as they are, so a kernel serves one state of the code only.
        """
        from anchorlens.warm import engine  # imports papermill, which takes seconds

        engine.register()
        return {"engine_name": ENGINE, "kernel": self, "code": code}

    @contextmanager
    def serving(self, name: str, code: str, config: Any) -> Iterator[Any]:
        """Lend the kernel's manager to one run; after an error in the block the kernel is given up."""
        self._settle()
        made_for = (name, code, dict(os.environ))
        if self._manager is not None and made_for != self._made_for:
            self.give_up("the package's code, the environment or the kernel's name changed")
        if self._manager is not None and not _alive(self._manager):
            self.give_up("it died between two runs")
        if self._manager is None:
            from jupyter_client import AsyncKernelManager

            self._manager = AsyncKernelManager(
                kernel_name=name, config=config, client_class="anchorlens.warm.ready.Client"
            )
            self._made_for = made_for
            self._ending = weakref.finalize(self, _end, self._manager, os.getpid(), self._waits)
            self.starts += 1
        try:
            yield self._manager
        except BaseException as error:
            self.give_up(f"{type(error).__name__}: {error}", at_once=True)
            raise

    def ended(self, left: Callable[[], list[str]]) -> None:
        """A run has ended; ``left`` waits for what of it stays, which is asked for before the kernel is used again.

        What follows in this process, such as storing the run, meanwhile goes on.
        """
        self._waits.append(left)

    def _settle(self) -> None:
        if os.getpid() != self._owner:
            self._waits.clear()  # a fork cannot ask the owner's kernel
        while self._waits:
            try:
                stays = self._waits.pop()()
            except BaseException as error:  # then nobody knows what stays
                self.give_up(f"{type(error).__name__}: {error}", at_once=True)
                raise
            if stays:
                self.give_up("; ".join(stays))

    def give_up(self, why: str, *, at_once: bool = False) -> None:
        """End the process, so that the next run starts another; ``at_once`` without a chance to clean up."""
        self._given_up.append(why)
        self._stop(at_once)

    def close(self) -> None:
        """End the kernel; a later run would start it again."""
        self._settle()
        self._stop(at_once=False)

    def _stop(self, at_once: bool) -> None:
        if self._ending is not None:
            self._ending.detach()
            _end(self._manager, os.getpid(), at_once=at_once)
        self._manager = self._made_for = self._ending = None


def cold() -> dict[str, Any]:
    """What ``papermill.execute_notebook`` takes to run in a kernel of its own."""
    from anchorlens.warm import client

    client.register()
    return {"engine_name": COLD}


@contextmanager
def kernel() -> Iterator[Kernel]:
    """A kernel for the runs of a ``with`` block: ``with warm.kernel() as kernel: batch.run(..., kernel=kernel)``."""
    held = Kernel()
    try:
        yield held
    finally:
        held.close()


def _alive(manager: Any) -> bool:
    from jupyter_core.utils import run_sync

    return run_sync(manager.is_alive)()


def _end(manager: Any, owner: int, waits: Iterable[Callable[[], list[str]]] = (), at_once: bool = False) -> None:
    """End a kernel with all that it started; it may be dead already, or still removing a run's traces."""
    if os.getpid() != owner or manager.provisioner is None or manager.provisioner.pid is None:
        return  # a fork of the owner must not end the owner's kernel
    for left in waits:
        with suppress(Exception):
            left()
    import psutil
    from jupyter_core.utils import run_sync

    try:
        process = psutil.Process(manager.provisioner.pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    try:
        run_sync(manager.shutdown_kernel)(now=at_once)
    finally:
        for each in family:
            with suppress(psutil.NoSuchProcess):  # as a browser's do when the first of them has gone
                each.kill()
        psutil.wait_procs(family, timeout=5)
        manager.cleanup_connection_file()
