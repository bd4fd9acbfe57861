"""The engine ``local``: workers on this machine, each a process of its own; one that dies loses its run alone."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from anchorlens import batch, preflight
from anchorlens.sweep import inside, marks
from anchorlens.sweep.grid import Job
from anchorlens.sweep.inside import failed

_LOOK = 1.0  # seconds between looks at whether the scheduler lives
_PATIENCE = 10  # seconds for a kernel to end in good order


class Crew:
    """Workers on this machine, as many as asked for (0: one), with equal shares of its threads and GPUs."""

    def __init__(self, workers: int) -> None:
        self._size, self._every = workers or 1, []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: Any) -> None:
        self.end()

    def plan(self, notebook: str, given: Mapping[str, Any], root: Path) -> batch.Plan:
        """As ``batch.plan``: what is here is what the workers see."""
        return batch.plan(notebook, given, root)

    def hire(self, jobs: Sequence[Job], sign: Path) -> list["Worker"]:
        """Workers for jobs, not more than these; they start when they are given a run."""
        small = all(job.parameters.get("model", "toy") in preflight.TOYS for job in jobs)
        threads = 1 if small else max(1, (os.cpu_count() or 1) // self._size)  # of tiny steps each would wake them all
        slots = gpus(jobs, self._size) or [""] * self._size
        self._every = [Worker(threads, slot) for slot in slots[: len(jobs)]]
        return self._every

    def close(self) -> None:
        """End all workers, and their kernels in good order."""
        closing = [worker.closing() for worker in self._every]
        wait([each for each in closing if each is not None], timeout=_PATIENCE)
        self.end()

    def end(self) -> None:
        """End all workers and what their runs have started, at once."""
        with ExitStack() as last:  # each, whatever becomes of the others
            last.callback(marks.end, *[worker.mark for worker in self._every])
            for worker in self._every:
                last.callback(worker.stop)


def gpus(jobs: Sequence[Job], workers: int) -> list[str]:
    """A GPU for each worker, the workers spread evenly; none where there is none, or runs choose by themselves.

    One worker sees all GPUs, and so does each where some run names its GPU or takes several.
    """
    there = preflight.cuda_devices()
    given = [job.parameters for job in jobs]
    chosen = any(str(each.get("device", "")).startswith("cuda:") or each.get("n_devices", 0) > 1 for each in given)
    if workers == 1 or there == 0 or chosen:
        return []
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(n) for n in range(there)]
    return [names[n % there] for n in range(workers)]


class Worker:
    """A process that runs jobs one by one, another one whenever it dies, and all that they start.

    Each has a pool of its own, since a pool cannot be used any more once a worker died that had no task yet.
    """

    def __init__(self, threads: int, gpu: str) -> None:
        self.mark, self._threads, self._gpu, self._pool = uuid.uuid4().hex, threads, gpu, None
        self._lost: Any = None  # a run of a pool that has ended, at the last look

    def start(self, given: tuple[Any, ...], limit: float) -> Any:
        """The future of a run."""
        if self._pool is None or not self._pool.active:  # it may have died since its last run
            self.end()
            self._pool = self._made()
        try:
            return self._pool.schedule(inside.work, args=given)  # whose own limit is by the clock that may be set
        except RuntimeError as error:  # its process has died as soon as it was there
            future: Future = Future()
            future.set_exception(BrokenProcessPool(str(error)))
            return future

    def look(self, future: Any) -> None:
        """End a run of which a pool never heard, since its process died before; others the pool ends itself."""
        if self._pool is None or self._pool.active:
            self._lost = None
        elif self._lost is not future:  # which the pool may be ending just now
            self._lost = future
        else:
            with suppress(InvalidStateError):
                future.set_exception(BrokenProcessPool("it had not heard of the run"))

    def outcome(self, future: Any, limit: float) -> dict[str, Any]:
        """What became of a run, whatever became of its worker."""
        from pebble import ProcessExpired

        try:
            return future.result()
        except ProcessExpired as error:
            said = failed("ProcessExpired", f"its worker died ({error}, exit code {error.exitcode})")
        except BrokenProcessPool as error:
            said = failed("BrokenProcessPool", f"its worker died before it began ({error})")
        self.end()
        return said

    def closing(self) -> Any:
        """Ask for the kernel to end in good order, and for the future that tells what became of it."""
        if self._pool is None or not self._pool.active:
            return None
        with suppress(RuntimeError):  # it died meanwhile: results are there
            return self._pool.schedule(inside.close)

    def end(self) -> None:
        """End the worker and all that its runs have started, at once."""
        self.stop()
        marks.end(self.mark)

    def stop(self) -> None:
        """End the worker; what its runs have started bears its ``mark``."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _made(self) -> Any:
        from pebble import ProcessPool

        given = (os.getpid(), self.mark, self._threads, self._gpu)
        return ProcessPool(max_workers=1, context=_Context(), initializer=_begin, initargs=given)


class _Process(SpawnProcess):
    """One that a Ctrl-C on its terminal does not meet before ``_begin`` has taken it out of the terminal's group."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # or it is started below, and unblocks what is blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process


def _begin(scheduler: int, mark: str, threads: int, gpu: str) -> None:
    """Make a worker: a process group of its own, its share of threads and GPUs, and an end when the scheduler ends."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which what it starts would inherit
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # in the middle of a run; whoever sent it ends the kernel
    signal.signal(signal.SIGUSR1, _stand_still)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    inside.begin(mark, threads)
    threading.Thread(target=_follow, args=(scheduler, mark), daemon=True).start()


def _stand_still(*_: object) -> None:
    """So that a run whose kernel is ended, since the sweep has died, is not noted as one that failed."""
    while True:
        time.sleep(_LOOK)


def _follow(scheduler: int, mark: str) -> None:
    while os.getppid() == scheduler:
        time.sleep(_LOOK)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # type: ignore[arg-type]
    try:
        marks.end(mark)
    finally:  # or it stands still for ever, and holds its run
        os.killpg(0, signal.SIGKILL)
