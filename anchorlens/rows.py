"""Labelled rows of a task: from a file, the hub, a DataFrame, or the shipped toy's own; and prompts fixed by a file."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from anchorlens import formats, hub_rows, task_files
from anchorlens.formats import Named, Record, Split, fields, jsonl_records
from anchorlens.tasks import TASKS, HubRows, MissingRowsError, Task, TaskError, suggestion

TOY_ROWS = Path(__file__).parent / "toy" / "rows"
TOY_SETS = ("clean", "hard")  # what ``data`` may name on the toy


@dataclass(frozen=True)
class Example:
    """A text and its class; ``row`` counts from 0 within its source, -1 outside any source.

    ``label`` is None only for the query of a prompts file that has no gold label.
    """

    text: str
    label: int | None
    row: int = -1


def load(task: Task, data: Any = "", *, split: Split = "query", toy: bool = False) -> list[Example]:
    """Labelled examples of ``task``.

    Args:
        task: whose columns, class names and label words give meaning to the rows.
        data: a file (CSV, TSV, JSONL, Parquet), a folder made by ``save_to_disk``, a hub id
            ``owner/name:config@revision#split``, or a DataFrame; on the toy also "clean" or "hard"; empty: the task's
            own source (on the toy its clean set, otherwise its file or the hub).
        split: what the rows are for, which picks among the splits of a source that has several.
        toy: whether the model is the shipped toy, which knows only its own words.

    Raises:
        TaskError: for a source or a row that cannot be used; names file, row, what was found and the remedy.
        MissingRowsError: if there is no such file, or a hub that has the rows cannot be reached.
    """
    if is_frame(data):
        return from_frame(data, task)
    source = source_of(task, data, split=split, toy=toy)
    if isinstance(source, Path):
        return read_file(source, task, split=split)
    known = replace(task, names=source.names)
    return _examples(hub_rows.records(source, task, split), known, hub_rows.describe(source, split))


def source_of(task: Task, data: Any = "", *, split: Split = "query", toy: bool = False) -> Path | HubRows:
    """The file, or the rows on the hub, that ``load`` would read.

    Raises:
        MissingRowsError: if ``data`` is neither a file nor a hub id, or empty while the task has no rows of its own.
    """
    own = "" if data else (task.data if split == "query" else task.pool or task.data)
    if toy and data in ("", *TOY_SETS) and not own and task.name in TASKS:
        return TOY_ROWS / f"{task.name}_{data or 'clean'}.jsonl"
    named = str(data) or own
    if not named:
        if task.hub and not toy:
            return task.hub
        raise MissingRowsError(
            f"task {task.name!r} has no rows of its own{' on the toy' if toy else ', on the hub or in a file'}; give "
            "files with data=FILE and pool=FILE (the same file will do)."
        )
    path = path_of(named) if data else Path(task.folder) / path_of(own)
    if path.exists():
        return path
    if hub := hub_rows.parse(named, task):
        return hub
    return path


def file_of(task: Task, data: Any = "", *, split: Split = "query", toy: bool = False) -> Path | None:
    """The file that ``load`` would read; None: it would ask the hub."""
    source = source_of(task, data, split=split, toy=toy)
    return source if isinstance(source, Path) else None


def called(task: Task, data: Any = "", *, split: Split = "query", toy: bool = False) -> str:
    """How errors call the source of ``load``."""
    if is_frame(data):
        return "the DataFrame"
    source = source_of(task, data, split=split, toy=toy)
    return str(source) if isinstance(source, Path) else hub_rows.describe(source, split)


def whence(task: Task) -> str:
    """Where the task's own rows come from, for people."""
    if not (task.data or task.hub):
        return "none of its own, give files with data=FILE and pool=FILE"
    queries, shown = (called(task, split=split) for split in formats.SPLITS)
    return queries if shown == queries else f"{queries}, demonstrations from {shown}"


def fingerprint(task: Task, data: str = "", *, split: Split = "query", toy: bool = False) -> str:
    """What identifies the rows that ``load`` would give: a hash of the file, or the commit on the hub.

    Raises:
        MissingRowsError: if there are none, or they are not in the cache and the hub cannot be reached.
    """
    source = source_of(task, data, split=split, toy=toy)
    if isinstance(source, Path):
        return formats.fingerprint(source, split)
    return hub_rows.fingerprint(source, task, split)


def path_of(name: str) -> Path:
    """The file that a parameter names."""
    try:
        return task_files.path_of(name)
    except TaskError as error:
        raise MissingRowsError(str(error)) from error


def read_file(path: Path, task: Task, *, split: Split = "query") -> list[Example]:
    """Read a file or a saved folder; a label is a class number from 0, a label word, or the task's name of a class."""
    found = formats.records(path, task.text, task.label, split)
    return _examples(found, task, str(path), formats.hint(path))


def is_frame(data: Any) -> bool:
    """Whether it is a pandas DataFrame, without importing pandas."""
    return hasattr(data, "iloc") and hasattr(data, "columns")


def from_frame(
    frame: Any, task: Task, *, text: str = "", label: str = "", where: str = "the DataFrame"
) -> list[Example]:
    """Examples of a pandas DataFrame; ``row`` is the position, errors name the index.

    Args:
        text, label: its columns; empty: the task's.
        where: how errors call it.

    Raises:
        TaskError: for a missing column, or a row that cannot be used.
    """
    text, label = text or task.text, label or task.label
    formats.check_columns(list(frame.columns), text, label, where)
    columns = [frame[name].astype(object).where(frame[name].notna(), None) for name in (text, label)]
    found = ((f"index {index!r}", said, given) for index, said, given in zip(frame.index, *columns, strict=True))
    return _examples(found, task, where)


def _examples(found: Iterable[Record], task: Task, where: str, hint: str = "") -> list[Example]:
    examples = [
        example(text, label, task, where=f"{where}, {place}", row=row, hint=hint)
        for row, (place, text, label) in enumerate(found)
    ]
    if not examples:
        raise TaskError(f"{where}: no rows; it needs at least one with {task.text} and {task.label}.")
    return examples


def example(
    text: Any, label: Any, task: Task, *, where: str, row: int = -1, gold: bool = True, hint: str = ""
) -> Example:
    """One checked example; ``gold=False`` allows a null label."""
    if not isinstance(text, str) or not text.strip():
        raise TaskError(f"{where}: text is {text!r}; an example needs some text. Remove the row or fill it.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TaskError(f"{where}: text holds half of a surrogate pair, which is no character. Mend it there.")
    if label is None and not gold:
        return Example(text, None, row)
    return Example(text, class_of(label, task, where=where, hint=hint), row)


def class_of(label: object, task: Task, *, where: str, hint: str = "") -> int:
    """The class that ``label`` names in ``task``: by the task's ``names``, by label word, or by number from 0.

    A task without ``names`` has those of its rows on the hub, of which a file may be a copy. Numbers count classes only
    where no name and no label word looks like a number, and never in data that name their classes (``formats.Named``).
    """
    words = [word.strip() for word in task.label_words]
    names = task.names or (task.hub.names if task.hub else {})
    said = str(label).strip() if isinstance(label, str | Integral) else None  # a flag is "True" or "False"
    if said is not None:
        named, worded = names.get(said), words.index(said) if said in words else None
        if named is not None and worded not in (None, named):
            raise TaskError(
                f"{where}: label {said!r} is the name of class {named} and the label word of class {worded}; rename "
                "one of them in the task."
            )
        if (label_of := worded if named is None else named) is not None:
            return label_of
        numbered = not isinstance(label, Named) and not any(each.isdecimal() for each in (*words, *names))
        if numbered and said.isdecimal() and int(said) < len(words):
            return int(said)
    raise TaskError(f"{where}: {_no_class(label, task, hint)}")


def _no_class(label: object, task: Task, hint: str) -> str:
    """What is wrong with a label, and what to do."""
    words, called = [word.strip() for word in task.label_words], {number: name for name, number in task.names.items()}
    also = {number: f" ({name})" for number, name in called.items() if name != words[number]}
    near = suggestion(label, [*task.names, *words]) if isinstance(label, str) else "."
    classes = ", ".join(f"{number} {word}{also.get(number, '')}" for number, word in enumerate(words))
    said = f"label {label!r} is no class of task {task.name!r}, which has {classes}{near}"
    if label in (None, "") or label != label:  # NaN
        return f"{said} Fill the label or remove the row{hint}."
    if isinstance(label, float) or (isinstance(label, str) and re.fullmatch(r"\d+\.0*", label.strip())):
        return f"{said} Write whole numbers (a column with gaps turns them into such: fill or remove these first)."
    if isinstance(label, Named):
        return f"{said} Give each of its classes a word in a task file, label_words: {{{label}: WORD, ...}}."
    return f"{said} Use the number{', the name' if task.names else ''} or the word{hint}."


def check_request(
    *, shots: int, seeds: Sequence[int], limit: int, prompts: str = "", data: Any = "", pool: Any = ""
) -> None:
    """Refuse numbers that no prompts can be drawn by, and sources that exclude each other."""
    if shots < 1:
        raise TaskError(f"shots={shots}: in-context learning needs at least 1 demonstration per class.")
    if limit < 0:
        raise TaskError(f"limit={limit}: give how many queries to take at most, or 0 for all.")
    if not seeds or len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**32 for seed in seeds):
        raise TaskError(f"seeds={list(seeds)}: give at least one whole number from 0 to {2**32 - 1}, none twice.")
    if prompts and not all(isinstance(each, str) and not each for each in (data, pool)):
        raise TaskError(f"prompts={prompts!r} fixes every prompt; leave data={data!r} and pool={pool!r} empty.")


def check_shots(pool: Sequence[Example], task: Task, shots: int, *, own: bool = False, where: str) -> None:
    """Refuse a pool of demonstrations with fewer than ``shots`` rows of some class.

    ``own``: its rows are the queries, too, none of which demonstrates itself.
    """
    counts = Counter(example.label for example in pool)
    for label, word in enumerate(task.label_words):
        needed = shots + 1 if own and counts[label] else shots
        if counts[label] < needed:
            why = f"shots={shots} needs {needed}" + (", since a query is none of its own demonstrations" if own else "")
            raise TaskError(
                f"{where}: {counts[label]} row{'s' * (counts[label] != 1)} of class {label} ({word.strip()}) where "
                f"{why}. Lower shots, or give a pool with more rows of that class."
            )


def read_prompts(path: Path, task: Task) -> list[tuple[list[Example], Example]]:
    """Demonstrations and query of each prompt of a JSONL file, in file order.

    Each line is ``{"demonstrations": [{"text", "label"}, ...], "query": {"text", "label"}}``; the query's label may be
    null. ``row`` of the query counts prompts from 0.
    """
    if not path.is_file():
        raise MissingRowsError(f"{path}: no such file; give a JSONL file with one prompt a line.")
    found = []
    for row, (place, record) in enumerate(jsonl_records(path)):
        where = f"{path}, {place}"
        if not isinstance(record, Mapping) or not {"demonstrations", "query"} <= set(record):
            keys = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise TaskError(f"{where}: expected demonstrations and query, found {keys}.")
        if not isinstance(record["demonstrations"], list) or not record["demonstrations"]:
            raise TaskError(f"{where}: demonstrations must be a list of at least one text with its label.")
        demonstrations = [
            _posed(each, task, where=f"{where}, demonstration {n}") for n, each in enumerate(record["demonstrations"])
        ]
        found.append((demonstrations, _posed(record["query"], task, where=f"{where}, query", row=row, gold=False)))
    if not found:
        raise TaskError(f"{path}: no prompts; it needs at least one line.")
    return found


def _posed(record: Any, task: Task, *, where: str, row: int = -1, gold: bool = True) -> Example:
    return example(*fields(record, "text", "label", where), task, where=where, row=row, gold=gold)
