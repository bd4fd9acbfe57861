"""Prompts as padded tensors: whole, or grouped by the demonstrations that they share."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens.prompts import Prompt, PromptError, Role
from anchorlens.scoring import Scoring


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded prompts with equally many demonstrations and classes.

    Right padding needs no attention mask: under causal attention a later pad cannot reach an earlier position, and
    answers are read at ``target``. ``gold`` is -1 where it is not known; ``start`` counts start tokens, in front;
    ``demo`` tells which demonstration's label word a token stands for (-1: none); ``words`` are all tokens that stand
    for each class's label word, filled up with -1.
    """

    tokens: Int[Tensor, "batch pos"]
    start: Int[Tensor, " batch"]
    anchors: Int[Tensor, "batch demo"]
    anchor_classes: Int[Tensor, "batch demo"]
    target: Int[Tensor, " batch"]
    labels: Int[Tensor, "batch label"]
    gold: Int[Tensor, " batch"]
    example: Int[Tensor, " batch"]
    seed: Int[Tensor, " batch"]
    demo: Int[Tensor, "batch pos"]
    words: Int[Tensor, "batch label token"]

    @cached_property
    def scoring(self) -> Scoring:
        """How label words are scored; those of several tokens are the same for all prompts."""
        return Scoring.of(self.words[0])

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on ``device``."""
        return Batch(**{name: value.to(device) for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def without(self, examples: Iterable[int]) -> "Batch | None":
        """The batch without some prompts; None if none is left."""
        left_out = set(examples)
        kept = torch.tensor([example not in left_out for example in self.example.tolist()], device=self.example.device)
        return Batch(**{name: value[kept] for name, value in self._tensors().items()}) if kept.any() else None

    def halves(self) -> "tuple[Batch, ...]":
        """The batch in two, each padded no wider than it needs; none for a single prompt."""
        parts = [{name: value[rows] for name, value in self._tensors().items()} for rows in _halved(len(self.target))]
        for part in parts:
            part |= {name: part[name][:, : int(part["target"].max()) + 1] for name in ("tokens", "demo")}
        return tuple(Batch(**part) for part in parts)


def collate(prompts: Sequence[Prompt], pad: int = 0) -> Batch:
    """Pad prompts with token ``pad`` (any will do) into one batch.

    Raises:
        ValueError: for prompts with different label words, where some word has several tokens.
    """
    width = max(len(prompt.ids) for prompt in prompts)
    longest = max(len(word) for prompt in prompts for word in prompt.words)
    if longest > 1 and len({prompt.words for prompt in prompts}) > 1:
        raise ValueError(
            f"examples {[prompt.example for prompt in prompts]} have different label words of several tokens: one "
            "batch has one set of label words. Collate those of each set apart."
        )
    demo = [{p: n for n, span in enumerate(prompt.spans) for p in span} for prompt in prompts]
    return Batch(
        tokens=torch.tensor([[*prompt.ids, *[pad] * (width - len(prompt.ids))] for prompt in prompts]),
        start=torch.tensor([prompt.roles.count(Role.START) for prompt in prompts]),
        anchors=torch.tensor([prompt.anchors for prompt in prompts], dtype=torch.int64),
        anchor_classes=torch.tensor([prompt.anchor_classes for prompt in prompts], dtype=torch.int64),
        target=torch.tensor([prompt.target for prompt in prompts]),
        labels=torch.tensor([prompt.labels for prompt in prompts]),
        gold=torch.tensor([-1 if prompt.gold is None else prompt.gold for prompt in prompts]),
        example=torch.tensor([prompt.example for prompt in prompts]),
        seed=torch.tensor([prompt.seed for prompt in prompts]),
        demo=torch.tensor([[each.get(position, -1) for position in range(width)] for each in demo]),
        words=torch.tensor(
            [[[*word, *[-1] * (longest - len(word))] for word in prompt.words] for prompt in prompts], dtype=torch.int64
        ),
    )


def batches(prompts: Iterable[Prompt], size: Callable[[int], int]) -> list[Batch]:
    """Batches of prompts of similar length, longest first; ``size`` tells how many prompts of a length fit.

    Prompts of other seeds, with other numbers of demonstrations or classes, or with other label words of several tokens
    never share a batch.
    """
    groups: dict[tuple, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        words = prompt.words if prompt.endings else ()
        groups[prompt.seed, len(prompt.anchors), len(prompt.labels), words].append(prompt)
    made = []
    for group in groups.values():
        group.sort(key=lambda prompt: -len(prompt.ids))  # the sort is stable: equal lengths keep their order
        while group:
            n = max(1, size(len(group[0].ids)))
            made.append(collate(group[:n]))
            del group[:n]
    return made


@dataclass(frozen=True, eq=False)
class Queries:
    """Left-padded queries of one group: the target of each is its last token. ``gold`` is -1 where it is not known."""

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]  # 0: padding
    gold: Int[Tensor, " batch"]
    example: Int[Tensor, " batch"]

    def to(self, device: str | torch.device) -> "Queries":
        """The same queries on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})

    def halves(self) -> "tuple[Queries, ...]":
        """The queries in two, each padded no wider than it needs; none for a single query."""
        made = []
        for rows in _halved(len(self.gold)):
            width = int(self.mask[rows].sum(1).max())
            tokens, mask = self.tokens[rows, -width:], self.mask[rows, -width:]
            made.append(Queries(tokens, mask, self.gold[rows], self.example[rows]))
        return tuple(made)


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts of one seed that begin with the same demonstrations, token for token, so that these are run once.

    What is said of the first prompt's demonstrations holds for all; positions count from 0 in each prompt.
    """

    prompts: tuple[Prompt, ...]

    @cached_property
    def length(self) -> int:
        """Tokens before the query."""
        return _query_start(self.prompts[0])

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt, and of what label words of several tokens are scored behind."""
        return max(len(prompt.ids) for prompt in self.prompts) + self.scoring.more

    @property
    def tokens(self) -> Int[Tensor, "1 pos"]:
        """Tokens of the demonstrations."""
        return torch.tensor([self.prompts[0].ids[: self.length]])

    @property
    def roles(self) -> tuple[Role, ...]:
        """Their roles."""
        return self.prompts[0].roles[: self.length]

    @property
    def parts(self) -> tuple[int, ...]:
        """To which demonstration each belongs."""
        return self.prompts[0].parts[: self.length]

    @property
    def anchors(self) -> Int[Tensor, " demo"]:
        """Position of each demonstration's label word, of its first token."""
        return torch.tensor(self.prompts[0].anchors)

    @property
    def rows(self) -> Int[Tensor, " row"]:
        """Positions of all tokens that stand for label words: ``anchors``, unless words have several."""
        return torch.tensor([position for span in self.prompts[0].spans for position in span])

    @property
    def row_demos(self) -> Int[Tensor, " row"]:
        """To which demonstration's label word each of ``rows`` belongs."""
        return torch.tensor([demo for demo, span in enumerate(self.prompts[0].spans) for _ in span])

    @cached_property
    def scoring(self) -> Scoring:
        """How label words are scored."""
        return Scoring(self.prompts[0].words)

    @property
    def anchor_classes(self) -> Int[Tensor, " demo"]:
        """Its class."""
        return torch.tensor(self.prompts[0].anchor_classes)

    @property
    def labels(self) -> Int[Tensor, " label"]:
        """First token of each class's label word."""
        return torch.tensor(self.prompts[0].labels)

    @property
    def seed(self) -> int:
        """The draw of the demonstrations (-1: fixed by a file)."""
        return self.prompts[0].seed

    def chance(self, *purpose: object) -> torch.Generator:
        """A generator for one purpose, the same whenever these demonstrations are drawn by this seed."""
        digest = hashlib.sha256(repr((self.seed, self.prompts[0].ids[: self.length], *purpose)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4]))

    def without(self, examples: Iterable[int]) -> "Group | None":
        """The group without some prompts; None if none is left."""
        left_out = set(examples)
        left = tuple(prompt for prompt in self.prompts if prompt.example not in left_out)
        return Group(left) if left else None

    def queries(self, size: Callable[[int], int], *, padding: bool = True, pad: int = 0) -> list[Queries]:
        """Batches of queries of similar length, longest first; ``size`` tells how many of a length fit.

        With ``padding=False`` a batch holds queries of equal length only.
        """
        waiting = sorted(self.prompts, key=lambda prompt: -len(prompt.ids))  # stable: equal lengths keep their order
        made = []
        while waiting:
            longest = len(waiting[0].ids)
            n = max(1, size(longest - self.length))
            if not padding:
                n = min(n, sum(len(prompt.ids) == longest for prompt in waiting))
            made.append(self._padded(waiting[:n], longest - self.length, pad))
            del waiting[:n]
        return made

    def _padded(self, prompts: Sequence[Prompt], width: int, pad: int) -> Queries:
        ids = [prompt.ids[self.length :] for prompt in prompts]
        return Queries(
            tokens=torch.tensor([[*[pad] * (width - len(each)), *each] for each in ids]),
            mask=torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in ids]),
            gold=torch.tensor([-1 if prompt.gold is None else prompt.gold for prompt in prompts]),
            example=torch.tensor([prompt.example for prompt in prompts]),
        )


def groups(prompts: Iterable[Prompt]) -> list[Group]:
    """Prompts grouped by seed and demonstrations, in the order in which these first appear.

    Raises:
        PromptError: for prompts without demonstrations, whose label words coincide, or that results could not tell
            apart.
    """
    found: dict[tuple, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if not prompt.anchors:
            raise PromptError(f"example {prompt.example} has no demonstrations; give each prompt at least one.")
        if len(set(prompt.anchors)) < len(prompt.anchors):
            raise PromptError(
                f"example {prompt.example}: anchors coincide at positions {list(prompt.anchors)}; each demonstration "
                "needs a label word of its own."
            )
        start = _query_start(prompt)
        shared = (prompt.ids[:start], prompt.roles[:start], prompt.parts[:start], prompt.spans, prompt.anchor_classes)
        found[(prompt.seed, prompt.words, *shared)].append(prompt)
    for same in found.values():
        example, count = Counter(prompt.example for prompt in same).most_common(1)[0]
        if count > 1:
            raise PromptError(
                f"example {example} of seed {same[0].seed} is there {count} times behind the same demonstrations; give "
                "each query a number of its own (Example.row), by which results are told apart."
            )
    return [Group(tuple(each)) for each in found.values()]


def _halved(n: int) -> tuple[slice, ...]:
    return (slice(0, n - n // 2), slice(n - n // 2, n)) if n > 1 else ()


def _query_start(prompt: Prompt) -> int:
    return prompt.parts.index(prompt.parts[-1])
