"""Section 3.3: whether the pairs of classes that are confused are those predicted."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from anchorlens import metrics
from anchorlens.paper.measures import Tasks, arrays, known, of_each
from anchorlens.paper.shapes.seen import Seen, of_means, undefined
from anchorlens.paper.stored import Cell

_TIE = 1e-12


def _pairs(cell: Cell) -> Any:
    """The pairs of classes at the layer to look at, as the run says, by number of components."""
    given, frame = cell.manifest["parameters"], cell.table()
    n = frame["layer"].to_numpy().max() + 1
    layer = given["layer"] if given["layer"] >= 0 else min(round(2 * n / 3), n - 1)
    here: Any = frame[(frame["layer"] == layer) & (frame["label_a"] < frame["label_b"])]
    return known(here, "confusion_predicted").set_index(["n_components", "label_a", "label_b"])[
        ["confusion_predicted", "confusion_observed"]
    ]


def _main(cell: Cell) -> int:
    return cell.manifest["parameters"]["n_components"]


def confused(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """Ranks of the pairs of TREC's classes that the text of figure 6 names."""
    names: list[tuple[int, int]] = []

    def of_cell(cell: Cell) -> np.ndarray:
        main = _pairs(cell).loc[_main(cell)]
        names[:] = list(main.index)
        return main.to_numpy().T.reshape(1, -1)

    found = [[values for values in seeds if np.isfinite(values).all()] for seeds in arrays(cells, of_cell, gaps=True)]
    found = [seeds for seeds in found if seeds]
    if not found:
        return undefined("some pair of classes has no queries in any seed")
    entity, described, abbreviated = names.index((1, 2)), names.index((0, 2)), names.index((0, 1))
    abbreviation = [n for n, pair in enumerate(names) if 0 in pair]

    def of_mean(mean: Any) -> Any:
        both = mean.reshape(len(mean), 2, -1)

        def rank(pair: int) -> Any:
            return _rank(both, both[:, :, pair : pair + 1])

        if spec["id"] == "worst_pair":
            return rank(entity).max(1)
        if spec["id"] == "good_pairs":
            return np.max([np.abs(rank(pair)[:, 0] - rank(pair)[:, 1]) for pair in (described, abbreviated)], axis=0)
        real = both[:, 1]
        return _rank(real[:, abbreviation], real[:, described : described + 1])

    shown = of_means(found, of_mean)
    return Seen(shown, shown.value <= spec["tolerance"], "interval over seeds alone")


def _rank(among: Any, one: Any) -> Any:
    """From 1, the most confused; those that are equal but for rounding share the mean of their ranks."""
    above = among - one
    return (above < -_TIE).sum(-1) + (np.abs(above) <= _TIE).sum(-1) / 2 + 0.5


def told_apart(cells: Tasks) -> int:
    """How many pairs of classes have queries in some seed of a task; the fewest of those tasks that have an order."""
    each = of_each(cells, lambda cell: _with_queries(_pairs(cell).loc[_main(cell)]))
    most = [max(each[cell] for cell in seeds) for seeds in cells.values()]
    return min([n for n in most if n > 2] or most)


def _with_queries(pairs: Any) -> int:
    return int(pairs["confusion_observed"].notna().sum())


def by_layer(cells: Tasks) -> Float[np.ndarray, " layer"]:
    """Mean rank correlation of tasks and seeds as runs kept them; without layers, if they kept none."""

    def of_cell(cell: Cell) -> np.ndarray:
        if not cell.has("agreement"):
            return np.zeros((0, 0))
        table: Any = cell.table("agreement")
        return table[table["n_components"] == _main(cell)].sort_values("layer")["spearman"].to_numpy()[None]

    found = [np.concatenate(seeds) for seeds in arrays(cells, of_cell, gaps=True)]
    found = [seeds for seeds in found if np.isfinite(seeds).any()]  # two classes have no order in any layer
    return np.mean([seeds.mean(0) for seeds in found], axis=0) if found else np.zeros(0)


def rank_order(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """Rank correlation of predicted and observed confusion, against what chance alone would reach."""

    def of_cell(cell: Cell) -> np.ndarray:
        pairs = _pairs(cell).loc[_main(cell)]
        n = 1 + max(b for _, b in pairs.index)
        matrices = [np.full((n, n), np.nan) for _ in range(2)]
        for (a, b), row in pairs.iterrows():
            for matrix, value in zip(matrices, row, strict=True):
                matrix[a, b] = matrix[b, a] = value
        try:
            return np.array([[metrics.rank_correlation(*matrices), _with_queries(pairs)]])
        except metrics.UndefinedError:
            return np.zeros((0, 2))

    found = arrays(cells, of_cell)
    if not found:
        return undefined("no rank correlation: too few pairs of classes have queries")
    shown = of_means(found, lambda mean: mean[:, 0])
    # of as many ranks at random, as if pairs were independent; the same classes recur in all seeds of a task
    spread = [sum(1 / (n - 1) for seed in seeds for _, n in seed) / len(seeds) for seeds in found]
    needed = 1.645 * math.sqrt(sum(spread)) / len(found)
    return Seen(shown, shown.value > needed, "interval over seeds alone", needed)


def steady(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """How far predictions with other numbers of components lie from that with the run's own."""
    pairs = of_each(cells, lambda cell: _pairs(cell)["confusion_predicted"])
    other = of_each(cells, lambda cell: set(pairs[cell].index.levels[0]) - {_main(cell)})
    others = sorted(set.intersection(*other.values()))

    def of_cell(cell: Cell) -> np.ndarray:
        own = pairs[cell]
        return np.array([[(own.loc[n] - own.loc[_main(cell)]).abs().mean() for n in others]])[: len(others)]

    found = arrays(cells, of_cell)
    if not found:
        return undefined("no other numbers of components fit this model and these queries")
    shown = of_means(found, lambda mean: mean.max(1))
    said = f"{', '.join(map(str, others))} components; interval over seeds alone"
    return Seen(shown, shown.value < spec["tolerance"], said)
