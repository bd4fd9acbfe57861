"""The few ways a model is run: whole prompts; demonstrations once, then queries; one-token steps.

Every fast way gives what the plain whole-prompt run gives, up to rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorlens import fitting, planner
from anchorlens.batching import Batch, Group, Queries, batches
from anchorlens.finite import NotFiniteError as NotFiniteError  # what analyses raise, too
from anchorlens.finite import finite
from anchorlens.fitting import halving as halving  # what analyses run their batches with
from anchorlens.hooks import SettingError, Site, capturing
from anchorlens.models import Lens, Memory, device_of
from anchorlens.prompts import Prompt
from anchorlens.scoring import Scoring

Result = TypeVar("Result")
TOP = 5  # next tokens that word loyalty compares, as in the paper


@runtime_checkable
class Parted(Protocol):
    """What ``each`` runs an analysis on: a group, a batch, or what holds one of them."""

    def without(self, examples: Iterable[int], /) -> Any:
        """The same without some prompts; None if none is left."""


Part = TypeVar("Part", bound=Parted)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers to some queries.

    ``label_logits`` [batch label], log-probabilities where label words have several tokens; ``top`` [batch k], the
    ``k`` likeliest next tokens of the whole vocabulary, the likeliest first; ``gold`` is -1 where it is not known.
    """

    example: Int[Tensor, " batch"]
    gold: Int[Tensor, " batch"]
    label_logits: Float[Tensor, "batch label"]
    top: Int[Tensor, "batch k"]

    @property
    def predicted(self) -> Int[Tensor, " batch"]:
        """The class whose label word has the largest logit."""
        return self.label_logits.argmax(-1)


# --- whole prompts ---


def answer(model: Lens, batch: Batch, *, checkpoint: bool | None = False) -> Float[Tensor, "batch label"]:
    """Logits of the label words at each prompt's target; nothing else of the output matrix is computed.

    Label words of several tokens are scored by their log-probabilities, for which each prompt is run in several rows
    (``batch.scoring``), one after the other, in every activation that an edit or a hook meets.

    Args:
        checkpoint: as for ``Lens.at_target``; None: where memory would not do otherwise. Layers are then run anew in
            the backward pass, which belongs inside the blocks of all edits; ``capturing(grad=True)`` gets no gradient.

    Raises:
        NotFiniteError: if a logit is not finite; names the prompts, and the layer where it begins.
    """
    tokens, target = batch.scoring.whole(batch.tokens, batch.target)
    if checkpoint is None:
        checkpoint = torch.is_grad_enabled() and fitting.checkpointed(model, *tokens.shape)
    final = model.at_target(tokens, target, checkpoint=checkpoint)
    return finite(model, batch.scoring.scores(model, final, batch.labels), batch)


def answers(model: Lens, batch: Batch, top: int = TOP) -> Answers:
    """As ``answer``, with the likeliest next tokens; edits installed around it take effect.

    Raises:
        NotFiniteError: as ``answer``.
    """
    scoring = batch.scoring
    final = model.at_target(*scoring.whole(batch.tokens, batch.target))
    every = model.all_logits(final)
    logits = model.label_logits(final, batch.labels) if scoring.rows == 1 else scoring.summed(every)
    every = every[:: scoring.rows]
    return Answers(batch.example, batch.gold, finite(model, logits, batch, every=every), every.topk(top).indices)


def plan(model: Lens, prompts: Iterable[Prompt], batch_tokens: int = 0) -> list[Batch]:
    """Batches of whole prompts for a backward pass, on the model's device.

    Args:
        batch_tokens: tokens per batch, padding included; 0: from free memory, at most ``planner.ENOUGH``. A fixed
            number gives the same batches, and so the same bits, everywhere.
    """
    size, prompts = fitting.sizing(model, batch_tokens, planner.differentiating), list(prompts)
    widest = max((Scoring(words) for words in {prompt.words for prompt in prompts}), key=_row_count, default=None)
    return [batch.to(model.cfg.device) for batch in batches(prompts, _in_rows(size, widest))]


def _row_count(scoring: Scoring) -> int:
    return scoring.rows


def _in_rows(size: Callable[[int], int], scoring: Scoring | None) -> Callable[[int], int]:
    """How many prompts of a length make a batch, each of them run in several rows."""
    if scoring is None or scoring.rows == 1:
        return size
    return lambda length: size(length + scoring.more) // scoring.rows


# --- demonstrations once, then queries ---


@dataclass(frozen=True, eq=False)
class Demonstrated:
    """A group's demonstrations, run once: their memory, and the residual stream [1 pos d_model] before some layers."""

    group: Group
    memory: Memory
    resid: dict[int, Tensor]


@torch.no_grad()
def demonstrate(model: Lens, group: Group, resume: Iterable[int] = ()) -> Demonstrated:
    """Run the demonstrations of a group; ``resume`` are layers from which they will be run anew.

    Edits installed around it take effect. The memory can serve a later backward pass.
    """
    tokens = group.tokens.to(device_of(model))
    with capturing(model, Site.RESID_PRE, resume) as resid:
        memory = model.remember(tokens, torch.ones_like(tokens))
    return Demonstrated(group, memory, dict(resid))


@torch.no_grad()
def demonstrate_from(model: Lens, clean: Demonstrated, layer: int) -> Memory:
    """The memory when the layers from ``layer`` on are run anew, under the edits installed around it.

    An edit that touches no earlier layer leaves everything below ``layer`` as it was. ``clean`` must have been asked to
    ``resume`` there.
    """
    return model.remember_from(layer, clean.resid[layer], clean.memory)


def queries(model: Lens, group: Group, batch_tokens: int = 0, *, remembered: bool = False) -> list[Queries]:
    """Batches of a group's queries, on the model's device; ``batch_tokens`` as in ``plan`` (demonstrations apart).

    ``remembered``: the queries will be remembered too (``prepare``), which takes far more memory.
    """
    peak = planner.remembering if remembered else planner.reading
    size = fitting.sizing(model, batch_tokens, lambda shape, rows, length, _: peak(shape, rows, length, group.length))
    padding = model.pads_exactly(group.longest)
    if group.scoring.rows > 1 and not padding:
        raise SettingError(
            f"label_token=all with label words of several tokens: the positions of {model.kind.name} count the padding "
            "that beginnings of label words are brought to one length with. Set label_token=first, or choose label "
            "words of one token (label_words=...)."
        )
    made = group.queries(_in_rows(size, group.scoring), padding=padding)
    return [each.to(device_of(model)) for each in made]


def respond(
    model: Lens,
    group: Group,
    memory: Memory,
    asked: Queries,
    *,
    top: int = TOP,
    start: int = 0,
    resid: Float[Tensor, "batch pos d_model"] | None = None,
) -> Answers:
    """Answers to queries after remembered demonstrations; with ``start`` from the residual stream before that layer.

    What edits and hooks meet, and ``resid``, has the rows of ``group.scoring``, one query after the other; the first of
    a query's rows ends in its target.

    Raises:
        NotFiniteError: if a label logit is not finite; names the prompts, and the layer where it begins.
    """
    scoring = group.scoring
    final = model.read(memory, *scoring.behind(asked.tokens, asked.mask), start=start, resid=resid)
    labels = group.labels.to(final.device).expand(len(asked.tokens), -1)
    every = model.all_logits(final)
    logits = model.label_logits(final, labels) if scoring.rows == 1 else scoring.summed(every)
    every = every[:: scoring.rows]
    return Answers(asked.example, asked.gold, finite(model, logits, asked, group, every), every.topk(top).indices)


# --- one-token steps ---


@dataclass(frozen=True, eq=False)
class Prepared:
    """Queries run up to their last token: what remains is one step of one token each.

    ``memory`` holds demonstrations and queries [batch pos] or, where queries are one token each, demonstrations alone
    [1 pos]; ``last`` [batch 1] is the last token of each. Where label words have several tokens, all have the rows of
    ``group.scoring``: ``last`` is followed by beginnings of words, padded on the left, with ``mask`` 0 there;
    ``targets`` are the columns of the targets.
    """

    group: Group
    memory: Memory
    last: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    gold: Int[Tensor, " batch"]
    example: Int[Tensor, " batch"]

    def row(self, index: int) -> "Prepared":
        """One prompt alone, without padding."""
        one, n = slice(index, index + 1), self.group.scoring.rows
        rows = slice(index * n, index * n + n)
        memory = self.memory.row(index * n if len(self.memory.mask) > 1 else 0)  # alike for all rows of a prompt
        return Prepared(self.group, memory, self.last[rows], self.mask[rows], self.gold[one], self.example[one])

    @property
    def targets(self) -> Int[Tensor, " row"]:
        """Which column of ``last`` is the target."""
        scoring = self.group.scoring
        return (scoring.more - scoring.lengths).repeat(len(self.gold)).to(self.last.device)


@torch.no_grad()
def prepare(model: Lens, group: Group, memory: Memory, asked: Queries) -> Prepared:
    """Run all but the last token of each query; what re-weighting changes lies in the last token's row alone."""
    if asked.tokens.shape[1] > 1:
        memory = model.remember(asked.tokens[:, :-1], asked.mask[:, :-1], after=memory)
    if memory.mask.shape[0] > 1:
        memory = memory.repeated(group.scoring.rows)
    last, mask = group.scoring.behind(asked.tokens[:, -1:], torch.ones_like(asked.tokens[:, -1:]))
    return Prepared(group, memory, last, mask, asked.gold, asked.example)


def step(model: Lens, prepared: Prepared) -> Float[Tensor, "batch label"]:
    """Label logits from the last token alone, under the edits installed around it; differentiable.

    In the patterns that an edit meets here, the target's row is ``prepared.targets`` (0, unless label words have
    several tokens) and the columns are those of the memory.
    """
    final = model.read(prepared.memory, prepared.last, prepared.mask)
    labels = prepared.group.labels.to(final.device).expand(len(prepared.gold), -1)
    return finite(model, prepared.group.scoring.scores(model, final, labels), prepared, prepared.group)


# --- many prompts ---


def each(analysis: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """``analysis`` of one part after the other; a batch that does not fit into memory is run in halves.

    Raises:
        NoRoomError: if a part does not fit that cannot be halved.
        NotFiniteError: after the result for all other prompts of the part where it happens, so that none is lost.
    """
    for results, first in halving(partial(_each, analysis), parts):
        yield from results
        if first:
            raise first


def _each(analysis: Callable[[Part], Result], part: Part) -> tuple[list[Result], NotFiniteError | None]:
    """Results of a part, prompts whose answers are not numbers left out, and the first error."""
    results, rest, first = [], part, None
    while rest is not None:
        try:
            results.append(analysis(rest))
            break
        except NotFiniteError as error:
            first = first or error
            if error.kept is not None:
                results.append(error.kept)
                break
            rest = rest.without(error.examples)
    return results, first


def alone(part: Part) -> tuple[Part]:
    """A part that is not split."""
    return (part,)


def over(
    analysis: Callable[[Any], Any], split: Callable[[Any], Iterable[Any]] = alone, *then: Callable[[Any], Any]
) -> Callable[[Any], Iterator[Any]]:
    """``analysis`` of a window of prompts: of ``each`` part that ``split`` makes of it, one after the other.

    Args:
        analysis: what runs the model on a part.
        split: batches (``plan``) or groups of a window; without it, the window is one part.
        then: further steps that each result goes through.
    """

    def of(window: Any) -> Iterator[Any]:
        found: Iterator[Any] = each(analysis, split(window))
        for step in then:
            found = map(step, found)
        return found

    return of


class Keeping(list):
    """A step of ``over`` that changes nothing and keeps what it has seen: for analyses that need all of it at once."""

    def __call__(self, one: Result) -> Result:
        self.append(one)
        return one
