"""What the tests of hooks share: a simple edit, a loss, and counting what is left behind."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from anchorlens.batching import Batch
from anchorlens.hooks import Isolate, Site, capturing, differentiating, editing

assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)  # bit for bit
assert_near = partial(torch.testing.assert_close, rtol=0, atol=1e-10)  # float64, values up to 5: rounding below 1e-12
LAYERS = range(3)
every_edit = pytest.mark.parametrize("each_edit", ["isolate", "scale", "inject"], indirect=True)


@dataclass(frozen=True, eq=False)
class Times:
    """Multiply a pattern by a number: the simplest edit."""

    site: ClassVar[Site] = Site.PATTERN
    factor: float

    def __call__(self, act: Tensor, layer: int) -> Tensor:
        return act * self.factor


def answer(model, batch: Batch) -> Tensor:
    """Logits at each prompt's target [batch vocabulary]."""
    return model(batch.tokens)[torch.arange(len(batch.target)), batch.target]


def loss(model, batch: Batch) -> Tensor:
    return -answer(model, batch).log_softmax(-1)[:, 10].sum()


def captured(model, tokens: Tensor, site: Site) -> dict[int, Tensor]:
    """Clean activations, copied."""
    with capturing(model, site, LAYERS) as kept:
        model(tokens)
    return {layer: act.clone() for layer, act in kept.items()}


def hooks_left(model) -> int:
    points = model.model.hook_dict.values()
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) + len(p._forward_hooks) + len(p._backward_hooks) for p in points)


def block(kind: str, model, batch: Batch, layers: list[int]) -> AbstractContextManager:
    return {
        "editing": lambda: editing(model, Isolate(batch.anchors), layers),
        "capturing": lambda: capturing(model, Site.PATTERN, layers),
        "differentiating": lambda: differentiating(model, Site.PATTERN, layers, lambda *_: None),
    }[kind]()
