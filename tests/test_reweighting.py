"""Section 3.1: training by one-token steps against whole prompts, and what it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, some_beta

from anchorlens import passes
from anchorlens.analyses import reweighting
from anchorlens.analyses.reweighting.training import DivergedError, prepared, scaled, train
from anchorlens.batching import Group, collate, groups
from anchorlens.hooks import Scale, Site, editing, watching
from anchorlens.prompts import PromptError

EXACT = 1e-10  # float64 through three layers: sums in another order
KINDS = {"learned": {}, "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4}}


@pytest.fixture(scope="module", params=KINDS)
def lens(request):
    return random_model(**KINDS[request.param])


@pytest.fixture(scope="module")
def group(prompts) -> Group:
    (found,) = groups(prompts)
    return found


def whole_gradient(model, prompts, beta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and its gradient from whole prompts, nothing reused."""
    beta, batch = beta.clone().requires_grad_(), collate(prompts)
    with editing(model, Scale(batch.target, batch.anchors, beta), range(3)):
        loss = F.cross_entropy(passes.answer(model, batch), batch.gold)
    loss.backward()
    return loss.detach(), beta.grad


def one_step(model, group, **how) -> torch.Tensor:
    """The direction of Adam's first step, which goes against the sign of the gradient by the learning rate."""
    full = how.get("full_batch", False)
    ready = prepared(model, group, full_batch=full)
    return train(model, ready, order=[list(range(len(ready)))], epochs=1, learning_rate=0.5, **how).beta


def test_factors_of_zero_change_no_bit(lens, group):
    plain, changed = reweighting.compare(lens, group, torch.zeros(3, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(changed, plain, rtol=0, atol=0)


def test_reweighted_answers_are_those_of_whole_prompts(lens, prompts, group):
    batch = collate(prompts)
    plain, changed = reweighting.compare(lens, group, some_beta())
    torch.testing.assert_close(plain, passes.answer(lens, batch), rtol=0, atol=EXACT)
    with editing(lens, Scale(batch.target, batch.anchors, some_beta()), range(3)):
        want = passes.answer(lens, batch)
    torch.testing.assert_close(changed, want, rtol=0, atol=EXACT)
    assert (plain - changed).abs().max() > 1e-3, "factors that change nothing test nothing"


@pytest.mark.parametrize("n", [0, 1])
def test_the_gradient_of_a_step_is_that_of_the_whole_prompt(lens, prompts, group, n):
    beta = some_beta().requires_grad_()
    part = prepared(lens, group)[n]
    F.cross_entropy(scaled(lens, part, beta), part.gold).backward()
    _, want = whole_gradient(lens, [prompts[n]], some_beta())
    assert want.abs().max() > 1e-3, "a flat loss tests nothing"
    torch.testing.assert_close(beta.grad, want, rtol=0, atol=EXACT)


def test_the_gradient_is_the_slope_of_the_loss(lens, prompts, group):
    part, width = prepared(lens, group)[0], 1e-5
    _, gradient = whole_gradient(lens, [prompts[0]], some_beta())
    for cell in ((0, 0, 0), (1, 1, 0), (2, 0, 1)):
        nudge = torch.zeros(3, 2, 2, dtype=torch.float64)
        nudge[cell] = width
        up, down = (F.cross_entropy(scaled(lens, part, some_beta() + way), part.gold) for way in (nudge, -nudge))
        # central differences in float64: error of order width^2 and 1e-16 / width
        torch.testing.assert_close((up - down) / (2 * width), gradient[cell], rtol=1e-6, atol=1e-9)


def test_the_first_step_goes_against_the_gradient_by_the_learning_rate(lens, prompts, group):
    _, gradient = whole_gradient(lens, prompts, torch.zeros(3, 2, 2, dtype=torch.float64))
    moved = one_step(lens, group, full_batch=True)
    # Adam's first step is lr * g / (|g| + 1e-8)
    torch.testing.assert_close(moved, -0.5 * gradient / (gradient.abs() + 1e-8), rtol=0, atol=1e-7)


def test_every_step_follows_adam_on_whole_prompts(lens, prompts, group):
    beta = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True)
    adam, order = torch.optim.Adam([beta], lr=0.1), [[1, 0], [0, 1]]
    losses = []
    for n in [1, 0, 0, 1]:
        loss, beta.grad = whole_gradient(lens, [prompts[n]], beta.detach())
        losses.append(loss.item())
        adam.step()
    trained = train(lens, prepared(lens, group), order=order, epochs=2, learning_rate=0.1)
    torch.testing.assert_close(trained.beta, beta.detach(), rtol=0, atol=1e-8)  # Adam's eps magnifies rounding
    assert trained.losses["loss"].tolist() == pytest.approx(losses, rel=0, abs=1e-8)
    assert trained.losses[["epoch", "step"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    first = train(lens, prepared(lens, group), order=order[:1], epochs=1, learning_rate=0.1)
    torch.testing.assert_close(trained.by_epoch, torch.stack([first.beta, trained.beta]), rtol=0, atol=0)


def test_a_full_batch_is_the_mean_over_its_prompts_however_it_is_cut(lens, prompts, group):
    how = {"full_batch": True, "epochs": 3, "learning_rate": 0.1}
    together = train(lens, prepared(lens, group, full_batch=True), **how)
    parts = prepared(lens, group, full_batch=True, batch_tokens=1)
    assert [len(part.gold) for part in parts] == [1, 1]
    cut = train(lens, parts, **how)
    torch.testing.assert_close(together.beta, cut.beta, rtol=0, atol=1e-8)  # Adam's eps magnifies rounding
    loss, _ = whole_gradient(lens, prompts, torch.zeros(3, 2, 2, dtype=torch.float64))
    assert together.losses["loss"][0] == pytest.approx(loss.item(), rel=0, abs=EXACT)
    assert len(together.losses) == 3, "one step an epoch"
    assert together.losses["loss"].is_monotonic_decreasing


def test_a_padded_batch_answers_as_each_prompt_alone(lens, group):
    (padded,) = prepared(lens, group, full_batch=True)
    alone = torch.cat([scaled(lens, part, some_beta()) for part in prepared(lens, group)])
    order = [[prompt.example for prompt in group.prompts].index(i) for i in padded.example.tolist()]
    torch.testing.assert_close(scaled(lens, padded, some_beta()), alone[order], rtol=0, atol=EXACT)


def test_shared_heads_sum_the_gradients_of_all(model, prompts, group):
    _, gradient = whole_gradient(model, prompts, torch.zeros(3, 2, 2, dtype=torch.float64))
    summed = gradient.sum(1, keepdim=True)
    moved = one_step(model, group, heads="shared", full_batch=True)
    assert moved.shape == (3, 1, 2)
    torch.testing.assert_close(moved, -0.5 * summed / (summed.abs() + 1e-8), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("full_batch", "steps", "each"), [(False, 2, 1), (True, 1, 2)])
def test_a_step_runs_one_token_of_each_prompt(model, group, full_batch, steps, each):
    ready, tokens = prepared(model, group, full_batch=full_batch), []
    with watching(model, Site.RESID_PRE, range(3), lambda layer, act: tokens.append(act.shape[0] * act.shape[1])):
        train(model, ready, order=torch.Generator().manual_seed(0), epochs=2, full_batch=full_batch)
    assert tokens == [each] * (3 * 2 * steps)


def test_demonstrations_are_run_once_and_queries_up_to_their_last_token(model, group):
    tokens = []
    with watching(model, Site.RESID_PRE, [0], lambda layer, act: tokens.append(act.shape[0] * act.shape[1])):
        prepared(model, group, batch_tokens=1)
    lengths = sorted((len(prompt.ids) - group.length for prompt in group.prompts), reverse=True)
    assert tokens == [group.length, *[length - 1 for length in lengths]]


def test_the_order_is_the_generators(model, group):
    ready = prepared(model, group)
    drawn = [train(model, ready, order=torch.Generator().manual_seed(seed), epochs=4) for seed in (1, 1, 2)]
    chance = torch.Generator().manual_seed(1)
    given = [torch.randperm(2, generator=chance).tolist() for _ in range(4)]
    told = train(model, ready, order=given, epochs=4)
    for same in (drawn[1], told):
        torch.testing.assert_close(same.beta, drawn[0].beta, rtol=0, atol=0)
    assert not torch.equal(drawn[2].beta, drawn[0].beta)


def test_training_leaves_the_model_as_it_was_even_where_gradients_are_off(model, group):
    with torch.no_grad():
        trained = train(model, prepared(model, group), order=[[0, 1]] * 3, epochs=3)
    assert not trained.beta.requires_grad
    torch.testing.assert_close(trained.by_epoch[-1], trained.beta, rtol=0, atol=0)
    assert trained.by_epoch.shape == (3, 3, 2, 2)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.model.hook_dict.values())
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_half_precision_trains_in_float32(group):
    half = random_model(torch.bfloat16)
    trained = train(half, prepared(half, group), order=[[0, 1]], epochs=1)
    assert trained.beta.dtype == torch.float32
    assert trained.beta.abs().max() > 0.005


# --- what is refused ---


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"epochs": 0}, "epochs=0: training needs at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: Adam needs a finite number above 0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1: Adam needs"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: Adam needs"),
        ({"order": None}, "order=None: say in which order to train"),
        ({"order": [[0, 1]] * 9}, "order has 9 epochs where epochs=10"),
        ({"order": [[0, 0]] * 10}, r"order of epoch 0 is \[0, 0\]: it must name each of 0 to 1 once"),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(model, group, how, message):
    with pytest.raises(ValueError, match=message):
        train(model, prepared(model, group), **{"order": [[0, 1]] * 10, **how})


def test_prompts_that_cannot_be_trained_with_are_refused(model, group):
    (batch,) = prepared(model, group, full_batch=True)
    with pytest.raises(ValueError, match="came in one batch, and a step takes one prompt"):
        train(model, [batch], order=[[0]] * 10)
    with pytest.raises(ValueError, match="there are no training prompts"):
        train(model, [], order=[[]] * 10)
    with pytest.raises(PromptError, match=r"training examples \[0, 1\] have no gold class"):
        train(model, [replace(batch, gold=batch.gold * 0 - 1)], full_batch=True)


def test_anchors_that_coincide_are_refused(model, prompts):
    twice = Group(tuple(replace(prompt, anchors=(prompt.anchors[0],) * 2) for prompt in prompts))
    with pytest.raises(ValueError, match="anchors that coincide have one factor"):
        train(model, prepared(model, twice), order=[[0, 1]] * 10)


def spoilt(part: passes.Prepared, example: int) -> passes.Prepared:
    """The same with values of one prompt that are no numbers."""
    wrong = (part.example == example)[:, None, None, None]
    return replace(
        part, memory=replace(part.memory, values=tuple(each.where(~wrong, torch.nan) for each in part.memory.values))
    )


def test_training_that_diverges_names_epoch_step_and_prompt_and_keeps_what_it_had(model, group):
    good, bad = (spoilt(part, 1) for part in prepared(model, group))
    message = (
        r"training example \[1\], epoch 0, step 1 \(from 0\), learning_rate=0.01: label logits of examples \[1\] are"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        train(model, [good, bad], order=[[0, 1]] * 3, epochs=3)
    trained = caught.value.trained
    assert trained.losses["loss"].notna().tolist() == [True, False]
    assert trained.by_epoch.shape == (0, 3, 2, 2)
    torch.testing.assert_close(trained.beta.abs().max().item(), 0.01, rtol=0, atol=1e-6)  # one step of Adam


def test_a_learning_rate_that_overflows_is_told(model, group):
    message = (
        r"epoch 0, step 0 \(from 0\), learning_rate=1000\.0: after it, exp\(beta\) is more than torch.float64 holds"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        train(model, prepared(model, group), order=[[0, 1]] * 3, epochs=3, learning_rate=1000.0)
    assert (caught.value.trained.beta == 0).all()
    assert len(caught.value.trained.losses) == 1


def test_a_gradient_that_is_not_finite_is_not_followed(group):
    broken = random_model()

    def spoil(act: torch.Tensor, hook: object) -> None:
        if act.requires_grad:
            act.register_hook(lambda grad: grad * torch.nan)

    ready = prepared(broken, group)
    with (
        broken.hooks(fwd_hooks=[("blocks.2.hook_resid_post", spoil)]),
        pytest.raises(DivergedError, match=r"epoch 0, step 0 .* the gradient of its loss is not finite") as caught,
    ):
        train(broken, ready, order=[[0, 1]], epochs=1)
    assert (caught.value.trained.beta == 0).all()


def test_a_full_batch_with_a_bad_prompt_names_it(model, group):
    (ready,) = prepared(model, group, full_batch=True)
    with pytest.raises(DivergedError, match=r"training example \[1\], epoch 0, step 0 .* made for several prompts"):
        train(model, [spoilt(ready, 1)], full_batch=True)
