"""Section 2.3: does the target's attention to the label words tell its answer, and in which layers?"""

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from anchorlens import metrics
from anchorlens.hooks import SettingError
from anchorlens.prompts import PromptError
from anchorlens.readings import Readings

COLUMNS = {
    "example": "int64",
    "seed": "int64",
    "gold": "int64",
    "predicted": "int64",
    "layer": "int64",
    "label": "int64",
    "attention": "float64",
}
SUMMARY = {"seed": "int64", "layer": "int64", "auc": "float64", "contribution": "float64", "why": "str"}
OVER_SEEDS = {"layer": "int64", "auc": "float64", "contribution": "float64", "seeds": "int64", "why": "str"}
Table: TypeAlias = Any  # what selecting from a DataFrame gives, of which type checkers lose track
_REACHED = 0.8  # the paper's own figure for AUCROC in deep layers
_TELLS = 0.05  # by which AUCROC must exceed chance on average for its shares to mean something; deep layers: 0.3
_NEGLIGIBLE = 1 / 3  # of what R would be if every layer contributed alike; figure 5 shows less


def by_class(reading: Readings) -> Float[Tensor, "query layer label"]:
    """A_l(q, p_i) summed over heads and over the demonstrations of each class, in float64 and class order.

    NaN for a class without demonstrations.
    """
    attention, group = reading.attention.double(), reading.group
    none = attention.new_zeros(*attention.shape[:2], len(group.labels))
    shown = torch.bincount(group.anchor_classes, minlength=len(group.labels)) > 0
    return none.index_add(2, group.anchor_classes, attention).where(shown, torch.nan)


def extraction(reading: Readings) -> pd.DataFrame:
    """How much the target attends to the label words of each class, for every prompt and layer.

    Args:
        reading: what ``readings.read`` gives for a group; no query or key vectors are needed.

    Returns:
        One row per prompt, layer and label (both from 0), columns as in ``COLUMNS``, prompts in the group's order.
        ``attention`` >= 0 is A_l(q, p_i) summed over heads and over the demonstrations of the label's class: 0 to the
        number of heads; NaN where the class has none. ``gold`` is -1 where it is not known.

    Source:
        Section 2.3, appendix E. The released code gives the same numbers. It prints others for one demonstration per
        class, where its notebook reads data ordered by class as if they were ordered by layer; that mixes classes and
        layers, measures nothing, and is not followed. So there is nothing here that as_published would change.
    """
    attention, answers = by_class(reading), reading.answers
    n, n_layers, n_labels = attention.shape
    each = n_layers * n_labels

    def repeated(column: Tensor) -> np.ndarray:
        return column.cpu().repeat_interleave(each).numpy()

    return pd.DataFrame(
        {
            "example": repeated(answers.example),
            "seed": np.full(n * each, reading.group.seed),
            "gold": repeated(answers.gold),
            "predicted": repeated(answers.predicted),
            "layer": torch.arange(n_layers).repeat_interleave(n_labels).repeat(n).numpy(),
            "label": torch.arange(n_labels).repeat(n * n_layers).numpy(),
            "attention": attention.flatten().numpy(),
        }
    )


def summary(frame: pd.DataFrame, *, against: str = "predicted") -> pd.DataFrame:
    """AUCROC_l and R_l of every layer, for each seed.

    Args:
        frame: what ``extraction`` gives for all groups of a run; prompts fixed by a file count as one seed, -1.
        against: what attention should tell: "predicted", the model's own answer, or "gold", the true class; prompts of
            which that is not known are then left out.

    Returns:
        One row per seed and layer, columns as in ``SUMMARY``. ``auc``: how well the attention tells the class, 0 to 1,
        0.5 is chance, one class against one. ``contribution``: R_l, the share of all layers' AUCROC - 0.5 that lies up
        to this layer; the last is 1; it may leave 0 to 1. Where one is NaN, ``why`` tells the reason; otherwise it is
        empty.

    Raises:
        ValueError: if ``against`` is something else.
        PromptError: against gold, if a seed has no prompt of known class.

    Source:
        Section 2.3, appendix E, equation 5. Text, appendix and released code compare with the model's prediction, its
        authors' answers to questions with the true class: hence ``against``. Of several seeds the paper averages
        AUCROC first, see ``over_seeds``.
    """
    if against not in ("predicted", "gold"):
        raise SettingError(f"against={against!r}: attention is compared with 'predicted' or 'gold'.")
    tables = []
    for seed, rows in frame.groupby("seed"):
        known: Table = rows[rows[against] >= 0]
        if known.empty:
            raise PromptError(
                f"seed {seed}: none of its {rows['example'].nunique()} queries has a gold class to compare attention "
                "with. Give queries a label, or compare with what the model predicted (against=predicted)."
            )
        layers = known.groupby("layer")
        aucs = [_auc(of_layer, against) for _, of_layer in layers]
        table = _contributions([auc for auc, _ in aucs], [why for _, why in aucs])
        tables.append(table.assign(seed=seed, layer=list(layers.groups)))
    return _declared(pd.concat(tables, ignore_index=True), SUMMARY)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """AUCROC_l averaged over seeds, and R_l of the average: what the paper plots (equation 5).

    Args:
        table: what ``summary`` gives. To average over tasks as well, give each seed of each task a number of its own.

    Returns:
        One row per layer, columns as in ``OVER_SEEDS``. A seed for which a layer's AUCROC is undefined is left out of
        that layer; ``seeds`` counts the others, and where there are none ``why`` tells the reason.
    """
    layers: Table = table.groupby("layer")
    auc, seeds = layers["auc"].mean(), layers["auc"].count()
    reasons = ["" if each["auc"].notna().any() else "; ".join(dict.fromkeys(each["why"])) for _, each in layers]
    mean = _contributions(auc.tolist(), reasons).assign(layer=auc.index, seeds=seeds.to_numpy())
    return _declared(mean, OVER_SEEDS)


def stated(table: pd.DataFrame) -> pd.DataFrame:
    """What the paper states of figure 5, and what is seen here, averaged over seeds.

    Args:
        table: what ``summary`` gives.

    Returns:
        Columns claim, found (with numbers) and holds. Deep is the deeper half of the layers, shallow the first third. R
        counts as negligible below a third of what it would be if every layer contributed alike, provided that AUCROC
        exceeds chance by 0.05 on average; otherwise there is next to nothing to share. What is undefined does not hold.
    """
    mean = over_seeds(table)
    auc, share, n = mean["auc"].to_numpy(), mean["contribution"].to_numpy(), len(mean)
    undefined = f"undefined: {mean['why'].iloc[0]}"
    reached = (undefined, False)
    if not np.isnan(deep := auc[n // 2 :]).any():
        best = int(deep.argmax()) + n // 2 + 1
        reached = (
            f"AUCROC of layers {n // 2 + 1} to {n} (1 = first): highest {deep.max():.2f} in layer {best}, "
            f"mean {deep.mean():.2f}",
            bool(deep.max() >= _REACHED),
        )
    shallow = n // 3
    low = (undefined, False)
    if shallow == 0:
        low = (f"undefined: {n} layers have no shallow third", False)
    elif not np.isnan(share).any() and auc.mean() - 0.5 < _TELLS:
        low = (f"undecided: AUCROC is {auc.mean():.2f} over all layers, so R shares out next to nothing", False)
    elif not np.isnan(share).any():
        alike = np.arange(1, n + 1) / n
        farthest = max(share[:shallow], key=abs)
        low = (
            f"R is {share[shallow - 1]:.2f} after the first {shallow} of {n} layers, {farthest:.2f} at its farthest "
            f"from 0 among them, where layers that contribute alike would make it {alike[shallow - 1]:.2f}; over all "
            f"layers it is at most "
            f"{np.abs(share - alike).max():.2f} away from that straight line",
            # in each of them: a layer below chance must not make up for one above
            bool(abs(farthest) < _NEGLIGIBLE * alike[shallow - 1]),
        )
    return pd.DataFrame(
        [
            (f"AUCROC reaches {_REACHED} in deep layers", *reached),
            ("R is negligible in shallow layers", *low),
        ],
        columns=["claim", "found", "holds"],
    )


def _declared(table: Table, columns: dict[str, str]) -> pd.DataFrame:
    return table[list(columns)].astype(columns)


def _auc(rows: Table, against: str) -> tuple[float, str]:
    """AUCROC of one layer, and why it is NaN."""
    attention = rows.pivot_table(index="example", columns="label", values="attention")
    target = rows.groupby("example")[against].first()  # both come sorted by example
    target_is = "gold" if against == "gold" else "predicted"
    lacking = [label for label in sorted(set(target)) if label not in attention or attention[label].isna().any()]
    if lacking:
        return np.nan, f"class {lacking[0]} is {target_is} and not demonstrated"
    told = attention.reindex(columns=range(int(rows["label"].max()) + 1)).fillna(0.0)  # other classes play no part
    try:
        return metrics.aucroc(told.to_numpy(), target.to_numpy(), target_is=target_is), ""
    except metrics.UndefinedError as error:
        return np.nan, str(error)


def _contributions(auc: list[float], why: list[str]) -> pd.DataFrame:
    """AUCROC of all layers with R; ``why`` comes with the reason for each NaN among the former."""
    try:
        share, reason = metrics.cumulative(np.array(auc)), ""
    except metrics.UndefinedError as error:
        share, reason = np.full(len(auc), np.nan), str(error)
    return pd.DataFrame({"auc": auc, "contribution": share, "why": [each or reason for each in why]})
