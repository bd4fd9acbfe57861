"""Prompts come a window at a time, the same windows everywhere, and mistakes are found before the first."""

from dataclasses import replace

import pytest

from anchorlens import drafts
from anchorlens.batching import groups
from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder, PromptError, TooLongError
from anchorlens.rows import Example
from anchorlens.tasks import SST2
from anchorlens.windows import WINDOW, counterparts, windows

SHOWN = [(Example("good", 1), Example(text, 0)) for text in ("bad", "dull", "slow")]


def draft(row: int, shown: int, text: str = "fine") -> Draft:
    return Draft(SST2, SHOWN[shown], Example(text, 0, row), 42)


@pytest.fixture
def encode(tokenizer) -> Encoder:
    return Encoder(tokenizer, 60)


def examples(cut) -> list[list[int]]:
    return [[prompt.example for prompt in window] for window in cut]


def test_a_window_holds_so_many_prompts_and_the_last_the_rest(encode):
    cut, skipped = windows(encode, [draft(row, 0) for row in range(5)], size=2)
    assert examples(cut) == [[0, 1], [2, 3], [4]]
    assert [len(window) for window in cut] == [2, 2, 1]
    assert skipped == []


def test_every_prompt_is_what_the_encoder_makes_of_its_draft(encode):
    made = [draft(row, row % 2) for row in (0, 2, 4, 1, 3)]
    for size in (2, 100):
        cut, _ = windows(encode, made, size=size)
        assert {prompt.example: prompt for window in cut for prompt in window} == {
            each.query.row: encode(each) for each in made
        }


def test_prompts_with_the_same_demonstrations_come_together_and_stay_so_where_a_window_can_hold_them(encode):
    cut, _ = windows(encode, [draft(row, row % 3) for row in range(9)], size=4)
    assert examples(cut) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert [len(groups(window)) for window in cut] == [1, 1, 1]
    assert examples(windows(encode, [draft(row, row % 3) for row in range(9)], size=6)[0]) == [
        [0, 3, 6, 1, 4, 7],
        [2, 5, 8],
    ]


def test_other_seeds_and_other_label_words_are_other_demonstrations(encode):
    flipped = replace(SST2, label_words=SST2.label_words[::-1])
    made = [draft(0, 0), replace(draft(1, 0), seed=7), replace(draft(2, 0), task=flipped)]
    assert examples(windows(encode, [*made, draft(3, 0)], size=2)[0]) == [[0, 3], [1, 2]]


def test_no_more_than_one_window_is_kept(encode, monkeypatch):
    made = [draft(row, 0) for row in range(6)]
    calls, call = [], Encoder.__call__

    def counted(self, each):
        calls.append(each.query.row)
        return call(self, each)

    monkeypatch.setattr(Encoder, "__call__", counted)
    cut, _ = windows(encode, made, size=3)
    assert len(calls) == 6, "each is tokenised once to begin with"
    assert next(iter(cut[1])).example == 3
    assert calls[6:] == [3]
    calls.clear()
    (only,), _ = windows(encode, made)
    assert len(list(only)) == len(list(only)) == 6
    assert len(calls) == 6, "a single window keeps what was made"


def test_the_size_of_a_window_is_a_number_in_the_code():
    assert WINDOW == 512, "windows of another size make other parts, so earlier ones could not be gone on with"


def test_a_mistake_in_the_last_draft_is_found_before_the_first_window(encode):
    made = [draft(row, 0) for row in range(4)]
    with pytest.raises(TooLongError, match="example 9"):
        windows(encode, [*made, draft(9, 0, "a" * 300)], size=2)


def test_prompts_that_are_too_long_are_left_out_of_the_windows_and_named(encode):
    made = [draft(0, 0), draft(1, 0, "a" * 300), draft(2, 0), draft(3, 0)]
    cut, skipped = windows(encode, made, too_long="skip", size=2)
    assert examples(cut) == [[0, 2], [3]]
    (said,) = skipped
    assert said.startswith("task 'sst2', example 1, seed 42: ")


def test_no_prompt_left_is_refused(encode):
    with pytest.raises(PromptError, match="no prompt is left: there were no queries"):
        windows(encode, [])
    with pytest.raises(PromptError, match="no prompt is left: task 'sst2', example 0"):
        windows(Encoder(encode.tokenizer, 3), [draft(0, 0)], too_long="skip")
    with pytest.raises(PromptError, match="size=0: a window holds at least 1 prompt"):
        windows(encode, [draft(0, 0)], size=0)


def test_an_example_that_comes_twice_is_refused_though_windows_would_part_the_two(encode):
    twice = [draft(0, 0), draft(1, 0), draft(0, 0, "dull")]
    for size in (1, 512):
        with pytest.raises(PromptError, match=r"example 0 of seed .* is there 2 times"):
            windows(encode, twice, size=size)


def test_a_counterpart_has_the_seed_and_example_of_its_prompt(encode):
    made = [draft(row, row % 3) for row in range(3)] + [replace(draft(0, 1), seed=7)]
    bare = counterparts(encode, made, drafts.without_texts)
    asked = [encode(made[3]), encode(made[1])]
    assert bare(asked) == [encode(drafts.without_texts(made[3])), encode(drafts.without_texts(made[1]))]
