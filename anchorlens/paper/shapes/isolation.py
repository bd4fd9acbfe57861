"""Section 2.2: what isolating label words, or other tokens, does to answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anchorlens import intervals
from anchorlens.intervals import Interval
from anchorlens.paper.measures import Tasks, arrays, chance, known, of_each
from anchorlens.paper.shapes.seen import UNDECIDED, P, Seen, of_means, tested
from anchorlens.paper.stored import Cell, cached

_ARMS = (("label", "first"), ("label", "last"), ("random", "first"), ("random", "last"))
_DEPTH = 5  # layers isolated in the main figure


@cached
def _wide(cell: Cell, measure: str) -> Any:
    """A measure of isolation by example, and by arm, end and depth."""
    frame = known(cell.table(), measure).astype({measure: "float64"})
    wide: Any = frame.pivot_table(index="example", columns=["arm", "end", "depth"], values=measure)
    if lacking := [arm for arm in _ARMS if arm not in {column[:2] for column in wide.columns}]:
        raise KeyError(lacking)
    return wide


@dataclass(frozen=True)
class Loyalty:
    """Loyalty [task][seed] of [example, column], a column for each arm, end and depth; ``depth`` is that to look at."""

    found: list[list[np.ndarray]]
    at: dict[tuple[str, str, int], int]
    depths: list[int]

    @property
    def depth(self) -> int:
        return _DEPTH if _DEPTH in self.depths else self.depths[-1]

    def mean(self, arm: str, end: str) -> Interval:
        column = self.at[arm, end, self.depth]
        of_column = [[values[:, [column]] for values in seeds] for seeds in self.found]
        return of_means(of_column, lambda mean: mean[:, 0])


def loyalty(measure: str, cells: Tasks) -> Loyalty | None:
    """Where all runs have it; None if there is no depth that all have."""
    wide = of_each(cells, lambda cell: _wide(cell, measure))
    columns = sorted(set.intersection(*(set(each.columns) for each in wide.values())))  # runs may differ in depths
    found = arrays(cells, lambda cell: wide[cell][columns].to_numpy())
    depths = sorted({depth for *_, depth in columns})
    return Loyalty(found, {name: n for n, name in enumerate(columns)}, depths) if depths else None


def isolated(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """How much of ``spec["measure"]`` an arm loses, or loses more than another."""
    held = loyalty(spec["measure"], cells)
    if held is None:
        return None
    found, at, depths, depth = held.found, held.at, held.depths, held.depth
    first, last, *control = (at[arm, end, depth] for arm, end in _ARMS)
    every = {end: [at["label", end, each] for each in depths] for end in ("first", "last")}
    loss: dict[str, Callable[[Any], Any]] = {
        "first_largest": lambda mean: mean[:, [last, *control]].min(1) - mean[:, first],
        "last_none": lambda mean: 1 - mean[:, last],
        "random_none": lambda mean: 1 - mean[:, control].min(1),
        "first_any": lambda mean: 1 - mean[:, every["first"]].max(1),
        "last_any": lambda mean: 1 - mean[:, every["last"]].min(1),
    }
    shown = of_means(found, loss[spec["id"]])
    if not np.isfinite(shown.low):
        return Seen(shown, None, UNDECIDED)
    value = round(shown.value, 12)  # sums of rounded shares must not fall beyond the margin
    said = "" if depth == _DEPTH else f"at {depth} layers, the most that were isolated" if depth == depths[-1] else ""
    if spec["id"].endswith("none") or spec["id"] == "last_any":
        return Seen(shown, value <= spec["tolerance"], said)
    if spec["id"] == "first_any":
        return Seen(shown, value > spec["tolerance"], f"{', '.join(map(str, depths))} layers")
    test = intervals.paired([[v[:, control[0]] - v[:, first] for v in seeds] for seeds in found], chance())
    said = "; ".join([*([said] if said else []), f"label words against random others, {tested(test)}"])
    return Seen(shown, value > spec["tolerance"] and test.p <= P, said)
