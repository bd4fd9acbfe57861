"""On which devices a model goes: one, or as many GPUs as its weights need."""

from collections.abc import Callable
from typing import Any

from anchorlens import room
from anchorlens.preflight import ModelError

SHARE = 0.8  # of a GPU's free memory that weights may take; the rest is for what is computed


def spread(plain: Any, device: str, n_devices: int, *, free: Callable[[str], int] = room.free_bytes) -> list[str]:
    """The devices over which ``plain``'s layers go.

    Args:
        plain: the Hugging Face model, on the CPU.
        device: where it begins; layers go on to the GPUs after that one.
        n_devices: how many; 0: one, or as many as its weights need.
        free: bytes free on a device.

    Raises:
        ModelError: for more devices than there are, or weights that fit on none of these.
    """
    import torch

    if n_devices < 0:
        raise ModelError(f"n_devices={n_devices}: give the number of GPUs, or 0 to take as many as the weights need.")
    if not device.startswith("cuda"):
        if n_devices > 1:
            raise ModelError(f"n_devices={n_devices}: layers are spread over GPUs, and device={device!r} is none.")
        return [device]
    first, there = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if n_devices > there - first:
        raise ModelError(
            f"n_devices={n_devices}: from {device!r} on there are {there - first} GPUs; give at most so many, or 0."
        )
    if n_devices == 1 or first == there - 1:
        return [device]
    needed = sum(each.numel() * each.element_size() for each in [*plain.parameters(), *plain.buffers()])
    every = [f"cuda:{index}" for index in range(first, there)]
    if n_devices:
        return every[:n_devices]
    for count in range(1, len(every) + 1):
        each = [free(one) for one in every[:count]]
        if needed <= SHARE * count * min(each):  # layers are spread evenly
            return [device] if count == 1 else every[:count]
    raise ModelError(
        f"the weights take {needed:,} bytes, and {len(every)} GPUs with {min(map(free, every)):,} free bytes each do "
        "not hold them. Take dtype=bfloat16, a smaller model, or device=cpu."
    )
