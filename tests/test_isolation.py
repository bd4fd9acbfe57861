"""Section 2.2 by law: every fast answer is the plain whole-prompt run's, and what cannot change does not change."""

from collections import Counter
from contextlib import ExitStack

import pandas as pd
import pytest
import torch
from conftest import random_model

from anchorlens import passes
from anchorlens.analyses import isolation
from anchorlens.analyses.isolation import controls, sweeps
from anchorlens.analyses.isolation.sweeps import Setting
from anchorlens.batching import Group, collate, groups
from anchorlens.drafts import Draft
from anchorlens.hooks import Isolate, Silence, Site, capturing, editing
from anchorlens.passes import NotFiniteError
from anchorlens.prompts import Encoder, Role
from anchorlens.rows import Example
from anchorlens.tasks import SST2

DEMONSTRATIONS = (Example("a joy from start to end", 1), Example("a slow drama", 0))
QUERIES = ["i laughed", "nothing to say, slow and dull", "warm and funny", "a dull copy of better movies", "fine"]
EDITS = {"before": Isolate, "after": Silence}
# logits up to about 10. Three layers of float64: order of summation; float32: the project's bound for every fast pass
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5}


def grouped(tokenizer, demonstrations=DEMONSTRATIONS, queries=QUERIES, seed: int = 3) -> Group:
    encode = Encoder(tokenizer, 96)
    drafts = [Draft(SST2, demonstrations, Example(text, 1, row), seed) for row, text in enumerate(queries)]
    (group,) = groups([encode(draft) for draft in drafts])
    return group


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    """Five queries, no two of the same length, after two demonstrations."""
    return grouped(tokenizer)


def attentive(dtype: torch.dtype = torch.float64, **changes):
    """The random model with attention that matters: isolating tokens in the first layer moves logits by 0.01 to 0.2."""
    lens = random_model(dtype, **changes)
    for block in lens.model.blocks:
        block.ln1.w.fill_(1)
        block.attn.W_V.mul_(4)
    return lens


@pytest.fixture(scope="module")
def model():
    return attentive()


@pytest.fixture(scope="module", params=["learned", "rotary"])
def placed(request):
    """A random model for each kind of positions, by dtype."""
    changes = {"positional_embedding_type": "rotary", "rotary_dim": 4} if request.param == "rotary" else {}
    return {dtype: attentive(dtype, **changes) for dtype in TOLERANCES}


def plain(model, group: Group, rows: torch.Tensor, layers, edit=Isolate) -> torch.Tensor:
    """Label logits of the whole prompts, edited: nothing is shared and nothing is resumed."""
    batch = collate(group.prompts)
    with torch.no_grad(), editing(model, edit(rows.expand(len(batch.target), -1)), layers):
        return passes.answers(model, batch).label_logits


EVERY = [*isolation.settings(3, [0, 1, 2, 3]), Setting("middle", 1, (1,)), Setting("gap", 2, (0, 2))]


@pytest.mark.parametrize("mask", sweeps.MASKS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("batch_tokens", [1, 26, 1000], ids=["one by one", "ragged", "all at once"])
def test_every_setting_equals_the_plain_whole_prompt_run(placed, group, mask, dtype, batch_tokens):
    model, arms = placed[dtype], {"label": group.anchors, "random": controls.seeded(group)}
    clean, found = sweeps.sweep(model, group, EVERY, arms, mask=mask, batch_tokens=batch_tokens)
    whole = passes.answers(model, collate(group.prompts))
    torch.testing.assert_close(clean.label_logits, whole.label_logits, rtol=0, atol=TOLERANCES[dtype])
    assert clean.example.tolist() == [0, 1, 2, 3, 4]
    for (arm, setting), said in found.items():
        want = plain(model, group, arms[arm], setting.layers, EDITS[mask])
        torch.testing.assert_close(said.label_logits, want, rtol=0, atol=TOLERANCES[dtype], msg=f"{arm} {setting}")
    assert len(found) == 2 * len(EVERY)


def test_a_setting_alone_is_answered_as_among_others(model, group):
    arms = {"label": group.anchors}
    _, together = sweeps.sweep(model, group, EVERY, arms)
    for setting in EVERY:
        _, alone = sweeps.sweep(model, group, [setting], arms)
        want = together["label", setting].label_logits
        torch.testing.assert_close(alone["label", setting].label_logits, want, rtol=0, atol=0)


def test_batches_of_one_four_and_sixteen_give_the_same_answers(model, tokenizer):
    many = grouped(tokenizer, queries=[f"{text} {more}" for text in QUERIES for more in ("so", "a", "and so on", "")])
    widest = max(len(prompt.ids) for prompt in many.prompts) - many.length
    settings = isolation.settings(3)
    frames = {n: isolation.isolation(model, many, settings, batch_tokens=n * widest) for n in (1, 4, 16)}
    sizes = {n: max(len(each.example) for each in passes.queries(model, many, n * widest)) for n in frames}
    assert all(n <= sizes[n] for n in frames), sizes
    pd.testing.assert_frame_equal(frames[1], frames[4])
    pd.testing.assert_frame_equal(frames[1], frames[16])


def test_the_likeliest_tokens_are_those_of_the_plain_run(model, group):
    setting = Setting("first", 2, (0, 1))
    _, found = sweeps.sweep(model, group, [setting], {"label": group.anchors}, top=7)
    batch = collate(group.prompts)
    with editing(model, Isolate(batch.anchors), setting.layers):
        logits = model(batch.tokens)[torch.arange(len(batch.target)), batch.target]
    assert found["label", setting].top.tolist() == logits.topk(7).indices.tolist()


@pytest.mark.parametrize("mask", sweeps.MASKS)
def test_a_published_control_equals_whole_prompts_edited_layer_by_layer(placed, group, mask):
    model, setting = placed[torch.float64], Setting("last", 2, (1, 2))
    rows = controls.published(group, 3, setting.layers)
    found = sweeps.whole(model, group, setting, rows, mask=mask, batch_tokens=90)  # batches of two and of one
    for n, prompt in enumerate(group.prompts):
        alone = collate([prompt])
        with ExitStack() as edits:
            for layer in setting.layers:
                edits.enter_context(editing(model, EDITS[mask](rows[prompt.example][layer][None]), [layer]))
            want = passes.answers(model, alone)
        torch.testing.assert_close(found.label_logits[n], want.label_logits[0], rtol=0, atol=1e-10)  # summation order


# --- exact identities ---


def test_isolating_the_last_layer_or_none_changes_nothing_bit_for_bit(model, group):
    settings = [*isolation.settings(3, [0]), Setting("last", 1, (2,)), Setting("first", 1, (0,))]
    clean, found = sweeps.sweep(model, group, settings, {"label": group.anchors})
    for setting in settings[:3]:
        torch.testing.assert_close(found["label", setting].label_logits, clean.label_logits, rtol=0, atol=0)
    changed = (found["label", settings[3]].label_logits - clean.label_logits).abs().amax()
    assert changed > 0.01, "isolating the first layer should change something"


def test_all_layers_are_the_first_and_the_last_ones(model, group):
    for control in isolation.CONTROLS:
        frame = isolation.isolation(model, group, isolation.settings(3, [3]), control=control, top=20)
        first, last = (frame[frame["end"] == end].drop(columns="end") for end in ("first", "last"))
        pd.testing.assert_frame_equal(first.reset_index(drop=True), last.reset_index(drop=True))
        assert (first["word_loyalty"] < 1).any(), "nothing was isolated"


def test_isolated_rows_attend_to_themselves_with_weight_one(model, group):
    clean = passes.demonstrate(model, group, resume=[1])
    with capturing(model, Site.PATTERN, [1]) as kept:
        passes.demonstrate_from(model, clean, 1)
    untouched = kept[1][0]
    edit = Isolate(group.anchors[None])
    with editing(model, edit, [1]), capturing(model, Site.PATTERN, [1]) as kept:
        passes.demonstrate_from(model, clean, 1)
    rows = kept[1][0][:, group.anchors]
    want = torch.zeros_like(rows)
    want[:, torch.arange(len(group.anchors)), group.anchors] = 1
    torch.testing.assert_close(rows, want, rtol=0, atol=0)
    silenced = Silence(group.anchors[None])(untouched[None], 1)[0][:, group.anchors]
    torch.testing.assert_close(silenced, want * untouched[:, group.anchors], rtol=0, atol=0)


def test_the_model_is_left_as_it_was(model, group):
    isolation.isolation(model, group, isolation.settings(3), control="published")
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.model.hook_dict.values())


# --- what it costs ---


@pytest.mark.parametrize("n_layers", [8, 12])
def test_the_label_sweep_costs_at_most_five_query_passes_and_a_bit(group, n_layers):
    """Clean, and first and last 1, 3, 5, 7: 5 + 12 / L query passes, and a pass of demonstrations for each setting."""
    model, settings = attentive(torch.float32, n_layers=n_layers), isolation.settings(n_layers)
    assert len(settings) == 8
    seen: Counter[str] = Counter()
    every_query = {len(prompt.ids) - group.length for prompt in group.prompts}
    assert group.length not in every_query, "demonstrations and queries could not be told apart"

    def count(act: torch.Tensor, hook: object) -> None:
        seen["demonstrations" if act.shape[1] == group.length else "queries"] += act.shape[0] * act.shape[1]

    with model.hooks(fwd_hooks=[(Site.RESID_PRE.at(layer), count) for layer in range(n_layers)]):
        sweeps.sweep(model, group, settings, {"label": group.anchors}, batch_tokens=1)
    query_pass = n_layers * sum(len(prompt.ids) - group.length for prompt in group.prompts)
    assert seen["queries"] <= (5 + 12 / n_layers) * query_pass
    resumed = n_layers + 4 * (n_layers - 1) + (0 + 2 + 4 + 6)  # blocks: clean; first k; last k, after its first layer
    assert seen["queries"] * n_layers == resumed * query_pass
    assert seen["demonstrations"] <= (1 + len(settings)) * n_layers * group.length


# --- controls ---


def test_a_seeded_control_takes_as_many_other_tokens_of_the_demonstrations(tokenizer):
    drawn = set()
    for seed in range(60):
        group = grouped(tokenizer, seed=seed)
        rows = controls.seeded(group).tolist()
        assert len(set(rows)) == len(rows) == len(group.anchors)
        assert rows == controls.seeded(group).tolist() == controls.seeded(Group(group.prompts[2:])).tolist()
        drawn |= set(rows)
    others = {p for p, role in enumerate(group.roles) if p > 0 and role is not Role.ANCHOR}
    assert drawn == others, "every other token but the first may be drawn, and nothing else"


def test_a_published_control_is_new_for_every_setting_prompt_and_layer_and_meets_the_query(tokenizer, group):
    by_setting = [controls.published(group, 3, layers) for layers in ((0,), (0, 1))]
    assert controls.published(Group(group.prompts[1:]), 3, (0,))[2].tolist() == by_setting[0][2].tolist()
    draws = [tuple(row) for drawn in by_setting for rows in drawn.values() for row in rows.tolist()]
    assert len(set(draws)) > len(draws) / 2  # 30 draws of 2 out of more than 30 positions seldom coincide
    same = grouped(tokenizer, queries=[QUERIES[0]] * 2)
    assert len({str(rows.tolist()) for rows in controls.published(same, 3, ()).values()}) == 2
    seen = {prompt.example: set() for prompt in group.prompts}
    for setting in range(300):
        for example, rows in controls.published(group, 1, setting).items():
            assert rows.shape == (1, 2)
            assert rows.unique().numel() == 2
            seen[example] |= set(rows.flatten().tolist())
    for prompt in group.prompts:
        assert seen[prompt.example] == set(range(prompt.target - 1)) - set(prompt.anchors)


def test_what_is_left_of_a_group_is_answered_as_in_the_whole(model, group):
    left = group.without([0, 3])
    assert left is not None
    for control in isolation.CONTROLS:
        whole = isolation.isolation(model, group, isolation.settings(3), control=control)
        part = isolation.isolation(model, left, isolation.settings(3), control=control)
        kept = whole[whole["example"].isin([1, 2, 4])].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, kept)


def test_a_prompt_that_is_not_finite_stops_the_run_after_the_rows_of_the_others(tokenizer, group):
    broken, settings = attentive(), isolation.settings(3)
    only = set(group.prompts[3].ids) - {token for n, each in enumerate(group.prompts) if n != 3 for token in each.ids}
    broken.model.embed.W_E[next(iter(only))] = torch.nan
    results = passes.each(lambda part: isolation.isolation(broken, part, settings), [group])
    frame = next(results)
    assert sorted(frame["example"].unique()) == [0, 1, 2, 4]
    with pytest.raises(NotFiniteError, match=r"label logits of examples \[3\] are not finite .* from the embedding on"):
        next(results)
