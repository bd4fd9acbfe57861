"""Section 2.3: by hand, by law, and against the released code's own numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import released
import torch
from conftest import random_model

from anchorlens import passes, readings
from anchorlens.analyses import diagnosis, extraction
from anchorlens.batching import Group, collate, groups
from anchorlens.hooks import Site, capturing, watching
from anchorlens.passes import Answers
from anchorlens.prompts import PromptError
from anchorlens.readings import Readings


def hand_reading(
    attention: torch.Tensor, classes: list[int], predicted: list[int], gold: list[int], prompt
) -> Readings:
    """A reading of prompts that attend as given [query layer demo]."""
    n = len(predicted)
    prompts = [dataclasses.replace(prompt, example=row, anchor_classes=tuple(classes)) for row in range(n)]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 2).double()
    answers = Answers(torch.arange(n), torch.tensor(gold), logits, torch.zeros(n, 5, dtype=torch.int64))
    queries, keys = torch.zeros(n, 0, 0), torch.zeros(0, len(classes), 0)
    return Readings(Group(tuple(prompts)), answers, attention, (), queries, keys)


@pytest.fixture(scope="module")
def group(prompts) -> Group:
    (group,) = groups(prompts)
    return group


@pytest.fixture(scope="module")
def reading(model, group) -> Readings:
    return readings.read(model, group)


def hand_summary(auc: list[list[float]], why: str = "one class") -> pd.DataFrame:
    """A summary of given AUCROC, by seed and layer, without its R."""
    rows = [
        (seed, layer, value, np.nan, why if np.isnan(value) else "")
        for seed, values in enumerate(auc)
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(extraction.SUMMARY)).astype(extraction.SUMMARY)


def test_attention_to_demonstrations_of_one_class_is_added_up(prompts):
    attention = torch.tensor([[[0.5, 0.25, 1.0]]])
    got = extraction.by_class(hand_reading(attention, [1, 0, 1], [0], [0], prompts[0]))
    torch.testing.assert_close(got, torch.tensor([[[0.25, 1.5]]], dtype=torch.float64), rtol=0, atol=0)


def test_four_prompts_by_hand(prompts):
    # layer 0 cannot tell (a tie), in layer 1 class 1 is attended to most where it is predicted
    first = [[0.5, 0.5]] * 4
    second = [[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]
    attention = torch.tensor([first, second]).transpose(0, 1)
    frame = extraction.extraction(hand_reading(attention, [0, 1], [0, 0, 1, 1], [0, 1, 0, 1], prompts[0]))
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == extraction.COLUMNS
    assert frame.iloc[6].tolist() == pytest.approx([1, -1, 1, 0, 1, 0, 0.7])
    table = extraction.summary(frame)
    assert table["auc"].tolist() == [0.5, 1.0]
    assert table["contribution"].tolist() == [0.0, 1.0]
    assert table["why"].tolist() == ["", ""]
    # against the truth: pairs of a prompt of class 1 (0.3, 0.8) and one of class 0 (0.1, 0.4); three of four are right
    assert extraction.summary(frame, against="gold")["auc"].tolist() == [0.5, 0.75]


def test_prompts_of_unknown_class_are_left_out_against_gold_alone(prompts):
    attention = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]], [[0.1, 0.9]]])
    frame = extraction.extraction(hand_reading(attention, [0, 1], [0, 1, 0], [0, 1, -1], prompts[0]))
    assert extraction.summary(frame, against="gold")["auc"].tolist() == [1.0]
    assert extraction.summary(frame)["auc"].tolist() == [0.5]
    with pytest.raises(PromptError, match=r"seed -1: none of its 3 queries has a gold class .*\n?.*against=predicted"):
        extraction.summary(frame.assign(gold=-1), against="gold")


def test_another_target_is_refused(prompts):
    frame = extraction.extraction(hand_reading(torch.ones(1, 1, 2), [0, 1], [0], [0], prompts[0]))
    with pytest.raises(ValueError, match="against='truth': attention is compared with 'predicted' or 'gold'"):
        extraction.summary(frame, against="truth")


def test_one_predicted_class_is_said_instead_of_an_area(prompts):
    frame = extraction.extraction(hand_reading(torch.ones(2, 3, 2), [0, 1], [1, 1], [0, 1], prompts[0]))
    table = extraction.summary(frame)
    assert table["auc"].isna().all()
    assert table["contribution"].isna().all()
    assert table["why"].tolist() == ["only class 1 was predicted"] * 3
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == extraction.SUMMARY
    assert extraction.over_seeds(table)["why"].tolist() == ["only class 1 was predicted"] * 3
    assert extraction.stated(table)["found"].tolist() == ["undefined: only class 1 was predicted"] * 2
    assert not extraction.stated(table)["holds"].any()


def test_areas_that_cancel_leave_the_share_undefined_and_say_so(prompts):
    up, down = [[0.9, 0.1], [0.2, 0.8]], [[0.2, 0.8], [0.9, 0.1]]
    attention = torch.tensor([up, down]).transpose(0, 1)
    table = extraction.summary(extraction.extraction(hand_reading(attention, [0, 1], [0, 1], [0, 1], prompts[0])))
    assert table["auc"].tolist() == [1.0, 0.0]
    assert table["contribution"].isna().all()
    assert table["why"].tolist() == ["AUCROC is 0.5 on average: nothing to divide by"] * 2


def test_seeds_are_told_apart_and_then_averaged_before_the_share_is_taken():
    table = hand_summary([[0.5, 0.9], [0.7, 0.5]])
    mean = extraction.over_seeds(table)
    assert mean["auc"].tolist() == pytest.approx([0.6, 0.7])
    assert mean["contribution"].tolist() == pytest.approx([1 / 3, 1.0])  # of single seeds: 0 and 1 in layer 0
    assert mean["seeds"].tolist() == [2, 2]
    one = extraction.over_seeds(hand_summary([[0.6, 0.9], [np.nan, np.nan]]))
    assert one["auc"].tolist() == [0.6, 0.9]
    assert one["seeds"].tolist() == [1, 1]
    assert one["why"].tolist() == ["", ""]
    assert {name: str(dtype) for name, dtype in mean.dtypes.items()} == extraction.OVER_SEEDS


@pytest.mark.parametrize(
    ("auc", "holds"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.6, 0.8], [True, True]),
        ([0.5, 0.5, 0.5, 0.5, 0.6, 0.79], [False, True]),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], [True, False]),  # a straight line
        ([0.9, 0.9, 0.9, 0.5, 0.5, 0.5], [False, False]),
        ([0.3, 0.72, 0.9, 0.9, 0.9, 0.9], [True, False]),  # nor does one layer below chance make up for one above
        ([0.3, 0.3, 0.9, 0.9, 0.9, 0.9], [True, False]),  # far below 0 is not negligible
    ],
)
def test_what_the_paper_states_is_judged_by_numbers(auc, holds):
    said = extraction.stated(hand_summary([auc]))
    assert said["holds"].tolist() == holds
    assert list(said) == ["claim", "found", "holds"]


def test_shares_of_next_to_nothing_are_not_called_negligible():
    said = extraction.stated(hand_summary([[0.5, 0.5, 0.5, 0.61, 0.6, 0.6]]))  # on average just enough
    assert said["holds"].tolist() == [False, True]
    said = extraction.stated(hand_summary([[0.5, 0.5, 0.4, 0.7, 0.5, 0.6]]))
    assert said["found"][1] == "undecided: AUCROC is 0.53 over all layers, so R shares out next to nothing"
    assert said["holds"].tolist() == [False, False]


def test_a_straight_line_is_told_with_its_numbers():
    found = extraction.stated(hand_summary([[0.5, *[1.0] * 7]]))["found"].tolist()
    assert found[0] == "AUCROC of layers 5 to 8 (1 = first): highest 1.00 in layer 5, mean 1.00"
    assert found[1] == (
        "R is 0.14 after the first 2 of 8 layers, 0.14 at its farthest from 0 among them, where layers that contribute "
        "alike would make it 0.25; over all layers it is at most 0.12 away from that straight line"
    )
    assert extraction.stated(hand_summary([[0.6, 0.9]]))["found"][1] == "undefined: 2 layers have no shallow third"


def test_attention_is_that_of_the_plain_whole_prompts(model, group, reading):
    frame = extraction.extraction(reading)
    for prompt in group.prompts:
        batch = collate([prompt])
        with capturing(model, Site.PATTERN, range(3)) as pattern:
            plain = passes.answers(model, batch)
        for layer in range(3):
            row = pattern[layer][0, :, prompt.target].sum(0)
            want = {label: float(row[at]) for at, label in zip(prompt.anchors, prompt.anchor_classes, strict=True)}
            mine = frame[(frame["example"] == prompt.example) & (frame["layer"] == layer)]
            # float64, three layers: the order of summation alone differs
            assert dict(zip(mine["label"], mine["attention"], strict=True)) == pytest.approx(want, rel=0, abs=1e-12)
            assert set(mine["predicted"]) == {int(plain.predicted)}
            assert set(mine["gold"]) == {prompt.gold}


def test_attention_to_all_tokens_would_sum_to_the_number_of_heads(reading):
    total = extraction.by_class(reading).sum(-1)
    assert ((total > 0) & (total < 2)).all()  # two heads, and the anchors are some of the tokens


def test_both_analyses_take_one_pass_of_demonstrations_and_one_of_queries(model, group):
    seen = dict.fromkeys(range(3), 0)

    def count(layer: int, resid: torch.Tensor) -> None:
        seen[layer] += resid.shape[0] * resid.shape[1]

    with watching(model, Site.RESID_PRE, range(3), count):
        reading = readings.read(model, group, vectors=range(3))
        extraction.summary(extraction.extraction(reading))
        diagnosis.diagnosis([reading], n_components=[2])
    longest = max(len(prompt.ids) for prompt in group.prompts) - group.length
    assert seen == dict.fromkeys(range(3), group.length + len(group.prompts) * longest)


def test_prompts_that_are_not_numbers_cost_only_themselves(group):
    broken, (first, second) = random_model(), group.prompts
    broken.model.embed.W_E[min(set(second.ids) - set(first.ids))] = torch.nan
    frames = map(extraction.extraction, passes.each(lambda part: readings.read(broken, part), [group]))
    assert set(next(frames)["example"]) == {0}
    with pytest.raises(passes.NotFiniteError, match=r"label logits of examples \[1\] are not finite .* the embedding"):
        next(frames)


# --- the released code's numbers ---

# largest error over largest value. GPT-2 was run and stored in float64; GPT-J was run in float32, whose rounding over
# the layers is about 1e-5. Areas count pairs of prompts: they are exact unless rounding changes the order of two.
TOLERANCES = {"gpt2": {"float64": 1e-9, "float32": 2e-4}, "gptj": {"float64": 2e-4, "float32": 2e-4}}
CASES = [
    (family, key)
    for family in TOLERANCES
    for key in released.numbers(family, "deep")
    if key != "mean_over_tasks_one_shot"
]


def of(family: str, key: str, dtype: str, backend: str = "") -> tuple[Readings, pd.DataFrame]:
    lens = released.model(family, dtype, backend)
    group = released.group_of(lens, key, released.numbers(family, "icl_and_isolation")[key])
    reading = readings.read(lens, group, batch_tokens=60)
    return reading, extraction.summary(extraction.extraction(reading))


@pytest.mark.parametrize(
    ("family", "key", "dtype", "backend"),
    released.both(*((*case, dtype) for dtype in ("float64", "float32") for case in CASES)),
)
def test_attention_areas_and_shares_are_those_of_the_released_code(family, key, dtype, backend):
    reading, table = of(family, key, dtype, backend)
    want = released.numbers(family, "deep")[key]
    attention = extraction.by_class(reading).transpose(1, 2)
    error = released.error(attention, released.tensors(family, "deep")[f"{key}.A"])
    assert error <= TOLERANCES[family][dtype], f"A: {error:.1e}"
    assert reading.answers.predicted.tolist() == want["predicted"]
    for mine, theirs in (("auc", "AUCROC"), ("contribution", "R")):
        error = released.error(torch.tensor(table[mine].to_numpy()), torch.tensor(want[theirs], dtype=torch.float64))
        assert error <= 1e-12, f"{theirs}: {error:.1e}"


@pytest.mark.parametrize("family", TOLERANCES)
def test_areas_are_averaged_before_the_share_as_in_the_released_code(family):
    keys = [key for each, key in CASES if each == family and key.endswith(".s1")]
    tables = [of(family, key, "float64")[1].assign(seed=n) for n, key in enumerate(keys)]
    mean = extraction.over_seeds(pd.concat(tables))
    want = released.numbers(family, "deep")["mean_over_tasks_one_shot"]
    for mine, theirs in (("auc", "AUCROC"), ("contribution", "R")):
        error = released.error(torch.tensor(mean[mine].to_numpy()), torch.tensor(want[theirs], dtype=torch.float64))
        assert error <= 1e-12, f"{theirs}: {error:.1e}"


def test_a_predicted_class_that_was_not_demonstrated_is_said(prompts):
    frame = extraction.extraction(hand_reading(torch.ones(2, 3, 2), [0, 1], [1, 0], [0, 1], prompts[0]))
    frame["attention"] = frame["attention"].where(frame["label"] == 1)
    assert extraction.summary(frame)["why"].tolist() == ["class 0 is predicted and not demonstrated"] * 3
