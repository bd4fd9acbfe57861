"""What the results are measured by: numbers in, numbers out."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

SCORES = {
    "seed": "int64",
    "arm": "str",
    "n": "int64",
    "accuracy": "float64",
    "macro_f1": "float64",
    "majority": "float64",
    "class_counts": "str",
}
_ROUNDING = 1e-12  # a sum of AUCROC - 0.5 over some hundred layers is exact to about 1e-14


class UndefinedError(ValueError):
    """A measure that these numbers do not define; the message says why, in few words fit for a figure."""


def jaccard(a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Overlap of two sets of tokens per prompt, |a and b| / |a or b|, 0 to 1; their mean is the word loyalty.

    Args:
        a: ids of the k likeliest next tokens [n k], in any order.
        b: the same for the edited model [n k].

    Raises:
        ValueError: if the shapes differ, k is 0, or a row names a token twice.
    """
    _alike(a=a.shape, b=b.shape)
    if a.shape[1] == 0:
        raise ValueError("jaccard was given rows of 0 tokens; the overlap needs at least 1 per prompt.")
    for name, ids in (("a", a), ("b", b)):
        twice = [row for row, one in enumerate(ids.tolist()) if len(set(one)) < len(one)]
        if twice:
            raise ValueError(f"jaccard: rows {twice} of {name} name a token twice; give sets of distinct tokens.")
    shared = (a[:, :, None] == b[:, None, :]).sum(axis=(1, 2))
    return shared / (2 * a.shape[1] - shared)


def label_loyalty(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"]) -> float:
    """Share of prompts whose predicted class is unchanged, 0 to 1; an ``UndefinedError`` if there are no prompts."""
    _alike(before=before.shape, after=after.shape)
    if len(before) == 0:
        raise UndefinedError("no prompts")
    return float((before == after).mean())


def aucroc(
    attention: Float[np.ndarray, "n label"],
    target: Int[np.ndarray, " n"],
    *,
    target_is: Literal["predicted", "gold"] = "predicted",
) -> float:
    """AUCROC_l: how well one layer's attention to the label words tells which class the target is (section 2.3).

    Args:
        attention: A_l(q, p_i) summed over heads and over the demonstrations of a class [n label].
        target: class per prompt [n]: the model's own prediction, or gold.
        target_is: which of the two, for the messages.

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        ValueError: if attention is negative or not finite, or a target is not a class.
        UndefinedError: if the targets are all of one class, or a row that must be divided by its sum has the sum 0.

    Source:
        Section 2.3 says "AUC-ROC" only; this is the released code's reading. Two classes among the targets: the plain
        AUC of the raw attention to the larger class id, also where the task has more classes. More than two: the
        columns of these classes, each row divided by its sum, then one-vs-one, macro average.
    """
    from sklearn.metrics import roc_auc_score

    _alike(attention=attention.shape[:1], target=target.shape)
    _finite("attention", attention, lowest=0.0)
    _classes("target", target, attention.shape[1])
    present = np.unique(target)
    if len(present) == 0:
        raise UndefinedError("no prompts")
    if len(present) == 1:
        raise UndefinedError(f"only class {present[0]} was {target_is}")
    if len(present) == 2:
        return float(roc_auc_score(target == present[1], attention[:, present[1]]))
    weight = attention[:, present].astype(np.float64)  # rows in half precision would not sum to 1
    total = weight.sum(axis=1, keepdims=True)
    if (total == 0).any():
        rows = np.flatnonzero(total == 0)
        raise UndefinedError(f"no attention to label words in row {rows[0]} ({len(rows)} such): nothing to divide by")
    return float(roc_auc_score(target, weight / total, multi_class="ovo", average="macro", labels=present))


def cumulative(auc: Float[np.ndarray, " layer"]) -> Float[np.ndarray, " layer"]:
    """R_l: the share of what all layers know of the answer that the layers up to l hold (equation 5).

    The sum of AUCROC - 0.5 up to l, over the sum of all layers; the last R is 1. Layers below chance count negative, so
    R may leave 0..1 on the way, and grows without bound where the total nears 0. The released code averages AUCROC over
    seeds and calls this once; a mean of ratios is something else.

    Raises:
        ValueError: if there is no layer, or an AUCROC lies outside 0..1.
        UndefinedError: if the AUCROC of a layer is NaN, or the total is 0 but for rounding.
    """
    if len(auc) == 0:
        raise ValueError("cumulative was given no layers; it needs the AUCROC of each.")
    if np.isnan(auc).any():
        raise UndefinedError(f"AUCROC is undefined in {np.isnan(auc).sum()} of {len(auc)} layers")
    outside = auc[(auc < 0) | (auc > 1)]
    if outside.size:
        raise ValueError(f"AUCROC = {outside[0]}: an area under a curve lies between 0 and 1.")
    excess = auc.astype(np.float64) - 0.5
    total = excess.sum()
    if abs(total) < _ROUNDING:
        raise UndefinedError("AUCROC is 0.5 on average: nothing to divide by")
    return np.cumsum(excess) / total


def scores(gold: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], n_classes: int) -> dict[str, Any]:
    """Accuracy, and beside it what shows whether it is worth anything.

    Args:
        gold: true class per prompt [n]; -1 = unknown, left out of everything.
        predicted: predicted class per prompt [n].
        n_classes: classes of the task, also those that do not occur.

    Returns:
        ``n`` prompts of known class; ``accuracy``; ``macro_f1``, the mean over all ``n_classes``, where a class that is
        neither gold nor predicted counts 0; ``majority``, the accuracy of always saying the commonest gold class;
        ``class_counts``, gold prompts per class, as in "98 102".

    Raises:
        ValueError: if a class is not below ``n_classes``.
        UndefinedError: if no prompt has a gold class.
    """
    _alike(gold=gold.shape, predicted=predicted.shape)
    _classes("gold", gold, n_classes, lowest=-1)
    _classes("predicted", predicted, n_classes)
    known = gold >= 0
    gold, predicted = gold[known], predicted[known]
    if len(gold) == 0:
        raise UndefinedError("no prompt has a gold class")
    counts = np.bincount(gold, minlength=n_classes)
    hits = np.bincount(gold[gold == predicted], minlength=n_classes)
    f1 = 2 * hits / np.maximum(counts + np.bincount(predicted, minlength=n_classes), 1)
    return {
        "n": len(gold),
        "accuracy": float(hits.sum() / len(gold)),
        "macro_f1": float(f1.mean()),
        "majority": float(counts.max() / len(gold)),
        "class_counts": " ".join(map(str, counts)),
    }


def score_table(frame: pd.DataFrame, n_classes: int, by: Sequence[str] = ("seed", "arm")) -> pd.DataFrame:
    """``scores`` of a results frame, one row per seed, and per arm where the frame has arms.

    Args:
        frame: any results frame with example, seed, gold, predicted; rows that repeat a prediction count once.
        n_classes: classes of the task.
        by: what a row of the table stands for: seed, or seed and arm.

    Returns:
        Columns as in ``SCORES``, ordered by seed and arm ("" where there is none). Prompts of unknown gold class are
        left out, and so is a group of only such prompts: the table may have no rows.

    Raises:
        ValueError: if a column is missing, ``by`` is something else, or an example has two predictions or two gold
            classes within a group.
    """
    if "seed" not in by or not set(by) <= {"seed", "arm"}:
        raise ValueError(f"by={tuple(by)}: scores are told apart by seed, or by seed and arm.")
    missing = [column for column in ("seed", "example", "gold", "predicted") if column not in frame]
    if missing:
        raise ValueError(f"scores need the columns {missing}; the frame has {list(frame)}.")
    grouped = frame if "arm" in by and "arm" in frame else frame.assign(arm="")
    rows = grouped.filter(items=["seed", "arm", "example", "gold", "predicted"]).drop_duplicates()
    _one_answer(frame, grouped, rows)
    known = rows.loc[rows["gold"] != -1]
    table = []
    for (seed, arm), one in known.groupby(["seed", "arm"], observed=True, dropna=False):
        row = scores(one["gold"].to_numpy(), one["predicted"].to_numpy(), n_classes)
        table.append({"seed": seed, "arm": arm, **row})
    return pd.DataFrame(table, columns=list(SCORES)).astype(SCORES)


def _one_answer(frame: pd.DataFrame, grouped: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Refuse ``frame`` if among its distinct ``rows`` an example of a group occurs twice."""
    key = ["seed", "arm", "example"]
    if not rows.duplicated(key).any():
        return
    where = rows.loc[rows.duplicated(key), key].iloc[0]
    mixed = frame.loc[(grouped[key] == where).all(axis=1).to_numpy()]
    found = {column: sorted(set(mixed[column])) for column in ("gold", "predicted")}
    differ = [column for column in mixed if column not in found and len(set(mixed[column])) > 1]
    arm = f", arm {where['arm']}" if where["arm"] else ""
    raise ValueError(
        f"example {where['example']} (seed {where['seed']}{arm}) has gold classes {found['gold']} and predictions "
        f"{found['predicted']}, where scores need one of each; its rows differ in {differ}. "
        "Filter the frame down to one setting first."
    )


def observed_confusion(
    logits: Float[np.ndarray, "n label"], gold: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "label label"]:
    """How well the model tells each pair of classes apart: 1 = never mixes them up, 0.5 = chance (appendix K).

    For classes a and b, over prompts whose gold class is a or b: the ROC-AUC of "gold is a" by p_a / (p_a + p_b).

    Args:
        logits: logits or log-probabilities of the label words [n label]. Their difference ranks prompts as the ratio of
            probabilities does, and keeps apart what would underflow.
        gold: true class per prompt [n]; -1 = unknown, left out.

    Returns:
        [label label], symmetric, diagonal 1; NaN where no prompt of one of the two classes is there.

    Raises:
        ValueError: if a logit is not finite, or a gold class does not exist.
    """
    from sklearn.metrics import roc_auc_score

    _alike(logits=logits.shape[:1], gold=gold.shape)
    _finite("logits", logits)
    n_classes = logits.shape[1]
    _classes("gold", gold, n_classes, lowest=-1)
    confusion = np.eye(n_classes)
    for a, b in combinations(range(n_classes), 2):
        either = (gold == a) | (gold == b)
        is_a = gold[either] == a
        margin = logits[either, a].astype(np.float64) - logits[either, b]
        defined = is_a.any() and not is_a.all()
        confusion[a, b] = confusion[b, a] = roc_auc_score(is_a, margin) if defined else np.nan
    return confusion


def predicted_confusion(distance: Float[np.ndarray, "label label"]) -> Float[np.ndarray, "label label"]:
    """Distance between two anchors' keys over the largest one (equation 11): 1 = easy to tell apart; diagonal 1.

    An ``UndefinedError`` if all distances are 0, a ``ValueError`` if one is negative or not finite.
    """
    _finite("distance", distance, lowest=0.0)
    largest = distance.max(initial=0)
    if largest == 0:
        raise UndefinedError("anchors coincide: every distance is 0")
    return np.where(np.eye(len(distance), dtype=bool), 1, distance / largest)


def rank_correlation(a: Float[np.ndarray, "label label"], b: Float[np.ndarray, "label label"]) -> float:
    """Spearman's correlation of two confusion matrices over the pairs of classes, -1 to 1.

    Each pair counts once, with the mean of its two directions; a pair that is NaN in either matrix is left out.

    An ``UndefinedError`` if fewer than 3 pairs are left, or one matrix is the same for all of them.
    """
    from scipy.stats import rankdata

    _alike(a=a.shape, b=b.shape)
    pairs = np.triu_indices(len(a), k=1)
    x, y = (((m + m.T) / 2)[pairs] for m in (a, b))
    kept = ~(np.isnan(x) | np.isnan(y))
    x, y = x[kept], y[kept]
    if len(x) < 3:
        raise UndefinedError(f"{len(x)} pair{'' if len(x) == 1 else 's'} of classes: a rank correlation needs 3")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise UndefinedError("all pairs of classes are equally far apart: no ranks")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _alike(**shapes: tuple[int, ...]) -> None:
    """Refuse arrays of different shapes; broadcasting would hide the mistake."""
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: {found}; give one row per prompt, in the same order, to both.")


def _finite(name: str, numbers: np.ndarray, lowest: float = -np.inf) -> None:
    wrong = np.argwhere(~np.isfinite(numbers) | (numbers < lowest)).tolist()
    if wrong:
        least = "" if lowest == -np.inf else f" of {lowest:g} or more"
        raise ValueError(f"{name}{wrong[0]} = {numbers[tuple(wrong[0])]}: it must be a finite number{least}.")


def _classes(name: str, found: np.ndarray, n_classes: int, lowest: int = 0) -> None:
    """Refuse classes that do not exist; a negative one would count columns from the end."""
    wrong = np.flatnonzero((found < lowest) | (found >= n_classes))
    if len(wrong):
        raise ValueError(
            f"{name}[{wrong[0]}] = {found[wrong[0]]}: with {n_classes} classes it may be {lowest} to {n_classes - 1}."
        )
