"""Labelled rows of a task: from a file, from the hub, or the shipped toy's own; and prompts fixed by a file."""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anchorlens.preflight import hub_reachable
from anchorlens.tasks import HubRows, Task, TaskError

Split = Literal["query", "demonstration"]

TOY_ROWS = Path(__file__).parent / "toy" / "rows"
TOY_SETS = ("clean", "hard")  # what ``data`` may name on the toy
_UNREACHABLE = (
    "rows of task {task!r} ({dataset} on the hub) are not on this machine, and the hub cannot be reached. "
    "Give files with data=FILE and pool=FILE (the same file will do), or connect once to fetch them."
)


class MissingRowsError(TaskError):
    """Rows that are not on this machine and cannot be fetched."""


@dataclass(frozen=True)
class Example:
    """A text and its class; ``row`` counts from 0 within its source, -1 outside any source.

    ``label`` is None only for the query of a prompts file that has no gold label.
    """

    text: str
    label: int | None
    row: int = -1


def load(task: Task, data: str = "", *, split: Split = "query", toy: bool = False) -> list[Example]:
    """Labelled examples of ``task``.

    Args:
        task: whose label words give meaning to the labels.
        data: a CSV or JSONL file with ``text`` and ``label``; on the toy also "clean" or "hard"; empty: the task's own
            source (on the toy its clean set, otherwise the hub).
        split: what the rows are for, which picks the hub's split.
        toy: whether the model is the shipped toy, which knows only its own words.

    Raises:
        TaskError: for a file or a row that cannot be used; names file, row, what was found and the remedy.
        MissingRowsError: if the rows would have to come from a hub that cannot be reached.
    """
    path = file_of(task, data, toy=toy)
    return read_file(path, task) if path else _hub_rows(task, split)


def file_of(task: Task, data: str, *, toy: bool) -> Path | None:
    """The file that ``load`` would read; None: it would ask the hub."""
    if toy and (not data or data in TOY_SETS):
        return TOY_ROWS / f"{task.name}_{data or 'clean'}.jsonl"
    return path_of(data) if data else None


def path_of(name: str) -> Path:
    """The file that a parameter names."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise MissingRowsError(f"{name}: {error}") from error


def read_file(path: Path, task: Task) -> list[Example]:
    """Read a CSV or JSONL file with ``text`` and ``label`` (a class number from 0, or the label word)."""
    readers = {".csv": _csv_records, ".jsonl": jsonl_records}
    if path.suffix.lower() not in readers:
        raise TaskError(f"{path}: rows are read from .csv or .jsonl files, not from {path.suffix or 'no suffix'!r}.")
    if not path.is_file():
        raise MissingRowsError(f"{path}: no such file; give a .csv or .jsonl file with the columns text and label.")
    examples = [
        example(record, task, where=f"{path}, {place}", row=row)
        for row, (place, record) in enumerate(readers[path.suffix.lower()](path))
    ]
    if not examples:
        raise TaskError(f"{path}: no rows; it needs at least one with text and label.")
    return examples


def example(record: Any, task: Task, *, where: str, row: int = -1, gold: bool = True) -> Example:
    """One checked example from a record with ``text`` and ``label``; ``gold=False`` allows a null label."""
    if not isinstance(record, Mapping) or not {"text", "label"} <= set(record):
        found = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise TaskError(f"{where}: expected text and label, found {found}.")
    text, label = record["text"], record["label"]
    if not isinstance(text, str) or not text.strip():
        raise TaskError(f"{where}: text is {text!r}; an example needs some text. Remove the row or fill it.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TaskError(f"{where}: text holds half of a surrogate pair, which is no character. Mend it there.")
    if label is None and not gold:
        return Example(text, None, row)
    return Example(text, class_of(label, task, where=where), row)


def class_of(label: object, task: Task, *, where: str) -> int:
    """The class that ``label`` (a number or a label word) names in ``task``."""
    words = [word.strip() for word in task.label_words]
    if isinstance(label, str) and label.strip() in words:
        return words.index(label.strip())
    number = int(label) if isinstance(label, str) and label.strip().isdecimal() else label
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(words):
        return number
    classes = ", ".join(f"{n} {word}" for n, word in enumerate(words))
    raise TaskError(
        f"{where}: label {label!r} is no class of task {task.name!r}, which has {classes}. "
        "Use the number or the word; if the columns are shifted, quote texts that contain commas."
    )


def _csv_records(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    with io.StringIO(_text_of(path), newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise TaskError(
                    f"{path}: {repeated} stand more than once in the header; give each column its own name."
                )
            if missing := [name for name in ("text", "label") if name not in header]:
                raise TaskError(
                    f"{path}: no column {' and no column '.join(map(repr, missing))}; "
                    f"it has {', '.join(header) or 'none'}. Name the columns text and label in the first line."
                )
            for record in reader:
                place = f"line {reader.line_num}"
                if None in record or None in record.values():
                    found = sum(value is not None for key, value in record.items() if key is not None)
                    found += len(record.get(None) or ())  # type: ignore[call-overload]
                    raise TaskError(
                        f"{path}, {place}: {found} fields where the header has {len(header)}, so its columns are "
                        'shifted. Put texts with commas in double quotes ("a, b").'
                    )
                yield place, record
        except csv.Error as error:
            raise TaskError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from error


def jsonl_records(path: Path) -> Iterable[tuple[str, Any]]:
    """Each line of a JSONL file with the place to name in an error; blank lines are passed over."""
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise TaskError(f"{path}, line {number}: not JSON ({error}).") from error


def hub_fingerprint(task: Task) -> str:
    """What identifies the task's rows on the hub: the commit there or, without a network, what the cache holds.

    Raises:
        MissingRowsError: if the task has no rows there, or they are not in the cache and the hub cannot be reached.
    """
    if task.hub is None:
        raise MissingRowsError(
            f"task {task.name!r} has no rows on the hub (its published copy no longer loads); "
            "give files with data=FILE and pool=FILE (the same file will do)."
        )
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.errors import HTTPError

    hub = task.hub
    if hub_reachable():
        with contextlib.suppress(HTTPError, OSError):  # then the cache decides
            return (
                f"hub {hub.dataset} commit {HfApi().dataset_info(hub.dataset, revision=hub.revision, timeout=10).sha}"
            )
    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")) / hub.dataset.replace("/", "___")
    held = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*.arrow"))
    if not held:
        raise MissingRowsError(_UNREACHABLE.format(task=task.name, dataset=hub.dataset))
    return f"hub {hub.dataset} cached {hashlib.sha256(repr(held).encode()).hexdigest()}"


def _hub_rows(task: Task, split: Split) -> list[Example]:
    hub_fingerprint(task)
    import datasets

    hub = task.hub
    assert hub is not None, "hub_fingerprint refuses a task without rows"
    try:
        table = datasets.load_dataset(hub.dataset, split=hub.splits[split], revision=hub.revision)
    except (ConnectionError, FileNotFoundError) as error:
        raise MissingRowsError(_UNREACHABLE.format(task=task.name, dataset=hub.dataset)) from error
    return hub_examples(table, task, hub)


def hub_examples(table: Any, task: Task, hub: HubRows) -> list[Example]:
    """Examples of a loaded hub table, classes mapped by name."""
    feature = table.features[hub.label]
    names = getattr(feature, "names", None)
    examples = []
    for row, (text, label) in enumerate(zip(table[hub.text], table[hub.label], strict=True)):
        if names and not 0 <= label < len(names):  # hidden labels are -1
            raise TaskError(
                f"{hub.dataset}, row {row}: label {label} names no class (gold labels are hidden); take another split."
            )
        name = names[label] if names else str(label)
        if name not in hub.names:
            raise TaskError(
                f"{hub.dataset}, row {row}: class {name!r} is not among {', '.join(hub.names)}; the data set has "
                "changed, give a file with data=FILE."
            )
        record = {"text": text, "label": hub.names[name]}
        examples.append(example(record, task, where=f"{hub.dataset}, row {row}", row=row))
    return examples


def check_request(
    *, shots: int, seeds: Sequence[int], limit: int, prompts: str = "", data: str = "", pool: str = ""
) -> None:
    """Refuse numbers that no prompts can be drawn by, and sources that exclude each other."""
    if shots < 1:
        raise TaskError(f"shots={shots}: in-context learning needs at least 1 demonstration per class.")
    if limit < 0:
        raise TaskError(f"limit={limit}: give how many queries to take at most, or 0 for all.")
    if not seeds or len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**32 for seed in seeds):
        raise TaskError(f"seeds={list(seeds)}: give at least one whole number from 0 to {2**32 - 1}, none twice.")
    if prompts and (data or pool):
        raise TaskError(f"prompts={prompts!r} fixes every prompt; leave data={data!r} and pool={pool!r} empty.")


def check_shots(pool: Sequence[Example], task: Task, shots: int, *, where: str) -> None:
    """Refuse a pool of demonstrations with fewer than ``shots`` rows of some class."""
    counts = Counter(example.label for example in pool)
    for label, word in enumerate(task.label_words):
        if counts[label] < shots:
            raise TaskError(
                f"{where}: {counts[label]} rows of class {label} ({word.strip()}) where shots={shots} needs {shots}. "
                "Lower shots, or give a pool with more rows of that class."
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
            example(each, task, where=f"{where}, demonstration {n}") for n, each in enumerate(record["demonstrations"])
        ]
        found.append((demonstrations, example(record["query"], task, where=f"{where}, query", row=row, gold=False)))
    if not found:
        raise TaskError(f"{path}: no prompts; it needs at least one line.")
    return found
