"""How sure a mean is: bootstrap intervals over examples nested in seeds, and tests of two arms on the same prompts.

Numbers come as *cells*: for each task, for each seed, an array with a row per example. What is estimated is the paper's
mean: over tasks of means over seeds of means over examples. Tasks are fixed, seeds and examples are drawn again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

Cells: TypeAlias = Sequence[Sequence[np.ndarray]]  # [task][seed] of [example] or [example measure]
RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 2**22  # drawn indices that are held at a time
_TIE = 1e-9  # sums of flipped differences that are equal but for rounding count as equal, relative to the largest


@dataclass(frozen=True)
class Interval:
    """A number, the percentile interval around it (NaN where there is none), and of how many prompts it is."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Test:
    """A mean paired difference; ``p`` is two-sided, and cannot be smaller than its ``resolution``."""

    __test__ = False  # for pytest

    difference: Interval
    p: float
    resolution: float


def mean(cells: Cells, chance: np.random.Generator, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The mean of [task][seed][example], with its interval.

    Raises:
        ValueError: without any cell, for a cell without examples, or with numbers that are not finite.
    """
    value, draws = means(cells, chance, resamples=resamples)
    return spanned(float(value[0]), draws[:, 0], count(cells), level=level)


def means(
    cells: Cells,
    chance: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    of_seed: Callable[[Any], Any] = lambda each: each,
) -> tuple[Float[np.ndarray, " measure"], Float[np.ndarray, "resample measure"]]:
    """Means of several measures at once, and the same means of resampled data.

    Of several seeds, seeds are drawn with replacement within each task, and examples within each drawn seed; of one
    seed, examples alone. Then the interval does not tell how another seed would have come out. The draws of one cell
    of one measure are those of ``scipy.stats.bootstrap(..., method="percentile")`` by the same generator.

    Args:
        cells: as in the module's docstring; one measure may be [example].
        chance: draws; the same state gives the same numbers.
        of_seed: what becomes of a seed's means [resample measure] before seeds are averaged, such as their shares.

    Raises:
        ValueError: as ``mean``.

    With few seeds percentile intervals are narrow: where seeds make all the difference, those of 5 seeds hold the truth
    in about 83 % of cases instead of 95 %, of 20 in 92 %; where examples do, they are rather too wide.
    """
    checked = _checked(cells)
    estimate, drawn = [], []
    for seeds in checked:
        estimate.append(np.mean([of_seed(values.mean(0, keepdims=True))[0] for values in seeds], axis=0))
        total: Any = 0.0
        if len(seeds) == 1:
            total = of_seed(_resampled(seeds[0], resamples, chance))
        else:
            chosen = chance.integers(len(seeds), size=(resamples, len(seeds)))
            for seed, values in enumerate(seeds):
                rows, _ = np.nonzero(chosen == seed)
                found = of_seed(_resampled(values, len(rows), chance))
                summed = np.zeros((resamples, found.shape[1]))
                np.add.at(summed, rows, found)
                total = total + summed
            total = total / len(seeds)
        drawn.append(total)
    return np.mean(estimate, axis=0), np.mean(drawn, axis=0)


def of_statistic(
    cells: Cells,
    statistic: Callable[[np.ndarray], float],
    chance: np.random.Generator,
    *,
    resamples: int = 200,
    level: float = LEVEL,
) -> Interval:
    """As ``mean``, of any number that a cell's rows [example measure] have; slow.

    A seed for which it is undefined (NaN) is left out, and so are resamples in which a task has it for no seed.
    """
    checked = _checked(cells)

    def of_task(seeds: Sequence[np.ndarray]) -> float:
        found = np.array([statistic(values) for values in seeds])
        return float(found[~np.isnan(found)].mean()) if not np.isnan(found).all() else np.nan

    def anew(seeds: Sequence[np.ndarray]) -> list[np.ndarray]:
        chosen = [seeds[n] for n in chance.integers(len(seeds), size=len(seeds))] if len(seeds) > 1 else seeds
        return [values[chance.integers(len(values), size=len(values))] for values in chosen]

    known = [seeds for seeds in checked if not np.isnan(of_task(seeds))]
    if not known:
        return Interval(np.nan, np.nan, np.nan, count(cells))
    draws = np.array([np.mean([of_task(anew(seeds)) for seeds in known]) for _ in range(resamples)])
    value = float(np.mean([of_task(seeds) for seeds in known]))
    return spanned(value, draws[~np.isnan(draws)], count(cells), level=level)


def paired(cells: Cells, chance: np.random.Generator, *, resamples: int = RESAMPLES) -> Test:
    """Test whether two arms differ, from the differences between their answers to the same prompts.

    Args:
        cells: differences [task][seed][example], first arm minus second.

    Returns:
        The mean difference with its nested interval, and p of the sign-flip permutation test: were the arms the same,
        either sign of each prompt's difference would be as likely. It speaks of these seeds' demonstrations; that
        others may come out differently is in the interval. p = (1 + flips at least as extreme) / (1 + resamples).

    Raises:
        ValueError: as ``mean``.
    """
    difference = mean(cells, chance, resamples=resamples)
    checked = _checked(cells)
    weighed = [
        values[:, 0] / (len(values) * len(seeds) * len(checked)) for seeds in checked for values in seeds
    ]  # whose sum is the mean
    sizes, times = np.unique(np.abs(np.concatenate(weighed)), return_counts=True)
    sizes, times = sizes[sizes > 0], times[sizes > 0]  # what does not differ has no sign
    extreme, step = 0, max(1, _AT_ONCE // max(1, len(sizes)))
    bound = abs(difference.value) - _TIE * float((sizes * times).sum())
    for begin in range(0, resamples, step):
        plus = chance.binomial(times, 0.5, size=(min(step, resamples - begin), len(sizes)))
        extreme += int((np.abs((2 * plus - times) @ sizes) >= bound).sum())
    return Test(difference, (1 + extreme) / (1 + resamples), 1 / (1 + resamples))


def spanned(value: float, draws: Float[np.ndarray, " resample"], n: int, *, level: float = LEVEL) -> Interval:
    """An interval by percentiles of ``draws``; none, if there are no draws."""
    if len(draws) == 0:
        return Interval(value, np.nan, np.nan, n)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Interval(value, float(low), float(high), n)


def count(cells: Cells) -> int:
    """How many examples there are, those of each seed counted by themselves."""
    return sum(len(values) for seeds in cells for values in seeds)


def _resampled(values: np.ndarray, times: int, chance: np.random.Generator) -> Float[np.ndarray, "resample measure"]:
    """Means of as many examples drawn with replacement."""
    n, found = len(values), []
    step = max(1, _AT_ONCE // n)
    for begin in range(0, times, step):
        size = min(step, times - begin)
        drawn = chance.integers(n, size=(size, n))
        if values.shape[1] == 1:
            found.append(values[drawn, 0].mean(1, keepdims=True))
            continue
        drawn += np.arange(size)[:, None] * n  # how often each example was drawn, row by row
        found.append(np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n) @ values / n)
    return np.concatenate(found) if found else np.zeros((0, values.shape[1]))


def _checked(cells: Cells) -> list[list[np.ndarray]]:
    """Cells as [example measure] in float64."""
    if not cells or not all(cells):
        raise ValueError(f"cells of {len(cells)} tasks: give at least one task, and at least one seed of each.")
    arrays = [[np.asarray(values, dtype=np.float64) for values in seeds] for seeds in cells]
    found = [[values[:, None] if values.ndim == 1 else values for values in seeds] for seeds in arrays]
    for task, seeds in enumerate(found):
        for seed, values in enumerate(seeds):
            if len(values) == 0 or not np.isfinite(values).all():
                wrong = "no examples" if len(values) == 0 else "a number that is not finite"
                raise ValueError(f"cell [{task}][{seed}] has {wrong}; leave out what has no number.")
    return found
