"""Our way: the public functions, with results as the oracle gives them; and what it pushes through the blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlens import passes, readings
from anchorlens.analyses import extraction, isolation
from anchorlens.analyses.compression import kept
from anchorlens.analyses.information_flow import FLOWS, information_flow
from anchorlens.analyses.isolation.sweeps import Setting, sweep
from anchorlens.analyses.reweighting import prepared, train
from anchorlens.batching import Batch, Group, Queries
from anchorlens.hooks import Site, watching
from anchorlens.models import Lens, Memory


@dataclass
class Counted:
    """Tokens, padding included, times layers that they went through: of demonstrations, and of all that follows."""

    demonstrations: int = 0
    others: int = 0


@contextmanager
def counting(model: Lens, group: Group) -> Iterator[Counted]:
    """Count what goes through the blocks within the block."""
    counted = Counted()

    def count(layer: int, resid: Tensor) -> None:
        rows, tokens = resid.shape[:2]
        if tokens == group.length:
            counted.demonstrations += rows * tokens
        else:
            counted.others += rows * tokens

    with watching(model, Site.RESID_PRE, range(model.cfg.n_layers), count):
        yield counted


def extract(model: Lens, group: Group) -> tuple[Tensor, Tensor]:
    """Label logits [query label], and attention to the label words of each class [query layer label]."""
    reading = readings.read(model, group)
    frame = extraction.extraction(reading)
    shape = (len(group.prompts), model.cfg.n_layers, len(group.labels))
    return reading.answers.label_logits, torch.tensor(frame["attention"].to_numpy()).reshape(shape)


def settings(model: Lens) -> list[Setting]:
    """The first and the last 1, 3, 5, 7 layers."""
    return isolation.settings(model.cfg.n_layers)


def isolate(model: Lens, group: Group) -> Tensor:
    """Label logits without edit, and with label words isolated in each setting [query run label]."""
    clean, edited = sweep(model, group, settings(model), {"label": group.anchors})
    return torch.stack([clean.label_logits, *(each.label_logits for each in edited.values())], dim=1)


def flows(model: Lens, batches: Sequence[Batch]) -> Tensor:
    """S_wp, S_pq and S_ww of every layer [query layer flow], by example."""
    found = {}
    for batch in batches:
        frame = information_flow(model, batch)
        values = torch.tensor(frame["value"].to_numpy()).reshape(-1, model.cfg.n_layers, len(FLOWS))
        found |= dict(zip(frame["example"].unique().tolist(), values, strict=True))
    return torch.stack([found[example] for example in sorted(found)])


def learn(model: Lens, training: Group, *, epochs: int, full_batch: bool = False) -> tuple[Tensor, Tensor]:
    """Losses by step, and beta [layer head demo], preparation included; prompts in the group's order."""
    ready = prepared(model, training, full_batch=full_batch)
    order = None if full_batch else [range(len(ready))] * epochs
    trained = train(model, ready, order=order, epochs=epochs, full_batch=full_batch)
    return torch.tensor(trained.losses["loss"].to_numpy()), trained.beta


def anchored(model: Lens, group: Group, memory: Memory) -> Memory:
    """The memory of template and label words, the query's positions continued."""
    positions = kept.by_role(group, "hidden_anchor").to(memory.mask.device)
    return model.keep(memory, positions, group.length, longest=group.longest)


@torch.no_grad()
def respond(model: Lens, group: Group, memory: Memory, asked: Sequence[Queries]) -> Tensor:
    """Label logits after ``memory`` [query label], by example."""
    said = [passes.respond(model, group, memory, each) for each in asked]
    order = torch.cat([each.example for each in said]).argsort()
    return torch.cat([each.label_logits for each in said])[order]
