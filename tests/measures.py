"""What the shipped toy must show, measured with hooks alone: the acceptance list of its README."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from anchorlens import drafts, passes, tasks
from anchorlens.analyses.information_flow import information_flow
from anchorlens.batching import Batch, batches
from anchorlens.drafts import Draft
from anchorlens.hooks import Isolate, editing
from anchorlens.models import Lens
from anchorlens.prompts import Encoder, Role


@dataclass
class Posed:
    """A model with the 200 fixed prompts of a task (clean set, seed 42) and its clean answers."""

    model: Lens
    task: tasks.Task
    drafts: list[Draft]
    batches: list[Batch]
    roles: dict[int, tuple[Role, ...]]  # by example

    @property
    def chance(self) -> float:
        return 1 / len(self.task.label_words)

    @cached_property
    def clean(self) -> Tensor:
        """Predicted classes without any edit."""
        return predictions(self)

    @cached_property
    def flows(self) -> dict[str, list[float]]:
        """Mean saliency of each flow by layer."""
        frame = pd.concat(information_flow(self.model, each) for each in self.batches)
        mean = frame.groupby(["flow", "layer"])["value"].mean()
        return {flow: mean[flow].tolist() for flow in ("S_wp", "S_pq", "S_ww")}


def pose(model: Lens, name: str, label_words: str = "random") -> Posed:
    task = tasks.get(name)
    drawn = drafts.load(task, toy=True, label_words=label_words)
    prompts, _ = Encoder(model.tokenizer, model.cfg.n_ctx).all(drawn)
    return Posed(model, task, drawn, batches(prompts, lambda length: 50), {p.example: p.roles for p in prompts})


def predictions(posed: Posed, edit: Callable[[Batch], Isolate] | None = None, layers: Iterable[int] = ()) -> Tensor:
    """Predicted class of each prompt, in the order of the examples."""
    found = {}
    layers = list(layers)
    with torch.no_grad():
        for batch in posed.batches:
            if edit is None:
                logits = passes.answer(posed.model, batch)
            else:
                with editing(posed.model, edit(batch), layers):
                    logits = passes.answer(posed.model, batch)
            found |= dict(zip(batch.example.tolist(), logits.argmax(-1).tolist(), strict=True))
    return torch.tensor([found[example] for example in sorted(found)])


def gold(posed: Posed) -> Tensor:
    return torch.tensor([draft.query.label for draft in sorted(posed.drafts, key=lambda draft: draft.query.row)])


def accuracy(posed: Posed) -> float:
    return (posed.clean == gold(posed)).double().mean().item()


def zero_shot(posed: Posed) -> float:
    """Accuracy when the demonstrations are left out."""
    bare = [Draft(draft.task, (), draft.query, draft.seed) for draft in posed.drafts]
    prompts, _ = Encoder(posed.model.tokenizer, posed.model.cfg.n_ctx).all(bare)
    alone = Posed(posed.model, posed.task, bare, batches(prompts, lambda length: 200), {})
    return accuracy(alone)


def loyalty(posed: Posed, layers: Iterable[int], *, control: bool = False) -> float:
    """Share of predictions that stay when label words (or as many other demonstration tokens) are isolated."""
    chance = torch.Generator().manual_seed(5)

    def other_rows(batch: Batch) -> Isolate:
        rows = []
        for example, anchors in zip(batch.example.tolist(), batch.anchors, strict=True):
            end = int(anchors.max())
            free = [p for p, role in enumerate(posed.roles[example][:end]) if p > 0 and role is not Role.ANCHOR]
            rows.append(torch.tensor(free)[torch.randperm(len(free), generator=chance)[: len(anchors)]])
        return Isolate(torch.stack(rows))

    edited = predictions(posed, other_rows if control else lambda batch: Isolate(batch.anchors), layers)
    return (edited == posed.clean).double().mean().item()


def depth(values: Sequence[float]) -> float:
    """Mean layer, weighted by ``values``."""
    return sum(layer * value for layer, value in enumerate(values)) / sum(values)
