"""What a model keeps in memory, and what running it takes in operations."""

from anchorlens.planner.shapes import Shape

_ROTARY_ROWS = 2048  # positions for which transformer-lens makes its tables at first


def weight_bytes(shape: Shape) -> int:
    """Bytes of a loaded model: input and output matrix apart even where they are one on disk, biases, tables.

    In half precision the output matrix is there a second time, in float32.
    """
    d, width, shared = shape.d_model, shape.n_heads * shape.d_head, shape.kv_heads * shape.d_head
    norm = d if shape.scale_only else 2 * d
    attention = 2 * d * width + 2 * d * shared + width + 2 * shared + d
    mlp = (shape.matrices * d * shape.d_mlp + shape.d_mlp + d) * shape.experts if shape.d_mlp else 0
    tables = 2 * min(shape.n_ctx, _ROTARY_ROWS) * shape.rotary
    layer = attention + mlp + (2 if shape.d_mlp else 1) * norm + tables
    positions = shape.n_ctx * d if shape.learned else 0
    output = (d + 1) * shape.d_vocab
    numbers = shape.d_vocab * d + positions + shape.n_layers * layer + norm + output
    return numbers * shape.itemsize + (output * 4 if shape.itemsize < 4 else 0)


def memory_bytes(shape: Shape, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    return 2 * shape.n_layers * tokens * shape.kv_heads * shape.d_head * shape.itemsize


def operations(shape: Shape, tokens: int, before: int = 0) -> int:
    """Floating-point operations of ``tokens`` that are run after ``before`` remembered ones.

    2 * tokens * weights + 4 * layers * heads * d_head * tokens * (before + tokens), where the weights are those of
    queries, keys, values and output (keys and values of grouped heads once) and of the MLP (a gate counts, and so many
    experts as a token takes), and the second term is scores and values. All cells of the attention matrix count, since
    those above the diagonal are computed and then masked. Norms, biases, embedding and the label words' few columns of
    the output matrix are left out.
    """
    weights, cells = _per_layer(shape, tokens, before)
    return shape.n_layers * (weights + cells)


def operations_with_gradient(shape: Shape, tokens: int, *, checkpoint: bool = False) -> int:
    """The same of whole prompts run forward and backward to their attention patterns, weights frozen.

    Back through a weight matrix costs what it cost forward, since only activations have gradients; back through scores
    and values twice that. With ``checkpoint``, scores and values are computed once more.
    """
    weights, cells = _per_layer(shape, tokens, 0)
    return shape.n_layers * (2 * weights + (4 if checkpoint else 3) * cells)


def _per_layer(shape: Shape, tokens: int, before: int) -> tuple[int, int]:
    attention = 2 * shape.d_model * shape.d_head * (shape.n_heads + shape.kv_heads)
    mlp = shape.matrices * shape.d_model * shape.d_mlp * shape.experts_used
    return 2 * tokens * (attention + mlp), 4 * shape.n_heads * shape.d_head * tokens * (before + tokens)
