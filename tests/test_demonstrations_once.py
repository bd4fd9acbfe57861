"""Demonstrations once, then queries, and one-token steps: everything against the plain whole-prompt run."""

import pytest
import torch
from conftest import random_model, some_beta

from anchorlens import passes, readings
from anchorlens.batching import Group, collate, groups
from anchorlens.drafts import Draft
from anchorlens.hooks import Isolate, Scale, Site, capturing, editing, watching
from anchorlens.prompts import Encoder
from anchorlens.rows import Example
from anchorlens.tasks import SST2

WORDS = ("nothing to say , slow and dull , but", "warm and funny from the first scene to the last")
# Largest difference of logits and of attention. The limits; seen: 3e-6 and 2e-7 in float32, 1e-14 in float64.
LIMITS = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-5, 2e-6)}
SHAPES = {
    "learned": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"positional_embedding_type": "alibi"},
    "local": {"use_local_attn": True, "attn_types": ["global", "local", "local"], "window_size": 24},
    "shared keys": {"n_key_value_heads": 1, "positional_embedding_type": "rotary", "rotary_dim": 8},
}


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    """21 queries of 4 to 21 tokens behind the same two demonstrations."""
    shown = (Example("a joy from start to end", 1), Example("a slow drama", 0))
    encode = Encoder(tokenizer, 96)
    words = " ".join(WORDS * 2).split()
    texts = [" ".join(words[n : n + 1 + n % 7 * (1 + n % 3)]) for n in range(21)]
    drafts = [Draft(SST2, shown, Example(text, n % 2, n)) for n, text in enumerate(texts)]
    (one,) = groups([encode(draft) for draft in drafts])
    return one


@pytest.fixture(scope="module", params=LIMITS, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=SHAPES)
def lens(request, dtype):
    # weights at 0.4 in width 16 give logits up to 5
    return random_model(dtype, **SHAPES[request.param])


def whole(lens, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Every logit at the target [query vocabulary] and attention of the target to anchors [query layer head demo]."""
    logits, attention = [], []
    for prompt in group.prompts:
        with capturing(lens, Site.PATTERN, range(3)) as pattern:
            logits.append(lens(torch.tensor([prompt.ids]))[0, -1])
        attention.append(torch.stack([pattern[layer][0, :, -1][:, list(prompt.anchors)] for layer in range(3)]))
    return torch.stack(logits), torch.stack(attention)


def same_top(got: torch.Tensor, logits: torch.Tensor, limit: float) -> None:
    """The likeliest tokens in order, unless two logits are too close to tell."""
    want = logits.topk(got.shape[1])
    values = logits.gather(1, got)
    torch.testing.assert_close(values, want.values, rtol=0, atol=2 * limit)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_queries_after_remembered_demonstrations_are_answered_as_whole_prompts(lens, dtype, group, size):
    limit, finer = LIMITS[dtype]
    logits, attention = whole(lens, group)
    shown = passes.demonstrate(lens, group)
    met, sizes = [], []
    for asked in group.queries(lambda length: size, padding=lens.pads_exactly(group.longest)):
        with capturing(lens, Site.PATTERN, range(3)) as pattern:
            said = passes.respond(lens, group, shown.memory, asked)
        rows = said.example
        torch.testing.assert_close(said.label_logits, logits[rows][:, group.labels], rtol=0, atol=limit)
        same_top(said.top, logits[rows], limit)
        seen = torch.stack([pattern[layer][:, :, -1][..., group.anchors] for layer in range(3)], dim=1)
        torch.testing.assert_close(seen, attention[rows], rtol=0, atol=finer)
        met += rows.tolist()
        sizes.append(len(rows))
    assert sorted(met) == list(range(21))
    assert max(sizes) == min(size, 21) or not lens.pads_exactly(group.longest)
    assert size == 1 or max(sizes) > 1


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_one_token_step_is_the_whole_prompt_even_when_anchors_are_scaled(lens, dtype, group, size):
    limit, _ = LIMITS[dtype]
    beta = some_beta().to(dtype)
    shown = passes.demonstrate(lens, group)
    for asked in group.queries(lambda length: size, padding=lens.pads_exactly(group.longest)):
        ready = passes.prepare(lens, group, shown.memory, asked)
        count = len(asked.example)
        where = group.anchors.expand(count, -1)
        with editing(lens, Scale(torch.zeros(count, dtype=torch.int64), where, beta), range(3)):
            together = passes.step(lens, ready)
        for n, example in enumerate(asked.example.tolist()):
            alone = collate([group.prompts[example]])
            with editing(lens, Scale(alone.target, alone.anchors, beta), range(3)):
                want = passes.answer(lens, alone)
            torch.testing.assert_close(together[n : n + 1], want, rtol=0, atol=limit)
            with editing(lens, Scale(alone.target * 0, alone.anchors, beta), range(3)):
                got = passes.step(lens, ready.row(n))
            torch.testing.assert_close(got, want, rtol=0, atol=limit)


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
def test_resuming_at_a_layer_is_the_whole_prompt_under_the_edit(lens, dtype, group, layers):
    limit, _ = LIMITS[dtype]
    first = min(layers)
    clean = passes.demonstrate(lens, group, resume=[first])
    with editing(lens, Isolate(group.anchors[None]), layers):
        memory = passes.demonstrate_from(lens, clean, first)
    effect = []
    for asked in group.queries(lambda length: 8, padding=lens.pads_exactly(group.longest)):
        before = {}
        with watching(lens, Site.RESID_PRE, range(3), before.__setitem__):
            final = passes.respond(lens, group, clean.memory, asked)
        if first + 1 < 3:
            edited = passes.respond(lens, group, memory, asked, start=first + 1, resid=before[first + 1])
        else:
            edited = final  # what the last layer does to earlier rows reaches no target
        batch = collate([group.prompts[example] for example in asked.example.tolist()])
        with editing(lens, Isolate(batch.anchors), layers):
            want = passes.answer(lens, batch)
        torch.testing.assert_close(edited.label_logits, want, rtol=0, atol=limit)
        effect.append((want - final.label_logits).abs().max().item())
    assert (max(effect) > 10 * limit) == (first < 2), "the edit did nothing, or the last layer's reached a target"


def test_a_memory_can_serve_a_backward_pass(model, group):
    (asked, *_) = group.queries(lambda length: 2)
    ready = passes.prepare(model, group, passes.demonstrate(model, group).memory, asked)
    beta = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True)
    with editing(model, Scale(torch.zeros(2, dtype=torch.int64), group.anchors.expand(2, -1), beta), range(3)):
        passes.step(model, ready).sum().backward()
    assert beta.grad is not None
    assert beta.grad.abs().min() > 0


def test_keys_and_values_of_the_demonstrations_are_not_copied_for_a_batch(model, group, monkeypatch):
    shown = passes.demonstrate(model, group)
    made = []
    real = model._cache

    def spy(memory, batch, *, frozen):
        made.append(real(memory, batch, frozen=frozen))
        return made[-1]

    monkeypatch.setattr(model, "_cache", spy)
    (asked, *_) = group.queries(lambda length: 16)
    passes.respond(model, group, shown.memory, asked)
    (cache,) = made
    for entry, key in zip(cache.entries, shown.memory.keys, strict=True):
        assert entry.past_keys.shape[0] == 16
        assert entry.past_keys.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        torch.testing.assert_close(entry.past_keys[3:4], key, rtol=0, atol=0)


def test_tokens_are_pushed_once_for_demonstrations_and_once_for_each_query(model, group):
    pushed = [0, 0, 0]

    def count(layer: int, resid: torch.Tensor) -> None:
        pushed[layer] += resid.shape[0] * resid.shape[1]

    with watching(model, Site.RESID_PRE, range(3), count):
        shown = passes.demonstrate(model, group)
        for asked in group.queries(lambda length: 1):
            passes.respond(model, group, shown.memory, asked)
    want = group.length + sum(len(prompt.ids) - group.length for prompt in group.prompts)
    assert pushed == [want] * 3


def test_readings_are_what_hooks_on_whole_prompts_see(lens, dtype, group):
    limit, finer = LIMITS[dtype]
    logits, attention = whole(lens, group)
    found = readings.read(lens, group, batch_tokens=100, vectors=[0, 2])
    assert found.answers.example.tolist() == list(range(21))
    torch.testing.assert_close(found.answers.label_logits, logits[:, group.labels], rtol=0, atol=limit)
    torch.testing.assert_close(found.attention, attention.sum(2), rtol=0, atol=2 * finer)  # two heads
    query_site, key_site = lens.attention_sites()
    for row in (0, 20):
        prompt = group.prompts[row]
        with capturing(lens, query_site, [2]) as queries, capturing(lens, key_site, [2]) as keys:
            lens(torch.tensor([prompt.ids]))
        torch.testing.assert_close(found.queries[row, 1], queries[2][0, -1].flatten(), rtol=0, atol=limit)
        want = keys[2][0, list(prompt.anchors)]
        want = want.repeat_interleave(2 // want.shape[1], dim=1).flatten(1)
        torch.testing.assert_close(found.keys[1], want, rtol=0, atol=limit)


def test_a_key_that_heads_share_meets_the_queries_of_each_of_them(group):
    lens = random_model(n_heads=4, d_head=4, n_key_value_heads=2)
    found = readings.read(lens, group, vectors=[1])
    with capturing(lens, Site.SCORES, [1]) as scores:
        lens(torch.tensor([group.prompts[0].ids]))
    met = scores[1][0, :, -1, group.anchors].sum(0) * 4**0.5  # scores are products over the square root of d_head
    # float64, values up to 20: rounding alone
    torch.testing.assert_close(found.keys[0] @ found.queries[0, 0], met, rtol=0, atol=1e-10)


def test_readings_without_vectors_keep_none(model, group):
    found = readings.read(model, group)
    assert found.queries.shape == (21, 0, 0)
    assert found.keys.shape[0] == 0


@pytest.mark.parametrize("row", [0, 20])
def test_a_query_alone_is_read_in_one_pass_and_as_among_others(lens, dtype, group, row):
    limit, finer = LIMITS[dtype]
    among, pushed = readings.read(lens, group, batch_tokens=100, vectors=[0, 2]), []
    prompt = group.prompts[row]
    with watching(lens, Site.RESID_PRE, [1], lambda layer, resid: pushed.append(resid.shape[:2].numel())):
        alone = readings.read(lens, Group((prompt,)), vectors=[0, 2])
    assert pushed == [len(prompt.ids)]
    assert alone.answers.example.tolist() == [prompt.example]
    assert alone.answers.gold.tolist() == among.answers.gold[[row]].tolist()
    for got, want, most in (
        (alone.answers.label_logits, among.answers.label_logits[[row]], limit),
        (alone.attention, among.attention[[row]], 2 * finer),
        (alone.queries, among.queries[[row]], limit),
        (alone.keys, among.keys, limit),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=2 * most)
