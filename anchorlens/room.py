"""How much memory is free, and what says that there is none: of main memory, or a GPU's. Nothing here imports torch."""

import ctypes
import sys
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of the CPU's allocator, of MPS, of CUDA libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory, on whichever device."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return named or any(sign in str(error) for sign in _SIGNS)


def free_bytes(device: str) -> int:
    """Bytes that this process can still take on ``device``: cpu, mps, cuda or cuda:N.

    Raises:
        OSError: for a CUDA device that the driver does not give access to.
    """
    if not device.startswith("cuda"):
        return min(psutil.virtual_memory().available, *_left_in_groups(_GROUPS, Path("/proc/self/cgroup")))
    torch, index = sys.modules.get("torch"), int(device.partition(":")[2] or 0)
    if torch is None:
        return _asked_of_the_driver(index)
    cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)  # kept for later use, so free
    return torch.cuda.mem_get_info(index)[0] + cached


def in_units(number: int | float) -> str:
    """So many bytes in words, to three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
        number /= 1024
    raise AssertionError


def _left_in_groups(groups: Path, of_process: Path) -> list[int]:
    """What the limits of this process' control groups leave, those around them included; 2**63 where there are none."""
    left = [2**63]
    lines = of_process.read_text().splitlines() if of_process.is_file() else []
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers == "":
            files, root = ("memory.max", "memory.current", "inactive_file"), groups
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = groups / "memory"
        else:
            continue
        inner = root / name.lstrip("/")
        within = [inner, *(each for each in inner.parents if each.is_relative_to(root))]
        left += [free for each in within if (free := _left(each, *files)) is not None]
    return left


def _left(folder: Path, limit: str, usage: str, given_up: str) -> int | None:
    """None: no limit. Pages of files that were not used lately are given up before anything fails."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the root has no such files
        return None
    return None if most == "max" else max(0, int(most) - used + int(stat.get(given_up, 0)))


def _asked_of_the_driver(index: int) -> int:
    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    failed = driver.cuInit(0) or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index)
    if not failed:
        failed = driver.cuCtxPushCurrent_v2(context) or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuDevicePrimaryCtxRelease_v2(index)
    if failed:
        raise OSError(f"device 'cuda:{index}': the CUDA driver does not tell its free memory (error {failed}).")
    return free.value
