"""What each prompt will say: which demonstrations in which order, which query, which label words.

Drafts are drawn by seed or read from a file; ``anchorlens.prompts`` turns them into tokens. A draw of demonstrations
depends on the seed and, where each query has its own, on the query's row alone: leaving queries out changes no other
prompt.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from anchorlens import rows
from anchorlens.rows import Example
from anchorlens.tasks import Task, TaskError, with_words, word_pool


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


def load(
    task: Task,
    *,
    toy: bool = False,
    data: str = "",
    pool: str = "",
    prompts: str = "",
    shots: int = 1,
    seeds: Sequence[int] = (42,),
    limit: int = 0,
    label_words: str = "auto",
    fresh: bool = True,
    replacement: bool = False,
) -> list[Draft]:
    """The drafts that a run's parameters ask for.

    Args:
        task: template and label words.
        toy: whether the model is the shipped toy: its own rows, and random label words from all its 16.
        data: rows for queries (see ``rows.load``).
        pool: rows for demonstrations, likewise; the same file for both will do.
        prompts: a file that fixes prompts exactly; then ``data`` and ``pool`` must be empty.
        shots: demonstrations per class.
        seeds: one draw of queries and demonstrations each.
        limit: at most so many queries a seed (with ``prompts``, the first ones); 0: all.
        label_words: natural, random, flipped, "a|b|..."; auto: random on the toy, natural elsewhere and
            with ``prompts``.
        fresh: new demonstrations (and random label words) for each query; otherwise one set for all queries of a seed.
        replacement: demonstrations of a class may repeat, as in the released code of section 2.1.

    Raises:
        TaskError: for rows or parameters that cannot be used.
    """
    rows.check_request(shots=shots, seeds=seeds, limit=limit, prompts=prompts, data=data, pool=pool)
    if prompts:
        return _from_file(task, prompts, toy=toy, seeds=seeds, limit=limit, label_words=label_words)
    if label_words == "auto":
        label_words = "random" if toy else "natural"
    queries = rows.load(task, data, split="query", toy=toy)
    demonstrations = rows.load(task, pool, split="demonstration", toy=toy)
    where = str(rows.file_of(task, pool, toy=toy) or task.name)
    rows.check_shots(demonstrations, task, 1 if replacement else shots, where=where)
    drafts = []
    for seed in seeds:
        drafts += draw(
            task,
            queries,
            demonstrations,
            shots=shots,
            seed=seed,
            limit=limit,
            label_words=label_words,
            words=word_pool(task, toy=toy),
            fresh=fresh,
            replacement=replacement,
        )
    return drafts


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
    classes = _by_class(pool)
    words = words or task.label_words

    def demonstrations(*of: object, query: str | None) -> tuple[Task, tuple[Example, ...]]:
        named = _named(task, label_words, words, generator(seed, *of, "words"))
        chance = generator(seed, *of)
        chosen = [
            example
            for label in range(len(task.label_words))
            for example in _choose(classes[label], shots, query, replacement, chance, f"class {label} of {task.name!r}")
        ]
        order = torch.randperm(len(chosen), generator=chance).tolist()
        return named, tuple(chosen[i] for i in order)

    shared = None if fresh else demonstrations(query=None)
    if shared:
        used = {example.text for example in shared[1]}
        queries = [query for query in queries if query.text not in used]
    if limit and limit < len(queries):
        picked = torch.randperm(len(queries), generator=generator(seed, "queries"))[:limit].tolist()
        queries = [queries[i] for i in sorted(picked)]
    drafts = []
    for query in queries:
        named, chosen = shared or demonstrations(query.row, query=query.text)
        drafts.append(Draft(named, chosen, query, seed))
    return drafts


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


def _named(task: Task, label_words: str, words: Sequence[str], chance: torch.Generator) -> Task:
    """``task`` with its label words; "random" draws them from ``words``."""
    if label_words != "random":
        return with_words(task, label_words)
    order = torch.randperm(len(words), generator=chance)[: len(task.label_words)].tolist()
    return replace(task, label_words=tuple(words[i] for i in order))


def _from_file(
    task: Task, prompts: str, *, toy: bool, seeds: Sequence[int], limit: int, label_words: str
) -> list[Draft]:
    named = _named(
        task,
        "natural" if label_words == "auto" else label_words,
        word_pool(task, toy=toy),
        generator(seeds[0], "words"),
    )
    found = rows.read_prompts(rows.path_of(prompts), task)
    return [Draft(named, tuple(demonstrations), query) for demonstrations, query in found[: limit or None]]
