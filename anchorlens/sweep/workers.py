"""Local workers: processes that keep a warm kernel each; one that dies loses its run, not the others."""

import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

from anchorlens import preflight
from anchorlens.sweep.events import Events
from anchorlens.sweep.grid import Job

TRIES = 3  # of a run whose worker or kernel dies
DIED = ("DeadKernelError", "ProcessExpired", "WarmKernelError")  # abnormal ends, after which a run is tried again
_LOOK = 1.0  # seconds between looks at whether the scheduler lives


def run(
    jobs: Sequence[Job], root: Path, events: Events, *, workers: int = 1, limit: float = 0, fail_fast: bool = False
) -> bool:
    """Run jobs that are not done yet, and tell what happens to each.

    Args:
        workers: processes, each with a kernel of its own that is kept from run to run.
        limit: seconds that a run may take; 0: any.
        fail_fast: start no further run after one that failed.

    Returns:
        Whether all is done.
    """
    import multiprocessing

    from pebble import ProcessPool

    waiting, failed = [], 0
    for job in jobs:
        if job.state == "cached":
            events.say("cached", job=job.name, folder=str(job.folder))
        else:
            waiting.append((job, 1))
    waiting.reverse()  # taken from the end
    threads = max(1, (os.cpu_count() or 1) // workers)
    slots = gpus(jobs, workers)
    held = tempfile.TemporaryDirectory(prefix="anchorlens-slots-")
    pool = ProcessPool(
        max_workers=workers,
        context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), threads, held.name, slots),
    )
    flying: dict[Any, tuple[Job, int, float]] = {}
    try:
        while waiting or flying:
            while waiting and len(flying) < workers and not (fail_fast and failed):
                job, attempt = waiting.pop()
                events.say("started", job=job.name, folder=str(job.folder), attempt=attempt)
                given = (job.notebook, dict(job.parameters), str(root))
                flying[pool.schedule(_work, args=given, timeout=limit or None)] = job, attempt, time.monotonic()
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                job, attempt, since = flying.pop(future)
                said = _outcome(future, limit)
                seconds = round(time.monotonic() - since, 2)
                if said["status"] == "failed" and said["kind"] in DIED and attempt < TRIES:
                    events.say("retried", job=job.name, error=said["error"], seconds=seconds, attempt=attempt)
                    waiting.append((job, attempt + 1))
                    continue
                failed += said["status"] == "failed"
                event = said.pop("status")
                events.say(event, job=job.name, folder=str(job.folder), seconds=seconds, **said)
        pool.close()
        pool.join()
    except BaseException:
        pool.stop()
        pool.join()
        events.say("interrupted")
        raise
    finally:
        held.cleanup()
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
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
    names = names or [str(n) for n in range(there)]
    return [names[n % there] for n in range(workers)]


def slot(folder: Path, slots: Sequence[str]) -> tuple[str, int]:
    """Take a free slot, and hold it as long as this process lives or the handle is open.

    Raises:
        BlockingIOError: if all are taken.
    """
    for n, name in enumerate(slots):
        handle = os.open(folder / str(n), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        return name, handle
    raise BlockingIOError(f"all of the slots {', '.join(slots)} are taken, though each worker has one.")


def _outcome(future: Any, limit: float) -> dict[str, Any]:
    """What became of a run, whatever became of its worker."""
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return _failed("TimeoutError", f"took longer than the limit of {limit:g} s and was ended")
    except ProcessExpired as error:
        return _failed("ProcessExpired", f"its worker died ({error}, exit code {error.exitcode})")


def _failed(kind: str, error: str) -> dict[str, Any]:
    return {"status": "failed", "kind": kind, "error": error}


_kernel: Any = None


def _begin(scheduler: int, threads: int, folder: str, slots: Sequence[str]) -> None:
    """Make a worker: a process group of its own, its share of threads and GPUs, and an end when the scheduler ends."""
    global _kernel
    from anchorlens.warm import Kernel

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    if slots:
        os.environ["CUDA_VISIBLE_DEVICES"], _ = slot(Path(folder), slots)
    _kernel = Kernel()
    threading.Thread(target=_follow, args=(scheduler,), daemon=True).start()


def _follow(scheduler: int) -> None:
    while os.getppid() == scheduler:
        time.sleep(_LOOK)
    os.killpg(0, signal.SIGKILL)  # the kernel ends by itself when its parent does


def _work(notebook: str, parameters: Mapping[str, Any], root: str) -> dict[str, Any]:
    """One run in this worker; errors are told, not raised, since not every error survives the way between processes."""
    from anchorlens import batch

    try:
        result = batch.run(notebook, parameters, root=Path(root), bar=False, kernel=_kernel)
    except Exception as error:
        return _failed(getattr(error, "kind", "") or type(error).__name__, str(error))
    return {"status": "cached" if result.cached else "done"}
