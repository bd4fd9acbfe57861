"""What happens in the process of a worker, of whichever engine: a warm kernel, and one run after the other in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorlens.sweep import marks

_kernel: Any = None


class _WaitsError(Exception):
    """Another process does the run; kept from whoever waits for a worker, which may do another meanwhile."""


def begin(mark: str, threads: int) -> None:
    """Make this process a worker, with its share of threads; all that it starts bears ``mark``."""
    global _kernel
    from anchorlens.warm import Kernel

    os.environ[marks.NAME] = mark
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    _kernel = Kernel()


def close() -> None:
    """End the kernel in good order."""
    _kernel.close()


def work(notebook: str, parameters: Mapping[str, Any], root: str, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """One run in this worker, if its key is still made of what it was planned with, and no other process does it.

    Errors are told, not raised, since not every error survives the way between processes.
    """
    from anchorlens import batch

    try:
        now = batch.plan(notebook, parameters, Path(root)).made_of
        if changed := batch.differing(made_of, now):
            said = (
                f"its result would not be the one that was planned, since {changed}. Nothing was run: have the same "
                "anchorlens, files and kind of device wherever runs are, and start the sweep again."
            )
            return refused("PlanError", said)
        result = batch.run(notebook, parameters, root=Path(root), bar=False, kernel=_kernel, waits=_leave)
    except _WaitsError:
        return {"status": "waits"}
    except Exception as error:
        return failed(getattr(error, "kind", "") or type(error).__name__, str(error))
    return {"status": "cached" if result.cached else "done"}


def _leave() -> None:
    raise _WaitsError


def refused(kind: str, error: str) -> dict[str, Any]:
    """As ``failed``, of a run that was not begun, since this is no place for it: nor for any other of the sweep."""
    return {**failed(kind, error), "refused": True}


def failed(kind: str, error: str) -> dict[str, Any]:
    """What became of a run that did not end well; ``kind`` is the name of its exception."""
    return {"status": "failed", "kind": kind, "error": error}
