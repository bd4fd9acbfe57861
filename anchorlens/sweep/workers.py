"""Local workers: processes that keep a warm kernel each; one that dies loses its run, not the others."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

from anchorlens import batch, preflight, store
from anchorlens.sweep.events import Events
from anchorlens.sweep.grid import Job

TRIES = 3  # of a run whose worker or kernel dies
DIED = (
    "BrokenProcessPool",
    "DeadKernelError",
    "ProcessExpired",
    "WarmKernelError",
)  # abnormal ends, after which a run is tried again
_LOOK = 1.0  # seconds between looks at whether the scheduler lives
_LOOKS = 5  # for processes that are to be ended
_PATIENCE = 10  # seconds for a kernel to end in good order
_MARK = "ANCHORLENS_WORKER"  # in the environment of all that a worker starts: survives the worker, unlike parenthood


def run(
    jobs: Sequence[Job], root: Path, events: Events, *, workers: int = 1, limit: float = 0, fail_fast: bool = False
) -> bool:
    """Run jobs that are not done yet, and tell what happens to each.

    Args:
        workers: processes, each with a kernel of its own that is kept from run to run.
        limit: seconds that a run may take; 0: any.
        fail_fast: start no further run after one that failed.

    Returns:
        Whether all is done. No process that a run has started is left.
    """
    waiting, failed = [], 0
    for job in jobs:
        if job.state == "cached":
            store.Run(job.folder).tidy()
            events.say("cached", job=job.name, folder=str(job.folder))
        else:
            if job.state == "new" and job.said:
                events.say("damaged", job=job.name, folder=str(store.Run(job.folder).broken), error=job.said)
            waiting.append((job, 1))
    waiting.reverse()  # taken from the end
    threads = max(1, (os.cpu_count() or 1) // workers)
    slots = gpus(jobs, workers) or [""] * workers
    every = [_Worker(threads, slot) for slot in slots[: len(waiting)]]
    free = every[::-1]
    flying: dict[Any, tuple[_Worker, Job, int, float]] = {}
    try:
        while waiting or flying:
            while waiting and free and not (fail_fast and failed):
                (job, attempt), worker = waiting.pop(), free.pop()
                events.say("started", job=job.name, folder=str(job.folder), attempt=attempt)
                given = (job.notebook, dict(job.parameters), str(root))
                flying[worker.start(given, limit)] = worker, job, attempt, time.monotonic()
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                worker, job, attempt, since = flying.pop(future)
                said = worker.outcome(future, limit)
                free.append(worker)
                seconds = round(time.monotonic() - since, 2)
                if said["status"] == "failed" and said["kind"] in DIED and attempt < TRIES:
                    events.say("retried", job=job.name, error=said["error"], seconds=seconds, attempt=attempt)
                    waiting.append((job, attempt + 1))
                    continue
                if said["status"] == "failed":
                    failed += 1
                    if said["kind"] in (*DIED, "TimeoutError"):  # nobody was left to note it
                        batch.note_failure(store.Run(job.folder), said["error"])
                event = said.pop("status")
                events.say(event, job=job.name, folder=str(job.folder), seconds=seconds, **said)
        for worker in every:
            worker.close()
    except BaseException:
        for worker in every:
            worker.end()
        events.say("interrupted")
        raise
    events.say("finished", failed=failed, left=len(waiting))
    return not failed and not waiting


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


class _Worker:
    """A process that runs jobs one by one, another one whenever it dies, and all that they start.

    Each has a pool of its own, since a pool cannot be used any more once a worker died that had no task yet.
    """

    def __init__(self, threads: int, gpu: str) -> None:
        self._mark, self._threads, self._gpu, self._pool = uuid.uuid4().hex, threads, gpu, None

    def start(self, given: tuple[Any, ...], limit: float) -> Any:
        """The future of a run."""
        if self._pool is None or not self._pool.active:  # it may have died since its last run
            self.end()
            self._pool = self._made()
        return self._pool.schedule(_work, args=given, timeout=limit or None)

    def outcome(self, future: Any, limit: float) -> dict[str, Any]:
        """What became of a run, whatever became of its worker."""
        from pebble import ProcessExpired

        try:
            return future.result()
        except TimeoutError:
            said = _failed("TimeoutError", f"took longer than the limit of {limit:g} s and was ended")
        except ProcessExpired as error:
            said = _failed("ProcessExpired", f"its worker died ({error}, exit code {error.exitcode})")
        except BrokenProcessPool as error:
            said = _failed("BrokenProcessPool", f"its worker died before it began ({error})")
        self.end()
        return said

    def close(self) -> None:
        """End the worker, and its kernel in good order."""
        if self._pool is not None and self._pool.active:
            with suppress(OSError, RuntimeError):  # it died meanwhile
                self._pool.schedule(_close, timeout=_PATIENCE).result()
        self.end()

    def end(self) -> None:
        """End the worker and all that its runs have started, at once."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None
        _end_marked(self._mark)

    def _made(self) -> Any:
        import multiprocessing

        from pebble import ProcessPool

        context = multiprocessing.get_context("spawn")
        given = (os.getpid(), self._mark, self._threads, self._gpu)
        return ProcessPool(max_workers=1, context=context, initializer=_begin, initargs=given)


def _end_marked(mark: str) -> None:
    """Kill what a worker has started, and what that has; also where the worker is gone and they have new parents."""
    import psutil

    for _ in range(_LOOKS):  # one may start another meanwhile
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(_MARK) == mark:
                    process.kill()
                    found.append(process)
            except psutil.Error:  # gone, or somebody else's
                continue
        if not found:
            return
        psutil.wait_procs(found, timeout=5)


def _failed(kind: str, error: str) -> dict[str, Any]:
    return {"status": "failed", "kind": kind, "error": error}


_kernel: Any = None


def _begin(scheduler: int, mark: str, threads: int, gpu: str) -> None:
    """Make a worker: a process group of its own, its share of threads and GPUs, and an end when the scheduler ends."""
    global _kernel
    from anchorlens.warm import Kernel

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # in the middle of a run; whoever sent it ends the kernel
    os.environ[_MARK] = mark
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _kernel = Kernel()
    threading.Thread(target=_follow, args=(scheduler, mark), daemon=True).start()


def _follow(scheduler: int, mark: str) -> None:
    while os.getppid() == scheduler:
        time.sleep(_LOOK)
    _end_marked(mark)
    os.killpg(0, signal.SIGKILL)


def _close() -> None:
    _kernel.close()


def _work(notebook: str, parameters: Mapping[str, Any], root: str) -> dict[str, Any]:
    """One run in this worker; errors are told, not raised, since not every error survives the way between processes."""
    try:
        result = batch.run(notebook, parameters, root=Path(root), bar=False, kernel=_kernel)
    except Exception as error:
        return _failed(getattr(error, "kind", "") or type(error).__name__, str(error))
    return {"status": "cached" if result.cached else "done"}
