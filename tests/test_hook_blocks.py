"""The blocks that install hooks: what they see, how they nest, and that nothing stays behind."""

import pytest
import torch
from conftest import some_beta
from hook_helpers import (
    LAYERS,
    Times,
    assert_near,
    assert_same,
    block,
    captured,
    every_edit,
    hooks_left,
    loss,
)
from torch import Tensor

from anchorlens.hooks import Inject, Isolate, Scale, Site, capturing, differentiating, editing


@pytest.mark.parametrize("layer", [-1, 3])
@pytest.mark.parametrize("kind", ["editing", "capturing", "differentiating"])
def test_a_layer_that_the_model_lacks_is_refused_before_any_hook_is_set(model, batch, kind, layer):
    message = rf"layer {layer}: this model has 3 layers, so it may be 0 to 2"
    with pytest.raises(ValueError, match=message), block(kind, model, batch, [0, layer]):
        pass
    assert hooks_left(model) == 0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_refused_where_they_are_switched_off(model, batch, off):
    message = "gradients at PATTERN were asked for where they are switched off"
    with pytest.raises(RuntimeError, match=message), off(), capturing(model, Site.PATTERN, [1], grad=True):
        model(batch.tokens)
    with pytest.raises(RuntimeError, match=message), off(), block("differentiating", model, batch, [1]):
        model(batch.tokens)


# --- nesting


@every_edit
def test_a_capture_inside_an_edit_sees_it_and_one_outside_sees_what_the_edit_was_given(model, batch, each_edit):
    site = each_edit.site
    clean = captured(model, batch.tokens, site)
    with capturing(model, site, [0]) as outer, editing(model, each_edit, [0]), capturing(model, site, [0]) as inner:
        model(batch.tokens)
    assert_same(outer[0], clean[0])  # an edit in place would show here
    assert_same(inner[0], each_edit(clean[0], 0))
    assert not torch.equal(inner[0], clean[0]), "the edit did nothing at all"


def test_two_nested_edits_of_one_site_both_apply_and_the_outer_outlives_the_inner(model, batch):
    with capturing(model, Site.PATTERN, [0]) as clean:
        model(batch.tokens)
    with editing(model, Times(2), [0]):
        with editing(model, Times(3), [0]), capturing(model, Site.PATTERN, [0]) as both:
            model(batch.tokens)
        with capturing(model, Site.PATTERN, [0]) as outer:
            model(batch.tokens)
    assert_near(both[0], 6 * clean[0])
    assert_same(outer[0], 2 * clean[0])


def test_nested_edits_of_two_sites_both_apply(model, batch):
    scale = Scale(batch.target, batch.anchors, some_beta())
    with editing(model, Isolate(batch.anchors), [0]), capturing(model, Site.PATTERN, [0]) as isolated:
        model(batch.tokens)
    for first, second in [(scale, Isolate(batch.anchors)), (Isolate(batch.anchors), scale)]:
        with editing(model, first, [0]), editing(model, second, [0]), capturing(model, Site.PATTERN, [0]) as both:
            model(batch.tokens)
        assert_same(both[0], scale(isolated[0], 0))


# --- capturing and differentiating


def test_only_the_layers_that_were_asked_for_are_captured_and_without_a_graph(model, batch):
    with capturing(model, Site.RESID_PRE, [0], grad=True), capturing(model, Site.RESID_PRE, [2, 0]) as kept:
        assert kept == {}
        model(batch.tokens)
    assert sorted(kept) == [0, 2]
    assert not any(act.requires_grad for act in kept.values())


@every_edit
def test_what_was_captured_is_not_changed_by_a_later_pass_or_edit(model, batch, each_edit):
    with capturing(model, each_edit.site, LAYERS) as kept:
        model(batch.tokens)
        first = dict(kept)
        before = {layer: act.clone() for layer, act in first.items()}
        with editing(model, each_edit, LAYERS):
            model(batch.tokens)
        model(batch.tokens.flip(1))
    for layer in LAYERS:
        assert_same(first[layer], before[layer])
        assert kept[layer] is not first[layer], "each pass fills the dict anew"


@pytest.mark.parametrize("site", [site for site in Site if "ROTATED" not in site.name])  # none in this model
def test_capturing_with_gradients_and_differentiating_agree(model, batch, site):
    with capturing(model, site, LAYERS, grad=True) as kept:
        loss(model, batch).backward()
    seen: list[tuple[int, Tensor, Tensor]] = []
    with differentiating(model, site, LAYERS, lambda *of: seen.append(of)):
        loss(model, batch).backward()
    assert [layer for layer, _, _ in seen] == [2, 1, 0], "from the last layer down, once each"
    for layer, act, grad in seen:
        assert_same(act, kept[layer].detach())
        assert_same(grad, kept[layer].grad)
        assert grad.abs().max() > 0
        assert not act.requires_grad
    assert all(parameter.grad is None for parameter in model.model.parameters()), "the weights are frozen"


@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_is_the_derivative_of_the_loss_along_the_pattern(model, batch, layer):
    """sum_ij A dL/dA of a layer is d/ds of L, at s = 1, when the layer's pattern is multiplied by s."""
    with capturing(model, Site.PATTERN, [layer], grad=True) as pattern:
        loss(model, batch).backward()
    step = 1e-4

    def moved(factor: float) -> Tensor:
        with editing(model, Times(factor), [layer]):
            return loss(model, batch)

    slope = (moved(1 + step) - moved(1 - step)) / (2 * step)
    grad = pattern[layer].grad
    assert grad is not None
    # a central difference is off by step ** 2 / 6 times a third derivative: 8e-10 here, and rounding 1e-10
    torch.testing.assert_close((pattern[layer] * grad).sum().detach(), slope, rtol=0, atol=1e-8)


def test_watching_changes_no_logit(model, batch):
    clean = model(batch.tokens)
    for watched in (
        capturing(model, Site.PATTERN, LAYERS),
        capturing(model, Site.PATTERN, LAYERS, grad=True),
        differentiating(model, Site.PATTERN, LAYERS, lambda *_: None),
    ):
        with watched:
            assert_same(model(batch.tokens).detach(), clean)


# --- no hook survives


@pytest.mark.parametrize("kind", ["editing", "capturing", "differentiating"])
def test_no_hook_survives_its_block_nor_a_failure_in_the_body(model, batch, kind):
    with block(kind, model, batch, [0, 2]):
        assert hooks_left(model) > 0, "this test sees hooks"
        model(batch.tokens)
    assert hooks_left(model) == 0
    with pytest.raises(KeyError, match="a body"), block(kind, model, batch, [0, 2]):
        raise KeyError("a body that fails")
    assert hooks_left(model) == 0


def test_no_hook_survives_a_failing_edit_capture_or_consumer(model, batch):
    def fail(*_: object) -> None:
        raise KeyError("a consumer that fails")

    with pytest.raises(ValueError, match="Inject holds 99"), editing(model, Inject(torch.ones(3, 99, 16)), [1]):
        model(batch.tokens)
    assert hooks_left(model) == 0
    watched = capturing(model, Site.PATTERN, [1], grad=True)
    with pytest.raises(RuntimeError, match="switched off"), watched, torch.no_grad():
        model(batch.tokens)
    assert hooks_left(model) == 0
    with pytest.raises(KeyError, match="a consumer"), differentiating(model, Site.PATTERN, [1], fail):
        loss(model, batch).backward()
    assert hooks_left(model) == 0


def test_hooks_that_somebody_else_set_are_left_in_place(model, batch):
    calls = []
    model.model.add_hook(Site.PATTERN.at(0), lambda act, hook: calls.append(hook.name))
    try:
        with editing(model, Isolate(batch.anchors), [0]):
            model(batch.tokens)
        model(batch.tokens)
        assert calls == [Site.PATTERN.at(0)] * 2
    finally:
        model.model.reset_hooks()


def test_what_a_consumer_returns_does_not_become_the_gradient(model, batch):
    def gradients(answered: bool) -> dict[int, torch.Tensor]:
        seen: dict[int, torch.Tensor] = {}

        def consume(layer: int, act: torch.Tensor, gradient: torch.Tensor):
            seen[layer] = gradient.clone()
            return 2 * gradient if answered else None

        with differentiating(model, Site.PATTERN, LAYERS, consume):
            loss(model, batch).backward()
        return seen

    for layer, gradient in gradients(answered=False).items():
        assert_same(gradients(answered=True)[layer], gradient)
