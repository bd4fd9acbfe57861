"""How many prompts a run will have, and of how many tokens: from rows and tokenizer alone, without torch."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from anchorlens import parameters, rows, tasks
from anchorlens.preflight import Checkpoint
from anchorlens.rows import Example
from anchorlens.tasks import Task
from anchorlens.tokenizing import PromptError

SAMPLE = 2000  # texts that are tokenised at most; lengths of the rest are taken to be like theirs
CHARACTERS = 4  # of a token, where the tokenizer cannot be read without loading it


@dataclass(frozen=True)
class Prompts:
    """How many prompts there will be, of how many tokens; ``said`` is how exactly this is known.

    ``sets`` counts sets of demonstrations, whose tokens are ``shown``; ``asked`` are those of a query, ``bare`` those
    of a set without its texts. Each is a mean and a maximum, start token included. A prompt is run in several ``rows``
    where its label words are scored by all of several tokens, and what these add is in ``asked``.
    """

    number: int
    sets: int
    classes: int
    shown: tuple[float, int]
    asked: tuple[float, int]
    bare: tuple[float, int]
    said: str
    rows: int = 1

    @property
    def longest(self) -> int:
        return self.shown[1] + self.asked[1]

    @property
    def mean(self) -> float:
        return self.shown[0] + self.asked[0]


def prompts(values: Mapping[str, Any], checkpoint: Checkpoint, read: Callable[..., list[Example]]) -> Prompts:
    """What a run with these parameters will ask; ``read`` gives the rows, as ``rows.load``."""
    task, counter = parameters.task_of(values), _Counter(checkpoint.folder)
    if values["label_words"] not in ("auto", "random"):  # by chance: the same words in another order
        task = tasks.with_words(task, values["label_words"])
    count, start = counter.count, counter.start(values["bos"])
    words = [counter.tokens(task, word) for word in task.label_words]
    each = [len(word) for word in words]  # tokens of each class's word
    beginnings = {word[:n] for word in words for n in range(len(word))} if task.label_token == "all" else {()}
    more = max(each) - 1 if len(beginnings) > 1 else 0
    if values["prompts"]:
        return _from_file(task, values, counter, each, start, more, len(beginnings))
    queries = read(task, values["data"], split="query", toy=checkpoint.toy)
    pool = read(task, values["pool"], split="demonstration", toy=checkpoint.toy)
    number = min(values["limit"] or len(queries), len(queries)) * len(values["seeds"])
    asked = count([task.context(example.text) for example in queries[:SAMPLE]])
    shown = _drawn(task, pool[:SAMPLE] if len(pool) > SAMPLE else pool, values["shots"], count, each)
    bare = (sum(each) + len(each) * count([task.context("") + task.separator])[0]) * values["shots"]
    sampled = f", from the first {SAMPLE} rows" if max(len(queries), len(pool)) > SAMPLE else ""
    fresh = values.get("demonstrations") == "fresh"
    return Prompts(
        number=number,
        sets=number if fresh else len(values["seeds"]),
        classes=len(task.label_words),
        shown=_both(shown, start),
        asked=_both(asked, more),
        bare=_both([bare], start),
        said=f"estimated{sampled}: demonstrations are drawn when it runs{counter.how}",
        rows=len(beginnings),
    )


def _drawn(task: Task, pool: Sequence[Example], shots: int, count: Any, words: Sequence[int]) -> list[int]:
    """Tokens of 200 draws of demonstrations; the draws themselves are left to the run."""
    chance = random.Random(0)
    lengths = dict(zip(map(id, pool), count([task.context(each.text) + task.separator for each in pool]), strict=True))
    classes = [(word, [each for each in pool if each.label == label]) for label, word in enumerate(words)]
    return [
        sum(lengths[id(each)] + word for word, among in classes if among for each in chance.choices(among, k=shots))
        for _ in range(200)
    ]


def _from_file(
    task: Task, values: Mapping[str, Any], counter: "_Counter", words: Sequence[int], start: int, more: int, n_rows: int
) -> Prompts:
    found = rows.read_prompts(rows.path_of(values["prompts"]), task)[: values["limit"] or None]
    alike = {tuple(demonstrations) for demonstrations, _ in found}
    texts = {each.text for demonstrations, query in found for each in (*demonstrations, query)}
    length = dict(zip(texts, counter.count([task.context(text) for text in texts]), strict=True))
    between, empty = counter.count([task.separator])[0], counter.count([task.context("")])[0]
    answered = [sum(words[each.label or 0] + between for each in demonstrations) for demonstrations in alike]
    texts_of = [sum(length[each.text] for each in demonstrations) for demonstrations in alike]
    return Prompts(
        number=len(found),
        sets=len(alike),
        classes=len(task.label_words),
        shown=_both([text + label for text, label in zip(texts_of, answered, strict=True)], start),
        asked=_both([length[query.text] for _, query in found], more),
        bare=_both([empty * len(one) + label for one, label in zip(alike, answered, strict=True)], start),
        said=f"counted piece by piece{counter.how}",
        rows=n_rows,
    )


def _both(lengths: Sequence[int], more: int) -> tuple[float, int]:
    return float(mean(lengths)) + more, max(lengths) + more


class _Counter:
    """Counts tokens by the tokenizer of a folder; ``how`` is what is to be said where there is none to be read."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.how = None, ""
        if not (folder / "tokenizer.json").is_file():
            self.how = f"; the model has no tokenizer.json, so {CHARACTERS} characters are taken for a token"
            return
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()

    def count(self, texts: Sequence[str]) -> list[int]:
        if self.tokenizer is None:
            return [max(1, round(len(text) / CHARACTERS)) for text in texts]
        return [len(each.ids) for each in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def tokens(self, task: Task, word: str) -> tuple[Any, ...]:
        """Of a label word, what tells its tokens from those of another.

        Raises:
            PromptError: for several tokens where the task takes one.
        """
        if self.tokenizer is None:
            return tuple(word[n : n + CHARACTERS] for n in range(0, len(word), CHARACTERS))
        context = task.context("")
        before, whole = (self.tokenizer.encode(text, add_special_tokens=False) for text in (context, context + word))
        start = len(before.ids) if whole.ids[: len(before.ids)] == before.ids else len(whole.ids) - 1  # or not apart
        found = tuple(whole.ids[start:])
        if len(found) > 1 and task.label_token == "only":
            raise PromptError(
                f"task {task.name!r}: label word {word!r} is {len(found)} tokens {whole.tokens[start:]}. Choose label "
                "words of one token (label_words=...), or set label_token=first or label_token=all."
            )
        return found

    def start(self, bos: str) -> int:
        """How many start tokens a prompt has."""
        if bos == "no" or self.tokenizer is None:
            return int(bos == "yes")
        mask = self.tokenizer.encode("a").special_tokens_mask
        return (mask.index(0) if 0 in mask else 0) or int(bos == "yes")
