"""What is classified: a template and its label words. The paper's four tasks, as data."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

LabelToken = Literal["only", "first"]


class TaskError(ValueError):
    """A task, or rows for it, that cannot be used as given."""


@dataclass(frozen=True)
class HubRows:
    """Where a task's rows are on the Hugging Face hub; classes are mapped by name, never by index."""

    dataset: str
    splits: Mapping[str, str]  # of queries and of demonstrations
    text: str
    label: str
    names: Mapping[str, int]  # name of a class there -> class here
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """A classification task as the paper poses it (appendix A, table 4).

    Attributes:
        name: short name, as in ``anchorlens list tasks``.
        template: all that precedes the label word; ``{text}`` stands for the example's text.
        label_words: one word per class, with its leading space, as the model reads it.
        separator: what joins two examples.
        label_token: "only" refuses a label word of several tokens; "first" lets its first token stand for it.
        hub: where rows come from when no file is given.
    """

    name: str
    template: str
    label_words: tuple[str, ...]
    separator: str = "\n"
    label_token: LabelToken = "only"
    hub: HubRows | None = None

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise TaskError(
                f"task {self.name!r}: template {self.template!r} holds {{text}} {self.template.count('{text}')} times; "
                "write it exactly once, where the example's text goes."
            )
        if len(self.label_words) < 2 or len(set(self.label_words)) < len(self.label_words):
            raise TaskError(
                f"task {self.name!r}: label words {list(self.label_words)} are not at least two different words; "
                "give each class a word of its own."
            )

    def context(self, text: str) -> str:
        """The template around ``text``: an example up to its label word."""
        before, after = self.template.split("{text}")
        return before + text + after


SST2 = Task(
    "sst2",
    "Review: {text}\nSentiment:",
    (" Negative", " Positive"),
    hub=HubRows(
        "stanfordnlp/sst2",
        {"query": "validation", "demonstration": "train"},  # the labels of the test split are not public
        "sentence",
        "label",
        {"negative": 0, "positive": 1},
    ),
)
TREC = Task(
    "trec",
    "Question: {text}\nAnswer Type:",
    (" Abbreviation", " Entity", " Description", " Person", " Location", " Number"),
    label_token="first",  # " Abbreviation" is three GPT-2 tokens; the paper's code reads the first
    hub=HubRows(
        "CogComp/trec",
        {"query": "test", "demonstration": "train"},
        "text",
        "coarse_label",
        {"ABBR": 0, "ENTY": 1, "DESC": 2, "HUM": 3, "LOC": 4, "NUM": 5},
        revision="refs/convert/parquet",
    ),
)
AGNEWS = Task(
    "agnews",
    "Article: {text}\nAnswer:",
    (" World", " Sports", " Business", " Technology"),
    hub=HubRows(
        "fancyzhx/ag_news",
        {"query": "test", "demonstration": "train"},
        "text",
        "label",
        {"World": 0, "Sports": 1, "Business": 2, "Sci/Tech": 3},
    ),
)
EMO = Task("emo", "Dialogue: {text}\nEmotion:", (" Others", " Happy", " Sad", " Angry"))  # no working hub id

TASKS = {task.name: task for task in (SST2, TREC, AGNEWS, EMO)}


def get(name: str, *, label_token: str = "task") -> Task:
    """The task called ``name``, read with ``label_token`` ("task": as the task says, "only" or "first").

    Raises:
        TaskError: for a name or a ``label_token`` that does not exist.
    """
    if name not in TASKS:
        raise TaskError(f"no task {name!r}{suggestion(name, TASKS)} Tasks: {', '.join(TASKS)}.")
    task = TASKS[name]
    if label_token == "task":
        return task
    if label_token not in ("only", "first"):
        raise TaskError(f"label_token={label_token!r}: it may be 'task', 'only' or 'first'.")
    return replace(task, label_token=label_token)


def with_words(task: Task, label_words: str) -> Task:
    """``task`` with other label words (appendix F.2): "natural", "flipped" (the next class's word), or "a|b|...".

    Raises:
        TaskError: for a list that does not give every class a word of its own.
    """
    if label_words == "natural":
        return task
    if label_words == "flipped":
        return replace(task, label_words=task.label_words[1:] + task.label_words[:1])
    words = tuple(" " + word.strip() for word in label_words.split("|"))
    if len(words) != len(task.label_words) or " " in words:
        raise TaskError(
            f"label_words={label_words!r}: expected natural, random, flipped, auto, or {len(task.label_words)} words "
            f"joined by |, one for each class of task {task.name!r}."
        )
    return replace(task, label_words=words)


def word_pool(task: Task, *, toy: bool) -> tuple[str, ...]:
    """The label words that "random" draws from: the task's own; on the toy those of all four tasks."""
    return tuple(word for each in TASKS.values() for word in each.label_words) if toy else task.label_words


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where some known name is near, otherwise a full stop."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
