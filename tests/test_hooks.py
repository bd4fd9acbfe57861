"""Edits by hand on arrays one can check in the head, and by law on a random model in float64."""

from typing import ClassVar

import pytest
import torch
from conftest import some_beta
from hook_helpers import (
    LAYERS,
    answer,
    assert_near,
    assert_same,
    captured,
    every_edit,
)
from torch import Tensor

from anchorlens.batching import Batch, collate
from anchorlens.hooks import Edit, Inject, Isolate, Scale, Site, capturing, editing

# --- by hand


def test_isolate_leaves_each_row_only_itself_and_what_comes_after():
    scores = torch.zeros(1, 1, 3, 3)
    inf = torch.inf
    want = torch.tensor([[[[0, 0, 0], [-inf, 0, 0], [0, 0, 0]]]]).float()
    assert_same(Isolate(torch.tensor([[1]]))(scores, 0), want)
    want = torch.tensor([[[[0, 0, 0], [-inf, 0, 0], [-inf, -inf, 0]]]]).float()
    assert_same(Isolate(torch.tensor([[2, 1, 0]]))(scores, 0), want)


def test_isolate_takes_the_rows_of_each_prompt_in_every_head():
    scores = torch.arange(36.0).reshape(2, 2, 3, 3)
    out = Isolate(torch.tensor([[1], [2]]))(scores, 0)
    gone = torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    gone[0, :, 1, 0] = gone[1, :, 2, :2] = True
    assert_same(out, torch.where(gone, -torch.inf, scores))


def test_scale_touches_only_target_to_anchor_cells_with_the_factor_of_layer_and_head():
    pattern = torch.full((2, 2, 4, 4), 0.5)
    factor = torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[2.0, 4.0], [6.0, 8.0]]])  # [layer head demo]
    scale = Scale(torch.tensor([3, 2]), torch.tensor([[0, 2], [1, 0]]), factor.log())
    want = torch.full((2, 2, 4, 4), 0.5)
    want[0, 0, 3, 0], want[0, 0, 3, 2], want[0, 1, 3, 0], want[0, 1, 3, 2] = 1.0, 2.0, 3.0, 4.0
    want[1, 0, 2, 1], want[1, 0, 2, 0], want[1, 1, 2, 1], want[1, 1, 2, 0] = 1.0, 2.0, 3.0, 4.0
    torch.testing.assert_close(scale(pattern, 1), want, rtol=1e-6, atol=0)  # exp(log x) in float32


def test_the_derivative_of_scale_by_its_log_factor_is_the_scaled_cell():
    beta = torch.tensor([[[0.5]]], requires_grad=True)
    pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    Scale(torch.tensor([1]), torch.tensor([[0]]), beta)(pattern, 0).sum().backward()
    torch.testing.assert_close(beta.grad, 0.25 * beta.detach().exp(), rtol=1e-6, atol=0)  # float32


def test_inject_overwrites_the_front_with_the_states_of_its_layer():
    cached = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # two layers, two anchors, width 1
    out = Inject(cached)(torch.zeros(2, 3, 1), 1)
    assert_same(out, torch.tensor([[[3.0], [4.0], [0.0]]]).expand(2, -1, -1))


@every_edit
def test_an_edit_does_not_write_into_the_activation_that_it_is_given(batch, each_edit):
    width = batch.tokens.shape[1]
    shape = (2, width, 16) if each_edit.site is Site.RESID_PRE else (2, 2, width, width)
    act = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = act.clone()
    out = each_edit(act, 1)
    assert_same(act, before)
    assert out.data_ptr() != act.data_ptr()
    assert not torch.equal(out, before), "the edit did nothing at all"
    assert isinstance(each_edit, Edit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_keeps_the_dtype_of_the_model_whatever_its_own(dtype):
    scale = Scale(torch.tensor([1]), torch.tensor([[0]]), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert scale(torch.ones(1, 1, 2, 2, dtype=dtype), 0).dtype == dtype
    assert Inject(torch.ones(1, 1, 4, dtype=torch.float64))(torch.ones(1, 2, 4, dtype=dtype), 0).dtype == dtype


# --- refused


def test_an_edit_made_for_another_batch_is_refused():
    message = "was made for 1 prompts and met a batch of 2: build it from the same batch that the model is run on"
    with pytest.raises(ValueError, match=f"Isolate {message}"):
        Isolate(torch.tensor([[1]]))(torch.zeros(2, 1, 3, 3), 0)
    with pytest.raises(ValueError, match=f"Scale {message}"):
        Scale(torch.tensor([2]), torch.tensor([[0]]), torch.zeros(1, 1, 1))(torch.zeros(2, 1, 3, 3), 0)


def test_more_injected_anchors_than_tokens_are_refused():
    edit = Inject(torch.ones(1, 4, 2))
    assert edit(torch.zeros(1, 4, 2), 0).shape == (1, 4, 2)
    with pytest.raises(ValueError, match=r"Inject holds 4 anchors and met prompts of 3 tokens: put one token for each"):
        edit(torch.zeros(1, 3, 2), 0)


# --- isolating


def test_isolated_rows_attend_to_themselves_alone_in_their_layer_alone(model, batch):
    clean = captured(model, batch.tokens, Site.PATTERN)
    with editing(model, Isolate(batch.anchors), [1]), capturing(model, Site.PATTERN, LAYERS) as pattern:
        model(batch.tokens)
    width = batch.tokens.shape[1]
    want = clean[1].clone()
    for prompt, rows in enumerate(batch.anchors):
        want[prompt, :, rows] = torch.nn.functional.one_hot(rows, width).double()
    assert_same(pattern[1], want)  # softmax of one finite score is exactly 1
    assert_same(pattern[0], clean[0])


def test_isolating_the_last_layer_alone_cannot_reach_the_target(model, batch):
    clean = model(batch.tokens)
    with editing(model, Isolate(batch.anchors), [2]):
        edited = model(batch.tokens)
    here = torch.arange(2), batch.target
    assert_same(edited[here], clean[here])
    at_anchors = torch.arange(2)[:, None], batch.anchors
    assert (edited[at_anchors] - clean[at_anchors]).abs().amax(-1).min() > 1e-3, "the edit did nothing at all"


@pytest.mark.parametrize("layer", [0, 1])
def test_isolating_an_earlier_layer_reaches_the_target_of_every_prompt(model, batch, layer):
    clean = answer(model, batch)
    with editing(model, Isolate(batch.anchors), [layer]):
        assert (answer(model, batch) - clean).abs().amax(-1).min() > 1e-3


def test_a_padded_batch_is_edited_as_each_prompt_alone(model, prompts, batch):
    def edited(of: Batch) -> Tensor:
        scale = Scale(of.target, of.anchors, some_beta())
        with editing(model, Isolate(of.anchors), [0]), editing(model, scale, LAYERS):
            return answer(model, of)

    alone = torch.cat([edited(collate([prompt])) for prompt in prompts])
    assert_near(edited(batch), alone)


# --- scaling


def test_a_beta_of_zero_changes_nothing(model, batch):
    clean = model(batch.tokens)
    with editing(model, Scale(batch.target, batch.anchors, torch.zeros(3, 2, 2, dtype=torch.float64)), LAYERS):
        assert_same(model(batch.tokens), clean)


def test_scaling_is_multiplying_the_cells_by_hand_without_renormalising(model, batch):
    beta = some_beta()

    def by_hand(act: Tensor, hook) -> Tensor:
        out, layer = act.clone(), hook.layer()
        for prompt in range(2):
            for demo in range(2):
                q, p = int(batch.target[prompt]), int(batch.anchors[prompt, demo])
                out[prompt, :, q, p] = out[prompt, :, q, p] * beta[layer, :, demo].exp()
        return out

    with model.hooks(fwd_hooks=[(Site.PATTERN.at(layer), by_hand) for layer in LAYERS]):
        want = model(batch.tokens)
    with editing(model, Scale(batch.target, batch.anchors, beta), LAYERS):
        assert_near(model(batch.tokens), want)


# --- injecting


def test_injecting_a_prompts_own_clean_states_changes_nothing(model, batch):
    clean = model(batch.tokens)
    end = int(batch.anchors.max()) + 1  # both prompts begin with the same demonstrations
    resid = captured(model, batch.tokens, Site.RESID_PRE)
    cached = torch.stack([resid[layer][0, :end] for layer in LAYERS])
    for layers in ([0], [2], LAYERS):
        with editing(model, Inject(cached), layers):
            assert_near(model(batch.tokens), clean)


def test_injected_anchors_are_the_full_prompt_with_the_other_demonstration_tokens_hidden(model, batch):
    tokens, anchors, end = batch.tokens[:1], batch.anchors[0], int(batch.anchors[0, -1]) + 1
    resid = captured(model, tokens[:, :end], Site.RESID_PRE)
    cached = torch.stack([resid[layer][0, anchors] for layer in LAYERS])
    hidden = [p for p in range(end) if p not in anchors.tolist()]

    class Hide:
        site: ClassVar[Site] = Site.SCORES

        def __call__(self, act: Tensor, layer: int) -> Tensor:
            out = act.clone()
            out[:, :, end:, hidden] = -torch.inf
            return out

    with editing(model, Hide(), LAYERS):
        want = model(tokens)[:, end:]
    where = torch.cat([anchors, torch.arange(end, tokens.shape[1])])  # the query goes on where the demonstrations end
    placing = model.hooks(fwd_hooks=[("hook_pos_embed", lambda act, hook: model.model.W_pos[where][None])])
    with placing, editing(model, Inject(cached), LAYERS):
        got = model(tokens[:, where])[:, len(anchors) :]
    assert_near(got, want)
    assert (want - model(tokens)[:, end:]).abs().max() > 1e-3, "hiding the rest did nothing at all"


# --- mistakes that would silently do nothing


@pytest.mark.parametrize("rows", [[[7]], [[-1]]])
def test_a_position_that_no_prompt_has_is_refused(rows):
    with pytest.raises(ValueError, match=r"Isolate names position .* in prompts of 3 tokens"):
        Isolate(torch.tensor(rows))(torch.zeros(1, 1, 3, 3), 0)


def test_anchors_past_the_end_of_a_prompt_are_refused_by_scale():
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        Scale(torch.tensor([2]), torch.tensor([[3]]), torch.zeros(1, 1, 1))(torch.zeros(1, 1, 3, 3), 0)
