"""What each prompt will say: which demonstrations in which order, which query, which label words.

Drafts are drawn by seed or read from a file; ``anchorlens.prompts`` turns them into tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anchorlens import rows
from anchorlens.drafts.drawing import Draft, Drawing, draw, generator, named
from anchorlens.rows import Example
from anchorlens.tasks import Task, TaskError, word_pool

__all__ = ["Draft", "draw", "generator", "k_shot", "load", "training", "without_texts"]


def load(
    task: Task,
    *,
    toy: bool = False,
    data: Any = "",
    pool: Any = "",
    prompts: str = "",
    shots: int = 1,
    seeds: Sequence[int] = (42,),
    limit: int = 0,
    label_words: str = "auto",
    fresh: bool = True,
    replacement: bool = False,
    sets: int = 1,
    train_shots: int = 0,
) -> list[Draft]:
    """The drafts that a run's parameters ask for.

    Args:
        task: template and label words.
        toy: whether the model is the shipped toy: its own rows, and random label words from all its 16.
        data: rows for queries: a file, a hub id or a DataFrame (see ``rows.load``).
        pool: rows for demonstrations, likewise; the same for both will do.
        prompts: a file that fixes prompts exactly; then ``data`` and ``pool`` must be empty.
        shots: demonstrations per class.
        seeds: one draw of queries and demonstrations each.
        limit: at most so many queries a seed (with ``prompts``, the first ones); 0: all.
        label_words: natural, random, flipped, "a|b|..."; auto: random on the toy, natural elsewhere and
            with ``prompts``.
        fresh: new demonstrations (and random label words) for each query; otherwise one set for all queries of a seed.
        replacement: demonstrations of a class may repeat, as in the released code of section 2.1.
        sets: where demonstrations are not fresh, over how many sets of them the queries of a seed are spread
            (section 3.3).
        train_shots: examples per class that ``training`` will take; their texts are then no queries. With ``prompts``
            and no file of training prompts, the prompts that it holds out are left out, and their repetitions.

    Raises:
        TaskError: for rows or parameters that cannot be used.
    """
    rows.check_request(shots=shots, seeds=seeds, limit=limit, prompts=prompts, data=data, pool=pool)
    if prompts:
        found = _from_file(task, prompts, toy=toy, seeds=seeds, limit=limit, label_words=label_words)
        held_out = _held_out(found, train_shots) if train_shots else []
        trained = {(draft.demonstrations, draft.query.text) for draft in held_out}
        return [draft for draft in found if (draft.demonstrations, draft.query.text) not in trained]
    queries, demonstrations, how = _sources(
        task, toy=toy, data=data, pool=pool, shots=shots, label_words=label_words, replacement=replacement
    )
    how |= {"limit": limit, "fresh": fresh, "sets": sets, "train_shots": train_shots}
    return [draft for seed in seeds for draft in draw(task, queries, demonstrations, seed=seed, **how)]


def training(
    task: Task,
    *,
    toy: bool = False,
    data: Any = "",
    pool: Any = "",
    prompts: str = "",
    train_prompts: str = "",
    shots: int = 1,
    seeds: Sequence[int] = (42,),
    limit: int = 0,
    label_words: str = "auto",
    train_shots: int = 4,
) -> list[Draft]:
    """Training prompts (section 3.1): ``train_shots`` further examples per class behind each seed's demonstrations.

    The arguments are those of ``load`` with ``fresh=False``. ``row`` of a query counts within the pool or the file.
    With ``prompts``, they come from the file ``train_prompts`` or, without one, are held out of ``prompts``: of those
    that share demonstrations the first ``train_shots`` of each class, at most half of that class.

    Raises:
        TaskError: for rows or parameters that cannot be used, training prompts without prompts, or nothing to hold out.
    """
    rows.check_request(shots=shots, seeds=seeds, limit=limit, prompts=prompts, data=data, pool=pool)
    if train_shots < 1:
        raise TaskError(f"train_shots={train_shots}: re-weighting needs at least 1 training example per class.")
    if train_prompts and not prompts:
        raise TaskError(
            f"train_prompts={train_prompts!r} goes with prompts=FILE, which fixes the prompts to be answered."
        )
    if train_prompts:
        return _from_file(task, train_prompts, toy=toy, seeds=seeds, limit=0, label_words=label_words)
    if prompts:
        found = _from_file(task, prompts, toy=toy, seeds=seeds, limit=limit, label_words=label_words)
        held_out = _held_out(found, train_shots)
        if not held_out:
            raise TaskError(
                f"{prompts}: no class has two queries with a label behind the same demonstrations, so none can be held "
                "out for training. Give training prompts with train_prompts=FILE."
            )
        return held_out
    _, demonstrations, how = _sources(
        task, toy=toy, data=data, pool=pool, shots=shots, label_words=label_words, replacement=False
    )
    made = []
    for seed in seeds:
        drawing = Drawing(task, demonstrations, seed=seed, **how)
        posed, chosen = drawing.demonstrations(query=None)
        made += [Draft(posed, chosen, query, seed) for query in drawing.further(chosen, train_shots)]
    return made


def _held_out(found: Sequence[Draft], per_class: int) -> list[Draft]:
    """Of drafts that share demonstrations, the first of each class: ``per_class``, and at most half of them."""
    alike: dict[tuple, list[Draft]] = defaultdict(list)
    for draft in found:
        if draft.query.label is not None:
            alike[draft.demonstrations, draft.query.label].append(draft)
    chosen = {id(draft) for group in alike.values() for draft in group[: min(per_class, len(group) // 2)]}
    return [draft for draft in found if id(draft) in chosen]


def k_shot(drafts: Sequence[Draft], trained: Sequence[Draft], per_class: int) -> list[Draft]:
    """The same queries with ``per_class`` demonstrations per class: those they have, then queries of ``trained``.

    Each draft takes from the training drafts with its own demonstrations, in their order (table 1, vanilla 5-shot).

    Raises:
        TaskError: if there are too few of some class.
    """
    further: dict[tuple[int, tuple[Example, ...]], list[Example]] = defaultdict(list)
    for draft in trained:
        further[draft.seed, draft.demonstrations].append(draft.query)
    made = []
    for draft in drafts:
        shown, mine = list(draft.demonstrations), further[draft.seed, draft.demonstrations]
        for label in range(len(draft.task.label_words)):
            lacking = per_class - sum(example.label == label for example in draft.demonstrations)
            more = [example for example in mine if example.label == label]
            if lacking > len(more):
                raise TaskError(
                    f"{draft.name}: {per_class} demonstrations of class {label} where {per_class - lacking} are shown "
                    f"and {len(more)} are for training. Lower the number per class."
                )
            shown += more[: max(0, lacking)]
        order = {id(example): n for n, example in enumerate(mine)}
        extra = sorted(shown[len(draft.demonstrations) :], key=lambda example: order[id(example)])
        made.append(replace(draft, demonstrations=(*draft.demonstrations, *extra)))
    return made


def without_texts(draft: Draft) -> Draft:
    """The same prompt with template and label word alone left of each demonstration (section 3.2, Text_anchor)."""
    return replace(draft, demonstrations=tuple(replace(example, text="") for example in draft.demonstrations))


def _sources(
    task: Task, *, toy: bool, data: Any, pool: Any, shots: int, label_words: str, replacement: bool
) -> tuple[list[Example], list[Example], dict[str, Any]]:
    """Rows for queries and for demonstrations, and how prompts are drawn from them."""
    if label_words == "auto":
        label_words = "random" if toy else "natural"
    queries = rows.load(task, data, split="query", toy=toy)
    demonstrations = rows.load(task, pool, split="demonstration", toy=toy)
    where = rows.called(task, pool, split="demonstration", toy=toy)
    rows.check_shots(demonstrations, task, 1 if replacement else shots, where=where)
    words = word_pool(task, toy=toy)
    how = {"shots": shots, "label_words": label_words, "words": words, "replacement": replacement}
    return queries, demonstrations, how


def _from_file(
    task: Task, prompts: str, *, toy: bool, seeds: Sequence[int], limit: int, label_words: str
) -> list[Draft]:
    posed = named(
        task,
        "natural" if label_words == "auto" else label_words,
        word_pool(task, toy=toy),
        generator(seeds[0], "words"),
    )
    found = rows.read_prompts(rows.path_of(prompts), task)
    return [Draft(posed, tuple(demonstrations), query) for demonstrations, query in found[: limit or None]]
