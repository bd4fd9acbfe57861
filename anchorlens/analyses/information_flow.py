"""Section 2.1: how much information flows into, out of and past label words, layer by layer."""

from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from anchorlens import edges
from anchorlens.batching import Batch
from anchorlens.hooks import SettingError, Site, differentiating
from anchorlens.models import Lens
from anchorlens.passes import NotFiniteError, answer
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
HEADS = ("sum", "each")


def saliency(
    pattern: Float[Tensor, "batch head query key"],
    grad: Float[Tensor, "batch head query key"],
    heads: str = "sum",
) -> Float[Tensor, "batch query key"]:
    """I_l(i, j) = | sum_h A_h(i, j) * dL/dA_h(i, j) | (equation 1; the text's "average" differs by the factor H).

    ``heads="each"`` takes the absolute value in each head before the sum (footnote 3): heads that work against each
    other then count twice instead of not at all.
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)  # in half precision small products would vanish
    product = pattern.to(wide) * grad.to(wide)
    if heads == "each":
        product = product.abs()
    return reduce(product, "batch head query key -> batch query key", "sum").abs()


def pairs(batch: Batch) -> dict[str, Bool[Tensor, "batch query key"]]:
    """Which cells (i, j), j < i <= q, each flow takes its mean over (equations 2 to 4).

    S_wp: from any earlier token to a label word, other demonstrations and template included. S_pq: from a label word to
    the target. S_ww: all the rest, other flow into the target included. A start token is in none of them: the paper's
    prompts have none, it says nothing, and as the attention sink that it is it would swamp the means. Nor is what flows
    within a label word of several tokens, which is one anchor.
    """
    pos = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    is_anchor = batch.demo >= 0  # [batch pos]
    is_target = pos[None] == batch.target[:, None]
    said = (pos[None] <= batch.target[:, None]) & (pos[None] >= batch.start[:, None])  # [batch pos]
    real = (pos[:, None] > pos[None, :])[None] & said[:, :, None] & said[:, None, :]  # [batch query key]
    real = real & ~(is_anchor[:, :, None] & (batch.demo[:, :, None] == batch.demo[:, None, :]))  # within one label word
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

    Tokens of a label word are one row and one column: their cells are summed, and count as one. In ``dtype``, but at
    least float32: half precision cannot count the cells of a long prompt.
    """
    found = pairs(batch)
    cells = torch.stack([found[flow] for flow in FLOWS], dim=1).to(torch.promote_types(dtype, torch.float32))
    first = (batch.demo < 0).scatter(1, batch.anchors, True).to(cells.dtype)  # [batch pos]
    counted = torch.einsum("bfij,bi,bj->bf", cells, first, first)[:, :, None, None]
    return cells / counted.clamp(min=1)


def saliency_maps(model: Lens, batch: Batch, heads: str = "sum") -> Float[Tensor, "batch layer query key"]:
    """I_l of every layer, whole: for looking at single prompts. ``information_flow`` keeps only means.

    Where label words have several tokens, their log-probabilities are read behind the prompt as well; I_l is still that
    of the prompt's own cells, which all these readings share, so it is their gradients that are summed.

    The loss is the cross-entropy of the gold class over the label words' logits alone, at the target, as in the
    released code. It is summed over the batch, so that each prompt is as if alone.

    Raises:
        PromptError: if a prompt has no gold class.
    """
    kept: dict[int, Tensor] = {}

    def keep(layer: int, pattern: Tensor, grad: Tensor) -> None:
        kept[layer] = saliency(pattern, grad, heads).to(batch.tokens.device)

    _backward(model, batch, heads, keep)
    return torch.stack([kept[layer] for layer in range(model.cfg.n_layers)], dim=1)


def largest_edges(model: Lens, batch: Batch, *, heads: str = "sum") -> edges.Edges:
    """The largest cells of the saliency and attention maps of one prompt, for the flow explorer.

    Only cells of the three flows are looked at: j < i, nothing of a start token. A layer is reduced when the backward
    pass comes to it, so that long prompts on deep models need no more memory than ``information_flow``.

    Args:
        batch: a single prompt with its gold class.
        heads: how heads are put together, see ``saliency``; that of one head is | A * dL/dA | either way.

    Raises:
        SettingError: if the batch holds another number of prompts than one.
        ValueError, PromptError, NotFiniteError: as ``information_flow``.

    Source:
        Figure 1, with the numbers of figure 3.
    """
    if len(batch.target) != 1:
        raise SettingError(f"{len(batch.target)} prompts, where the edges of one are drawn: collate([prompt]).")
    weights, limits = averaging(batch, model.cfg.dtype), edges.most(model.cfg.n_layers, model.cfg.n_heads)
    cells = torch.stack(list(pairs(batch).values())).any(0)[0]  # [query key]
    places = cells.nonzero().cpu().numpy()
    means: dict[int, Tensor] = {}
    kept: tuple[dict[int, edges.Layer], ...] = ({}, {})  # saliency, attention

    def keep(layer: int, pattern: Tensor, grad: Tensor) -> None:
        wide = torch.promote_types(pattern.dtype, torch.float32)
        together, seen = saliency(pattern, grad, heads), pattern.to(wide)
        means[layer] = mean_flows(together, weights.to(grad.device)).to(weights.device)
        alone = (seen[0] * grad[0].to(wide)).abs()
        for found, maps in zip(kept, ((together, alone), (seen.mean(1), seen[0])), strict=True):
            rows = torch.cat(maps)[:, cells.to(grad.device)].cpu().numpy()  # [list cell]
            found[layer] = edges.Layer.of(rows, places, limits)

    logits = _backward(model, batch, heads, keep)
    order = range(model.cfg.n_layers)
    values = torch.cat([means[layer] for layer in order]).cpu().double()  # [layer flow]
    _check_range(values[None], F.cross_entropy(logits, batch.gold, reduction="none").cpu(), batch, model.cfg.dtype)
    anchors = (batch.demo[0] >= 0).nonzero().flatten().tolist()
    return edges.joined([[found[n] for n in order] for found in kept], values.numpy(), anchors, batch.tokens.shape[1])


def information_flow(model: Lens, batch: Batch, *, heads: str = "sum") -> pd.DataFrame:
    """Mean saliency of the three flows for every prompt and layer.

    Args:
        model: any model of ``anchorlens.models``, weights frozen; left as it was.
        batch: prompts with their gold class.
        heads: how heads are put together, see ``saliency``.

    Returns:
        One row per prompt, layer (from 0) and flow, columns as in ``COLUMNS``, ordered by seed, example, layer.
        ``value`` >= 0 is a mean over cells: of S_wp, S_pq or S_ww (equations 2 to 4). ``predicted`` is the class whose
        label word has the largest logit.

    Raises:
        ValueError: for ``heads`` of another name.
        PromptError: if a prompt has no gold class or no demonstrations.
        NotFiniteError: if logits or saliency are not finite; names prompts and layers.

    Source:
        Section 2.1, figure 3; the released code gives the same numbers. The figure shows each S divided by the sum of
        the three. Expect S_wp = 0 in the last layer: what reaches label words there is read by no later layer.
    """
    weights, kept = averaging(batch, model.cfg.dtype), {}

    def keep(layer: int, pattern: Tensor, grad: Tensor) -> None:
        kept[layer] = mean_flows(saliency(pattern, grad, heads), weights.to(grad.device)).to(weights.device)

    logits = _backward(model, batch, heads, keep)
    predicted = logits.argmax(-1)
    values = torch.stack([kept[layer] for layer in range(model.cfg.n_layers)], dim=1).cpu().double()
    _check_range(values, F.cross_entropy(logits, batch.gold, reduction="none").cpu(), batch, model.cfg.dtype)
    n, n_layers, n_flows = values.shape
    each = n_layers * n_flows
    repeated = partial(torch.repeat_interleave, repeats=each)
    frame = pd.DataFrame(
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
    return frame.sort_values(["seed", "example", "layer"], kind="stable", ignore_index=True)


def _check_range(
    values: Float[Tensor, "batch layer flow"], loss: Float[Tensor, " batch"], batch: Batch, dtype: torch.dtype
) -> None:
    """Half precision may overflow, or lose the small numbers that a mean over many cells is made of."""
    for what, wrong in (
        ("is not finite", ~values.isfinite().all(-1)),
        ("is 0, with a loss that is not,", (values == 0).all(-1) & (loss > 0)[:, None] & (dtype.itemsize < 4)),
    ):  # [batch layer]
        if wrong.any():
            examples, layers = batch.example.cpu()[wrong.any(-1)].tolist(), wrong.any(0).nonzero().flatten().tolist()
            raise NotFiniteError(
                f"saliency of examples {examples} in layers {layers} {what} in {dtype}: half precision lacks the "
                "range, use dtype=float32.",
                examples,
            )


def stated(frame: pd.DataFrame, twin: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the paper states of figures 3, 7 and 9, and what this frame shows (columns claim, found, holds).

    "Shallow" and "deep" are the first and the last third of the layers, without the last layer for S_wp, where it is 0
    by construction. With the untrained ``twin``, gathering is also held against what an untrained model shows.
    """
    mean = _means(frame)
    third = max(1, len(mean) // 3)
    inner = mean.iloc[:-1] if len(mean) > 1 else mean
    shallow, deep = inner.iloc[:third], mean.iloc[-third:]
    share = _shares(frame)
    rising = share["S_pq"].iloc[-third:].mean() - share["S_pq"].iloc[:third].mean()
    gathering = (shallow["S_wp"] / shallow["S_ww"]).mean()
    larger = int((inner["S_wp"] > inner["S_pq"]).to_numpy().sum())
    rows = [
        (
            "shallow layers: label words gather (S_wp above S_ww)",
            f"S_wp / S_ww = {gathering:.2f} in layers 1 to {len(shallow)}",
            gathering > 1,
        ),
        (
            "S_pq grows towards deep layers",
            f"share of S_pq {share['S_pq'].iloc[:third].mean():.2f} in the first third, {rising:+.2f} in the last",
            rising > 0,
        ),
        (
            "deep layers: S_pq is the largest",
            f"largest in {int((deep['S_pq'] >= deep.max(axis=1)).sum())} of the last {third} layers",
            bool((deep["S_pq"] >= deep.max(axis=1)).all()),
        ),
        (
            "shallow layers: S_wp above S_pq",
            f"S_wp / S_pq = {(shallow['S_wp'] / shallow['S_pq']).mean():.2f} in layers 1 to {len(shallow)}",
            bool((shallow["S_wp"] > shallow["S_pq"]).mean() > 0.5),
        ),
        (
            "neither S_wp nor S_pq is the larger in every layer",
            f"S_wp is the larger in {larger} of {len(inner)} layers before the last",
            0 < larger < len(inner),
        ),
    ]
    if twin is not None:
        base = _means(twin).iloc[: len(shallow)]
        untrained = (base["S_wp"] / base["S_ww"]).mean()
        rows.append(
            (
                "label words gather more than in the same model untrained",
                f"S_wp / S_ww = {gathering:.2f} against {untrained:.2f} untrained",
                gathering > untrained,
            )
        )
    return pd.DataFrame(rows, columns=pd.Index(["claim", "found", "holds"])).astype({"holds": bool})


def _means(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean value by layer and flow, seeds weighing alike."""
    by_seed = frame.pivot_table(index=["seed", "layer"], columns="flow", values="value")
    return pd.DataFrame(by_seed.groupby("layer").mean())


def _shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of each flow by layer, of each seed by itself and then averaged, as figure 3 shows it."""
    mean = frame.pivot_table(index=["seed", "layer"], columns="flow", values="value")
    return pd.DataFrame(mean.div(mean.sum(axis=1), axis=0).groupby("layer").mean())


def _backward(model: Lens, batch: Batch, heads: str, keep) -> Float[Tensor, "batch label"]:
    """Run the batch forward and backward; ``keep(layer, pattern, its gradient)`` is called from the last layer down."""
    if heads not in HEADS:
        raise SettingError(f"heads={heads!r}: it may be 'sum' (equation 1) or 'each' (absolute values before the sum).")
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

    rows, width = batch.scoring.rows, batch.tokens.shape[1]

    def consume(layer: int, pattern: Tensor, grad: Tensor) -> None:
        if rows > 1:  # the pattern of a prompt is the same in all its rows, up to where a label word follows
            pattern = pattern[::rows, :, :width, :width]
            wide = grad[..., :width, :width].to(torch.promote_types(grad.dtype, torch.float32))
            grad = wide.unflatten(0, (-1, rows)).sum(1)
        keep(layer, pattern, grad)

    with torch.enable_grad(), differentiating(model, Site.PATTERN, range(model.cfg.n_layers), consume):
        logits = answer(model, batch, checkpoint=None)
        F.cross_entropy(logits, batch.gold, reduction="sum").backward()
    return logits.detach()
