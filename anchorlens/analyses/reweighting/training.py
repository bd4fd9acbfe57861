"""Train the factors of the target's attention to label words, one token a step (section 3.1)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anchorlens import passes
from anchorlens.batching import Group
from anchorlens.hooks import Scale, SettingError, editing
from anchorlens.models import Lens, device_of
from anchorlens.passes import NotFiniteError, Prepared
from anchorlens.prompts import PromptError

STEPS = {"epoch": "int64", "step": "int64", "loss": "float64"}


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gave.

    Attributes:
        beta: log-factors of A_l(q, p_i) [layer head demo]; one head where heads share them.
        by_epoch: the same after each whole epoch [epoch layer head demo].
        losses: one row per step: epoch, step (both from 0), loss (in nats, before the step).
    """

    beta: Float[Tensor, "layer head demo"]
    by_epoch: Float[Tensor, "epoch layer head demo"]
    losses: pd.DataFrame


class DivergedError(NotFiniteError):
    """Training that left the numbers; ``trained`` is what it had come to before."""

    def __init__(self, message: str, examples: Iterable[int], trained: Trained) -> None:
        super().__init__(message, examples)
        self.trained = trained


@torch.no_grad()
def prepared(model: Lens, training: Group, *, batch_tokens: int = 0, full_batch: bool = False) -> list[Prepared]:
    """Training prompts run up to their last token, as ``train`` takes them: one by one, in the group's order.

    With ``full_batch``, in padded batches.
    """
    memory = passes.demonstrate(model, training).memory
    planned = passes.queries(model, training, batch_tokens, remembered=True)
    parts = list(passes.halving(lambda asked: passes.prepare(model, training, memory, asked), planned))
    if full_batch:
        return parts
    single = {example: part.row(n) for part in parts for n, example in enumerate(part.example.tolist())}
    return [single[prompt.example] for prompt in training.prompts]


def train(
    model: Lens,
    prompts: Sequence[Prepared],
    *,
    order: Sequence[Sequence[int]] | torch.Generator | None = None,
    learning_rate: float = 0.01,
    epochs: int = 10,
    full_batch: bool = False,
    heads: Literal["all", "shared"] = "all",
    progress: Callable[[Sequence], Iterable] = iter,
) -> Trained:
    """Learn beta, by which the target's attention to each label word is multiplied, A_l(q, p_i) * exp(beta).

    beta begins at 0 and touches the target's row alone, so that everything before the target is run once, in
    ``prepared``, and a step runs one token of each prompt. The loss is the cross-entropy of the gold class over the
    label words' logits; Adam (0.9, 0.999, 1e-8) follows it. All tokens of a label word share its beta; where words have
    several, a step also runs what must follow the target for their log-probabilities.

    Args:
        model: weights frozen; left as it was.
        prompts: from ``prepared``, each with its gold class.
        order: in which prompts are trained on, for each epoch, or the generator to draw it by; every prompt once an
            epoch. Of no account with ``full_batch``.
        learning_rate: of Adam.
        epochs: how often every prompt is trained on.
        full_batch: one step an epoch, on the mean loss over all prompts, instead of one step a prompt.
        heads: "all": a beta for each layer, head and label word; "shared": one for each layer and label word.
        progress: what to pass the epochs through, such as tqdm.

    Returns:
        beta, the same by epoch, and the loss of every step; beta at least in float32.

    Raises:
        ValueError: for numbers, an order or prompts that cannot be trained with, or label words that coincide.
        DivergedError: if a loss or gradient is not finite; names epoch, step and prompts, and keeps what was trained.

    Source:
        Section 3.1, appendices G and H. The released code leaves the model's weights unfrozen without ever changing
        them, which gives the same. Its default learning rate is 0.1; its launch script and the paper take 0.01. Its
        order comes from numpy's state and cannot be drawn again: give ``order`` to repeat a run of it.
    """
    _check(prompts, full_batch)
    if epochs < 1:
        raise SettingError(f"epochs={epochs}: training needs at least 1.")
    if not 0 < learning_rate < float("inf"):
        raise SettingError(f"learning_rate={learning_rate}: Adam needs a finite number above 0.")
    if heads not in ("all", "shared"):
        raise SettingError(f"heads={heads!r}: beta is learned for 'all' heads apart, or 'shared' by them.")
    if not full_batch:
        _check_order(order, len(prompts), epochs)
    n_heads = model.cfg.n_heads if heads == "all" else 1
    shape = (model.cfg.n_layers, n_heads, len(prompts[0].group.anchors))
    dtype = torch.promote_types(model.cfg.dtype, torch.float32)  # steps of 0.01 would be lost in half precision
    beta = torch.zeros(shape, dtype=dtype, device=device_of(model), requires_grad=True)
    adam = torch.optim.Adam([beta], lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)
    losses: list[tuple[int, int, float]] = []
    by_epoch: list[Tensor] = []
    for epoch, steps in enumerate(progress(list(_steps(len(prompts), epochs, full_batch, order)))):
        for step, chosen in enumerate(steps):
            parts = [prompts[i] for i in chosen]
            adam.zero_grad()
            try:
                loss = _backward(model, parts, beta)
            except NotFiniteError as error:
                losses.append((epoch, step, float("nan")))
                raise DivergedError(
                    f"training example {error.examples}, epoch {epoch}, step {step} (from 0), learning_rate="
                    f"{learning_rate}: {error} What was trained before is kept; a lower learning_rate may help.",
                    error.examples,
                    _trained(beta, by_epoch, losses),
                ) from error
            losses.append((epoch, step, loss))
            before = beta.detach().clone()
            adam.step()
            if not beta.detach().exp().to(model.cfg.dtype).isfinite().all():
                raise DivergedError(
                    f"epoch {epoch}, step {step} (from 0), learning_rate={learning_rate}: after it, exp(beta) is more "
                    f"than {model.cfg.dtype} holds. What was trained before is kept; lower learning_rate.",
                    [],
                    _trained(before, by_epoch, losses),
                )
        by_epoch.append(beta.detach().clone())
    return _trained(beta, by_epoch, losses)


def scaled(model: Lens, prompts: Prepared, beta: Float[Tensor, "layer head demo"]) -> Float[Tensor, "batch label"]:
    """Label logits from the last token alone, its attention to label words multiplied by exp(beta); differentiable.

    Raises:
        NotFiniteError: if one is not finite; names the prompts.
    """
    group, targets = prompts.group, prompts.targets
    tokens = group.rows.to(targets.device).expand(len(targets), -1)
    spread = beta if len(group.rows) == len(group.anchors) else beta[..., group.row_demos.to(beta.device)]
    with editing(model, Scale(targets, tokens, spread), range(model.cfg.n_layers)):
        return passes.step(model, prompts)


def _backward(model: Lens, parts: Sequence[Prepared], beta: Tensor) -> float:
    """The mean loss over the prompts of all parts, its gradient left in ``beta``."""
    total, loss = sum(len(part.gold) for part in parts), 0.0
    with torch.enable_grad():
        for part in parts:
            logits = scaled(model, part, beta).to(beta.dtype)
            share = F.cross_entropy(logits, part.gold, reduction="sum") / total
            share.backward()
            loss += share.item()
    assert beta.grad is not None
    if not beta.grad.isfinite().all():
        examples = [example for part in parts for example in part.example.tolist()]
        raise NotFiniteError("the gradient of its loss is not finite.", examples)
    return loss


def _steps(
    n: int, epochs: int, full_batch: bool, order: Sequence[Sequence[int]] | torch.Generator | None
) -> Iterator[list[list[int]]]:
    """For each epoch, which prompts each of its steps takes."""
    if full_batch:
        for _ in range(epochs):
            yield [list(range(n))]
    elif isinstance(order, torch.Generator):
        for _ in range(epochs):
            yield [[i] for i in torch.randperm(n, generator=order).tolist()]
    else:
        for each in order or ():
            yield [[i] for i in each]


def _check(prompts: Sequence[Prepared], full_batch: bool) -> None:
    """Refuse prompts that nothing can be learned from."""
    if not prompts:
        raise ValueError("there are no training prompts: give at least one of each class.")
    if not full_batch and (wrong := [part.example.tolist() for part in prompts if len(part.gold) != 1]):
        raise ValueError(
            f"training prompts {wrong[0]} came in one batch, and a step takes one prompt: prepare them one by one, or "
            "set full_batch=True."
        )
    if unknown := [i for part in prompts for i in part.example[part.gold < 0].tolist()]:
        raise PromptError(
            f"training examples {sorted(unknown)} have no gold class, and the loss is taken against it. Give every "
            "training query a label."
        )


def _check_order(order: Sequence[Sequence[int]] | torch.Generator | None, n: int, epochs: int) -> None:
    """Refuse an order that leaves a prompt out."""
    if isinstance(order, torch.Generator):
        return
    if order is None:
        raise ValueError("order=None: say in which order to train, by epoch, or give a torch.Generator to draw it by.")
    if len(order) != epochs:
        raise ValueError(f"order has {len(order)} epochs where epochs={epochs}: list each one's order.")
    for epoch, each in enumerate(order):
        if sorted(each) != list(range(n)):
            raise ValueError(f"order of epoch {epoch} is {list(each)}: it must name each of 0 to {n - 1} once.")


def _trained(
    beta: Float[Tensor, "layer head demo"], by_epoch: Sequence[Tensor], losses: Sequence[tuple[int, int, float]]
) -> Trained:
    now = beta.detach().clone()
    epochs = torch.stack(list(by_epoch)) if by_epoch else now.new_zeros(0, *now.shape)
    return Trained(now, epochs, pd.DataFrame(losses, columns=list(STEPS)).astype(STEPS))
