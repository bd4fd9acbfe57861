"""Each analysis with its contestants, what must agree between them, and what a goal compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anchorlens import passes
from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, batches
from anchorlens.models import Lens
from anchorlens.prompts import Prompt

from . import ours
from .floor import Floor
from .plain import Plain
from .timing import Timed, Way

STEPS = 8  # that the plain way trains in a round
FEW_TOGETHER = 4  # prompts on which full-batch steps are compared


@dataclass(frozen=True)
class Tolerance:
    """The largest error that counts as agreement, and why it is no smaller."""

    value: float
    reason: str


# Each is about a hundred times what was seen on a model of GPT-2's size, and far below any effect that is reported.
LOGITS = Tolerance(1e-4, "of the largest logit; float32 sums in another order, 12 layers deep (seen: 1e-6)")
ATTENTION = Tolerance(1e-4, "of the largest sum over heads; float32 sums in another order (seen: 1e-6)")
SALIENCY = Tolerance(1e-4, "of the largest flow; float32 sums, forward and backward (seen: 1e-6)")
LOSS = Tolerance(2e-4, "of the largest loss; float32, after up to seven steps (seen: 2e-6)")
BETA = Tolerance(1e-3, "mean over cells, of mean |beta|; Adam magnifies noise of tiny gradients (seen: 1e-5)")


@dataclass(frozen=True)
class Agreement:
    """What two ways gave, compared."""

    what: str
    error: float
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """False also where the error is not a number."""
        return self.error <= self.tolerance.value


@dataclass(frozen=True)
class Case:
    """An analysis to be timed: its ways by name, and the check of what they gave."""

    name: str
    ways: Mapping[str, Way]
    agree: Callable[[Mapping[str, Timed]], list[Agreement]]


@dataclass(frozen=True)
class Bench:
    """The three contestants, the prompts, and how many of them the plain way does in all."""

    model: Lens
    plain: Plain
    floor: Floor
    prompts: Sequence[Prompt]
    training: Sequence[Prompt]
    slices: int  # rounds over which those of the plain way are spread
    subset: int
    epochs: int = 10

    def group(self, prompts: Sequence[Prompt] | None = None) -> Group:
        """Prompts as a group of their own."""
        return Group(tuple(self.prompts if prompts is None else prompts))

    def slice(self, number: int, size: int) -> Sequence[Prompt]:
        """The prompts that the plain way does in a round, out of the first ``size``."""
        return self.prompts[: min(self.subset, size)][number % self.slices :: self.slices]

    def plainly(self, run: Callable[[Sequence[Prompt]], Any], size: int) -> Way:
        """The plain way: a slice of the prompts a round, its time multiplied by the share of tokens left out."""
        tokens = sum(len(prompt.ids) for prompt in self.prompts[:size])
        return Way(
            lambda number: run(self.slice(number, size)),
            lambda number: tokens / sum(len(prompt.ids) for prompt in self.slice(number, size)),
        )

    def against_plain(self, timed: Mapping[str, Timed], way: str, size: int) -> list[tuple[Any, Any]]:
        """Pairs of results for each round: the plain way's, and all of ``way``'s at the plain way's prompts."""
        pairs = []
        for number, plain in enumerate(timed["plain"].results):
            at = torch.tensor([prompt.example for prompt in self.slice(number, size)])
            found = timed[way].results[number]
            pairs.append((plain, tuple(each[at] for each in found) if isinstance(found, tuple) else found[at]))
        return pairs


def extraction(bench: Bench) -> Case:
    """Section 2.3 over one group."""
    size, group = len(bench.prompts), bench.group()

    def agree(timed: Mapping[str, Timed]) -> list[Agreement]:
        mine, sdpa = bench.against_plain(timed, "ours", size), bench.against_plain(timed, "floor", size)
        return [
            worst("label logits, ours and plain", [(plain[0], own[0]) for plain, own in mine], LOGITS),
            worst("attention to label words, ours and plain", [(plain[1], own[1]) for plain, own in mine], ATTENTION),
            worst("label logits, floor and plain", [(plain[0], own) for plain, own in sdpa], LOGITS),
        ]

    def floor(_: int) -> Tensor:
        return bench.floor.answers(group, passes.queries(bench.model, group))

    ways = {
        "plain": bench.plainly(bench.plain.extraction, size),
        "floor": Way(floor),
        "ours": Way(lambda _: ours.extract(bench.model, group)),
    }
    return Case("extraction", ways, agree)


def isolation(bench: Bench) -> Case:
    """Section 2.2 over one group, label words alone."""
    size, group = len(bench.prompts), bench.group()
    layers = [setting.layers for setting in ours.settings(bench.model)]

    def agree(timed: Mapping[str, Timed]) -> list[Agreement]:
        return [worst("label logits of every run, ours and plain", bench.against_plain(timed, "ours", size), LOGITS)]

    ways = {
        "plain": bench.plainly(partial(bench.plain.isolation, settings=layers), size),
        "ours": Way(lambda _: ours.isolate(bench.model, group)),
    }
    return Case("isolation", ways, agree)


def saliency(bench: Bench) -> Case:
    """Section 2.1; no demonstrations are shared here, so that every way does the plain way's prompts alone."""
    size = min(bench.subset, len(bench.prompts))
    planned = passes.plan(bench.model, bench.prompts[:size])

    def agree(timed: Mapping[str, Timed]) -> list[Agreement]:
        pairs = bench.against_plain(timed, "ours", size)
        gold = torch.tensor([prompt.gold for prompt in bench.prompts[:size]])
        plain = F.cross_entropy(bench.plain.answers(bench.prompts[:size]).cpu().float(), gold, reduction="none")
        return [
            worst("S_wp, S_pq, S_ww by layer, ours and plain", pairs, SALIENCY),
            worst("losses, floor and plain", [(plain, timed["floor"].results[0])], LOSS),
        ]

    ways = {
        "plain": bench.plainly(bench.plain.saliency, size),
        "floor": Way(lambda _: bench.floor.differentiate(planned)),
        "ours": Way(lambda _: ours.flows(bench.model, planned)),
    }
    return Case("saliency", ways, agree)


def reweighting(bench: Bench) -> Case:
    """Section 3.1: preparation and all epochs; the plain way does ``STEPS`` steps, multiplied."""
    training = Group(tuple(bench.training))
    steps = bench.training[:STEPS]
    whole = bench.epochs * len(bench.training) / len(steps)

    def agree(timed: Mapping[str, Timed]) -> list[Agreement]:
        losses, beta = timed["plain"].results[0]
        # the same prompts in the same order: the first epoch begins with the plain way's steps
        begun, learned = ours.learn(bench.model, Group(tuple(steps)), epochs=1)
        few = steps[:FEW_TOGETHER]
        together, _ = bench.plain.training([few, few])
        full, _ = ours.learn(bench.model, Group(tuple(few)), epochs=2, full_batch=True)
        gap = (beta - learned).abs().mean().item() / beta.abs().mean().item()
        return [
            worst("losses of the first steps, ours and plain", [(losses, begun)], LOSS),
            worst("the same within all epochs", [(losses, timed["ours"].results[0][0][: len(losses)])], LOSS),
            Agreement("beta after them, ours and plain", gap, BETA),
            worst("losses of two full-batch steps on a few, ours and plain", [(together, full)], LOSS),
        ]

    ways = {
        "plain": Way(lambda _: bench.plain.training([[prompt] for prompt in steps]), lambda _: whole),
        "ours": Way(lambda _: ours.learn(bench.model, training, epochs=bench.epochs)),
        "ours, full batch": Way(lambda _: ours.learn(bench.model, training, epochs=bench.epochs, full_batch=True)),
    }
    return Case("re-weighting", ways, agree)


def compression(bench: Bench, size: int, batch: int) -> Case:
    """Section 3.2: answers to the first ``size`` queries in batches, with the demonstrations in memory where kept.

    ``plain``: whole prompts in equally large batches, by the fastest attention, so that only reuse tells them apart.
    ``floor`` has all of the demonstrations in memory, ``sdpa`` the kept tokens alone.
    """
    group = bench.group(bench.prompts[:size])
    device = bench.floor.device
    whole = [each.to(device) for each in batches(group.prompts, lambda _: batch)]
    asked = [each.to(device) for each in group.queries(lambda _: batch)]
    memory = ours.anchored(bench.model, group, passes.demonstrate(bench.model, group).memory)
    remembered, at_anchors = bench.floor.remember(group), kept.by_role(group, "hidden_anchor").to(device)
    fewer = [(key[..., at_anchors, :], value[..., at_anchors, :]) for key, value in remembered]

    def agree(timed: Mapping[str, Timed]) -> list[Agreement]:
        few = bench.slice(0, size)
        at = [prompt.example for prompt in few]
        oracle = bench.plain.compression(few, group.length, kept.by_role(group, "hidden_anchor").tolist())
        icl = timed["plain"].results[0]
        return [
            worst("label logits from kept tokens, ours and plain", [(oracle, timed["ours"].results[0][at])], LOGITS),
            worst("label logits of whole prompts, batched and plain", [(bench.plain.answers(few), icl[at])], LOGITS),
            worst("the same after cached demonstrations", [(icl, timed["floor"].results[0])], LOGITS),
            worst("label logits from kept tokens, sdpa and plain", [(oracle, timed["sdpa"].results[0][at])], LOGITS),
        ]

    ways = {
        "plain": Way(lambda _: bench.floor.whole(whole)),
        "floor": Way(lambda _: bench.floor.answers(group, asked, remembered)),
        "sdpa": Way(lambda _: bench.floor.answers(group, asked, fewer)),
        "ours": Way(lambda _: ours.respond(bench.model, group, memory, asked)),
    }
    return Case(f"compression, batch {batch}", ways, agree)


def worst(what: str, pairs: Sequence[tuple[Tensor, Tensor]], tolerance: Tolerance) -> Agreement:
    """The largest difference, as a share of the largest of the plain values; NaN is the largest of all."""
    assert all(plain.shape == own.shape for plain, own in pairs), "broadcasting would hide a mistake"
    errors = [
        ((own.cpu().double() - plain.cpu().double()).abs().max() / plain.abs().max().cpu().double())
        for plain, own in pairs
    ]
    return Agreement(what, torch.stack(errors).max().item(), tolerance)
