"""Fast answers against the plain whole-prompt run, and batches sized from memory."""

import pytest
import torch
from conftest import random_model

from anchorlens import passes
from anchorlens.batching import collate


def test_answers_at_the_target_are_the_plain_runs_label_logits(model, batch):
    rows = torch.arange(len(batch.target))
    plain = model(batch.tokens)[rows, batch.target].gather(1, batch.labels)
    # float64, three layers: the order of summation alone differs
    torch.testing.assert_close(passes.answer(model, batch), plain, rtol=0, atol=1e-11)


def test_a_padded_batch_answers_as_each_prompt_alone(model, prompts, batch):
    alone = torch.cat([passes.answer(model, collate([prompt])) for prompt in prompts])
    torch.testing.assert_close(passes.answer(model, batch), alone, rtol=0, atol=1e-11)


def test_the_pad_token_does_not_matter(model, prompts):
    answers = [passes.answer(model, collate(prompts, pad=pad)) for pad in (0, 1486)]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def test_every_prompt_is_given_the_class_of_its_own_largest_logit():
    logits = torch.tensor([[0.1, 0.3, 0.2], [2.0, 1.0, 3.0], [5.0, 4.0, 4.5]])
    three = torch.arange(3)
    assert passes.Answers(three, three, logits, three[:, None]).predicted.tolist() == [1, 2, 0]


@pytest.mark.parametrize("top", [1, 7])
def test_the_likeliest_next_tokens_of_whole_prompts_are_the_plain_runs_the_likeliest_first(model, batch, top):
    plain = model(batch.tokens)[torch.arange(len(batch.target)), batch.target]
    assert passes.answers(model, batch, top).top.tolist() == plain.argsort(descending=True)[:, :top].tolist()


def test_logits_that_are_not_finite_name_the_prompts(batch):
    broken = random_model()
    with torch.no_grad():
        broken.model.unembed.b_U[batch.labels[0, 0]] = torch.nan
    with pytest.raises(FloatingPointError, match=r"label logits of examples \[0, 1\] are not finite in torch.float64"):
        passes.answer(broken, batch)


def test_batches_keep_to_the_token_budget(model, prompts):
    longest = max(len(prompt.ids) for prompt in prompts)
    assert [len(batch.target) for batch in passes.plan(model, prompts, batch_tokens=2 * longest)] == [2]
    assert [len(batch.target) for batch in passes.plan(model, prompts, batch_tokens=longest)] == [1, 1]
    assert [len(batch.target) for batch in passes.plan(model, prompts, batch_tokens=1)] == [1, 1], "one at least"


def test_a_negative_budget_is_refused(model, prompts):
    with pytest.raises(ValueError, match="batch_tokens=-1: give tokens per batch, or 0"):
        passes.plan(model, prompts, batch_tokens=-1)
