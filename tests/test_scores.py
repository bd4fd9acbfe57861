"""Accuracy and what it is worth: by hand, and as scikit-learn counts it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlens import metrics
from anchorlens.metrics import SCORES, UndefinedError

LABELS = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=30)


def results(rows: list[tuple], columns: str = "seed arm example gold predicted") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def test_scores_of_five_prompts_of_which_one_has_no_gold_class():
    found = metrics.scores(np.array([0, 0, 1, -1, 0]), np.array([0, 1, 1, 1, 0]), 2)
    # F1: class 0 4/5, class 1 2/3
    want = {"n": 4, "accuracy": 0.75, "macro_f1": (4 / 5 + 2 / 3) / 2, "majority": 0.75, "class_counts": "3 1"}
    assert found == pytest.approx(want)


def test_a_class_that_never_occurs_counts_zero_in_macro_f1():
    found = metrics.scores(np.array([0, 2]), np.array([0, 2]), 4)
    assert found == {"n": 2, "accuracy": 1, "macro_f1": 0.5, "majority": 0.5, "class_counts": "1 0 1 0"}


def test_always_saying_the_commonest_class_scores_as_the_majority():
    gold = np.array([3] * 17 + [0, 1, 2])
    found = metrics.scores(gold, np.full(20, 3), 4)
    assert found["accuracy"] == found["majority"] == 0.85
    assert found["macro_f1"] == pytest.approx(2 * 17 / 37 / 4)


@given(LABELS)
@settings(deadline=None)
def test_scores_are_scikit_learns(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    gold, predicted = np.array(pairs).T
    known = gold >= 0
    if not known.any():
        with pytest.raises(UndefinedError, match="no prompt has a gold class"):
            metrics.scores(gold, predicted, 4)
        return
    found = metrics.scores(gold, predicted, 4)
    f1 = f1_score(gold[known], predicted[known], labels=range(4), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)
    assert found["accuracy"] == accuracy_score(gold[known], predicted[known])
    assert sum(map(int, found["class_counts"].split())) == found["n"] == known.sum()


@pytest.mark.parametrize(
    ("gold", "predicted", "said"),
    [
        ([0, 2], [0, 1], r"gold\[1\] = 2: with 2 classes it may be -1 to 1"),
        ([0, -2], [0, 1], r"gold\[1\] = -2"),
        ([0, 1], [5, 1], r"predicted\[0\] = 5: with 2 classes it may be 0 to 1"),
        ([0, 1], [-1, 1], r"predicted\[0\] = -1"),
    ],
)
def test_classes_that_the_task_lacks_are_refused(gold, predicted, said):
    with pytest.raises(ValueError, match=said):
        metrics.scores(np.array(gold), np.array(predicted), 2)


def test_a_table_has_a_row_per_seed_and_arm_in_order():
    frame = results(
        [
            (43, "beta", 0, 0, 1),
            (42, "vanilla", 0, 0, 0),
            (42, "vanilla", 1, 1, 0),
            (42, "beta", 0, 0, 0),
            (42, "beta", 1, 1, 1),
        ]
    )
    found = metrics.score_table(frame, 2)
    want = results(
        [
            (42, "beta", 2, 1.0, 1.0, 0.5, "1 1"),
            (42, "vanilla", 2, 0.5, 1 / 3, 0.5, "1 1"),
            (43, "beta", 1, 0.0, 0.0, 1.0, "1 0"),
        ],
        "seed arm n accuracy macro_f1 majority class_counts",
    )
    pd.testing.assert_frame_equal(found, want, rtol=0, atol=1e-12)  # rounding of one division
    assert {column: str(dtype) for column, dtype in found.dtypes.items()} == SCORES


def test_rows_that_repeat_a_prediction_by_layer_count_once():
    rows = [(42, example, gold, 0, layer) for example, gold in ((0, 0), (1, 0), (2, 1)) for layer in range(example + 1)]
    found = metrics.score_table(results(rows, "seed example gold predicted layer"), 2)
    assert found[["arm", "n", "class_counts"]].to_numpy().tolist() == [["", 3, "2 1"]]
    assert found["accuracy"].tolist() == pytest.approx([2 / 3])


def test_the_same_example_may_be_answered_anew_by_each_seed_and_arm():
    rows = [(42, "beta", 0, 0, 0), (43, "beta", 0, 0, 1), (42, "vanilla", 0, 0, 1)]
    assert metrics.score_table(results(rows), 2)["accuracy"].tolist() == [1, 0, 0]


def test_prompts_without_gold_are_left_out_and_may_leave_an_empty_table():
    frame = results([(42, "a", 0, -1, 0), (42, "a", 1, 1, 1), (42, "b", 1, -1, 0), (43, "a", 0, -1, 0)])
    found = metrics.score_table(frame, 2)
    assert found[["seed", "arm", "n"]].to_numpy().tolist() == [[42, "a", 1]]
    for nothing in (frame[frame["seed"] == 43], frame.iloc[:0]):
        empty = metrics.score_table(nothing, 2)
        assert {column: str(dtype) for column, dtype in empty.dtypes.items()} == SCORES
        assert len(empty) == 0


def test_settings_that_are_mixed_must_be_told_apart_first():
    rows = [(42, "x", 0, 1, 1, 5, "first"), (42, "x", 0, 1, 0, 3, "first"), (42, "x", 1, 1, 0, 9, "last")]
    frame = results(rows, "seed arm example gold predicted depth end")
    said = r"example 0 \(seed 42, arm x\) has gold classes \[1\] and predictions \[0, 1\], .* differ in \['depth'\]\."
    with pytest.raises(ValueError, match=said):
        metrics.score_table(frame, 2)
    assert metrics.score_table(frame[frame["depth"] != 3], 2)["accuracy"].tolist() == [0.5]


def test_two_gold_classes_of_an_example_are_an_error():
    with pytest.raises(ValueError, match=r"example 7 \(seed 1\) has gold classes \[0, 1\] and predictions \[0\]"):
        metrics.score_table(results([(1, 7, 0, 0), (1, 7, 1, 0)], "seed example gold predicted"), 2)


def test_arms_are_put_together_only_on_request_and_only_where_they_agree():
    rows = [(42, "a", 0, 0, 0), (42, "b", 0, 0, 0), (42, "b", 1, 0, 1)]
    together = metrics.score_table(results(rows), 2, by=("seed",))
    assert together[["arm", "n", "accuracy"]].to_numpy().tolist() == [["", 2, 0.5]]
    with pytest.raises(ValueError, match=r"its rows differ in \['arm'\]"):
        metrics.score_table(results([(42, "a", 0, 0, 0), (42, "b", 0, 0, 1)]), 2, by=("seed",))


@pytest.mark.parametrize("by", [("arm",), ("seed", "draw"), ()])
def test_scores_are_told_apart_by_nothing_else(by):
    with pytest.raises(ValueError, match="scores are told apart by seed, or by seed and arm"):
        metrics.score_table(results([(42, "a", 0, 0, 0)]), 2, by=by)


def test_a_missing_column_is_named():
    frame = results([(42, "a", 0, 0, 0)]).drop(columns=["gold", "example"])
    with pytest.raises(ValueError, match=r"scores need the columns \['example', 'gold'\]; the frame has \['seed'"):
        metrics.score_table(frame, 2)


def test_the_frame_is_left_as_it_was():
    frame = results([(42, 0, 0, 0), (42, 0, 0, 0)], "seed example gold predicted")
    before = frame.copy()
    metrics.score_table(frame, 2)
    pd.testing.assert_frame_equal(frame, before)
