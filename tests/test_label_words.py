"""Label words of several tokens: one anchor, scored whole; those of one token give what they always gave."""

import re
from dataclasses import replace
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from compression_helpers import DRAFTS
from conftest import random_model
from test_information_flow import hand_batch
from test_spreading import everything

from anchorlens import passes, readings, tasks
from anchorlens.analyses import diagnosis, extraction, isolation, reweighting
from anchorlens.analyses import information_flow as flow
from anchorlens.analyses.compression import compression, cost, kept
from anchorlens.analyses.isolation import controls
from anchorlens.analyses.reweighting.lessons import Lesson
from anchorlens.analyses.reweighting.training import prepared, scaled, train
from anchorlens.batching import Batch, Group, batches, collate, groups
from anchorlens.drafts import Draft
from anchorlens.hooks import Isolate, Scale, SettingError, Silence, Site, capturing, editing
from anchorlens.prompts import Encoder, Prompt, PromptError, Role, TooLongError
from anchorlens.rows import Example
from anchorlens.scoring import Scoring
from anchorlens.tasks import SST2, TASKS, TREC, Task, with_words

ALIKE = with_words(replace(SST2, label_token="all"), "Abbreviation|Abbred")  # 3 tokens each, the first the same
TASK = {"long and short": replace(TREC, label_token="all"), "beginning alike": ALIKE}
KINDS = {"learned": {}, "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4}}
EXACT = {"rtol": 0, "atol": 1e-10}  # float64 through three layers: sums in another order


def written(tokenizer, task: Task, n_ctx: int = 96) -> list[Prompt]:
    encode, last = Encoder(tokenizer, n_ctx), len(task.label_words) - 1
    shown = (Example("a slow drama", last), Example("a joy from start to end", 0), Example("good", 1))
    asked = [("i laughed", 0), ("nothing to say, slow and dull", last), ("a b", 1)]
    return [encode(Draft(task, shown, Example(text, label, row), 42)) for row, (text, label) in enumerate(asked)]


@pytest.fixture(scope="module", params=KINDS)
def lens(request):
    return random_model(**KINDS[request.param])


@pytest.fixture(scope="module", params=TASK)
def prompts(request, tokenizer) -> list[Prompt]:
    return written(tokenizer, TASK[request.param])


@pytest.fixture
def batch(prompts) -> Batch:
    return collate(prompts)


@pytest.fixture
def group(prompts) -> Group:
    (one,) = groups(prompts)
    return one


def plainly(model, prompts: list[Prompt]) -> torch.Tensor:
    """Log-probability of each label word, one whole run of prompt and word after the other."""
    found = []
    for prompt in prompts:
        for word in prompt.words:
            says = model(torch.tensor([[*prompt.ids, *word]]))[0].log_softmax(-1)
            found.append(sum(says[prompt.target + n, token] for n, token in enumerate(word)))
    return torch.stack(found).reshape(len(prompts), -1)


def wide(batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """For each of the rows in which ``passes.answer`` runs a prompt."""
    return rows.repeat_interleave(batch.scoring.rows, 0)


def spans(batch: Batch, prompts: list[Prompt]) -> torch.Tensor:
    return torch.tensor([[p for span in prompt.spans for p in span] for prompt in prompts])


# --- prompts


def test_all_tokens_of_a_label_word_stand_for_it(tokenizer):
    prompt = written(tokenizer, TASK["long and short"])[0]
    assert [prompt.pieces(tokenizer)[p] for span in prompt.spans for p in span] == [
        *(" Number", " Ab", "bre", "viation"),
        " Entity",
    ]
    assert prompt.words[0] == tuple(prompt.ids[p] for p in prompt.spans[1])
    assert [prompt.roles[p].name for p in prompt.spans[1]] == ["ANCHOR", "LABEL", "LABEL"]
    assert prompt.anchors == tuple(span[0] for span in prompt.spans)
    first = written(tokenizer, replace(TREC, label_token="first"))[0]
    assert first == replace(prompt, longer=(), endings=())
    assert [len(span) for span in first.spans] == [1, 1, 1]


@pytest.mark.parametrize("task", [task for name, task in TASKS.items() if name != "trec"], ids=lambda task: task.name)
def test_label_words_of_one_token_make_the_same_prompts_under_every_setting(tokenizer, task):
    made = [written(tokenizer, replace(task, label_token=how)) for how in ("only", "first", "all")]
    assert made[0] == made[1] == made[2]
    assert made[0][0].endings == ()


def test_words_of_one_token_are_scored_by_their_logits_in_one_row(model, tokenizer):
    made = written(tokenizer, replace(SST2, label_token="all"))
    batch = collate(made)
    assert batch.scoring.rows == 1
    logits = model.label_logits(model.at_target(batch.tokens, batch.target), batch.labels)
    torch.testing.assert_close(passes.answer(model, batch), logits, rtol=0, atol=0)
    assert batch.scoring.whole(batch.tokens, batch.target)[0] is batch.tokens


def test_the_beginnings_of_words_are_run_once_each():
    assert Scoring(((1, 2, 3), (1, 2, 4), (5,))).beginnings == ((), (1,), (1, 2))
    assert Scoring(((1,), (2,))).beginnings == ((),)
    assert Scoring.of(torch.tensor([[1, 2], [3, -1]])) == Scoring(((1, 2), (3,)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "Abbreviation|Abbre",
            "label words 'Abbreviation' and 'Abbre' begin with the same tokens [935, 1124], so that",
        ),
        ("Ab|Abbred", "label words 'Ab' and 'Abbred' begin with the same tokens [935], so that one can never be the"),
    ],
)
def test_a_label_word_that_begins_another_is_refused(tokenizer, words, said):
    with pytest.raises(PromptError, match=re.escape(f"task 'sst2': {said}")):
        written(tokenizer, with_words(replace(SST2, label_token="all"), words))


def test_words_that_begin_alike_are_refused_under_first_with_the_remedy(tokenizer):
    with pytest.raises(PromptError, match=r"begin with the same token 935, .* or set label_token=all\.$"):
        written(tokenizer, replace(ALIKE, label_token="first"))


def test_a_prompt_must_leave_room_for_a_label_word(tokenizer):
    n = max(len(prompt.ids) for prompt in written(tokenizer, ALIKE))
    assert written(tokenizer, ALIKE, n + 2)
    with pytest.raises(TooLongError, match=f"{n} tokens and 2 of a label word where the model reads at most {n + 1}"):
        written(tokenizer, ALIKE, n + 1)


def test_prompts_with_other_label_words_of_several_tokens_share_no_batch(tokenizer):
    mixed = written(tokenizer, ALIKE) + written(tokenizer, with_words(ALIKE, "Abbred|Abbreviation"))
    assert sorted(len(batch.target) for batch in batches(mixed, lambda _: 99)) == [3, 3]
    with pytest.raises(ValueError, match="have different label words of several tokens: one batch has one set"):
        collate(mixed)


# --- scores


def test_a_label_is_scored_by_its_whole_log_probability(lens, prompts, batch, group):
    want = plainly(lens, prompts)
    torch.testing.assert_close(passes.answer(lens, batch), want, **EXACT)
    torch.testing.assert_close(passes.answers(lens, batch).label_logits, want, **EXACT)
    demonstrated = passes.demonstrate(lens, group)
    (asked,) = passes.queries(lens, group, 10_000)
    order = [asked.example.tolist().index(prompt.example) for prompt in prompts]
    said = passes.respond(lens, group, demonstrated.memory, asked)
    torch.testing.assert_close(said.label_logits[order], want, **EXACT)
    part = passes.prepare(lens, group, demonstrated.memory, asked)
    torch.testing.assert_close(passes.step(lens, part)[order], want, **EXACT)
    one = passes.step(lens, part.row(order[1]))
    torch.testing.assert_close(one[0], want[1], **EXACT)


def test_next_tokens_are_those_after_the_prompt(lens, prompts, batch, group):
    want = torch.stack([lens(torch.tensor([prompt.ids]))[0, -1].topk(5).indices for prompt in prompts])
    assert passes.answers(lens, batch).top.tolist() == want.tolist()
    assert readings.read(lens, group).answers.top.tolist() == want.tolist()


def test_batches_count_the_rows_that_a_prompt_is_run_in(model, group, prompts):
    rows, width = group.scoring.rows, max(len(prompt.ids) for prompt in prompts) + group.scoring.more
    assert rows > 1
    assert len(passes.plan(model, prompts, rows * width * 2)[0].target) == 2
    assert len(passes.plan(model, prompts, rows * width * 2 - 1)[0].target) == 1
    asked = width - group.length
    assert len(passes.queries(model, group, rows * asked * 2)[0].gold) == 2
    assert len(passes.queries(model, group, rows * asked * 2 - 1)[0].gold) == 1


def test_where_padding_is_not_exact_several_tokens_are_refused(model, group):
    class Counting:
        def pads_exactly(self, length: int) -> bool:
            return False

        def __getattr__(self, name: str):
            return getattr(model, name)

    lens: Any = Counting()
    with pytest.raises(
        SettingError, match=r"^label_token=all with label words of several tokens: .*Set label_token=first"
    ):
        passes.queries(lens, group, 100)


# --- flow


def test_saliency_is_the_slope_of_the_loss_along_the_prompts_own_pattern(lens, prompts, batch):
    layer, step = 1, 1e-5

    class Times:
        site: ClassVar[Site] = Site.PATTERN

        def __init__(self, factor: float, row: int, col: int) -> None:
            self.factor, self.row, self.col = factor, row, col

        def __call__(self, act: torch.Tensor, layer: int) -> torch.Tensor:
            scaled = act.clone()
            scaled[:, :, self.row, self.col] *= self.factor  # in every row that the prompt is run in
            return scaled

    def loss(factor: float, row: int, col: int) -> torch.Tensor:
        with torch.no_grad(), editing(lens, Times(factor, row, col), [layer]):
            return F.cross_entropy(passes.answer(lens, batch), batch.gold, reduction="none")

    maps, one = flow.saliency_maps(lens, batch), prompts[1]  # the longest: nothing follows it in its row but a word
    span = one.spans[1]
    for row, col in ((span[-1], 1), (span[-1], span[0]), (one.target, span[-1]), (one.target, 3), (span[0], 2)):
        slope = (loss(1 + step, row, col) - loss(1 - step, row, col))[1] / (2 * step)
        torch.testing.assert_close(maps[1, layer, row, col], slope.abs(), rtol=1e-6, atol=1e-9)


def test_a_label_word_of_two_tokens_is_one_row_and_one_column():
    # label words at 1-2 and 4-5, target at 6; tokens 0 and 3 are the rest; as units 0 [1 2] 3 [4 5] 6
    batch = hand_batch([1, 4], 6, 7, longer=1)
    sal = torch.arange(49, dtype=torch.float64).reshape(1, 7, 7)
    units = [[0], [1, 2], [3], [4, 5], [6]]
    merged = torch.tensor([[[sal[0][i][:, j].sum() for j in units] for i in units]])
    one = hand_batch([1, 3], 4, 5)
    found = flow.mean_flows(sal, flow.averaging(batch, torch.float64))
    torch.testing.assert_close(found, flow.mean_flows(merged, flow.averaging(one, torch.float64)))
    # by hand: (1,0)+(2,0) | (4,j)+(5,j) for j = 0, 1+2, 3
    assert found[0, 0].item() == pytest.approx((7 + 14 + 28 + 35 + 29 + 30 + 36 + 37 + 31 + 38) / 4)
    assert found[0, 1].item() == pytest.approx((43 + 44 + 46 + 47) / 2)


def test_a_prompt_has_the_same_flow_alone_and_in_a_batch(lens, prompts, batch):
    together = flow.information_flow(lens, batch)
    alone = [flow.information_flow(lens, collate([prompt])) for prompt in prompts]
    for example, frame in enumerate(alone):
        same = together[together["example"] == example]
        assert frame["predicted"].tolist() == same["predicted"].tolist()
        torch.testing.assert_close(
            torch.tensor(same["value"].to_numpy()), torch.tensor(frame["value"].to_numpy()), rtol=1e-9, atol=1e-15
        )


# --- isolation


@pytest.mark.parametrize("mask", ["before", "after"])
def test_a_word_is_cut_off_whole_and_its_tokens_still_see_one_another(lens, prompts, batch, mask):
    rows = spans(batch, prompts)
    before = torch.tensor([[span[0] for span in prompt.spans for _ in span] for prompt in prompts])
    edit = {"before": Isolate, "after": Silence}[mask](wide(batch, rows), wide(batch, before))
    with editing(lens, edit, range(3)), capturing(lens, Site.PATTERN, [0]) as held:
        passes.answer(lens, batch)
    pattern, span = held[0][0, 0], prompts[0].spans[1 if len(prompts[0].spans[1]) > 1 else 0]
    inside = pattern[span[0] : span[-1] + 1]
    assert (inside[:, : span[0]] == 0).all()
    assert (inside[:, span[0] : span[-1] + 1].tril() > 0).sum() == len(span) * (len(span) + 1) // 2


@pytest.mark.parametrize("mask", ["before", "after"])
def test_isolated_answers_are_those_of_whole_prompts(lens, prompts, batch, group, mask):
    settings = isolation.settings(3, [1, 2])
    frame: Any = isolation.isolation(lens, group, settings, mask=mask)
    before = torch.tensor([[span[0] for span in prompt.spans for _ in span] for prompt in prompts])
    edit = {"before": Isolate, "after": Silence}[mask](wide(batch, spans(batch, prompts)), wide(batch, before))
    for setting in settings:
        with editing(lens, edit, setting.layers):
            want = passes.answers(lens, batch)
        found = frame.query("arm == 'label' and end == @setting.end and depth == @setting.depth")
        assert found.sort_values("example")["predicted"].tolist() == want.predicted.tolist()
    last = frame.query("end == 'last' and depth == 1")
    assert last["label_loyal"].all(), "no later layer reads what the last one isolates"
    _, found = isolation.sweep(lens, group, settings, {"label": group.rows}, {"label": group.anchors[group.row_demos]})
    if mask == "before":
        with editing(lens, edit, settings[0].layers):
            want = passes.answer(lens, batch)
        torch.testing.assert_close(found["label", settings[0]].label_logits, want, **EXACT)


def test_controls_take_as_many_tokens_as_stand_for_label_words(lens, group):
    own = {p for span in group.prompts[0].spans for p in span}
    drawn = controls.seeded(group)
    assert len(drawn) == len(own) == len(group.rows)
    assert own.isdisjoint(drawn.tolist())
    for rows in controls.published(group, 3, "a").values():
        assert rows.shape == (3, len(own))
        assert own.isdisjoint(rows.flatten().tolist())
    frame: Any = isolation.isolation(lens, group, isolation.settings(3, [2]), control="published")
    assert frame["word_loyalty"].between(0, 1).all()


# --- readings


def test_attention_to_a_word_is_summed_over_it_and_its_key_is_the_mean(lens, prompts, group):
    seen = readings.read(lens, group, vectors=[1])
    site = lens.attention_sites()[1]
    for n, prompt in enumerate(prompts):
        with capturing(lens, Site.PATTERN, range(3)) as pattern, capturing(lens, site, [1]) as keys:
            lens(torch.tensor([prompt.ids]))
        for demo, span in enumerate(prompt.spans):
            want = torch.stack([pattern[layer][0, :, prompt.target, list(span)].sum() for layer in range(3)])
            torch.testing.assert_close(seen.attention[n, :, demo], want, **EXACT)
            torch.testing.assert_close(seen.keys[0, demo], keys[1][0, list(span)].mean(0).flatten(), **EXACT)
    torch.testing.assert_close(seen.answers.label_logits, plainly(lens, prompts), **EXACT)
    frame: Any = extraction.extraction(seen)
    assert frame["attention"].max() <= 2


def test_classes_are_told_apart_by_their_whole_words(model, tokenizer):
    (group,) = groups(written(tokenizer, ALIKE))
    frame: Any = diagnosis.diagnosis([readings.read(model, group, vectors=[1])], n_components=(2,))
    assert frame["confusion_observed"].between(0, 1).all()
    assert (frame.query("label_a != label_b")["distance"] > 0).all()


# --- re-weighting


def test_a_words_tokens_share_one_factor(lens, prompts, batch, group):
    beta = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(3, 2, 3)
    plain, changed = reweighting.compare(lens, group, beta)
    torch.testing.assert_close(plain, plainly(lens, prompts), **EXACT)
    edit = Scale(wide(batch, batch.target), wide(batch, spans(batch, prompts)), beta[..., group.row_demos])
    with editing(lens, edit, range(3)):
        want = passes.answer(lens, batch)
    torch.testing.assert_close(changed, want, **EXACT)
    assert (plain - changed).abs().max() > 1e-3, "factors that change nothing test nothing"
    nothing = reweighting.compare(lens, group, torch.zeros_like(beta))
    torch.testing.assert_close(*nothing, rtol=0, atol=0)


@pytest.mark.parametrize("full_batch", [False, True])
def test_factors_are_learned_along_the_slope_of_whole_words(model, prompts, batch, group, full_batch):
    beta = torch.zeros(3, 2, 3, dtype=torch.float64, requires_grad=True)
    ready = prepared(model, group, full_batch=full_batch)
    total = sum(F.cross_entropy(scaled(model, each, beta), each.gold, reduction="sum") for each in ready)
    assert isinstance(total, torch.Tensor)
    total.backward()
    other = torch.zeros_like(beta, requires_grad=True)
    edit = Scale(wide(batch, batch.target), wide(batch, spans(batch, prompts)), other[..., group.row_demos])
    with editing(model, edit, range(3)):
        F.cross_entropy(passes.answer(model, batch), batch.gold, reduction="sum").backward()
    torch.testing.assert_close(beta.grad, other.grad, **EXACT)
    trained = train(model, ready, order=[[0, 1, 2]], epochs=1, full_batch=full_batch)
    assert trained.beta.abs().max() > 0


def test_reweighting_runs_from_lesson_to_tables(model, group):
    tables = reweighting.reweighting(model, Lesson(group, group), epochs=2)
    assert set(tables["results"]["arm"]) == {"vanilla", "beta"}
    assert len(tables["beta"]) == 3 * 2 * 3


# --- compression


def drawable(group: Group) -> bool:
    """Whether each text has as many tokens as its label word; the one-token text before a long word has not."""
    both = zip(kept.candidates(group), group.prompts[0].spans, strict=True)
    return all(len(span) <= len(text) for text, span in both)


def test_label_words_are_kept_whole_and_replaced_token_for_token(group):
    own, anchored = set(group.rows.tolist()), kept.by_role(group, "hidden_anchor").tolist()
    assert set(kept.by_role(group, "label_only").tolist()) == own
    assert own <= set(anchored)
    if not drawable(group):
        with pytest.raises(PromptError, match="text tokens before its label word of 3, and the random arm replaces"):
            kept.draw(group, 0)
        return
    drawn = kept.draw(group, 0)
    assert len(set(drawn)) == len(own)
    assert all(group.roles[p] is Role.TEXT for p in drawn)
    kept.check_chosen(group, [drawn])
    assert set(kept.with_random(group, drawn).tolist()) == set(anchored) - own | set(drawn)


def test_compressed_answers_score_whole_words(lens, prompts, group):
    frame: Any = compression(lens, group, draws=2 if drawable(group) else 0)
    icl = frame[frame["arm"] == "icl"]
    assert icl["predicted"].tolist() == plainly(lens, prompts).argmax(-1).tolist()
    assert set(frame.query("arm == 'label_only'")["tokens_kept"]) == {len(group.rows)}
    memory = passes.demonstrate(lens, group).memory
    memory = lens.keep(memory, torch.arange(group.length), group.length, longest=group.longest)
    (asked,) = passes.queries(lens, group, 10_000)
    said = passes.respond(lens, group, memory, asked)
    want = plainly(lens, prompts)[asked.example]
    torch.testing.assert_close(said.label_logits, want, **EXACT)


def test_the_cost_of_words_counts_every_row(model, group):
    table: Any = cost.cost(model, group, sizes=[1], repeats=1).set_index("arm")
    lengths = [len(prompt.ids) + len(each) for prompt in group.prompts for each in group.scoring.beginnings]
    whole = sum(cost.operations(model.cfg, n) for n in lengths)
    after = sum(cost.operations(model.cfg, n - group.length, group.length) for n in lengths)
    assert table["flops_ratio"]["icl_cached"] == pytest.approx(whole / after)


@pytest.mark.parametrize("words", [" Negative| Positive", " Abbreviation| Number"])
def test_queries_of_a_single_token_are_trained_on_one_by_one(tokenizer, words):
    """Nothing but the demonstrations is remembered of them, once for all."""
    lens, encode = random_model(), Encoder(tokenizer, 96)
    task = with_words(replace(SST2, template="{text}", label_token="all"), words)
    shown = (Example("good", 0), Example("slow", 1))
    made = [encode(Draft(task, shown, Example(text, 0, row), 42)) for row, text in enumerate("abc")]
    (group,) = groups(made)
    assert {len(prompt.ids) - group.length for prompt in made} == {1}
    beta = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 2, 2)
    alone = torch.cat([scaled(lens, part, beta) for part in prepared(lens, group)])
    (together,) = prepared(lens, group, full_batch=True)
    torch.testing.assert_close(alone, scaled(lens, together, beta), **EXACT)


def test_label_words_of_one_token_give_the_same_results_under_every_setting(model, tokenizer):
    only, *others = (
        everything(model, tokenizer, [replace(each, task=replace(each.task, label_token=setting)) for each in DRAFTS])
        for setting in tasks.LABEL_TOKENS
    )
    for found in others:
        for name, frame in only.items():
            pd.testing.assert_frame_equal(found[name], frame, check_exact=True, obj=name)
