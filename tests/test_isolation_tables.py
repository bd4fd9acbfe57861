"""Section 2.2 without a forward pass where possible: settings, tables by hand, what is refused and in which words."""

import dataclasses

import pandas as pd
import pytest
import torch
from test_isolation import QUERIES, grouped

from anchorlens import metrics
from anchorlens.analyses import isolation
from anchorlens.analyses.isolation import controls, sweeps
from anchorlens.analyses.isolation.sweeps import Setting
from anchorlens.batching import Group
from anchorlens.passes import Answers
from anchorlens.rows import Example


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    return grouped(tokenizer, queries=QUERIES[:2], seed=7)


# --- settings ---


def test_the_papers_depths_are_taken_as_far_as_the_model_has_layers():
    found = {n_layers: sorted({each.depth for each in isolation.settings(n_layers)}) for n_layers in (1, 4, 8, 48)}
    assert found == {1: [1], 4: [1, 3], 8: [1, 3, 5, 7], 48: [1, 3, 5, 7]}


def test_first_and_last_layers_are_counted_from_their_end():
    assert isolation.settings(4, [3, 0]) == [
        Setting("first", 3, (0, 1, 2)),
        Setting("last", 3, (1, 2, 3)),
        Setting("first", 0, ()),
        Setting("last", 0, ()),
    ]


@pytest.mark.parametrize("depth", [4, -1])
def test_a_depth_out_of_range_names_the_range(depth):
    with pytest.raises(ValueError, match=rf"^depth={depth}: this model has 3 layers, so depth may be 0 to 3$"):
        isolation.settings(3, [1, depth])


def test_a_depth_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"depths=\[1, 2, 1\]: depth 1 is named twice; name each once"):
        isolation.settings(3, [1, 2, 1])


# --- tables ---


def answers(logits: list[list[float]], top: list[list[int]]) -> Answers:
    return Answers(torch.tensor([5, 9]), torch.tensor([1, -1]), torch.tensor(logits), torch.tensor(top))


def test_a_table_by_hand(model, group, monkeypatch):
    setting = Setting("first", 1, (0,))
    clean = answers([[0.0, 1.0], [0.0, 1.0]], [[1, 2, 3], [4, 5, 6]])
    found = {
        ("label", setting): answers([[2.0, 1.0], [0.5, 1.0]], [[3, 2, 1], [6, 7, 8]]),  # overlap 3 of 3, 1 of 5
        ("random", setting): answers([[0.0, 1.0], [3.0, 1.0]], [[1, 2, 9], [7, 8, 9]]),  # overlap 2 of 4, none
    }
    monkeypatch.setattr(isolation, "sweep", lambda *_, **__: (clean, found))
    frame = isolation.isolation(model, group, [setting], mask="after", top=3)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == isolation.COLUMNS
    shown = ["example", "gold", "arm", "predicted", "predicted_clean", "label_loyal", "word_loyalty"]
    assert frame[shown].to_numpy().tolist() == [
        [5, 1, "label", 0, 1, False, 1.0],
        [5, 1, "random", 1, 1, True, 0.5],
        [9, -1, "label", 1, 1, True, 0.2],
        [9, -1, "random", 0, 1, False, 0.0],
    ]
    assert frame[["seed", "mask", "end", "depth"]].drop_duplicates().to_numpy().tolist() == [[7, "after", "first", 1]]


def test_every_prompt_has_a_row_for_each_arm_and_setting(model, group):
    frame = isolation.isolation(model, group, isolation.settings(3, [0, 2, 3]))
    assert len(frame) == 2 * 2 * 6
    assert not frame.duplicated(["example", "arm", "end", "depth"]).any()
    assert frame["example"].is_monotonic_increasing


def told(loyalties: dict[tuple[str, str, int], float], seeds: int = 1) -> pd.DataFrame:
    """Twenty prompts a seed, of which the given share is loyal."""
    rows = [
        (row, seed, 0, int(row >= 20 * share), arm, "before", end, depth, 0, row < 20 * share, share)
        for seed in range(seeds)
        for (arm, end, depth), share in loyalties.items()
        for row in range(20)
    ]
    return pd.DataFrame(rows, columns=list(isolation.COLUMNS)).astype(isolation.COLUMNS)


PAPERS = {
    **{("label", "first", depth): 0.4 for depth in (1, 5)},
    **{("label", "last", depth): 1.0 for depth in (1, 5)},
    **{("random", end, depth): 0.9 for end in ("first", "last") for depth in (1, 5)},
}


def holds(changes: dict[tuple[str, str, int], float]) -> list[bool]:
    found = isolation.stated(told({**PAPERS, **changes}))
    assert found["holds"].tolist()[:5] == found["holds"].tolist()[5:], "both loyalties are made alike here"
    return found["holds"].tolist()[:5]


def test_the_papers_picture_holds_all_that_the_paper_states():
    assert holds({}) == [True] * 5


def test_each_statement_fails_where_its_numbers_do():
    assert holds({("label", "first", 5): 0.9}) == [False, True, True, False, True]
    assert holds({("label", "first", 5): 0.85}) == [False, True, True, True, True]
    assert holds({("label", "last", 5): 0.8}) == [True, False, True, True, False]
    assert holds({("random", "first", 5): 0.5}) == [False, True, False, True, True]
    assert holds({("random", "last", 5): 0.3}) == [False, True, False, True, True]
    assert holds({("label", "first", 1): 1.0}) == [True, True, True, False, True]
    assert holds({("label", "last", 1): 0.8}) == [True, True, True, True, False]


def test_a_statement_shows_its_numbers_and_layers():
    found = isolation.stated(told(PAPERS, seeds=2))
    assert found["claim"][0] == "label loyalty: isolating label words in the first 5 layers has the largest effect"
    assert found["found"][:3].tolist() == [
        "0.400, the lowest of the other three 0.900",
        "1.000",
        "first 0.900, last 0.900",
    ]
    assert found["found"][3] == "0.400, 0.400"
    assert found["claim"][9].startswith("word loyalty: label words in the last 1, 5 layers")


def test_without_five_layers_the_deepest_setting_is_judged():
    frame = told({(*key[:2], 3): share for key, share in PAPERS.items()})
    assert "first 3 layers" in isolation.stated(frame)["claim"][0]


def test_a_table_without_control_cannot_be_judged():
    frame = told({key: share for key, share in PAPERS.items() if key != ("random", "last", 5)})
    with pytest.raises(ValueError, match="no rows of arm 'random', end 'last', depth 5: the paper compares both arms"):
        isolation.stated(frame)


def test_scores_are_of_the_clean_model_and_of_each_arm_at_the_largest_depth():
    scored = metrics.score_table(isolation.scored(told(PAPERS)), 2)  # gold is 0: loyal is right
    assert dict(zip(scored["arm"], scored["accuracy"], strict=True)) == {
        "no isolation": 1.0,
        "label isolated, first 5": 0.4,
        "label isolated, last 5": 1.0,
        "random isolated, first 5": 0.9,
        "random isolated, last 5": 0.9,
    }


# --- what is refused ---


def test_a_misspelt_mask_or_control_names_the_allowed_ones(model, group):
    with pytest.raises(ValueError, match=r"mask='befor': it may be 'before' or 'after'"):
        isolation.isolation(model, group, isolation.settings(3), mask="befor")
    with pytest.raises(ValueError, match=r"control='random': it may be 'seeded' or 'published'"):
        isolation.isolation(model, group, isolation.settings(3), control="random")
    with pytest.raises(ValueError, match=r"mask='': it may be 'before' or 'after'"):
        sweeps.whole(model, group, Setting("first", 1, (0,)), controls.published(group, 3, 0), mask="")


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_the_model_lacks_is_refused(model, group, layer):
    with pytest.raises(ValueError, match=rf"layer {layer} in Setting.*this model has layers 0 to 2"):
        isolation.isolation(model, group, [Setting("mine", 2, (1, layer))])


def test_settings_that_results_could_not_tell_apart_are_refused(model, group):
    with pytest.raises(ValueError, match="name an end and depth twice"):
        isolation.isolation(model, group, [Setting("mine", 1, (0,)), Setting("mine", 1, (1,))])
    with pytest.raises(ValueError, match="no settings: say in which layers"):
        isolation.isolation(model, group, [])


@pytest.mark.parametrize("top", [0, 1488])
def test_word_loyalty_of_no_tokens_or_too_many_is_refused(model, group, top):
    with pytest.raises(ValueError, match=rf"top={top}: word loyalty compares 1 to 1487 next tokens"):
        isolation.isolation(model, group, isolation.settings(3), top=top)


def test_rows_of_the_wrong_control_prompts_or_layers_are_refused(model, group):
    settings, rows = isolation.settings(3), controls.published(group, 3, 0)
    with pytest.raises(ValueError, match="rows were given with control='seeded'"):
        isolation.isolation(model, group, settings, rows=rows)
    with pytest.raises(ValueError, match=r"rows of example 1: nothing; give positions \[layer row\] for each of the"):
        isolation.isolation(model, group, settings, control="published", rows={0: rows[0]})
    with pytest.raises(ValueError, match=r"rows of example 0: \(2, 2\); give positions .* model's 3 layers"):
        isolation.isolation(model, group, settings, control="published", rows={**rows, 0: rows[0][:2]})


def test_given_rows_are_the_ones_that_are_isolated(model, group):
    setting, rows = Setting("first", 2, (0, 1)), {n: torch.tensor([[4, 5], [6, 7], [8, 9]]) for n in range(2)}
    frame = isolation.isolation(model, group, [setting], control="published", rows=rows, top=50)
    clean, _ = sweeps.sweep(model, group, [setting], {}, top=50)
    want = sweeps.whole(model, group, setting, rows, top=50)
    overlap = metrics.jaccard(clean.top.numpy(), want.top.numpy())
    assert frame.loc[frame["arm"] == "random", "word_loyalty"].tolist() == overlap.tolist()


def test_demonstrations_with_too_few_other_tokens_for_the_control_say_so(model, tokenizer):
    (prompt,) = grouped(tokenizer, (Example("a", 1),), ["a"]).prompts
    short = Group((cut(prompt, kept=(0, prompt.anchors[0])),))
    with pytest.raises(
        ValueError, match="the demonstrations have 0 tokens that the control may isolate, and it takes 1"
    ):
        isolation.isolation(model, short, isolation.settings(3))
    with pytest.raises(
        ValueError, match=r"example 0 has 1 tokens .* takes 2, one for each token of a label word: give longer"
    ):
        controls.published(Group((cut(prompt, kept=(0, *prompt.anchors, *prompt.anchors)),)), 3, 0)


def cut(prompt, kept: tuple[int, ...]):
    """A prompt of which only some tokens of the demonstrations are left, and the last two tokens of the query."""
    left = [*kept, len(prompt.ids) - 2, len(prompt.ids) - 1]
    anchors = tuple(place for place, position in enumerate(left) if position in prompt.anchors)
    return dataclasses.replace(
        prompt,
        ids=tuple(prompt.ids[p] for p in left),
        roles=tuple(prompt.roles[p] for p in left),
        parts=tuple(prompt.parts[p] for p in left),
        anchors=anchors,
        anchor_classes=prompt.anchor_classes * len(anchors),
        target=len(left) - 1,
    )
