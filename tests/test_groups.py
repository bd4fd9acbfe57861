"""Prompts grouped by their demonstrations, their queries in padded batches, and what survives a failing prompt."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import random_model
from hook_helpers import assert_same

from anchorlens import passes
from anchorlens.analyses.information_flow import information_flow
from anchorlens.batching import batches, collate, groups
from anchorlens.hooks import Isolate, Scale, Silence, Site, editing, watching
from anchorlens.passes import NotFiniteError
from anchorlens.prompts import PromptError, Role


def test_prompts_with_the_same_demonstrations_share_a_group_and_others_do_not(prompts):
    other_seed = replace(prompts[0], seed=9, example=7)
    other_label = replace(prompts[1], labels=prompts[1].labels[::-1], example=8)
    first, second, third = groups([*prompts, other_seed, other_label])
    assert first.prompts == tuple(prompts)
    assert second.prompts == (other_seed,)
    assert third.prompts == (other_label,)


def test_a_group_ends_where_the_query_begins(prompts, tokenizer):
    (group,) = groups(prompts)
    shown = tokenizer.decode(group.tokens[0])
    assert shown.endswith("Sentiment: Negative\n")
    assert group.length == group.tokens.shape[1] == len(group.roles) == len(group.parts)
    assert group.roles[-1] is Role.TEMPLATE
    assert group.anchors.tolist() == list(prompts[0].anchors)
    assert group.anchor_classes.tolist() == [1, 0]
    assert group.labels.tolist() == list(prompts[0].labels)


def test_queries_are_padded_on_the_left_and_end_with_the_target(prompts):
    (group,) = groups(prompts)
    (asked,) = group.queries(lambda length: 2)
    for n, example in enumerate(asked.example.tolist()):
        ids = list(prompts[example].ids[group.length :])
        width = asked.tokens.shape[1]
        assert asked.tokens[n].tolist() == [0] * (width - len(ids)) + ids
        assert asked.mask[n].tolist() == [0] * (width - len(ids)) + [1] * len(ids)
        assert int(asked.gold[n]) == prompts[example].gold


def test_without_padding_a_batch_holds_one_length(prompts):
    (group,) = groups(prompts)
    assert [len(asked.example) for asked in group.queries(lambda length: 9, padding=False)] == [1, 1]
    assert [len(asked.example) for asked in group.queries(lambda length: 9)] == [2]


def test_chance_depends_on_demonstrations_and_purpose_and_not_on_the_queries(prompts):
    (group,) = groups(prompts)
    (fewer,) = groups(prompts[1:])
    (other,) = groups([replace(prompt, seed=1) for prompt in prompts])
    drawn = [torch.rand(3, generator=g.chance("a")) for g in (group, fewer, other)]
    assert_same(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], torch.rand(3, generator=group.chance("b")))


def test_prompts_without_demonstrations_are_refused(prompts):
    bare = replace(prompts[0], anchors=(), anchor_classes=())
    with pytest.raises(PromptError, match=r"example 0 has no demonstrations; give each prompt at least one"):
        groups([bare])


def test_label_words_at_the_same_place_are_refused(prompts):
    twice = replace(prompts[0], anchors=prompts[0].anchors[:1] * 2)
    with pytest.raises(PromptError, match=r"example 0: anchors coincide at positions \[\d+, \d+\]"):
        groups([twice])


def test_queries_that_results_could_not_tell_apart_are_refused(prompts):
    with pytest.raises(PromptError, match="example 0 of seed -1 is there 2 times behind the same demonstrations"):
        groups([*prompts, replace(prompts[1], example=0)])


def test_prompts_of_several_seeds_never_share_a_batch(prompts):
    both = [*prompts, *(replace(prompt, seed=7) for prompt in prompts)]
    assert [set(made.seed.tolist()) for made in batches(both, lambda length: 9)] == [{-1}, {7}]


# --- edits of remembered prompts


def test_silence_sets_earlier_cells_to_zero_and_leaves_the_rest_of_the_row():
    pattern = torch.full((1, 1, 3, 3), 0.25)
    want = torch.tensor([[[[0.25, 0.25, 0.25], [0.25, 0.25, 0.25], [0, 0, 0.25]]]])
    assert_same(Silence(torch.tensor([[2]]))(pattern, 0), want)


def test_silence_and_isolate_differ_in_the_weight_that_a_row_keeps_on_itself(model, batch):
    kept = {}
    for edit in (Isolate(batch.anchors), Silence(batch.anchors)):
        with editing(model, edit, [1]), watching(model, Site.PATTERN, [1], kept.__setitem__):
            model(batch.tokens)
        anchor = int(batch.anchors[0, 0])
        row = kept[1][0, :, anchor]
        assert row[:, :anchor].abs().max() == 0
        assert bool((row[:, anchor] == 1).all()) == isinstance(edit, Isolate)


@pytest.mark.parametrize("edit", [Isolate, Silence])
def test_rows_of_demonstrations_cannot_be_edited_where_only_queries_are_run(edit):
    with pytest.raises(ValueError, match=f"{edit.__name__} names rows of whole prompts and met 2 rows of 5 tokens"):
        edit(torch.tensor([[1]]))(torch.zeros(1, 1, 2, 5), 0)


def test_anchors_that_coincide_cannot_be_scaled():
    edit = Scale(torch.tensor([1]), torch.tensor([[0, 0]]), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match=r"Scale names a key twice in \[\[0, 0\]\]: anchors that coincide"):
        edit(torch.ones(1, 1, 2, 2), 0)


def test_one_head_of_beta_stands_for_all(model, batch):
    one = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 1, 2)
    said = []
    for beta in (one, one.expand(3, 2, 2)):
        with editing(model, Scale(batch.target, batch.anchors, beta), range(3)):
            said.append(passes.answer(model, batch))
    assert_same(said[0], said[1])


# --- failing prompts


def broken_at(layer: int, prompts):
    """A model that turns the longer of two prompts into NaN after ``layer``."""
    lens = random_model()
    longest = max(len(prompt.ids) for prompt in prompts)

    def spoil(act: torch.Tensor, hook: object) -> torch.Tensor:
        rows = torch.full((len(act), 1, 1), torch.nan, dtype=act.dtype)
        return torch.where(torch.tensor(act.shape[1] >= longest), rows.expand_as(act), act)

    return lens, lens.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", spoil)])


@pytest.mark.parametrize("layer", [0, 2])
def test_an_answer_that_is_no_number_names_prompt_and_layer(prompts, layer):
    lens, spoiled = broken_at(layer, prompts)
    with (
        spoiled,
        pytest.raises(NotFiniteError, match=rf"examples \[1\] are not .*first after layer {layer} \(from 0\)"),
    ):
        passes.answer(lens, collate(prompts[1:]))


def test_weights_that_spoil_the_output_alone_are_told_apart(prompts):
    lens = random_model()
    with torch.no_grad():
        lens.model.unembed.b_U.fill_(torch.nan)
    (group,) = groups(prompts)
    shown = passes.demonstrate(lens, group)
    with pytest.raises(NotFiniteError, match="it begins in the output matrix") as caught:
        passes.respond(lens, group, shown.memory, group.queries(lambda length: 2)[0])
    assert sorted(caught.value.examples) == [0, 1]


def test_a_spoilt_word_that_is_no_label_is_found_where_next_words_are_compared(prompts):
    lens = random_model()
    other = next(token for token in range(1487) if token not in prompts[0].labels)
    with torch.no_grad():
        lens.model.unembed.W_U[:, other] = torch.nan
    assert passes.answer(lens, collate(prompts)).isfinite().all()
    with pytest.raises(NotFiniteError, match=r"logits of examples \[0, 1\] are not finite"):
        passes.answers(lens, collate(prompts))


def test_the_seed_of_a_failing_prompt_is_named(prompts):
    lens, spoiled = broken_at(0, prompts)
    with spoiled, pytest.raises(NotFiniteError, match=r"in torch.float64, seed 7, first after layer 0"):
        passes.answer(lens, collate([replace(prompts[1], seed=7)]))


def test_saliency_of_a_failing_prompt_names_it_and_keeps_the_others(prompts):
    lens, spoiled = broken_at(1, prompts)
    parts = passes.each(partial(information_flow, lens), [collate(prompts[:1]), collate(prompts[1:])])
    with spoiled:
        assert set(next(parts)["example"]) == {0}
        with pytest.raises(NotFiniteError, match=r"examples \[1\] are not finite.* first after layer 1"):
            next(parts)


def test_results_of_other_prompts_come_before_the_error(model, prompts):
    (group,) = groups([*prompts, replace(prompts[0], example=2), replace(prompts[0], example=3)])

    def analysis(part):
        bad = [prompt.example for prompt in part.prompts if prompt.example in (1, 3)][:1]
        if bad:
            raise NotFiniteError(f"{bad} failed", bad)
        return [prompt.example for prompt in part.prompts]

    results = passes.each(analysis, [group, group])
    assert next(results) == [0, 2]
    with pytest.raises(NotFiniteError, match=r"\[1\] failed"):
        next(results)


def test_nothing_comes_where_every_prompt_fails(prompts):
    def analysis(part):
        raise NotFiniteError("all failed", [prompt.example for prompt in part.prompts])

    with pytest.raises(NotFiniteError, match="all failed"):
        next(passes.each(analysis, groups(prompts)))


def test_a_batch_without_some_prompts_keeps_the_others(batch):
    left = batch.without([0])
    assert left is not None
    assert left.example.tolist() == [1]
    assert_same(left.tokens, batch.tokens[1:])
    assert batch.without([0, 1]) is None
