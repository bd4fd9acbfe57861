"""What is seen of a shape, and how it is told from chance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anchorlens import intervals
from anchorlens.intervals import Interval
from anchorlens.paper.measures import chance

P = 0.05
UNDECIDED = "undecided: one prompt has no interval"


@dataclass(frozen=True)
class Seen:
    """What runs show of a shape; ``holds`` is None where it is undefined or undecided, and ``said`` then says why."""

    interval: Interval
    holds: bool | None
    said: str = ""
    bound: float | None = None  # where it is not the one of ``published.json``


def undefined(why: str) -> Seen:
    """Neither yes nor no."""
    return Seen(Interval(np.nan, np.nan, np.nan, 0), None, why)


def of_means(
    found: list[list[np.ndarray]], of_mean: Callable[[Any], Any], of_seed: Callable[[Any], Any] = lambda each: each
) -> Interval:
    """What ``of_mean`` makes of the means of several measures, and of those of resampled data."""
    value, draws = intervals.means(found, chance(), of_seed=of_seed)
    values = np.asarray(of_mean(draws), dtype=np.float64)
    if _alone(found):
        values = values[:0]
    return intervals.spanned(float(of_mean(value[None])[0]), values, intervals.count(found))


def better(found: list[list[np.ndarray]]) -> Seen | None:
    """Whether differences between two arms [task][seed][example] are above 0 beyond chance."""
    if not found:
        return None
    test = intervals.paired(found, chance())
    shown = test.difference
    if _alone(found):
        return Seen(Interval(100 * shown.value, np.nan, np.nan, shown.n), None, UNDECIDED)
    points = Interval(100 * shown.value, 100 * shown.low, 100 * shown.high, shown.n)
    return Seen(points, shown.value > 0 and test.p <= P, tested(test))


def _alone(found: list[list[np.ndarray]]) -> bool:
    """Whether there is one table of one seed, or one prompt: nothing that could be drawn again."""
    return all(len(seeds) == 1 and len(seeds[0]) == 1 for seeds in found)


def tested(test: intervals.Test) -> str:
    """A paired test, in words."""
    shown = test.difference
    span = f" [{100 * shown.low:.1f}, {100 * shown.high:.1f}]" if np.isfinite(shown.low) else ""
    return f"{100 * shown.value:+.1f} points{span}, paired p {'≤' if test.p <= test.resolution else '='} {test.p:.2g}"
