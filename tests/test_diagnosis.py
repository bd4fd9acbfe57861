"""Section 3.3: by hand and by law."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from anchorlens import metrics
from anchorlens.analyses import diagnosis
from anchorlens.analyses.diagnosis import components
from anchorlens.batching import Group
from anchorlens.hooks import SettingError
from anchorlens.passes import Answers
from anchorlens.prompts import PromptError
from anchorlens.readings import Readings

CROSS = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]  # singular values sqrt(18) and sqrt(2), along the axes
CORNERS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def hand_reading(
    prompt,
    queries: Sequence = CROSS,
    keys: Sequence = CORNERS,
    *,
    classes: Sequence[int] = (0, 1, 2),
    gold: Sequence[int] = (0, 1, 2, 2),
    logits: Sequence = ((3, 0, 0), (0, 3, 2), (0, 2, 3), (0, 3, 1)),
    seed: int = 7,
) -> Readings:
    """A reading at layer 4 of four queries of three classes, with the given vectors of width 2."""
    n, found = len(queries), tuple(range(3))
    gold, logits = gold[:n], logits[:n]
    one = dataclasses.replace(prompt, anchors=tuple(range(len(classes))), anchor_classes=tuple(classes), labels=found)
    group = Group(tuple(dataclasses.replace(one, example=row, seed=seed) for row in range(n)))
    answers = Answers(torch.arange(n), torch.tensor(gold), torch.tensor(logits).double(), torch.zeros(n, 5).long())
    attention = torch.zeros(n, 1, len(classes))
    return Readings(group, answers, attention, (4,), torch.tensor(queries)[:, None], torch.tensor(keys)[None])


@pytest.fixture(scope="module")
def prompt(prompts):
    return prompts[0]


def cells(frame: pd.DataFrame, value: str, n_components: int) -> dict[tuple[int, int], float]:
    here = frame[(frame["n_components"] == n_components) & (frame["label_a"] < frame["label_b"])]
    return {(int(a), int(b)): each for a, b, each in zip(here["label_a"], here["label_b"], here[value], strict=True)}


def test_keys_are_measured_along_what_queries_vary_in(prompt):
    frame = diagnosis.diagnosis([hand_reading(prompt)], n_components=[1, 2])
    far, near = math.sqrt(18), math.sqrt(2)
    both = {(0, 1): far, (0, 2): near, (1, 2): math.sqrt(20)}
    assert cells(frame, "distance", 2) == pytest.approx(both, abs=1e-12)  # float64 rounding
    assert cells(frame, "confusion_predicted", 2) == pytest.approx(
        {pair: each / math.sqrt(20) for pair, each in both.items()}, abs=1e-12
    )
    assert cells(frame, "distance", 1) == pytest.approx({(0, 1): far, (0, 2): 0, (1, 2): far}, abs=1e-12)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == diagnosis.COLUMNS
    assert len(frame) == 2 * 9
    assert set(frame["seed"]) == {7}
    assert set(frame["layer"]) == {4}
    same = frame[frame["label_a"] == frame["label_b"]]
    assert set(same["distance"]) == {0}
    assert set(same["confusion_predicted"]) == set(same["confusion_observed"]) == {1}


def test_observed_confusion_is_the_area_at_which_two_classes_are_told_apart(prompt):
    frame = diagnosis.diagnosis([hand_reading(prompt)], n_components=[2])
    # 1 against 2: margins +1 (is 1), -1 and +2 (are 2): one of two pairs in order
    assert cells(frame, "confusion_observed", 2) == {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.5}


def test_queries_are_centred_and_a_constant_in_all_keys_changes_nothing(prompt):
    plain = diagnosis.diagnosis([hand_reading(prompt)], n_components=[1, 2])
    moved = hand_reading(prompt, [[a + 50, b - 7] for a, b in CROSS], [[a - 9, b + 30] for a, b in CORNERS])
    # float64, numbers of 50 squared: 1e-12
    pd.testing.assert_frame_equal(diagnosis.diagnosis([moved], n_components=[1, 2]), plain, rtol=0, atol=1e-6)


def test_turning_or_mirroring_the_space_changes_nothing(prompt):
    chance = torch.Generator().manual_seed(3)
    queries, keys = torch.randn(4, 2, generator=chance).double(), torch.randn(3, 2, generator=chance).double()
    plain = diagnosis.diagnosis([hand_reading(prompt, queries.tolist(), keys.tolist())], n_components=[1, 2])
    for turn in ([[0.6, -0.8], [0.8, 0.6]], [[-1.0, 0.0], [0.0, 1.0]]):
        turned = hand_reading(
            prompt, (queries @ torch.tensor(turn).double()).tolist(), (keys @ torch.tensor(turn).double()).tolist()
        )
        # stored in float32: 1e-7 of each coordinate
        pd.testing.assert_frame_equal(diagnosis.diagnosis([turned], n_components=[1, 2]), plain, rtol=1e-5, atol=1e-6)


def test_the_keys_of_several_demonstrations_of_a_class_are_averaged(prompt):
    keys = [[1.0, 1.0], [0.0, 2.0], [-1.0, -1.0], [1.0, 0.0], [0.0, 0.0]]
    shots = hand_reading(prompt, keys=keys, classes=[0, 2, 0, 1, 2])
    np.testing.assert_array_equal(diagnosis.class_keys(shots), [[[0, 0], [1, 0], [0, 1]]])
    pd.testing.assert_frame_equal(
        diagnosis.diagnosis([shots], n_components=[2]), diagnosis.diagnosis([hand_reading(prompt)], n_components=[2])
    )


def test_queries_of_all_sets_are_decomposed_and_keys_are_the_seeds_own(prompt):
    own = hand_reading(prompt, [[0.0, 0.0]] * 4)
    sets = [
        hand_reading(prompt, CROSS[:2], gold=[0, 1], logits=[[9, 0, 0]] * 2, keys=[[5.0, 5.0]] * 3),
        hand_reading(prompt, CROSS[2:], gold=[2, 2], logits=[[9, 0, 0]] * 2),
    ]
    got = diagnosis.diagnosis([own], sets, n_components=[1, 2])
    pd.testing.assert_frame_equal(got, diagnosis.diagnosis([hand_reading(prompt)], n_components=[1, 2]))
    with pytest.raises(ValueError, match=r"seed 8 has keys and no queries in pca, which holds seeds \[7\]: read both"):
        diagnosis.diagnosis([hand_reading(prompt, seed=8)], sets, n_components=[1])


def test_each_layer_is_measured_with_its_own_queries_and_keys(prompt):
    one = hand_reading(prompt)
    other = hand_reading(prompt, [[b, a] for a, b in CROSS], [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    both = dataclasses.replace(
        one,
        layers=(4, 6),
        queries=torch.cat([one.queries, other.queries], dim=1),
        keys=torch.cat([one.keys, other.keys]),
    )
    got = diagnosis.diagnosis([both], n_components=[1, 2])
    for layer, alone in ((4, one), (6, other)):
        want = diagnosis.diagnosis([alone], n_components=[1, 2]).assign(layer=layer)
        pd.testing.assert_frame_equal(got[got["layer"] == layer].reset_index(drop=True), want)


def test_keys_come_from_the_first_group_that_demonstrates_every_class(prompt):
    lacking = hand_reading(
        prompt, CROSS[:2], [[9.0, 9.0], [8.0, 0.0]], classes=[0, 1], gold=[0, 1], logits=[[3, 0, 0], [0, 3, 2]], seed=-1
    )
    whole = hand_reading(prompt, CROSS[2:], gold=[2, 2], logits=[[0, 2, 3], [0, 3, 1]], seed=-1)
    other = hand_reading(prompt, [[0.0, 0.0]], [[1.0, 7.0]] * 3, gold=[-1], logits=[[0, 0, 0]], seed=-1)
    got = diagnosis.diagnosis([lacking, whole, other], n_components=[1, 2])
    pd.testing.assert_frame_equal(got.assign(seed=7), diagnosis.diagnosis([hand_reading(prompt)], n_components=[1, 2]))
    with pytest.raises(
        PromptError, match=r"example 0: no demonstration is of class 2 \(from 0\).*\n?.*Demonstrate every"
    ):
        diagnosis.diagnosis([lacking], n_components=[1])


def test_as_published_values_have_two_decimals_and_distances_all(prompt):
    frame = diagnosis.diagnosis([hand_reading(prompt)], n_components=[2], as_published=True)
    assert cells(frame, "confusion_predicted", 2) == {(0, 1): 0.95, (0, 2): 0.32, (1, 2): 1.0}
    assert cells(frame, "distance", 2)[0, 1] == pytest.approx(math.sqrt(18))


def test_the_rank_correlation_is_that_of_the_pairs(prompt):
    frame = diagnosis.diagnosis(
        [hand_reading(prompt, logits=[[3, 0, 2], [0, 3, 2], [1, 2, 3], [3, 2, 1]])], n_components=[1, 2]
    )
    table = diagnosis.agreement(frame)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == diagnosis.AGREEMENT
    assert table[["seed", "layer", "n_components"]].to_numpy().tolist() == [[7, 4, 1], [7, 4, 2]]
    for n, spearman in zip(table["n_components"], table["spearman"], strict=True):
        a, b = (
            [cells(frame, f"confusion_{which}", n)[pair] for pair in ((0, 1), (0, 2), (1, 2))]
            for which in ("predicted", "observed")
        )
        assert spearman == pytest.approx(pd.Series(a).corr(pd.Series(b), method="spearman"), abs=1e-12)
    assert set(table["why"]) == {""}


def test_one_class_among_the_queries_leaves_observed_confusion_undefined_and_says_so(prompt):
    frame = diagnosis.diagnosis([hand_reading(prompt, gold=[1, 1, 1, -1])], n_components=[2])
    assert np.isnan(list(cells(frame, "confusion_observed", 2).values())).all()
    table = diagnosis.agreement(frame)
    assert table["spearman"].isna().all()
    assert table["why"].tolist() == ["all queries are of one class"]
    said = diagnosis.stated(frame, 4, 2)
    assert said["found"].tolist()[:2] == [
        "undefined: 0 pairs of classes to choose from",
        "undefined: all queries are of one class",
    ]
    assert not said["holds"].any()


def test_queries_without_any_gold_class_are_refused(prompt):
    with pytest.raises(PromptError, match="none of the 4 queries of seed 7 has a gold class, so no confusion"):
        diagnosis.diagnosis([hand_reading(prompt, gold=[-1] * 4)], n_components=[1])


def test_anchors_whose_keys_coincide_are_refused(prompt):
    with pytest.raises(
        metrics.UndefinedError, match=r"layer 4 of seed 7, 2 components: anchors coincide.* look at other"
    ):
        diagnosis.diagnosis([hand_reading(prompt, keys=[[2.0, 3.0]] * 3)], n_components=[2])


@pytest.mark.parametrize("n", [0, 3])
def test_more_components_than_queries_are_wide_are_refused(prompt, n):
    with pytest.raises(SettingError, match=f"n_components={n}: queries are 2 wide, so it may be 1 to 2"):
        diagnosis.diagnosis([hand_reading(prompt)], n_components=[n])
    with pytest.raises(SettingError, match=f"n_components={n}"):
        components.directions(np.array(CROSS), n)


def test_components_beyond_the_number_of_queries_add_nothing():
    chance = np.random.default_rng(0)
    queries, keys = chance.normal(size=(4, 9)), chance.normal(size=(3, 9))
    few, many = components.directions(queries, 4), components.directions(queries, 9)
    want = components.distances(few.scaled(keys, 4))
    np.testing.assert_allclose(components.distances(many.scaled(keys, 9)), want, rtol=1e-12)


def test_the_sweep_goes_as_far_as_width_and_number_of_queries_allow(prompt):
    many = [dataclasses.replace(prompt, seed=7)] * 60
    assert diagnosis.sweep(12, 64, many) == (5, 10, 12, 20, 50)
    assert diagnosis.sweep(12, 16, many) == (5, 10, 12)
    assert diagnosis.sweep(5, 64, [*many, *[prompt] * 9]) == (5,), "of each seed"
    assert diagnosis.sweep(61, 64, many) == (5, 10, 20, 50, 61)
    with pytest.raises(SettingError, match="n_components=65: queries are 64 wide, so it may be 1 to 64"):
        diagnosis.sweep(65, 64, many)


def test_the_layer_is_two_thirds_of_the_way_through_unless_given():
    assert [diagnosis.layer_of(n) for n in (1, 2, 3, 8, 28, 48)] == [0, 1, 2, 5, 19, 32]
    assert diagnosis.layer_of(8, 0) == 0
    for wrong in (8, -2):
        with pytest.raises(ValueError, match=rf"layer={wrong}: this model has 8 layers, so it may be 0 to 7, or -1"):
            diagnosis.layer_of(8, wrong)


def test_readings_without_vectors_or_of_different_layers_are_refused(prompt):
    reading = hand_reading(prompt)
    for wrong in ([], [dataclasses.replace(reading, layers=())], [reading, dataclasses.replace(reading, layers=(5,))]):
        with pytest.raises(ValueError, match=r"diagnosis was given . readings with vectors of layers .*vectors=layers"):
            diagnosis.diagnosis(wrong)


def test_predictions_come_with_the_confusion(prompt):
    frame = diagnosis.predictions(hand_reading(prompt))
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == diagnosis.PREDICTIONS
    assert frame["predicted"].tolist() == [0, 1, 2, 1]
    assert frame["gold"].tolist() == [0, 1, 2, 2]


# --- what the paper states ---


def hand_frame(predicted: dict[int, list[float]], observed: list[float], seed: int = 0) -> pd.DataFrame:
    """Four classes in layer 1; confusions of the pairs 01 02 03 12 13 23 for each number of components."""
    tables = []
    for n, values in predicted.items():
        matrices = []
        for pairs in (values, values, observed):
            matrix = np.eye(4)
            matrix[np.triu_indices(4, k=1)] = pairs
            matrices.append(np.maximum(matrix, matrix.T))
        tables += [diagnosis._table(seed, layer, n, *matrices) for layer in (0, 1)]
    return pd.concat(tables, ignore_index=True)


def test_what_the_paper_states_is_judged_by_numbers():
    values = [0.9, 0.8, 0.3, 0.7, 0.6, 1.0]
    frame = hand_frame({5: [each - 0.05 for each in values], 10: values}, [0.95, 0.85, 0.5, 0.8, 0.7, 0.99])
    said = diagnosis.stated(frame, 1, 10, [" World", " Sports", " Business", " Technology"])
    assert said["holds"].tolist() == [True, True, True]
    assert said["found"].tolist() == [
        "predicted World–Technology (0.30 of the largest distance), which is confused number 1 of 6 (AUC 0.500); "
        "confused most is World–Technology (AUC 0.500)",
        "rank correlation 1.00 in layer 2 (1 = first), where one in 20 random orders of 6 pairs exceeds 0.74; "
        "best of all layers 1.00 in layer 1",
        "mean distance to the prediction from 10: 0.05 with 5",
    ]


def test_the_pair_confused_most_must_be_one():
    values = [0.9, 0.8, 0.3, 0.7, 0.6, 1.0]
    for predicted, observed, said in (
        (values, [1.0] * 6, "number 1 of 6, as 5 others are (AUC 1.000)"),
        (values, [0.9, 0.8, 0.5, 0.5, 0.6, 1.0], "number 1 of 6, as 1 other is (AUC 0.500)"),
        ([0.9, 0.8, 0.3, 0.3, 0.6, 1.0], values, "number 1 of 6 (AUC 0.300)"),
    ):
        frame = diagnosis.stated(hand_frame({5: predicted, 10: predicted}, observed), 1, 10)
        assert not frame["holds"][0]
        assert said in frame["found"][0]


def test_what_does_not_hold_is_said_with_its_numbers():
    frame = hand_frame({5: [0.2] * 6, 10: [0.9, 0.8, 0.3, 0.7, 0.6, 1.0]}, [0.4, 0.85, 0.9, 0.8, 0.7, 0.6])
    other = hand_frame({5: [0.2] * 6, 10: [0.9, 0.8, 0.3, 0.7, 0.6, 1.0]}, [0.4, 0.85, 0.95, 0.8, 0.65, 0.7], seed=1)
    said = diagnosis.stated(pd.concat([frame, other]), 1, 10)
    assert said["holds"].tolist() == [False, False, False]
    assert "class 0–class 3 (0.30 of the largest distance), which is confused number 6 of 6" in said["found"][0]
    assert "exceeds 0.74;" in said["found"][1]  # 1.645 / sqrt(5)
    assert "rank correlation -0.60 in layer 2 (1 = first, mean of 2 seeds from -0.71 to -0.49)" in said["found"][1]
    assert said["found"][2] == "mean distance to the prediction from 10: 0.52 with 5"
