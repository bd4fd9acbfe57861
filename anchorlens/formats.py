"""Text and label of each row of a file: CSV, TSV, JSONL, Parquet, or a folder that ``Dataset.save_to_disk`` made.

Every reader hands on (place, text, label) row by row and says file, place and remedy where it cannot. Where a data set
numbers its classes (``ClassLabel``), labels are the classes' names: ``Named``.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anchorlens.tasks import MissingRowsError, TaskError, suggestion

Split = Literal["query", "demonstration"]
Record = tuple[str, Any, Any]  # place, text, label

SPLITS: dict[Split, tuple[str, ...]] = {"query": ("test", "validation"), "demonstration": ("train",)}  # by preference
_KINDS = ".csv, .tsv, .jsonl or .parquet file, or a folder made by save_to_disk"
_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar")
_COLUMNS = "Say which columns they are with text_column=NAME and label_column=NAME, or in the task file."
_RENAME = "give each column a name of its own"


class Named(str):
    """A class by its name in a data set that numbers its classes: never read as a number."""

    __slots__ = ()


def records(path: Path, text: str, label: str, split: Split = "query") -> Iterator[Record]:
    """The rows of a file or a saved folder; ``split`` says what for, where a folder has several.

    Raises:
        MissingRowsError: if there is no such file.
        TaskError: if it cannot be read, or does not have the columns ``text`` and ``label``.
    """
    if not path.exists():
        near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingRowsError(f"{path}: no such file{suggestion(path.name, near)} Give a {_KINDS}.")
    if path.is_dir():
        return _saved(split_folder(path, split), text, label)
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise TaskError(f"{path}: rows are not read from {suffix} files; unpack it first.")
    if suffix not in _READERS:
        raise TaskError(f"{path}: rows are read from a {_KINDS}, not from {suffix or 'no suffix'!r}.")
    return _READERS[suffix](path, text, label)


def fingerprint(path: Path, split: Split = "query") -> str:
    """What identifies the rows of a file or a saved folder, wherever it is: a hash of its bytes."""
    if not path.is_dir():
        with path.open("rb") as file:
            return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    folder = split_folder(path, split)
    files = [*_arrow_files(folder), folder / "dataset_info.json"]
    each = [fingerprint(file) for file in files if file.is_file()]
    return f"sha256 {hashlib.sha256(repr(each).encode()).hexdigest()}"


def hint(path: Path) -> str:
    """What a label that is no class may come from, in a file of that kind."""
    separator = {".csv": "commas", ".tsv": "tabs"}.get(path.suffix.lower())
    return f"; if the columns are shifted, quote texts that contain {separator}" if separator else ""


def pick(splits: Sequence[str], split: Split, where: str, remedy: str) -> str:
    """The one of a data set's splits that serves ``split``: its only one, or the first of ``SPLITS``.

    Raises:
        TaskError: if there are several, and none is called so.
    """
    wanted = SPLITS[split]
    for name in splits if len(splits) == 1 else [name for name in wanted if name in splits]:
        return name
    what = {"query": "queries", "demonstration": "demonstrations"}[split]
    raise TaskError(
        f"{where}: its splits are {', '.join(splits) or 'none'}, and {what} come from {' or '.join(wanted)} where "
        f"nothing else is said. {remedy}"
    )


def check_columns(found: Sequence[str], text: str, label: str, where: str) -> None:
    """Refuse a table that has not exactly one column for ``text`` and one for ``label``."""
    if repeated := sorted({name for name in found if list(found).count(name) > 1}, key=str):
        raise TaskError(f"{where}: {repeated} stand more than once in the header; {_RENAME}.")
    if missing := [name for name in (text, label) if name not in found]:
        near = {name: suggestion(name, map(str, found)).strip("; .") for name in missing}
        said = [f"no column {name!r}" + (f" ({guess})" if guess else "") for name, guess in near.items()]
        raise TaskError(f"{where}: {' and '.join(said)}; it has {', '.join(map(str, found)) or 'none'}. {_COLUMNS}")


def jsonl_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line of a JSONL file with the place to name in an error; blank lines are passed over."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}, line {number}: not JSON ({error}).") from error


def classes(features: Any, column: str) -> list[str] | None:
    """The names by which ``datasets`` numbers the classes of a column, from its features as JSON; None: it does not."""
    feature = features.get(column) if isinstance(features, Mapping) else None
    return feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None


def named(number: Any, names: Sequence[str] | None, where: str) -> Any:
    """The name of a class by its number there; labels that are no numbers, and null, as they are."""
    if names is None or not isinstance(number, int):
        return number
    if not 0 <= number < len(names):  # hidden labels are -1
        raise TaskError(f"{where}: label {number} names no class (gold labels are hidden); take another split.")
    return Named(names[number])


def arrow_records(files: Sequence[Path], features: Any, text: str, label: str, where: str) -> Iterator[Record]:
    """The rows of Arrow streams, as ``datasets`` keeps them."""
    import pyarrow

    names, row = classes(features, label), 0
    for file in files:
        try:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
                check_columns(reader.schema.names, text, label, where)
                for part in reader:
                    for said, given in zip(part[text].to_pylist(), part[label].to_pylist(), strict=True):
                        place = f"row {row}"
                        yield place, said, named(given, names, f"{where}, {place}")
                        row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise TaskError(f"{file}: not readable as Arrow ({error}); save the data set again.") from error


def split_folder(path: Path, split: Split) -> Path:
    """The folder of one split of what ``save_to_disk`` made: itself or, of a DatasetDict, the one for ``split``."""
    if (path / "state.json").is_file():
        return path
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits", [])
        return path / pick(splits, split, str(path), f"Name the split's folder: {path}/SPLIT.")
    inside = [each.name for each in sorted(path.iterdir()) if each.suffix.lower() in _READERS]
    raise TaskError(
        f"{path}: a folder without state.json or dataset_dict.json, so none that save_to_disk made. "
        f"{'Name a file in it: ' + ', '.join(inside[:5]) if inside else f'Give a {_KINDS}'}."
    )


def _saved(folder: Path, text: str, label: str) -> Iterator[Record]:
    info = folder / "dataset_info.json"
    features = read_json(info).get("features") if info.is_file() else None
    return arrow_records(_arrow_files(folder), features, text, label, str(folder))


def _arrow_files(folder: Path) -> list[Path]:
    try:
        return [folder / each["filename"] for each in read_json(folder / "state.json")["_data_files"]]
    except (KeyError, TypeError) as error:
        raise TaskError(f"{folder}/state.json: names no data files; save the data set again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that ``datasets`` wrote beside its tables."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise TaskError(f"{path}: not readable ({error}); save the data set again.") from error
    if not isinstance(found, dict):
        raise TaskError(f"{path}: holds no mapping; save the data set again.")
    return found


def _parquet(path: Path, text: str, label: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(schema.names, text, label, str(path))
            about = (schema.metadata or {}).get(b"huggingface")  # written by datasets: how it numbers classes
            names = classes(json.loads(about).get("info", {}).get("features"), label) if about else None
            for part in file.iter_batches(columns=[text, label]):
                for said, given in zip(part[text].to_pylist(), part[label].to_pylist(), strict=True):
                    place = f"row {row}"
                    yield place, said, named(given, names, f"{path}, {place}")
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not readable as Parquet ({error}); write it again.") from error


def _jsonl(path: Path, text: str, label: str) -> Iterator[Record]:
    for place, record in jsonl_records(path):
        yield place, *fields(record, text, label, f"{path}, {place}", f" {_COLUMNS}")


def fields(record: Any, text: str, label: str, where: str, remedy: str = "") -> tuple[Any, Any]:
    """Text and label of one JSON object."""
    if isinstance(record, Mapping) and {text, label} <= set(record):
        return record[text], record[label]
    found = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
    raise TaskError(f"{where}: expected {text} and {label}, found {found}.{remedy}")


def _separated(delimiter: str, kind: str, example: str) -> Callable[[Path, str, str], Iterator[Record]]:
    def read(path: Path, text: str, label: str) -> Iterator[Record]:
        reader = csv.DictReader(_rows(path), strict=True, delimiter=delimiter)
        try:
            header = list(reader.fieldnames or [])
            if len(header) == 1 and (others := [mark for mark in ",;\t|" if mark in header[0]]):
                raise TaskError(
                    f"{path}: the header {header[0]!r} is one field: {kind} has {delimiter!r} between fields, not "
                    f"{others[0]!r}. Save it so, or as .csv (with commas) or .tsv (with tabs)."
                )
            check_columns(header, text, label, str(path))
            for record in reader:
                place = f"line {reader.line_num}"
                if None in record or None in record.values():
                    found = sum(value is not None for key, value in record.items() if key is not None)
                    found += len(record.get(None) or ())  # type: ignore[call-overload]
                    if found < len(header):
                        raise TaskError(
                            f"{path}, {place}: {found} of the header's {len(header)} fields, so {len(header) - found} "
                            "are missing. Fill them in, or remove the line."
                        )
                    raise TaskError(
                        f"{path}, {place}: {found} fields where the header has {len(header)}, so its columns are "
                        f"shifted. Put texts with {example} in double quotes."
                    )
                yield place, record[text], record[label]
        except csv.Error as error:
            first, last = reader.line_num + 1, reader.reader.line_num
            place = f"line {first}" + (f" to {last}" if last > first else "")
            raise TaskError(
                f"{path}, {place}: not readable as {kind} ({error}). A text that begins with a double quote is written "
                '"""so"" it said".'
            ) from error

    return read


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, one at a time."""
    read = 0
    with path.open("rb") as file:
        for line in file:
            try:
                said = line.decode("utf-8" if read else "utf-8-sig")
            except UnicodeDecodeError as error:
                raise TaskError(
                    f"{path}: not UTF-8 ({error.reason} at byte {read + error.start}); save it as UTF-8."
                ) from error
            read += len(line)
            yield said


def _rows(path: Path) -> Iterator[str]:
    """Lines, cut as well where a lone carriage return ends one, as old spreadsheets write them."""
    for line in _lines(path):
        yield from io.StringIO(line, newline="") if "\r" in line.rstrip("\r\n") else (line,)


_READERS: dict[str, Callable[[Path, str, str], Iterator[Record]]] = {
    ".csv": _separated(",", "CSV", 'commas ("a, b")'),
    ".tsv": _separated("\t", "TSV", "tabs"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
