"""What results are measured by: by hand, by law, and against the released code's own numbers."""

import json

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

from anchorlens import metrics
from anchorlens.metrics import UndefinedError

RELEASED = FIXTURES / "released"
FAMILIES = ("gpt2", "gptj")
EXACT = {"rtol": 0, "atol": 1e-12}  # float64, sums of a few numbers near 1: rounding is below 1e-15
EXCESS = st.lists(st.floats(0, 1), min_size=1, max_size=48).map(np.array)


def read(family: str, name: str) -> dict:
    return json.loads((RELEASED / family / f"{name}.json").read_text())


@st.composite
def attended(draw, fewest: int = 2):
    """Attention [n label] in steps that survive squaring, and targets [n] of at least ``fewest`` classes."""
    n_label = draw(st.integers(fewest, 5))
    more = draw(st.lists(st.integers(0, n_label - 1), max_size=12))
    target = np.array([*range(fewest), *more])
    steps = draw(arrays.arrays(np.int64, (len(target), n_label), elements=st.integers(1, 50)))
    return steps / 64, target


# Loyalty


def test_two_of_three_shared_words_are_half_of_the_four_named():
    assert_array_equal(metrics.jaccard(np.array([[1, 2, 3]]), np.array([[3, 9, 1]])), [0.5])


def test_each_prompt_has_its_own_overlap_whatever_the_order_of_its_words():
    a, b = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[2, 1], [4, 9], [1, 2]])
    assert_array_equal(metrics.jaccard(a, b), [1, 1 / 3, 0])


@given(*[st.lists(st.integers(0, 9), min_size=4, max_size=4, unique=True)] * 2)
def test_the_overlap_is_that_of_sets_and_symmetric(a, b):
    found = metrics.jaccard(np.array([a]), np.array([b]))
    assert_array_equal(found, [len({*a} & {*b}) / len({*a} | {*b})])
    assert_array_equal(found, metrics.jaccard(np.array([b]), np.array([a])))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([[1, 2], [3, 3]], [[1, 2], [3, 4]], r"rows \[1\] of a name a token twice"),
        ([[1, 2], [3, 4]], [[1, 1], [4, 4]], r"rows \[0, 1\] of b name a token twice"),
        ([[], []], [[], []], "rows of 0 tokens"),
    ],
)
def test_rows_that_are_not_sets_of_words_are_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        metrics.jaccard(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))


def test_label_loyalty_is_the_share_of_unchanged_classes():
    assert metrics.label_loyalty(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])) == 0.75
    with pytest.raises(UndefinedError, match="no prompts"):
        metrics.label_loyalty(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "clean"), [("icl_and_isolation", "none"), ("compression", "icl")])
def test_loyalties_are_the_released_codes(family, name, clean):
    stored, tensors = read(family, name), load_file(RELEASED / family / f"{name}.safetensors")
    compared = 0
    for key, entry in stored.items():
        before = np.array(entry.get("predicted") or entry["variants"][clean]["predicted"])
        for variant, want in entry["variants"].items():
            assert metrics.label_loyalty(before, np.array(want["predicted"])) == pytest.approx(want["label_loyalty"])
            ids = [tensors[f"{key}.{each}.top20_ids"] for each in (clean, variant)]
            for top in (5, 10):
                found = metrics.jaccard(ids[0][:, :top], ids[1][:, :top]).mean()
                assert_allclose(found, want[f"word_loyalty_top{top}"], **EXACT)
                compared += 1
    assert compared >= 40


# AUCROC and its cumulative share


def test_two_classes_rank_by_the_raw_attention_to_the_larger_one():
    # class 1 is never predicted; raw attention to class 2 ranks 3 of 4 pairs rightly, its share of the row only 2
    attention = np.array([[0.1, 0.0, 0.3], [0.9, 0.0, 0.2], [0.1, 0.8, 0.4], [2.7, 0.0, 0.25]])
    target = np.array([0, 0, 2, 2])
    assert metrics.aucroc(attention, target) == 0.75
    assert metrics.aucroc(attention[:, [0, 2]] / attention[:, [0, 2]].sum(1, keepdims=True), target // 2) == 0.5


def test_of_three_classes_each_row_counts_by_its_shares_without_the_class_nobody_predicted():
    attention = np.array([[2, 1, 9, 1], [1, 2, 0, 1], [1, 1, 5, 2], [4, 4, 0, 8]]) / 64
    assert metrics.aucroc(attention, np.array([0, 1, 3, 3])) == 1  # raw, the last row would win class 0 and 1 as well


def test_one_against_one_averages_over_pairs_of_classes():
    # pairs (0,1) and (0,2) are told apart both ways; of (1,2) the row of class 2 looks more like 1 than 1 itself
    shares = np.array([[0.8, 0.1, 0.1], [0.2, 0.4, 0.4], [0.1, 0.5, 0.4]])
    # AUC of 1 against 2 by share 1: 0; by share 2: 0.5 (a tie): the pair counts 0.25
    assert_allclose(metrics.aucroc(shares, np.array([0, 1, 2])), (1 + 1 + 0.25) / 3, **EXACT)


@given(attended())
def test_no_monotone_change_of_attention_changes_the_area_of_two_classes(case):
    attention, target = case
    target = target % 2
    found = metrics.aucroc(attention, target)
    assert metrics.aucroc(attention**2, target) == found
    assert metrics.aucroc(3 * attention + 1, target) == found


@given(attended(fewest=3), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_names_of_classes_order_of_prompts_and_size_of_rows_do_not_matter_beyond_two_classes(case, random):
    attention, target = case
    found = metrics.aucroc(attention, target)
    names = random.sample(range(attention.shape[1]), attention.shape[1])
    renamed = np.empty_like(attention)
    renamed[:, names] = attention
    assert_allclose(metrics.aucroc(renamed, np.array(names)[target]), found, **EXACT)
    order = random.sample(range(len(target)), len(target))
    assert_allclose(metrics.aucroc(attention[order], target[order]), found, **EXACT)
    factor = np.array([2.0 ** random.randint(-3, 3) for _ in target])[:, None]  # powers of 2 keep every digit
    assert_allclose(metrics.aucroc(attention * factor, target), found, **EXACT)


def test_attention_in_half_precision_is_divided_in_full():
    attention = np.array([[2001, 2000, 100], [2001, 2002, 100], [1, 1, 5], [3, 3, 1]]) / 64  # exact in half precision
    target = np.array([0, 1, 2, 2])
    half = attention.astype(np.float16)  # but its rows, divided by their sums, would add up to 0.999 there
    assert metrics.aucroc(half, target) == metrics.aucroc(attention, target)


@pytest.mark.parametrize(
    ("rows", "target", "said"),
    [
        ([[0.5, 0.5], [0.1, 0.2]], [1, 1], "^only class 1 was predicted$"),
        ([[0.5, 0.5]], [0], "^only class 0 was predicted$"),
        ([[1, 1, 1], [0, 0, 0], [0, 0, 0]], [0, 1, 2], r"^no attention to label words in row 1 \(2 such\)"),
        ([[1, 1, 1, 0], [1, 2, 1, 0], [0, 0, 0, 1]], [0, 1, 2], r"in row 2 \(1 such\)"),
    ],
)
def test_where_the_area_is_undefined_the_reason_is_said(rows, target, said):
    with pytest.raises(UndefinedError, match=said):
        metrics.aucroc(np.array(rows, dtype=np.float64), np.array(target))


def test_the_reason_says_gold_where_the_target_is_gold():
    with pytest.raises(UndefinedError, match=r"^only class 1 was gold$"):
        metrics.aucroc(np.ones((2, 2)), np.array([1, 1]), target_is="gold")
    with pytest.raises(UndefinedError, match="no prompts"):
        metrics.aucroc(np.ones((0, 2)), np.array([], dtype=np.int64))


def test_a_prompt_without_attention_ranks_last_where_nothing_is_divided():
    assert metrics.aucroc(np.array([[0.0, 0.0], [0.1, 0.2]]), np.array([0, 1])) == 1


@pytest.mark.parametrize(
    ("changed", "target", "said"),
    [
        (np.nan, [0, 1], r"attention\[1, 0\] = nan: it must be a finite number of 0 or more"),
        (np.inf, [0, 1], r"attention\[1, 0\] = inf"),
        (-0.5, [0, 1], r"attention\[1, 0\] = -0.5"),
        (0.5, [0, -1], r"target\[1\] = -1: with 2 classes it may be 0 to 1"),
        (0.5, [2, 1], r"target\[0\] = 2"),
    ],
)
def test_numbers_that_are_no_attention_and_targets_that_are_no_class_are_refused(changed, target, said):
    attention = np.array([[0.5, 0.5], [changed, 0.5]])
    with pytest.raises(ValueError, match=said) as refused:
        metrics.aucroc(attention, np.array(target))
    assert not isinstance(refused.value, UndefinedError)


def test_contribution_adds_up_what_lies_above_chance():
    assert_allclose(metrics.cumulative(np.array([0.5, 0.75, 0.25, 1.0])), [0, 0.5, 0, 1], **EXACT)


def test_contribution_may_leave_the_unit_interval():
    assert_allclose(metrics.cumulative(np.array([0.25, 0.875])), [-2, 1], **EXACT)
    assert_allclose(metrics.cumulative(np.array([1.0, 0.25])), [2, 1], **EXACT)


@given(EXCESS.filter(lambda auc: abs((auc - 0.5).sum()) > 1e-6))
def test_the_contribution_of_all_layers_is_one_and_grows_as_the_area_does(auc):
    found = metrics.cumulative(auc)
    # relative to the largest share: where layers cancel, R is large on the way and rounds as such
    scale = max(1, np.abs(found).max())
    assert_allclose(found[-1] / scale, 1 / scale, **EXACT)
    assert_allclose(np.diff(found, prepend=0) * (auc - 0.5).sum() / scale, (auc - 0.5) / scale, **EXACT)


@pytest.mark.parametrize(
    ("auc", "said"),
    [
        ([0.5, 0.5], "^AUCROC is 0.5 on average: nothing to divide by$"),
        ([0.6, 0.7, 0.2], "^AUCROC is 0.5 on average"),  # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point
        ([0.6, np.nan, 0.7], "^AUCROC is undefined in 1 of 3 layers$"),
    ],
)
def test_where_the_contribution_is_undefined_the_reason_is_said(auc, said):
    with pytest.raises(UndefinedError, match=said):
        metrics.cumulative(np.array(auc))


@pytest.mark.parametrize(("auc", "said"), [([], "no layers"), ([0.5, 1.5], r"AUCROC = 1.5"), ([-0.1], "AUCROC = -0.1")])
def test_what_cannot_be_an_area_is_refused(auc, said):
    with pytest.raises(ValueError, match=said):
        metrics.cumulative(np.array(auc, dtype=np.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_areas_and_contributions_are_the_released_codes(family):
    stored, tensors = read(family, "deep"), load_file(RELEASED / family / "deep.safetensors")
    tasks = {key: entry for key, entry in stored.items() if f"{key}.A" in tensors}
    assert len(tasks) == {"gpt2": 6, "gptj": 4}[family]
    one_shot = []
    for key, entry in tasks.items():
        attention, target = tensors[f"{key}.A"], np.array(entry["predicted"])
        auc = np.array([metrics.aucroc(attention[:, :, layer], target) for layer in range(attention.shape[2])])
        assert_allclose(auc, entry["AUCROC"], **EXACT, err_msg=key)
        assert_allclose(metrics.cumulative(auc), entry["R"], **EXACT, err_msg=key)
        if key.endswith("s1"):
            one_shot.append(auc)
    mean = stored["mean_over_tasks_one_shot"]
    assert_allclose(np.mean(one_shot, axis=0), mean["AUCROC"], **EXACT)
    assert_allclose(metrics.cumulative(np.mean(one_shot, axis=0)), mean["R"], **EXACT)


# Confusion


def test_a_pair_of_classes_is_told_apart_by_their_own_two_logits():
    # of classes 0 and 1: margins 1, 3 where gold is 0, and 2 where it is 1: one of two pairs is right; 2 is never gold
    logits = np.array([[1.0, 0, 9], [3, 0, 0], [2, 0, 0]])
    found = metrics.observed_confusion(logits, np.array([0, 0, 1]))
    assert_array_equal(found, [[1, 0.5, np.nan], [0.5, 1, np.nan], [np.nan, np.nan, 1]])


def test_a_class_that_is_never_mistaken_has_one_and_one_always_mistaken_zero():
    logits = np.array([[1.0, 0, 0], [0, 1, 2], [0, 2, 1]])
    found = metrics.observed_confusion(logits, np.array([0, 1, 2]))
    assert_array_equal(found, [[1, 1, 1], [1, 1, 0], [1, 0, 1]])


def test_unknown_gold_is_left_out_of_the_confusion():
    logits = np.array([[1.0, 0], [0, 1], [5, 9]])
    assert_array_equal(metrics.observed_confusion(logits, np.array([0, 1, -1])), np.ones((2, 2)))


def test_what_underflows_as_a_probability_still_ranks():
    # p_0 / (p_0 + p_1) rounds to 1 in all of them
    logits = np.array([[900.0, 0], [800, 0], [700, 0]])
    assert metrics.observed_confusion(logits, np.array([0, 0, 1]))[0, 1] == 1


def test_margins_closer_than_single_precision_are_no_ties():
    logits = np.array([[16777216.0, -1.0], [16777216.0, 0.0]], dtype=np.float32)
    assert metrics.observed_confusion(logits, np.array([0, 1]))[0, 1] == 1


@given(attended(), st.floats(-5, 5))
@settings(deadline=None)
def test_the_confusion_is_that_of_probabilities_and_symmetric(case, shift):
    weight, gold = case
    found = metrics.observed_confusion(np.log(weight), gold)
    assert_array_equal(found, found.T)
    apart = ~np.eye(len(found), dtype=bool)
    assert_allclose(found[apart], 1 - metrics.observed_confusion(-np.log(weight), gold)[apart], **EXACT)
    margins = np.log(weight[:, 0]) - np.log(weight[:, 1])
    assume(len({*margins.round(9)}) == len({*margins}))  # else equal ratios have rounded apart as logarithms
    a, b = weight[gold == 0], weight[gold == 1]
    ahead = a[:, None, 0] * b[None, :, 1] - a[:, None, 1] * b[None, :, 0]  # sign of p_0/p_1 here minus there, exact
    assert_allclose(found[0, 1], ((ahead > 0) + (ahead == 0) / 2).mean(), **EXACT)


@pytest.mark.parametrize(
    ("logits", "gold", "said"),
    [
        ([[0.0, -np.inf]], [0], r"logits\[0, 1\] = -inf: it must be a finite number\."),
        ([[np.nan, 0]], [0], r"logits\[0, 0\] = nan"),
        ([[0.0, 1]], [2], r"gold\[0\] = 2: with 2 classes it may be -1 to 1"),
        ([[0.0, 1]], [-2], r"gold\[0\] = -2"),
    ],
)
def test_logits_that_are_not_finite_and_unknown_classes_are_refused(logits, gold, said):
    with pytest.raises(ValueError, match=said):
        metrics.observed_confusion(np.array(logits), np.array(gold))


def test_predicted_confusion_is_the_distance_over_the_largest():
    distance = np.array([[0.0, 2, 4], [2, 0, 8], [4, 8, 0]])
    assert_array_equal(metrics.predicted_confusion(distance), [[1, 0.25, 0.5], [0.25, 1, 1], [0.5, 1, 1]])


def test_anchors_that_coincide_predict_nothing():
    with pytest.raises(UndefinedError, match="anchors coincide"):
        metrics.predicted_confusion(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"distance\[0, 1\] = nan: it must be a finite number of 0 or more"):
        metrics.predicted_confusion(np.array([[0, np.nan], [1, 0]]))
    with pytest.raises(ValueError, match=r"distance\[1, 0\] = -1"):
        metrics.predicted_confusion(np.array([[0, 1.0], [-1, 0]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_confusions_are_the_released_codes(family):
    for task, entry in read(family, "distances").items():
        logits, gold = np.log(entry["label_probs_first_set"]), np.array(entry["gold"])
        assert_array_equal(metrics.observed_confusion(logits, gold).round(2), entry["confusion_true_rounded2"], task)
        for layer in entry["layers"]:
            found = metrics.predicted_confusion(np.array(layer["distance"]))
            apart = ~np.eye(len(found), dtype=bool)
            assert_allclose(found[apart], np.array(layer["normalised"])[apart], **EXACT)
            assert_array_equal(found.round(2), layer["notebook_rounded2_diag1"])


def matrix(*pairs: float) -> np.ndarray:
    """Symmetric, diagonal 1, with ``pairs`` in the order 01 02 12 or 01 02 03 12 13 23."""
    size = {3: 3, 6: 4}[len(pairs)]
    full = np.eye(size)
    full[np.triu_indices(size, 1)] = pairs
    return np.maximum(full, full.T) if np.isfinite(pairs).all() else full + np.triu(full, 1).T


def test_the_rank_correlation_of_three_pairs_with_two_swapped_is_a_half():
    assert metrics.rank_correlation(matrix(0.1, 0.2, 0.9), matrix(0.5, 0.4, 0.6)) == pytest.approx(0.5)


def test_only_the_order_of_pairs_counts():
    a = matrix(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert metrics.rank_correlation(a, a**3) == pytest.approx(1)
    assert metrics.rank_correlation(a, 1 - a) == pytest.approx(-1)


def test_a_pair_counts_with_the_mean_of_its_two_directions():
    a = matrix(0.1, 0.2, 0.3)
    b = np.array([[1, 0.9, 0.8], [0.1, 1, 0.7], [0.4, 0.7, 1]])  # means 0.5, 0.6, 0.7; above the diagonal they fall
    assert metrics.rank_correlation(a, b) == pytest.approx(1)
    assert metrics.rank_correlation(b, a) == pytest.approx(1)


def test_pairs_that_one_matrix_does_not_know_are_left_out():
    known = matrix(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    gaps = matrix(0.1, np.nan, np.nan, 0.4, 0.3, np.nan)
    assert metrics.rank_correlation(known, gaps) == metrics.rank_correlation(gaps, known) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.eye(2), np.eye(2), "^1 pair of classes: a rank correlation needs 3"),
        (matrix(0.1, 0.2, 0.3), matrix(0.1, np.nan, 0.3), "^2 pairs of classes"),
        (matrix(0.1, 0.2, 0.3), matrix(0.5, 0.5, 0.5), "^all pairs of classes are equally far apart"),
        (matrix(0.5, 0.5, 0.5), matrix(0.1, 0.2, 0.3), "^all pairs of classes are equally far apart"),
    ],
)
def test_too_few_or_equal_pairs_have_no_rank_correlation(a, b, said):
    with pytest.raises(UndefinedError, match=said):
        metrics.rank_correlation(a, b)


@pytest.mark.parametrize("known", [3, None])
def test_the_rank_correlation_is_scipys(known):
    from scipy.stats import spearmanr

    for entry in read("gpt2", "distances").values():
        true = np.array(entry["confusion_true_rounded2"])
        for layer in entry["layers"]:
            a, b = (m[:known, :known] for m in (np.array(layer["normalised"]), true))
            upper = np.triu_indices(len(a), 1)
            if np.ptp(b[upper]):
                assert_allclose(metrics.rank_correlation(a, b), spearmanr(a[upper], b[upper])[0], **EXACT)


# Shapes


def test_arrays_of_different_prompts_are_refused_by_name():
    with pytest.raises(ValueError, match=r"shapes differ: before \[3\], after \[1\]; give one row per prompt"):
        metrics._alike(before=(3,), after=(1,))
    metrics._alike(before=(3,), after=(3,))
