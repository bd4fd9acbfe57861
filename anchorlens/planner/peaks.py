"""Peaks: bytes that are alive at once, beside the weights, where most are.

Counted tensor by tensor in what transformer-lens has in a layer at its worst moments, and within 15 % of what
``tests/benchmarks/memory.py`` measures. Where a pass is run with half precision, what is summed is counted in float32.
"""

from collections.abc import Callable, Sequence

from anchorlens.planner.costs import memory_bytes, operations
from anchorlens.planner.shapes import Shape

SHARE = 0.5  # of free memory that a batch is planned to take
MOST = 0.8  # of free memory beyond which a backward pass runs layers anew rather than keep what is in them
ENOUGH = 4096  # tokens; larger batches gain nothing anywhere
LEAST, WORK = 512, 1e10  # tokens, operations in a layer: on a CPU, larger batches gain nothing and pad more


def reading(shape: Shape, rows: int, length: int, before: int) -> float:
    """Peak of ``rows`` queries of ``length`` tokens after ``before`` remembered ones, whose memory is not counted."""
    return max(_layer(shape, rows, length, before), _answer(shape, rows))


def remembering(shape: Shape, rows: int, length: int, before: int = 0) -> float:
    """The same where the tokens are remembered, with what they and those before them then take for every row."""
    return _layer(shape, rows, length, before, kept=2 * shape.n_layers)


def _layer(shape: Shape, rows: int, length: int, before: int, kept: int = 0) -> float:
    """The worst moment in a layer; ``kept`` tensors of keys or values outlive it."""
    reach = before + length
    stream, heads, inner, cells = _sizes(shape, rows, length, reach)
    shared, new = (rows * n * shape.kv_heads * shape.d_head for n in (reach, length))
    held = (kept + bool(shape.rotary) if kept else 2) * shared
    hidden = rows * length * reach / shape.itemsize
    moments = [
        4 * stream + heads + held + 2 * cells + 2 * hidden,  # softmax
        4 * stream + 2 * heads + held + cells + shared + hidden,  # scores, values
        kept * shared + (4 if shape.parallel or shape.gated else 5) * stream + (4 if shape.gated else 2) * inner,
        kept * shared + 6 * stream,
    ]
    tables = 2 * rows * reach * shape.rotary  # of the rotation, kept all through the pass
    if shape.rotary:
        turned = 4 * shape.rotary / shape.d_head
        moments.append(4 * stream + heads + (kept or 2) * shared + turned * (shared if kept else new))
    return float((max(moments) + tables) * shape.itemsize)


def _sizes(shape: Shape, rows: int, length: int, reach: int) -> tuple[int, int, int, int]:
    """Numbers in the residual stream, in one of queries, in the MLP's inner layer, and in scores."""
    tokens = rows * length
    return (
        tokens * shape.d_model,
        tokens * shape.n_heads * shape.d_head,
        tokens * shape.d_mlp,
        rows * shape.n_heads * length * reach,
    )


def _answer(shape: Shape, rows: int) -> float:
    return 2.0 * rows * shape.d_vocab * shape.wide


def saliency(shape: Shape, rows: int, length: int, *, checkpoint: bool = False) -> float:
    """Peak of ``rows`` whole prompts run forward and backward to every layer's pattern.

    Without ``checkpoint`` each layer keeps its pattern, and what its matrices were multiplied with; with it,
    each keeps what its weight matrices gave, and one layer at a time has the rest.
    """
    stream, heads, inner, cells = _sizes(shape, rows, length, length)
    shared, layers = rows * length * shape.kv_heads * shape.d_head, shape.n_layers
    flows = 3 * rows * length * length * shape.wide / shape.itemsize
    through = 1 + 2 * shape.gated  # of the MLP's inner layer, kept
    wide = 4 / shape.itemsize * 3 * cells if shape.itemsize < 4 else cells  # A * dL/dA
    if checkpoint:
        own = 3 * stream + heads + 2 * shared + (1 + shape.gated) * inner
        moments = [
            3 * cells + 2 * heads + 4 * stream,
            2 * cells + wide + 2 * heads + 4 * stream,
            2 * cells + (2 + 2 * shape.gated) * inner + stream,
            4 * cells + 3 * heads + 4 * stream,  # backward: patterns, scores, and their gradients
        ]
        return float((layers * own + max(moments) + flows) * shape.itemsize)
    own = cells + 3 * heads + (1 if shape.parallel else 2) * stream + through * inner
    first = cells + heads + (0 if shape.parallel else stream + through * inner)
    moments = [
        2 * cells + 5 * heads + 4 * stream,
        2 * cells + wide + 3 * heads + 3 * stream,
        cells + 3 * heads + (2 if shape.parallel else 3) * stream + (3 + 3 * shape.gated) * inner,
        cells + 3 * heads + 6 * stream + (1 - shape.gated) * inner,
        4 * cells + 3 * heads + 4 * stream,  # backward: patterns, scores, and their gradients
    ]
    earlier = max(0, layers - 2) * own + (first if layers > 1 else 0)
    return float((earlier + max(moments) + flows) * shape.itemsize)


def demonstrating(shape: Shape, before: int) -> float:
    """Peak of running one set of demonstrations, which are remembered."""
    return remembering(shape, 1, before)


def extraction(shape: Shape, rows: int, length: int, before: int, vectors: int = 0) -> float:
    """Peak of one pass over demonstrations and queries, with query and key vectors kept in so many layers."""
    kept = vectors * (before * shape.kv_heads + rows * shape.n_heads) * shape.d_head * shape.itemsize
    asked = memory_bytes(shape, before) + reading(shape, rows, length, before)
    return kept + max(demonstrating(shape, before), asked)


def isolation(shape: Shape, rows: int, length: int, before: int, firsts: Sequence[int], arms: int = 2) -> float:
    """Peak of isolation: beside one pass, a memory from layer ``firsts`` on for each setting and arm."""
    reaching = [first for first in firsts if first < shape.n_layers - 1]
    anew = arms * sum(shape.n_layers - first for first in reaching) * memory_bytes(shape, before) / shape.n_layers
    streams = len(set(reaching)) * (rows * length + before) * shape.d_model * shape.itemsize
    return memory_bytes(shape, before) + anew + streams + reading(shape, rows, length, before)


def compression(shape: Shape, rows: int, length: int, before: int, kept: int) -> float:
    """Peak of compression with ``kept`` of the demonstrations' tokens beside all of them."""
    whole = memory_bytes(shape, before)
    asked = max(reading(shape, rows, length, before), memory_bytes(shape, kept) + reading(shape, rows, length, kept))
    return max(demonstrating(shape, before), whole + asked)


def preparing(shape: Shape, rows: int, length: int, before: int, prompts: int) -> float:
    """Peak of making ``prompts`` ready for training: each with its memory, of which there are two for a moment."""
    shown, each = memory_bytes(shape, before), memory_bytes(shape, before + length - 1)
    earlier = max(0, prompts - rows) * each
    ready = shown + max(earlier + remembering(shape, rows, length - 1, before), 2.0 * prompts * each)
    return max(demonstrating(shape, before), ready)


def reweighting(shape: Shape, rows: int, length: int, before: int, training: int) -> float:
    """Peak of re-weighting: ``training`` prompts made ready; then queries remembered, ``rows`` at a time."""
    compared = memory_bytes(shape, before) + remembering(shape, rows, length, before)
    return max(preparing(shape, min(rows, training), length, before, training), compared)


def differentiating(shape: Shape, rows: int, length: int, free: int | float) -> float:
    """Peak of saliency, layers run anew only where even one prompt would not fit into ``free`` bytes otherwise."""
    return saliency(shape, rows, length, checkpoint=saliency(shape, 1, length) > SHARE * free)


def enough(shape: Shape, device: str) -> int:
    """Tokens of a batch beyond which nothing is gained, and padding and memory are lost.

    A CPU is busy as soon as a layer is worth some 0.1 s (GPT-2's shape: extraction of 64 queries takes 6.9 s of CPU in
    batches of 700 tokens, 10.1 s in one batch); on a GPU, and for small models, calls have to be few instead.
    """
    if device.startswith("cuda"):
        return ENOUGH
    return int(min(ENOUGH, max(LEAST, WORK * shape.n_layers / operations(shape, 1))))


def rows(peak: Callable[[int], float], length: int, free: int | float, most: int = ENOUGH) -> int:
    """How many prompts of a length make a batch: what fits into ``SHARE`` of ``free`` bytes, at most ``most`` tokens.

    0 where not even one fits; one where one does.
    """
    low, high = 0, max(1, most // length)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= SHARE * free else (low, middle - 1)
    return low
