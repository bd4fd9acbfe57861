"""Section 2.2, appendices C and D: how loyal answers stay when label words are cut off from all that precedes them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from anchorlens import metrics
from anchorlens.analyses.isolation import controls
from anchorlens.analyses.isolation.sweeps import Setting, check, sweep, whole
from anchorlens.batching import Group
from anchorlens.hooks import SettingError
from anchorlens.models import Lens
from anchorlens.passes import TOP, Answers

COLUMNS = {
    "example": "int64",
    "seed": "int64",
    "gold": "int64",
    "predicted": "int64",
    "arm": "str",
    "mask": "str",
    "end": "str",
    "depth": "int64",
    "predicted_clean": "int64",
    "label_loyal": "bool",
    "word_loyalty": "float64",
}
DEPTHS = (1, 3, 5, 7)  # of the paper
CONTROLS = ("seeded", "published")
TOP_PUBLISHED = 10  # next tokens that the released notebook compares, where the paper says 5
ALMOST_NONE = 0.1  # the paper's "almost none" has no number; here: at most one prompt in ten


def settings(n_layers: int, depths: Sequence[int] = ()) -> list[Setting]:
    """The first and the last ``depth`` layers of a model, for every depth.

    Args:
        n_layers: layers of the model.
        depths: how many layers, each 0 (changes nothing) to ``n_layers``; none given: 1, 3, 5 and 7, as far as the
            model has layers.

    Raises:
        ValueError: for a depth out of range, or named twice.
    """
    for depth in depths:
        if not 0 <= depth <= n_layers:
            raise SettingError(f"depth={depth}: this model has {n_layers} layers, so depth may be 0 to {n_layers}")
        if list(depths).count(depth) > 1:
            raise SettingError(f"depths={list(depths)}: depth {depth} is named twice; name each once.")
    made = []
    for depth in depths or [depth for depth in DEPTHS if depth <= n_layers]:
        made.append(Setting("first", depth, tuple(range(depth))))
        made.append(Setting("last", depth, tuple(range(n_layers - depth, n_layers))))
    return made


def isolation(
    model: Lens,
    group: Group,
    settings: Sequence[Setting],
    *,
    mask: str = "before",
    control: str = "seeded",
    top: int = TOP,
    batch_tokens: int = 0,
    rows: Mapping[int, Int[Tensor, "layer row"]] | None = None,
) -> pd.DataFrame:
    """Compare a model's answers with and without some tokens cut off from all earlier ones.

    Args:
        model: any model of ``anchorlens.models``; left as it was.
        group: prompts that share their demonstrations.
        settings: the layers, from ``settings`` or of your own.
        mask: "before" the softmax, where an isolated row then attends to itself with weight 1, or "after" it, where the
            row keeps the weight it had on itself alone.
        control: which tokens arm "random" isolates, as many as stand for label words: "seeded"
            (``controls.seeded``) or "published" (``controls.published``, which takes whole prompts and so far longer).
        top: how many next tokens word loyalty compares.
        batch_tokens: tokens of queries per batch (with the published control, of whole prompts); 0: from free memory.
        rows: positions for the published control by example [layer row], one row for every layer of the model, instead
            of drawing them.

    Returns:
        One row per prompt, arm ("label", "random") and setting, columns as in ``COLUMNS``, ordered by example.
        ``predicted`` is the class under the edit, ``predicted_clean`` without it; ``label_loyal``: they are the same;
        ``word_loyalty``: Jaccard overlap of the ``top`` likeliest next tokens, 0 to 1. ``gold`` is -1 where unknown.

    A label word of several tokens is isolated whole: each is cut off from all that precedes the word.

    Raises:
        ValueError: for a mask, control, layer, ``top`` or ``rows`` that cannot be, or demonstrations with too few
            tokens for the control.
        NotFiniteError: if a label logit is not finite; names the prompts.

    Source:
        Section 2.2, figures 4, 8, 10, 12. The paper's formula, A_l(p, i) = 0 for i < p, would be mask "after"; its
        numbers come from code that masks before the softmax, hence the default. The released notebook compares 10 next
        tokens where the paper says 5, and its control is "published": a run as published takes ``top=TOP_PUBLISHED``
        and ``control="published"``. Isolating the last layer alone can change nothing at the target, since no later
        layer reads the isolated rows: expect loyalty 1 at "last" 1.
    """
    _check(model, group, settings, control, rows)
    arms = {"label": group.rows}
    if control == "seeded":
        arms["random"] = controls.seeded(group)
    before = {"label": group.anchors[group.row_demos]}  # tokens of a label word still see one another
    clean, found = sweep(model, group, settings, arms, before, mask=mask, top=top, batch_tokens=batch_tokens)
    if control == "published":
        for setting in settings:
            drawn = controls.published(group, model.cfg.n_layers, setting.layers) if rows is None else rows
            found["random", setting] = whole(
                model, group, setting, drawn, mask=mask, top=top, batch_tokens=batch_tokens
            )
    frames = [
        _frame(group, clean, found[arm, setting], arm, mask, setting)
        for arm in ("label", "random")
        for setting in settings
    ]
    return pd.concat(frames).sort_values("example", kind="stable", ignore_index=True)


def scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows to be scored, one per prompt and arm: without edit, and both arms and ends at the largest depth."""
    clean = frame.drop_duplicates(["seed", "example"])
    deepest = frame[frame["depth"] == frame["depth"].max()]
    names = deepest["arm"] + " isolated, " + deepest["end"] + " " + deepest["depth"].astype("str")
    both = [
        clean.assign(predicted=clean["predicted_clean"], arm="no isolation"),
        deepest.assign(arm=names),
    ]
    return pd.concat(both, ignore_index=True).filter(items=["example", "seed", "gold", "predicted", "arm"])


def stated(frame: pd.DataFrame) -> pd.DataFrame:
    """What the paper states of figures 4, 8, 10 and 12, and what ``frame`` shows: claim, found, holds.

    At 5 layers where the frame has them, else at the most it has; means over prompts, then over seeds. "Almost none" is
    a loss of at most ``ALMOST_NONE``; an effect counts as large, or as larger than another, beyond that margin.

    Raises:
        ValueError: if the frame lacks an arm or an end at some depth.
    """
    depths = sorted(frame["depth"].unique())
    there = set(zip(frame["arm"], frame["end"], frame["depth"], strict=True))
    for needed in itertools.product(("label", "random"), ("first", "last"), depths):
        if needed not in there:
            raise ValueError(
                "the frame has no rows of arm {!r}, end {!r}, depth {}: the paper compares both arms and both ends at "
                "every depth.".format(*needed)
            )
    depth = 5 if 5 in depths else depths[-1]
    many = ", ".join(map(str, depths))
    told = []
    for measure, words in (("label_loyal", "label loyalty"), ("word_loyalty", "word loyalty")):
        by_seed = frame.pivot_table(index="seed", columns=["arm", "end", "depth"], values=measure)
        mean = by_seed.mean().round(12).to_dict()  # sums of rounded shares must not fall below the margin
        label = {end: [float(mean["label", end, each]) for each in depths] for end in ("first", "last")}
        first, last = (float(mean["label", end, depth]) for end in ("first", "last"))
        control = [float(mean["random", end, depth]) for end in ("first", "last")]
        least, enough = min(last, *control), 1 - ALMOST_NONE
        told += [
            (
                f"{words}: isolating label words in the first {depth} layers has the largest effect",
                f"{first:.3f}, the lowest of the other three {least:.3f}",
                first < least - ALMOST_NONE,
            ),
            (f"{words}: isolating them in the last {depth} has almost none", f"{last:.3f}", last >= enough),
            (
                f"{words}: isolating random other tokens in {depth} layers has almost none",
                f"first {control[0]:.3f}, last {control[1]:.3f}",
                min(control) >= enough,
            ),
            (
                f"{words}: label words in the first {many} layers, a large effect",
                _listed(label["first"]),
                max(label["first"]) < enough,
            ),
            (
                f"{words}: label words in the last {many} layers, negligible also when more are isolated",
                _listed(label["last"]),
                min(label["last"]) >= enough,
            ),
        ]
    return pd.DataFrame(told, columns=["claim", "found", "holds"])


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _check(
    model: Lens,
    group: Group,
    settings: Sequence[Setting],
    control: str,
    rows: Mapping[int, Int[Tensor, "layer row"]] | None,
) -> None:
    if control not in CONTROLS:
        raise SettingError(f"control={control!r}: it may be {' or '.join(map(repr, CONTROLS))}.")
    check(settings, model.cfg.n_layers)
    if rows is None:
        return
    if control != "published":
        raise ValueError(f"rows were given with control={control!r}: they are the positions of control='published'.")
    for prompt in group.prompts:
        found = tuple(rows[prompt.example].shape) if prompt.example in rows else "nothing"
        if not isinstance(found, tuple) or len(found) != 2 or found[0] != model.cfg.n_layers:
            raise ValueError(
                f"rows of example {prompt.example}: {found}; give positions [layer row] for each of the model's "
                f"{model.cfg.n_layers} layers."
            )


def _frame(group: Group, clean: Answers, edited: Answers, arm: str, mask: str, setting: Setting) -> pd.DataFrame:
    predicted, before = edited.predicted.numpy(), clean.predicted.numpy()
    values = {
        "example": clean.example.numpy(),
        "seed": group.seed,
        "gold": clean.gold.numpy(),
        "predicted": predicted,
        "arm": arm,
        "mask": mask,
        "end": setting.end,
        "depth": setting.depth,
        "predicted_clean": before,
        "label_loyal": predicted == before,
        "word_loyalty": metrics.jaccard(clean.top.numpy(), edited.top.numpy()),
    }
    return pd.DataFrame(values).astype(COLUMNS)
