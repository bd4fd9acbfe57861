"""Section 2.1: how much information flows into, out of and past label words, layer by layer."""

from collections.abc import Iterable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from anchorlens.batching import Batch
from anchorlens.hooks import Site, differentiating
from anchorlens.models import Lens
from anchorlens.passes import answer
from anchorlens.prompts import PromptError

COLUMNS = {
    "example": "int64",
    "seed": "int64",
    "gold": "int64",
    "predicted": "int64",
    "layer": "int64",
    "flow": "str",
    "value": "float64",
}
FLOWS = ("S_wp", "S_pq", "S_ww")


def saliency(
    pattern: Float[Tensor, "batch head query key"], grad: Float[Tensor, "batch head query key"]
) -> Float[Tensor, "batch query key"]:
    """I_l(i, j) = | sum_h A_h(i, j) * dL/dA_h(i, j) | (equation 1; the text's "average" differs by the factor H)."""
    return reduce(pattern * grad, "batch head query key -> batch query key", "sum").abs()


def pairs(batch: Batch) -> dict[str, Bool[Tensor, "batch query key"]]:
    """Which cells (i, j), j < i <= q, each flow takes its mean over (equations 2 to 4).

    S_wp: from any earlier token to a label word, other demonstrations and template included. S_pq: from a label word to
    the target. S_ww: all the rest, other flow into the target included.
    """
    pos = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    is_anchor = (pos[None, :, None] == batch.anchors[:, None, :]).any(-1)  # [batch pos]
    is_target = pos[None] == batch.target[:, None]
    real = (pos[:, None] > pos[None, :])[None] & (pos[None] <= batch.target[:, None])[:, :, None]  # [batch query key]
    wp = real & is_anchor[:, :, None]
    pq = real & is_target[:, :, None] & is_anchor[:, None, :]
    return {"S_wp": wp, "S_pq": pq, "S_ww": real & ~wp & ~pq}


def mean_flows(
    sal: Float[Tensor, "batch query key"], weights: Float[Tensor, "batch flow query key"]
) -> Float[Tensor, "batch flow"]:
    """Mean saliency over the cells of each flow, in the order of ``FLOWS``, from the ``weights`` of ``averaging``."""
    return torch.einsum("bfij,bij->bf", weights, sal.to(weights.dtype))


def averaging(batch: Batch, dtype: torch.dtype) -> Float[Tensor, "batch flow query key"]:
    """1 / (number of cells) on the cells of each flow, 0 elsewhere.

    In ``dtype``, but at least float32: half precision cannot count the cells of a long prompt.
    """
    found = pairs(batch)
    cells = torch.stack([found[flow] for flow in FLOWS], dim=1).to(torch.promote_types(dtype, torch.float32))
    return cells / cells.sum((-2, -1), keepdim=True).clamp(min=1)


def saliency_maps(model: Lens, batch: Batch) -> Float[Tensor, "batch layer query key"]:
    """I_l of every layer, whole: for looking at single prompts. ``information_flow`` keeps only means.

    The loss is the cross-entropy of the gold class over the label words' logits alone, at the target, as in the
    released code. It is summed over the batch, so that each prompt is as if alone.

    Raises:
        PromptError: if a prompt has no gold class.
    """
    kept: dict[int, Tensor] = {}
    _backward(model, batch, lambda layer, sal: kept.__setitem__(layer, sal))
    return torch.stack([kept[layer] for layer in range(model.cfg.n_layers)], dim=1)


def information_flow(model: Lens, batches: Iterable[Batch]) -> pd.DataFrame:
    """Mean saliency of the three flows for every prompt and layer.

    Args:
        model: any model of ``anchorlens.models``, weights frozen; left as it was.
        batches: prompts with their gold class.

    Returns:
        One row per prompt, layer (from 0) and flow, columns as in ``COLUMNS``, ordered by seed, example, layer.
        ``value`` >= 0 is a mean over cells: of S_wp, S_pq or S_ww (equations 2 to 4). ``predicted`` is the class whose
        label word has the largest logit.

    Raises:
        PromptError: if a prompt has no gold class or no demonstrations.
        FloatingPointError: if logits or saliency are not finite.

    Source:
        Section 2.1, figure 3; the released code gives the same numbers. The figure shows each S divided by the sum of
        the three. Expect S_wp = 0 in the last layer: what reaches label words there is read by no later layer.
    """
    frames = [_frame(model, batch) for batch in batches]
    if not frames:
        raise ValueError("information_flow was given no prompts; it needs at least one batch.")
    return pd.concat(frames).sort_values(["seed", "example", "layer"], kind="stable", ignore_index=True)


def _frame(model: Lens, batch: Batch) -> pd.DataFrame:
    weights, kept = averaging(batch, model.cfg.dtype), {}

    def keep(layer: int, sal: Tensor) -> None:
        kept[layer] = mean_flows(sal, weights)

    predicted = _backward(model, batch, keep).argmax(-1)
    values = torch.stack([kept[layer] for layer in range(model.cfg.n_layers)], dim=1).double().cpu()
    if not values.isfinite().all():
        layers = (~values.isfinite()).any(-1).any(0).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"saliency of layers {layers} is not finite in {model.cfg.dtype}: "
            "half precision overflows, use dtype=float32."
        )
    n, n_layers, n_flows = values.shape
    each = n_layers * n_flows
    repeated = partial(torch.repeat_interleave, repeats=each)
    return pd.DataFrame(
        {
            "example": repeated(batch.example.cpu()).numpy(),
            "seed": repeated(batch.seed.cpu()).numpy(),
            "gold": repeated(batch.gold.cpu()).numpy(),
            "predicted": repeated(predicted.cpu()).numpy(),
            "layer": torch.arange(n_layers).repeat_interleave(n_flows).repeat(n).numpy(),
            "flow": pd.Series(FLOWS * (n * n_layers), dtype="str"),
            "value": values.flatten().numpy(),
        }
    )


def _backward(model: Lens, batch: Batch, keep) -> Float[Tensor, "batch label"]:
    """Run the batch forward and backward; ``keep(layer, saliency)`` is called from the last layer down."""
    if (batch.gold < 0).any():
        missing = batch.example[batch.gold < 0].tolist()
        raise PromptError(
            f"examples {missing} have no gold class, and saliency is the gradient of the loss against it. "
            "Give every query a label."
        )
    if batch.anchors.shape[1] == 0:
        raise PromptError(
            f"examples {batch.example.tolist()} have no demonstrations, so there are no label words that information "
            "could flow to. Give each prompt at least one."
        )

    def consume(layer: int, pattern: Tensor, grad: Tensor) -> None:
        keep(layer, saliency(pattern, grad))

    with torch.enable_grad(), differentiating(model, Site.PATTERN, range(model.cfg.n_layers), consume):
        logits = answer(model, batch)
        F.cross_entropy(logits, batch.gold, reduction="sum").backward()
    return logits.detach()
