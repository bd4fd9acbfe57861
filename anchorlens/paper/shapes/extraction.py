"""Section 2.3: where attention to label words tells the answer."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from anchorlens import intervals, metrics
from anchorlens.intervals import Interval
from anchorlens.paper.measures import Tasks, arrays, chance, known
from anchorlens.paper.shapes.seen import Seen, of_means, undefined
from anchorlens.paper.stored import Cell

_NONE = "AUCROC is undefined: a model that gives one answer only has none"
_INTERVALS: dict[tuple[tuple[int, ...], bytes], Interval] = {}
_MOST = 64
TELLS = 0.05  # by which AUCROC must exceed chance on average for its shares to mean something


def _aucs(cell: Cell) -> Float[np.ndarray, "once layer"]:
    """AUCROC by layer, as the run kept it; without rows where one is undefined."""
    auc = cell.table("summary").sort_values("layer")["auc"].to_numpy()[None]
    return auc if np.isfinite(auc).all() else auc[:0]


def by_layer(cells: Tasks) -> Float[np.ndarray, " layer"]:
    """Mean AUCROC of tasks and seeds; without layers, if no seed has one in each of them."""
    found = arrays(cells, _aucs)
    return np.mean([np.concatenate(seeds).mean(0) for seeds in found], axis=0) if found else np.zeros(0)


def _auc(values: np.ndarray) -> float:
    try:
        return metrics.aucroc(values[:, :-1], values[:, -1].astype(np.int64))
    except metrics.UndefinedError:
        return np.nan


def _interval(found: list[list[np.ndarray]]) -> Interval:
    """Of the mean AUCROC; half a minute for the paper's grid, so that of the same numbers it is worked out once."""
    told = hashlib.sha256()
    for values in (values for seeds in found for values in seeds):
        told.update(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())
    key = (tuple(map(len, found)), told.digest())
    if key not in _INTERVALS:
        if len(_INTERVALS) >= _MOST:
            _INTERVALS.clear()
        _INTERVALS[key] = intervals.of_statistic(found, _auc, chance(), resamples=100)
    return _INTERVALS[key]


def auc_deep(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """AUCROC where it is highest in the deeper half of the layers, its interval over examples."""
    mean = by_layer(cells)
    if not len(mean):
        return undefined(_NONE)
    n = len(mean)
    best = n // 2 + int(mean[n // 2 :].argmax())

    def rows(cell: Cell) -> np.ndarray:
        frame: Any = cell.table()
        n_labels = int(frame["label"].max()) + 1
        if not len(_aucs(cell)):  # nor is this seed in the mean
            return np.zeros((0, n_labels + 1))
        here: Any = frame[frame["layer"] == best]
        if here.empty:
            raise ValueError(f"no attention in layer {best}")
        known(here[here["label"].isin(here["predicted"])], "attention")  # other classes may be without demonstrations
        wide = here.pivot_table(index=["example", "predicted"], columns="label", values="attention")
        wide = wide.reindex(columns=range(n_labels)).fillna(0.0)  # these play no part
        values = np.column_stack([wide.to_numpy(), wide.index.get_level_values("predicted")])
        _auc(values)  # an error of this run's is said as its own
        return values

    shown = _interval(arrays(cells, rows))
    span = Interval(float(mean[best]), shown.low, shown.high, shown.n)
    return Seen(span, span.value >= spec["tolerance"], f"highest in layer {best + 1} of {n}")


def share_shallow(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """How far R is from 0 in the first third of the layers."""
    mean = by_layer(cells)
    if not len(mean):
        return undefined(_NONE)
    shallow = len(mean) // 3
    if shallow == 0:
        return undefined(f"{len(mean)} layers have no shallow third")
    if mean.mean() - 0.5 < TELLS:
        return undefined(f"undecided: AUCROC is {mean.mean():.2f} over all layers, so R shares out next to nothing")

    def farthest(auc: Any) -> Any:
        total = (auc - 0.5).sum(1, keepdims=True)
        share = np.cumsum(auc - 0.5, axis=1)[:, :shallow] / np.where(total == 0, np.nan, total)
        return np.abs(share).max(1) / (shallow / auc.shape[1])

    value = float(np.abs(metrics.cumulative(mean)[:shallow]).max() / (shallow / len(mean)))
    shown = of_means(arrays(cells, _aucs), farthest)
    return Seen(Interval(value, shown.low, shown.high, shown.n), value < spec["tolerance"], "interval over seeds alone")
