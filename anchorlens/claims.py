"""Who may write to a run of a store: whoever holds the lock on the file ``.locks/<notebook>/<key>`` of the store.

A file of its own, and open for writing, because network file systems know no other lock between nodes: NFS makes of
``flock`` on a file a lock of its bytes, which needs that, and keeps one on a folder to the node. The lock ends with the
process that holds it, however that ends.

The files are empty, one for each key that was ever run, and are never removed: whether the path still names the file
that one holds the lock of cannot be asked safely where what a name stands for is remembered for seconds, as by NFS, so
that removing them could give one run to two.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = ".locks"  # in the store
WAITS = "waits for another process that runs it"
_TAKEN = (errno.EAGAIN, errno.EACCES)  # which of them depends on the system


class StoreError(ValueError):
    """A result that does not have the form its analysis declares, or a folder that cannot be written or read."""


@contextmanager
def owning(final: Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block nobody else owns the run whose result is, or will be, ``final``; not even in this process.

    Args:
        waits: called when another owns it, before this one waits for it to end; may raise instead. None: never wait.

    Raises:
        BlockingIOError: if another owns it, and this one may not wait.
        OSError: if there can be no lock.
    """
    handle = _locked(final, waits)
    try:
        yield
    finally:
        _release(handle)


def owned(final: Path) -> bool:
    """Whether another is seen to own a run; has to hold its lock for a moment, shared with others that ask."""
    try:
        handle = os.open(_path(final), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    else:
        return False
    finally:
        _release(handle)


def _path(final: Path) -> Path:
    return final.parents[1] / FOLDER / final.parent.name / final.name


def _locked(final: Path, waits: Callable[[], None] | None) -> int:
    path = _path(final)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if waits is None or error.errno not in _TAKEN:
                raise
            waits()
            fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _release(handle: int) -> None:
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)  # said, since a fork that has the file open would keep it by that
    os.close(handle)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Within the block, an error of the file system is one of the folder of ``path``, and says what to do.

    Raises:
        StoreError: for such an error.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise StoreError(
            f"output folder {path.parent}: cannot be written ({error.strerror or error}: {error.filename or path}). "
            "Give a folder that you may write to, with room left, as --store."
        ) from error
