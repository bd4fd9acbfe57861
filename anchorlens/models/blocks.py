"""Other ways to run a model's layers for a while: with less memory, or not at all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as run_anew


@contextmanager
def checkpointing(blocks: Iterable[Any]) -> Iterator[None]:
    """Blocks that keep only what is dear to compute; a backward pass computes the rest again, block by block."""
    with _instead(
        blocks,
        lambda _, block: partial(
            run_anew,
            _apart(block),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
            context_fn=partial(create_selective_checkpoint_contexts, _dear),
        ),
    ):
        yield


def _apart(block: Any) -> Any:
    """A block's forward pass that takes over nothing from the layers before it, which are not run again with it."""
    own, sight = block.forward, getattr(getattr(block, "attn", None), "sight", None)
    if sight is None:
        return own

    def run(*given: Any, **named: Any) -> Any:
        with sight.apart():
            return own(*given, **named)

    return run


@contextmanager
def entering(blocks: Iterable[Any], layer: int, resid: torch.Tensor, *, tuples: bool) -> Iterator[None]:
    """Layers below ``layer`` do nothing, and ``resid`` [batch pos d_model] is what comes out of the last of them.

    Where there is none below, it is what goes into the first. ``tuples``: whether blocks return output in a tuple.
    """

    def of(at: int, block: Any) -> Any:
        own = block.forward

        def passed(hidden: torch.Tensor, *given: Any, **named: Any) -> Any:
            if layer == 0:
                return own(resid, *given, **named)
            out = resid if at == layer - 1 else hidden
            return (out,) if tuples else out

        return passed

    with _instead([*blocks][: max(1, layer)], of):
        yield


@contextmanager
def _instead(blocks: Iterable[Any], forward: Any) -> Iterator[None]:
    """``forward(layer, block)`` in place of each block's own, which comes back afterwards."""
    held = list(blocks)
    for layer, block in enumerate(held):
        vars(block)["forward"] = forward(
            layer, block
        )  # set as an attribute, the bridge would hand it on to what it wraps
    try:
        yield
    finally:
        for block in held:
            del vars(block)["forward"]


def _dear(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Outputs of weight matrices are kept; scores, patterns, norms and activation functions are computed again."""
    return CheckpointPolicy.MUST_SAVE if op in _MATRICES else CheckpointPolicy.PREFER_RECOMPUTE


_MATRICES = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
