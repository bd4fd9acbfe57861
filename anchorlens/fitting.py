"""What fits into memory: batches halved when they did not, and how many prompts to begin with."""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from anchorlens import planner, room
from anchorlens.hooks import SettingError
from anchorlens.models import Lens, device_of

Result = TypeVar("Result")


class NoRoomError(MemoryError):
    """A part of an analysis that does not fit into memory and cannot be made smaller."""


@runtime_checkable
class Halved(Protocol):
    """A batch of prompts that can be run in two."""

    @property
    def tokens(self) -> Tensor: ...

    def halves(self) -> "tuple[Halved, ...]":
        """Two parts that hold every prompt once; none for a single prompt."""
        ...


Part = TypeVar("Part")


def halving(run: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """``run`` of one part after the other; what does not fit into memory is run in halves.

    A batch that was too large gives the results of its halves, in their order, and later batches are made no larger
    than what then fits. A result is given once ``run`` has returned it, so that nothing is lost or done twice.

    Args:
        parts: batches (``Halved``), or what is only run whole.

    Raises:
        NoRoomError: for a single prompt, or a part without halves, that does not fit.
    """
    most: int | None = None
    for part in parts:
        waiting: deque[Any] = deque([part])
        while waiting:
            now = waiting.popleft()
            pieces = _pieces(now)
            if pieces and most is not None and now.tokens.numel() > most:
                waiting.extendleft(reversed(pieces))
                continue
            result, asked = _tried(run, now)
            if asked is None:
                yield result[0]
                continue
            _release()
            if not pieces:
                raise _no_room(now, asked)
            most = max(piece.tokens.numel() for piece in pieces)
            waiting.extendleft(reversed(pieces))


def _pieces(part: object) -> Sequence[Any]:
    return part.halves() if isinstance(part, Halved) else ()


def _tried(run: Callable[[Part], Result], part: Part) -> tuple[list[Result], str | None]:
    """The result, or what the allocator said. The error is let go here, and with it all that it holds of the run."""
    try:
        return [run(part)], None
    except NoRoomError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not room.is_out_of_memory(error):
            raise
        return [], str(error).strip() or type(error).__name__


def _release() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _no_room(part: object, asked: str) -> NoRoomError:
    what = "a part that is only run whole"
    if isinstance(part, Halved):
        example = getattr(part, "example", None)
        named = f"example {int(example[0])}, " if example is not None else ""
        what = f"a single prompt ({named}{part.tokens.shape[-1]} tokens)"
    device = str(part.tokens.device) if isinstance(part, Halved) else "cuda" if "CUDA" in asked else "cpu"
    free = room.free_bytes(device)
    return NoRoomError(
        f"{what} does not fit into memory: {asked.rstrip('.')}. On {device}, {free:,} bytes are free. Take a smaller "
        "dtype (bfloat16 or float16), another device, shorter prompts or fewer shots; a backward pass needs less with "
        "checkpoint=True."
    )


def sizing(
    model: Lens, batch_tokens: int, peak: Callable[[planner.Shape, int, int, int], float]
) -> Callable[[int], int]:
    """How many prompts of a length make a batch.

    Args:
        batch_tokens: tokens per batch; 0: as many as ``planner.rows`` finds to fit into free memory.
        peak: bytes that so many prompts of a length take at most, told also how many are free.
    """
    if batch_tokens < 0:
        raise SettingError(f"batch_tokens={batch_tokens}: give tokens per batch, or 0 to choose from free memory.")
    shape, device = shape_of(model), str(device_of(model))
    free, most = 0 if batch_tokens else _free(model), planner.enough(shape, device)

    def size(length: int) -> int:
        if batch_tokens:
            return batch_tokens // length
        return planner.rows(lambda n: peak(shape, n, length, free), length, free, most)

    return size


def checkpointed(model: Lens, rows: int, length: int) -> bool:
    """Whether a backward pass through a batch has to run layers anew, for want of memory."""
    return planner.saliency(shape_of(model), rows, length) > planner.MOST * _free(model)


def _free(model: Lens) -> int:
    """Free bytes where the least are; as if all layers were there, which leaves more room than is needed."""
    return int(min(map(room.free_bytes, model.devices)))


def shape_of(model: Lens) -> planner.Shape:
    """What the planner needs to know of a loaded model."""
    return planner.of_model(model.cfg)
