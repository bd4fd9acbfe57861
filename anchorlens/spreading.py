"""On which devices a model goes: one, or as many GPUs as its weights need. Nothing here imports torch."""

from collections.abc import Callable

from anchorlens import preflight
from anchorlens.preflight import ModelError

SHARE = 0.8  # of a GPU's free memory that weights may take; the rest is for what is computed


def spread(needed: int, device: str, n_devices: int, free: Callable[[str], int]) -> list[str]:
    """The devices over which a model's layers go.

    Args:
        needed: bytes of its weights.
        device: where it begins, resolved; layers go on to the GPUs after that one.
        n_devices: how many; 0: one, or as many as its weights need.
        free: bytes free on a device.

    Raises:
        ModelError: for more devices than there are, or weights that all of them together do not hold.
    """
    every = _candidates(device, n_devices)
    if n_devices == 1 or len(every) == 1:
        return [device]
    if n_devices:
        return every[:n_devices]
    for count in range(1, len(every) + 1):
        if needed <= SHARE * count * min(map(free, every[:count])):  # layers are spread evenly
            return [device] if count == 1 else every[:count]
    raise ModelError(
        f"the weights take {needed:,} bytes, and {len(every)} GPUs with {min(map(free, every)):,} free bytes each do "
        "not hold them. Take dtype=bfloat16, a smaller model, or device=cpu."
    )


def check(device: str, n_devices: int) -> None:
    """Refuse more devices than there are.

    Raises:
        ModelError: says how many there are.
    """
    _candidates(device, n_devices)


def _candidates(device: str, n_devices: int) -> list[str]:
    if n_devices < 0:
        raise ModelError(f"n_devices={n_devices}: give the number of GPUs, or 0 to take as many as the weights need.")
    if not device.startswith("cuda"):
        if n_devices > 1:
            raise ModelError(f"n_devices={n_devices}: layers are spread over GPUs, and device={device!r} is none.")
        return [device]
    first, there = int(device.partition(":")[2] or 0), preflight.cuda_devices()
    if n_devices > there - first:
        raise ModelError(
            f"n_devices={n_devices}: from {device!r} on there are {there - first} GPUs; give at most so many, or 0."
        )
    return [f"cuda:{index}" for index in range(first, there)]
