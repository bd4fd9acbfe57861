"""The shapes of the paper's figures that its text states: each a number, an interval, and whether it holds.

Thresholds, and why they are what they are, stand in ``published.json``; ``CHECKS`` has the measure of each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from anchorlens import intervals, metrics
from anchorlens.intervals import Interval
from anchorlens.paper import measures
from anchorlens.paper.measures import Tasks, arrays, chance, of_each
from anchorlens.paper.stored import Cell, kept

_FLOWS = ("S_wp", "S_pq", "S_ww")
_PROMPTS = {"3_3_diagnosis": "predictions"}  # the table that has prompts, where it is not results
_P = 0.05
_TELLS = 0.05  # by which AUCROC must exceed chance on average for its shares to mean something
_ARMS = (("label", "first"), ("label", "last"), ("random", "first"), ("random", "last"))
_DEPTH = 5  # layers isolated in the main figure


@dataclass(frozen=True)
class Seen:
    """What runs show of a shape; ``holds`` is None where it is undefined or undecided, and ``said`` then says why."""

    interval: Interval
    holds: bool | None
    said: str = ""
    bound: float | None = None  # where it is not the one of ``published.json``


def look(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """Measure one shape of ``published.json``; None if no run has what it needs.

    Raises:
        UnreadableError: if one has it only in part.
    """
    if not cells:
        return None
    seen = CHECKS[spec["id"]](spec, cells)
    return seen and replace(seen, interval=replace(seen.interval, n=_asked(cells)))


def _asked(cells: Tasks) -> int:
    """How many prompts, those of each seed by themselves."""

    def of_cell(cell: Cell) -> int:
        return len(set(cell.table(_PROMPTS.get(cell.manifest["notebook"], "results"))["example"]))

    return sum(of_each(cells, of_cell).values())


def _undefined(why: str) -> Seen:
    return Seen(Interval(np.nan, np.nan, np.nan, 0), None, why)


def _of_means(
    found: list[list[np.ndarray]], of_mean: Callable[[Any], Any], of_seed: Callable[[Any], Any] = lambda each: each
) -> Interval:
    value, draws = intervals.means(found, chance(), of_seed=of_seed)
    values = np.asarray(of_mean(draws), dtype=np.float64)
    if all(len(seeds) == 1 and len(seeds[0]) == 1 for seeds in found):  # one table of one seed: nothing drawn again
        values = values[:0]
    return intervals.spanned(float(of_mean(value[None])[0]), values, intervals.count(found))


@kept
def _flows(cell: Cell) -> Float[np.ndarray, "example measure"]:
    """Values by example, layer and flow."""
    wide = cell.table().pivot_table(index="example", columns=["layer", "flow"], values="value", sort=True)
    layers = sorted(set(wide.columns.get_level_values("layer")))
    return wide[[(layer, flow) for layer in layers for flow in _FLOWS]].to_numpy()


def _shares(mean: Any) -> Any:
    """Each flow over the sum of the three, layer by layer, as figure 3 shows them."""
    flows = mean.reshape(len(mean), -1, 3)
    total = flows.sum(-1, keepdims=True)
    return (flows / np.where(total == 0, 1, total)).reshape(len(mean), -1)


def _flow(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    def of_mean(mean: Any) -> Any:
        share = mean.reshape(len(mean), -1, 3)
        n = share.shape[1]
        third, inner = max(1, n // 3), max(1, n - 1)  # S_wp of the last layer is 0 by construction
        wp, pq, ww = (share[:, :, flow] for flow in range(3))
        shallow = slice(min(third, inner))
        if spec["id"] == "gathering":
            return (wp / np.maximum(ww, np.finfo(float).tiny))[:, shallow].mean(1)
        if spec["id"] == "shallow_order":
            return (wp - pq)[:, shallow].mean(1)
        if spec["id"] == "rising":
            return pq[:, -third:].mean(1) - pq[:, :third].mean(1)
        if spec["id"] == "reading":
            return (pq - np.maximum(wp, ww))[:, -third:].mean(1)
        if spec["id"] == "crossing":
            return (wp > pq)[:, :inner].mean(1)
        return np.concatenate([(wp > ww)[:, :inner], pq > ww], axis=1).mean(1)

    shown = _of_means(arrays(cells, _flows), of_mean, _shares)
    if spec["id"] == "crossing":
        return Seen(shown, 0 < shown.value < 1)
    sure = spec["id"] == "above_rest" or shown.low > spec["tolerance"]
    return Seen(shown, shown.value > spec["tolerance"] and sure)


@kept
def _wide(cell: Cell, measure: str) -> Any:
    """A measure of isolation by example, and by arm, end and depth."""
    frame = cell.table().astype({measure: "float64"})
    wide: Any = frame.pivot_table(index="example", columns=["arm", "end", "depth"], values=measure)
    if lacking := [arm for arm in _ARMS if arm not in {column[:2] for column in wide.columns}]:
        raise KeyError(lacking)
    return wide


def _isolated(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    wide = of_each(cells, lambda cell: _wide(cell, spec["measure"]))
    columns = sorted(set.intersection(*(set(each.columns) for each in wide.values())))  # runs may differ in depths
    found = arrays(cells, lambda cell: wide[cell][columns].to_numpy())
    depths = sorted({depth for *_, depth in columns})
    if not depths:
        return None
    depth = _DEPTH if _DEPTH in depths else depths[-1]
    at = {name: n for n, name in enumerate(columns)}
    first, last, *control = (at[arm, end, depth] for arm, end in _ARMS)
    every = {end: [at["label", end, each] for each in depths] for end in ("first", "last")}
    loss: dict[str, Callable[[Any], Any]] = {
        "first_largest": lambda mean: mean[:, [last, *control]].min(1) - mean[:, first],
        "last_none": lambda mean: 1 - mean[:, last],
        "random_none": lambda mean: 1 - mean[:, control].min(1),
        "first_any": lambda mean: 1 - mean[:, every["first"]].max(1),
        "last_any": lambda mean: 1 - mean[:, every["last"]].min(1),
    }
    shown = _of_means(found, loss[spec["id"]])
    value = round(shown.value, 12)  # sums of rounded shares must not fall beyond the margin
    said = "" if depth == _DEPTH else f"at {depth} layers, the most that were isolated" if depth == depths[-1] else ""
    if spec["id"].endswith("none") or spec["id"] == "last_any":
        return Seen(shown, value <= spec["tolerance"], said)
    if spec["id"] == "first_any":
        return Seen(shown, value > spec["tolerance"], f"{', '.join(map(str, depths))} layers")
    test = intervals.paired([[v[:, control[0]] - v[:, first] for v in seeds] for seeds in found], chance())
    said = "; ".join([*([said] if said else []), f"label words against random others, {_tested(test)}"])
    return Seen(shown, value > spec["tolerance"] and test.p <= _P, said)


def _tested(test: intervals.Test) -> str:
    shown = test.difference
    span = f" [{100 * shown.low:.1f}, {100 * shown.high:.1f}]" if np.isfinite(shown.low) else ""
    return f"{100 * shown.value:+.1f} points{span}, paired p {'<=' if test.p <= test.resolution else '='} {test.p:.2g}"


def _gain(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    found = arrays(cells, lambda cell: measures.difference(cell, "beta", spec["other"], "correct"))
    return _better(found)


def _kept(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    measure = spec["measure"]
    found = arrays(cells, lambda cell: measures.difference(cell, "hidden_anchor", spec["other"], measure))
    return _better(found)


def _better(found: list[list[np.ndarray]]) -> Seen | None:
    if not found:
        return None
    test = intervals.paired(found, chance())
    shown = test.difference
    points = Interval(100 * shown.value, 100 * shown.low, 100 * shown.high, shown.n)
    return Seen(points, shown.value > 0 and test.p <= _P, _tested(test))


def _faster(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    shown, _ = measures.number("speed", "hidden_anchor", cells)
    return None if shown is None else Seen(shown, shown.value > spec["tolerance"])


def _aucs(cell: Cell) -> Float[np.ndarray, "once layer"]:
    """AUCROC by layer, as the run kept it; without rows where one is undefined."""
    auc = cell.table("summary").sort_values("layer")["auc"].to_numpy()[None]
    return auc if np.isfinite(auc).all() else auc[:0]


def _auc_deep(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    found = arrays(cells, _aucs)
    if not found:
        return _undefined("AUCROC is undefined: a model that gives one answer only has none")
    mean = np.mean([np.concatenate(seeds).mean(0) for seeds in found], axis=0)
    n = len(mean)
    best = n // 2 + int(mean[n // 2 :].argmax())

    def rows(cell: Cell) -> np.ndarray:
        frame = cell.table()
        wide: Any = frame[frame["layer"] == best]
        wide = wide.pivot_table(index=["example", "predicted"], columns="label", values="attention").dropna(axis=1)
        return np.column_stack([wide.to_numpy(), wide.index.get_level_values("predicted")])

    def auc(values: np.ndarray) -> float:
        try:
            return metrics.aucroc(values[:, :-1], values[:, -1].astype(np.int64))
        except metrics.UndefinedError:
            return np.nan

    shown = intervals.of_statistic(arrays(cells, rows), auc, chance(), resamples=100)
    span = Interval(float(mean[best]), shown.low, shown.high, shown.n)
    return Seen(span, span.value >= spec["tolerance"], f"highest in layer {best + 1} of {n}")


def _share_shallow(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    found = arrays(cells, _aucs)
    if not found:
        return _undefined("AUCROC is undefined: a model that gives one answer only has none")
    mean = np.mean([np.concatenate(seeds).mean(0) for seeds in found], axis=0)
    shallow = len(mean) // 3
    if shallow == 0:
        return _undefined(f"{len(mean)} layers have no shallow third")
    if mean.mean() - 0.5 < _TELLS:
        return _undefined(f"undecided: AUCROC is {mean.mean():.2f} over all layers, so R shares out next to nothing")

    def farthest(auc: Any) -> Any:
        total = (auc - 0.5).sum(1, keepdims=True)
        share = np.cumsum(auc - 0.5, axis=1)[:, :shallow] / np.where(total == 0, np.nan, total)
        return np.abs(share).max(1) / (shallow / auc.shape[1])

    value = float(np.abs(metrics.cumulative(mean)[:shallow]).max() / (shallow / len(mean)))
    shown = _of_means(found, farthest)
    return Seen(Interval(value, shown.low, shown.high, shown.n), value < spec["tolerance"], "interval over seeds alone")


def _pairs(cell: Cell) -> Any:
    """The pairs of classes at the layer to look at, as the run says, by number of components."""
    given, frame = cell.manifest["parameters"], cell.table()
    n = frame["layer"].to_numpy().max() + 1
    layer = given["layer"] if given["layer"] >= 0 else min(round(2 * n / 3), n - 1)
    here: Any = frame[(frame["layer"] == layer) & (frame["label_a"] < frame["label_b"])]
    return here.set_index(["n_components", "label_a", "label_b"])[["confusion_predicted", "confusion_observed"]]


def _main(cell: Cell) -> int:
    return cell.manifest["parameters"]["n_components"]


def _confused(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    names: list[tuple[int, int]] = []

    def of_cell(cell: Cell) -> np.ndarray:
        main = _pairs(cell).loc[_main(cell)]
        names[:] = list(main.index)
        return main.to_numpy().T.reshape(1, -1)

    found = [[values for values in seeds if np.isfinite(values).all()] for seeds in arrays(cells, of_cell)]
    found = [seeds for seeds in found if seeds]
    if not found:
        return _undefined("some pair of classes has no queries in any seed")
    entity, described, abbreviated = names.index((1, 2)), names.index((0, 2)), names.index((0, 1))
    abbreviation = [n for n, pair in enumerate(names) if 0 in pair]

    def of_mean(mean: Any) -> Any:
        both = mean.reshape(len(mean), 2, -1)

        def rank(pair: int) -> Any:
            return (both < both[:, :, pair : pair + 1]).sum(-1) + 1

        if spec["id"] == "worst_pair":
            return rank(entity).max(1)
        if spec["id"] == "good_pairs":
            return np.max([np.abs(rank(pair)[:, 0] - rank(pair)[:, 1]) for pair in (described, abbreviated)], axis=0)
        real = both[:, 1]
        return (real[:, abbreviation] < real[:, described : described + 1]).sum(1) + 1

    shown = _of_means(found, of_mean)
    return Seen(shown, shown.value <= spec["tolerance"], "interval over seeds alone")


def _rank_order(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    def of_cell(cell: Cell) -> np.ndarray:
        matrices = [np.full((6, 6), np.nan) for _ in range(2)]
        for (a, b), row in _pairs(cell).loc[_main(cell)].iterrows():
            for matrix, value in zip(matrices, row, strict=True):
                matrix[a, b] = matrix[b, a] = value
        try:
            return np.array([metrics.rank_correlation(*matrices)])
        except metrics.UndefinedError:
            return np.zeros(0)

    found = arrays(cells, of_cell)
    if not found:
        return _undefined("no rank correlation: too few pairs of classes have queries")
    shown = _of_means(found, lambda mean: mean[:, 0])
    needed = 1.645 / math.sqrt(14 * len(found[0]))
    return Seen(shown, shown.value > needed, "interval over seeds alone", needed)


def _steady(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    pairs = of_each(cells, lambda cell: _pairs(cell)["confusion_predicted"])
    other = of_each(cells, lambda cell: set(pairs[cell].index.levels[0]) - {_main(cell)})
    others = sorted(set.intersection(*other.values()))

    def of_cell(cell: Cell) -> np.ndarray:
        own = pairs[cell]
        return np.array([[(own.loc[n] - own.loc[_main(cell)]).abs().mean() for n in others]])[: len(others)]

    found = arrays(cells, of_cell)
    if not found:
        return _undefined("no other numbers of components fit this model and these queries")
    shown = _of_means(found, lambda mean: mean.max(1))
    said = f"{', '.join(map(str, others))} components; interval over seeds alone"
    return Seen(shown, shown.value < spec["tolerance"], said)


CHECKS: dict[str, Callable[[Mapping[str, Any], Tasks], Seen | None]] = {
    **dict.fromkeys(("gathering", "shallow_order", "rising", "reading", "above_rest", "crossing"), _flow),
    **dict.fromkeys(("first_largest", "last_none", "random_none", "first_any", "last_any"), _isolated),
    "auc_deep": _auc_deep,
    "share_shallow": _share_shallow,
    "gain": _gain,
    "kept": _kept,
    "faster": _faster,
    **dict.fromkeys(("worst_pair", "good_pairs", "abbreviation"), _confused),
    "rank_order": _rank_order,
    "steady": _steady,
}
