"""Prompts of similar length as padded tensors."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded prompts with equally many demonstrations and classes.

    Right padding needs no attention mask: under causal attention a later pad cannot reach an earlier position, and
    answers are read at ``target``. ``gold`` is -1 where it is not known.
    """

    tokens: Int[Tensor, "batch pos"]
    anchors: Int[Tensor, "batch demo"]
    anchor_classes: Int[Tensor, "batch demo"]
    target: Int[Tensor, " batch"]
    labels: Int[Tensor, "batch label"]
    gold: Int[Tensor, " batch"]
    example: Int[Tensor, " batch"]
    seed: Int[Tensor, " batch"]

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def collate(prompts: Sequence[Prompt], pad: int = 0) -> Batch:
    """Pad prompts with token ``pad`` (any will do) into one batch."""
    width = max(len(prompt.ids) for prompt in prompts)
    return Batch(
        tokens=torch.tensor([[*prompt.ids, *[pad] * (width - len(prompt.ids))] for prompt in prompts]),
        anchors=torch.tensor([prompt.anchors for prompt in prompts], dtype=torch.int64),
        anchor_classes=torch.tensor([prompt.anchor_classes for prompt in prompts], dtype=torch.int64),
        target=torch.tensor([prompt.target for prompt in prompts]),
        labels=torch.tensor([prompt.labels for prompt in prompts]),
        gold=torch.tensor([-1 if prompt.gold is None else prompt.gold for prompt in prompts]),
        example=torch.tensor([prompt.example for prompt in prompts]),
        seed=torch.tensor([prompt.seed for prompt in prompts]),
    )


def batches(prompts: Iterable[Prompt], size: Callable[[int], int]) -> list[Batch]:
    """Batches of prompts of similar length, longest first; ``size`` tells how many prompts of a length fit.

    Prompts with other numbers of demonstrations or classes never share a batch.
    """
    groups: dict[tuple[int, int], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[len(prompt.anchors), len(prompt.labels)].append(prompt)
    made = []
    for group in groups.values():
        group.sort(key=lambda prompt: -len(prompt.ids))  # the sort is stable: equal lengths keep their order
        while group:
            n = max(1, size(len(group[0].ids)))
            made.append(collate(group[:n]))
            del group[:n]
    return made
