"""Intervals hold what they say, and tests of equal arms are right as often as they say."""

import time

import numpy as np
import pytest
from scipy import stats

from anchorlens import intervals


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_mean_is_over_tasks_of_means_over_seeds_of_means_over_examples():
    cells = [[np.array([0.0, 0.0, 3.0]), np.array([3.0])], [np.array([10.0])]]
    found = intervals.mean(cells, chance())
    assert found.value == ((1 + 3) / 2 + 10) / 2
    assert found.n == 5
    assert found.low <= found.value <= found.high


def test_one_seed_is_what_scipy_gives_by_the_same_generator():
    values = chance(1).exponential(size=37)
    found = intervals.mean([[values]], chance(2))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=chance(2))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    cells = [[chance(n).normal(size=(9, 2)) for n in range(3)]]
    _, whole = intervals.means(cells, chance(), resamples=50)
    monkeypatch.setattr(intervals, "_AT_ONCE", 20)
    _, stepwise = intervals.means(cells, chance(), resamples=50)
    np.testing.assert_allclose(whole, stepwise, atol=1e-12)


def test_several_measures_are_resampled_together_and_as_one_alone_is():
    values = chance(3).normal(size=20)
    _, both = intervals.means([[np.stack([values, 2 * values], 1)]], chance(4))
    _, alone = intervals.means([[values]], chance(4))
    np.testing.assert_allclose(both, np.concatenate([alone, 2 * alone], 1), atol=1e-12)


def test_seeds_are_resampled_whole():
    cells = [[np.zeros(5), np.ones(5)]]  # examples do not vary, so only which seeds are drawn can matter
    _, draws = intervals.means(cells, chance(), resamples=4000)
    shares = [(draws == value).mean() for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=4 * (0.25 / 4000) ** 0.5)


def test_what_becomes_of_a_seed_happens_before_seeds_are_averaged():
    cells = [[np.array([[1.0, 1.0]]), np.array([[9.0, 3.0]])]]
    value, _ = intervals.means(cells, chance(), of_seed=lambda each: each / each.sum(1, keepdims=True))
    assert value.tolist() == [(0.5 + 0.75) / 2, (0.5 + 0.25) / 2]


def covered(make, trials: int) -> float:
    found = [intervals.mean(make(chance(n)), chance(10_000 + n), resamples=400) for n in range(trials)]
    return float(np.mean([each.low <= 0 <= each.high for each in found]))


def test_of_one_seed_the_truth_is_in_the_interval_in_95_of_100_cases():
    share = covered(lambda drawn: [[drawn.normal(size=200)]], 400)
    assert share == pytest.approx(0.95, abs=0.01 + 3.3 * (0.95 * 0.05 / 400) ** 0.5)  # 0.01: percentiles of 400 draws


def test_of_many_seeds_that_differ_the_truth_is_in_the_interval_about_as_often():
    def make(drawn):
        return [[drawn.normal() + drawn.normal(size=20) for _ in range(30)]]

    assert covered(make, 400) == pytest.approx(0.94, abs=0.02 + 3.3 * (0.95 * 0.05 / 400) ** 0.5)


def test_examples_alone_would_miss_what_differs_between_seeds():
    def make(drawn):
        return [[drawn.normal() + drawn.normal(size=20) / 100 for _ in range(30)]]

    assert covered(make, 200) > 0.85
    pooled = covered(lambda drawn: [[np.concatenate(make(drawn)[0])]], 200)
    assert pooled < 0.5  # as if 600 examples were independent


def test_equal_arms_are_found_to_differ_no_more_often_than_p_says():
    p = np.array(
        [intervals.paired([[chance(n).normal(size=30)]], chance(n + 5000), resamples=199).p for n in range(300)]
    )
    for level in (0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, abs=3.3 * (level * (1 - level) / 300) ** 0.5)


def test_three_prompts_that_differ_alike_have_p_one_in_four():
    found = intervals.paired([[np.array([1.0, 1.0, 1.0, 0.0])]], chance(), resamples=9999)
    assert found.difference.value == 0.75
    assert found.p == pytest.approx(2 / 8, abs=4 * (0.1875 / 9999) ** 0.5)
    assert found.resolution == 1 / 10_000


def test_arms_that_never_differ_have_p_one():
    assert intervals.paired([[np.zeros(4)]], chance()).p == 1


def test_p_is_never_below_its_resolution():
    found = intervals.paired([[np.ones(100)]], chance(), resamples=99)
    assert found.p == found.resolution == 0.01


def test_any_statistic_of_a_cell_is_averaged_as_means_are_and_what_is_undefined_left_out():
    cells = [[np.arange(5.0)], [np.full(3, 7.0), np.full(3, np.pi)]]
    found = intervals.of_statistic(cells, lambda v: np.nan if v[0, 0] == np.pi else float(np.median(v)), chance())
    assert found.value == (2 + 7) / 2
    assert 3.5 <= found.low <= found.value <= found.high <= 5.5


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "at least one task"),
        ([[]], "at least one seed"),
        ([[np.array([])]], r"cell \[0\]\[0\] has no examples"),
        ([[np.array([1.0]), np.array([np.nan])]], r"cell \[0\]\[1\] has a number that is not finite"),
    ],
)
def test_cells_without_numbers_are_refused(cells, said):
    with pytest.raises(ValueError, match=said):
        intervals.mean(cells, chance())


def test_the_papers_size_takes_seconds():
    cells = [[chance(n).random(1000) < 0.6 for n in range(5)] for _ in range(4)]
    began = time.process_time()
    intervals.paired([[each.astype(float) for each in seeds] for seeds in cells], chance())
    assert time.process_time() - began < 5
