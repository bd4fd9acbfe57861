"""What is classified: a template and its label words. The paper's four tasks, as data, and those of task files."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from anchorlens import task_files
from anchorlens.task_files import TaskError, suggestion

__all__ = ["TASKS", "HubRows", "MissingRowsError", "Task", "TaskError", "get", "suggestion", "with_words", "word_pool"]

LabelToken = Literal["only", "first", "all"]
LABEL_TOKENS = get_args(LabelToken)


class MissingRowsError(TaskError):
    """Rows that are not on this machine and cannot be fetched."""


@dataclass(frozen=True)
class HubRows:
    """Where a task's rows are on the Hugging Face hub; classes are mapped by name, never by index."""

    dataset: str
    splits: Mapping[str, str]  # of queries and of demonstrations; where one is missing, by what the splits are called
    text: str
    label: str
    names: Mapping[str, int]  # name of a class there -> class here
    revision: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Task:
    """A classification task as the paper poses it (appendix A, table 4).

    Attributes:
        name: short name, as in ``anchorlens list tasks``.
        template: all that precedes the label word; ``{text}`` stands for the example's text.
        label_words: one word per class, with its leading space, as the model reads it.
        separator: what joins two examples.
        label_token: "only" refuses a label word of several tokens; "first" lets its first token stand for it; "all"
            takes all of them as one anchor, and their whole log-probability for an answer.
        hub: where rows come from when no file is given.
        names: what the data call the classes, where that is neither a number from 0 nor the label word.
        text, label: columns of files (the hub's are named in ``hub``).
        data, pool: the task's own rows for queries and for demonstrations (empty: ``data``), each a file or a hub id.
        folder: where relative ``data`` and ``pool`` begin.
    """

    name: str
    template: str
    label_words: tuple[str, ...]
    separator: str = "\n"
    label_token: LabelToken = "only"
    hub: HubRows | None = None
    names: Mapping[str, int] = field(default_factory=dict)
    text: str = "text"
    label: str = "label"
    data: str = ""
    pool: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise TaskError(
                f"task {self.name!r}: template {self.template!r} holds {{text}} {self.template.count('{text}')} times; "
                "write it exactly once, where the example's text goes."
            )
        if stray := [each for each in re.findall(r"\{[A-Za-z_]\w*\}", self.template) if each != "{text}"]:
            raise TaskError(
                f"task {self.name!r}: template {self.template!r} holds {', '.join(stray)}, for which nothing stands; "
                "{text} is all that is filled, and the label word follows by itself."
            )
        if len(self.label_words) < 2 or len(set(self.label_words)) < len(self.label_words):
            raise TaskError(
                f"task {self.name!r}: label words {list(self.label_words)} are not at least two different words; "
                "give each class a word of its own (a task without any is generation, which is out of scope)."
            )
        if wrong := {name: label for name, label in self.names.items() if label not in range(len(self.label_words))}:
            raise TaskError(
                f"task {self.name!r}: names {wrong} where classes count from 0 to {len(self.label_words) - 1}; let "
                "each name stand for one of these."
            )
        if not self.text or not self.label or self.text == self.label:
            raise TaskError(
                f"task {self.name!r}: text is column {self.text!r} and label is column {self.label!r}; name two "
                "different columns (text_column, label_column)."
            )

    def fingerprint(self) -> str:
        """What identifies the task by what it means, wherever its file is; its rows have fingerprints of their own."""
        meant = {name: value for name, value in asdict(self).items() if name not in ("data", "pool", "folder")}
        return f"sha256 {hashlib.sha256(repr(meant).encode()).hexdigest()}"

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

_GENERATION = re.compile(
    r"generat|translat|summari|gsm8k|math(_?500)?$|humaneval|mbpp|squad|trivia_?qa|natural_?questions|hotpot|"
    r"xsum|cnn_?dailymail|samsum|wmt\d|flores|truthful_?qa|lambada|perplexity|wikitext"
)  # names of what is answered by free text

TASKS = {task.name: task for task in (SST2, TREC, AGNEWS, EMO)}


def get(name: str, *, label_token: str = "task", text_column: str = "", label_column: str = "") -> Task:
    """The task called ``name``, or of the task file at that path.

    Args:
        label_token: how label words of several tokens are read; "task": as the task says.
        text_column, label_column: columns of its rows; empty: as the task says.

    Raises:
        TaskError: for a name or a ``label_token`` that does not exist, or a file that describes no task.
    """
    task = _named(name)
    if label_token != "task":
        _check_label_token(label_token)
        task = replace(task, label_token=label_token)
    columns = {"text": text_column or task.text, "label": label_column or task.label}
    if not text_column and not label_column:
        return task
    there = {"text": text_column, "label": label_column}
    hub = replace(task.hub, **{key: value for key, value in there.items() if value}) if task.hub else None
    return replace(task, hub=hub, **columns)


def _named(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if path.suffix.lower() not in task_files.SUFFIXES:
        if path.is_file() or path.name != name:
            raise TaskError(f"task {name!r} is neither a name ({', '.join(TASKS)}) nor a .yaml file; give one of them.")
        refuse_generation(name, "task")
        raise TaskError(f"no task {name!r}{suggestion(name, TASKS)} Tasks: {', '.join(TASKS)}, or a .yaml file.")
    path = task_files.path_of(name)
    given = task_files.read(path)
    if given["name"] in TASKS:
        raise TaskError(f"{path}: the name {given['name']!r} is that of one of the paper's tasks; choose another.")
    try:
        _check_label_token(given.get("label_token", "only"))
        return Task(**given)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error


def _check_label_token(label_token: str) -> None:
    if label_token not in LABEL_TOKENS:
        raise TaskError(f"label_token={label_token!r}: it may be 'task', 'only', 'first' or 'all'.")


def refuse_generation(name: str, what: str) -> None:
    """Say of a name that stands for free generation that it is out of scope, rather than that it is not known.

    Raises:
        TaskError: for such a name.
    """
    if _GENERATION.search(name.lower()):
        raise TaskError(
            f"{what} {name!r} asks for text that is generated, which is out of scope: label words are what is analysed "
            "here, so a task is a classification with one word for each class. Choose one with classes, such as "
            f"{', '.join(TASKS)}."
        )


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
