"""Prompts drawn by seed: which demonstrations in which order, which query, which label words.

A draw of demonstrations depends on the seed and, where each query has its own, on the query's row alone: leaving
queries out changes no other prompt.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from anchorlens import rows
from anchorlens.rows import Example
from anchorlens.tasks import Task, TaskError, with_words


@dataclass(frozen=True)
class Draft:
    """One prompt before it is tokenised; ``task`` carries the label words it uses. ``seed`` -1: fixed by a file."""

    task: Task
    demonstrations: tuple[Example, ...]
    query: Example
    seed: int = -1

    @property
    def name(self) -> str:
        """How errors call it."""
        drawn = f", seed {self.seed}" if self.seed >= 0 else ""
        return f"task {self.task.name!r}, example {self.query.row}{drawn}"


def draw(
    task: Task,
    queries: Sequence[Example],
    pool: Sequence[Example],
    *,
    shots: int = 1,
    seed: int = 42,
    limit: int = 0,
    label_words: str = "natural",
    words: Sequence[str] = (),
    fresh: bool = True,
    replacement: bool = False,
    sets: int = 1,
    train_shots: int = 0,
) -> list[Draft]:
    """Draw prompts by seed: ``shots`` demonstrations of each class, in random order, for each query.

    Args:
        words: what label_words="random" draws from; empty: the task's own. The words have a chance of their own, so
            that other label words come with the same demonstrations.

    The other arguments are those of ``load``. A query never meets its own text as a demonstration: fresh ones differ
    from it, and where all queries share one set, rows with a text of that set are no queries. Queries come back in
    their source's order.

    Raises:
        TaskError: if a class has too few rows that differ from the query.
    """
    rows.check_request(shots=shots, seeds=[seed], limit=limit)
    if sets < 1 or (fresh and (sets > 1 or train_shots)):
        raise TaskError(
            f"sets={sets}, train_shots={train_shots}, fresh={fresh}: sets counts from 1, and several sets or training "
            "examples need demonstrations that queries share."
        )
    how = {"shots": shots, "label_words": label_words, "words": words, "replacement": replacement}
    drawing = Drawing(task, pool, seed=seed, **how)
    shared = [drawing.demonstrations(*(("set", n) if n else ()), query=None) for n in range(0 if fresh else sets)]
    texts = [{example.text for example in chosen} for _, chosen in shared]
    if sets == 1 and shared:
        further = drawing.further(shared[0][1], train_shots) if train_shots else []
        used = texts[0] | {example.text for example in further}
        left = [query for query in queries if query.text not in used]
        if queries and not left:
            raise TaskError(
                f"task {task.name!r}, seed {seed}: every text is a demonstration or trained on, so none is left to be "
                "asked. Give more rows, or lower shots or train_shots."
            )
        queries = left
    if limit and limit < len(queries):
        picked = torch.randperm(len(queries), generator=generator(seed, "queries"))[:limit].tolist()
        queries = [queries[i] for i in sorted(picked)]
    drafts = []
    for n, query in enumerate(queries):
        if fresh:
            task, chosen = drawing.demonstrations(query.row, query=query.text)
        else:
            turn = [(n + later) % sets for later in range(sets)]
            free = next((at for at in turn if query.text not in texts[at]), None)
            if free is None:
                raise TaskError(
                    f"task {task.name!r}, example {query.row}: its text is shown in each of {sets} sets of "
                    "demonstrations. Give a pool with more rows."
                )
            task, chosen = shared[free]
        drafts.append(Draft(task, chosen, query, seed))
    return drafts


@dataclass
class Drawing:
    """What one seed draws from a pool."""

    task: Task
    pool: Sequence[Example]
    shots: int
    seed: int
    label_words: str
    words: Sequence[str]
    replacement: bool

    def __post_init__(self) -> None:
        self.classes = _by_class(self.pool)
        self.words = self.words or self.task.label_words

    def demonstrations(self, *of: object, query: str | None) -> tuple[Task, tuple[Example, ...]]:
        """A set of demonstrations for one purpose, none with the text ``query``; the task carries its label words."""
        task = named(self.task, self.label_words, self.words, generator(self.seed, *of, "words"))
        chance = generator(self.seed, *of)
        chosen = [
            example
            for label in range(len(self.task.label_words))
            for example in _choose(
                self.classes[label],
                self.shots,
                query,
                self.replacement,
                chance,
                f"class {label} of {self.task.name!r}",
            )
        ]
        order = torch.randperm(len(chosen), generator=chance).tolist()
        return task, tuple(chosen[i] for i in order)

    def further(self, shown: Sequence[Example], per_class: int) -> list[Example]:
        """``per_class`` examples of each class with other texts than those shown, no text twice, in random order."""
        chance, taken, chosen = generator(self.seed, "train"), {example.text for example in shown}, []
        for label, word in enumerate(self.task.label_words):
            found = []
            for i in torch.randperm(len(self.classes[label].rows), generator=chance).tolist():
                example = self.classes[label].rows[i]
                if len(found) < per_class and example.text not in taken:
                    taken.add(example.text)
                    found.append(example)
            if len(found) < per_class:
                raise TaskError(
                    f"class {label} ({word.strip()}) of {self.task.name!r}: {len(found)} rows are left for training "
                    f"where train_shots={per_class}. Lower train_shots, or give a pool with more rows of that class."
                )
            chosen += found
        return [chosen[i] for i in torch.randperm(len(chosen), generator=chance).tolist()]


def generator(seed: int, *of: object) -> torch.Generator:
    """A generator for one purpose under ``seed``; torch reads only 32 bits of a seed, so they are hashed."""
    digest = hashlib.sha256(repr((seed, *of)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


@dataclass
class _Class:
    rows: list[Example]
    texts: Counter[str]


def _by_class(pool: Sequence[Example]) -> dict[int | None, _Class]:
    classes: dict[int | None, _Class] = defaultdict(lambda: _Class([], Counter()))
    for example in pool:
        classes[example.label].rows.append(example)
        classes[example.label].texts[example.text] += 1
    return classes


def _choose(
    among: _Class, shots: int, query: str | None, replacement: bool, chance: torch.Generator, what: str
) -> list[Example]:
    """``shots`` rows by chance, none with the query's text; different rows unless ``replacement``."""
    usable = len(among.rows) - (among.texts[query] if query is not None else 0)
    if usable < (1 if replacement else shots):
        raise TaskError(
            f"{what} has {usable} rows that differ from the query where shots={shots}. "
            "Lower shots, or give a pool with more rows."
        )
    chosen: list[Example] = []
    taken: set[int] = set()
    while len(chosen) < shots:
        i = int(torch.randint(len(among.rows), (), generator=chance))
        if among.rows[i].text != query and (replacement or i not in taken):
            taken.add(i)
            chosen.append(among.rows[i])
    return chosen


def named(task: Task, label_words: str, words: Sequence[str], chance: torch.Generator) -> Task:
    """``task`` with its label words; "random" draws them from ``words``."""
    if label_words != "random":
        return with_words(task, label_words)
    order = torch.randperm(len(words), generator=chance)[: len(task.label_words)].tolist()
    return replace(task, label_words=tuple(words[i] for i in order))
