"""A task of one's own as a small YAML file: read, checked, and handed on as the arguments of a ``tasks.Task``."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anchorlens import yaml_files

SUFFIXES = (".yaml", ".yml")
REQUIRED = ("template", "label_words")
OPTIONAL = ("name", "separator", "label_token", "text", "label", "data", "pool")
_QUOTES = "put it in quotes (without them YAML reads yes, no, on, off, numbers and dates as no text)"


class TaskError(ValueError):
    """A task, or rows for it, that cannot be used as given."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where some known name is near, otherwise a full stop."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def path_of(name: str) -> Path:
    """The file that a parameter names."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, OSError) as error:  # a home of nobody, or too long
        raise TaskError(f"{name[:80]}: no path of a file ({error}); give one.") from error
    return path


def read(path: Path) -> dict[str, Any]:
    """What a task file says, with ``names`` for the classes and ``folder`` for where its relative paths begin.

    Label words follow the template after one blank, whether the file writes it or not (as with ``label_words="a|b"``);
    so a template may not end in a blank or a line break itself. ``name`` is that of the file where none is given.

    Raises:
        TaskError: for a file that is no such mapping, an unknown or repeated key, or a value of another kind.
    """
    found = _parse(path)
    if not isinstance(found, Mapping):
        raise TaskError(f"{path}: expected keys like template: and label_words:, found {_kind(found)}.")
    known = (*REQUIRED, *OPTIONAL)
    for key in found:
        if key not in known:
            raise TaskError(f"{path}: no key {key!r}{suggestion(str(key), known)} It takes: {', '.join(known)}.")
    if missing := [key for key in REQUIRED if key not in found]:
        raise TaskError(f"{path}: {' and '.join(missing)} missing; a task needs a template and its label words.")
    given: dict[str, Any] = {"name": path.stem}
    given |= {key: _text(value, f"{path}: {key}") for key, value in found.items() if key != "label_words"}
    template = given["template"]
    if template != template.rstrip():
        raise TaskError(
            f"{path}: template {template!r} ends in a blank or a line break; the label word follows it after one blank "
            "of its own. Remove it (a block of lines wants |- in place of |)."
        )
    given["label_words"], given["names"] = _classes(found["label_words"], path)
    return given | {"folder": str(path.parent)}


def _classes(found: Any, path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Label words in class order, and the class that each name in the data stands for (none for a plain list)."""
    where = f"{path}: label_words"
    if isinstance(found, list):
        return tuple(" " + _text(word, f"{where}, word {n}").strip() for n, word in enumerate(found)), {}
    if not isinstance(found, Mapping):
        raise TaskError(f"{where}: expected [word, word] or {{name in the data: word}}, found {_kind(found)}.")
    names: dict[str, int] = {}
    for label, name in enumerate(found):
        said = str(name).strip() if isinstance(name, int) and not isinstance(name, bool) else _text(name, where).strip()
        if said in names:
            raise TaskError(f"{where}: the name {said!r} is there twice; give each class one name.")
        names[said] = label
    return tuple(" " + _text(word, f"{where}, {name}").strip() for name, word in found.items()), names


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{where} is {_kind(value)}, expected text; {_QUOTES}.")
    if not value.strip() and not where.endswith(": separator"):
        raise TaskError(f"{where} is empty; write it, or leave the key out where it may be.")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"


def _parse(path: Path) -> Any:
    try:
        return yaml_files.read(path)
    except FileNotFoundError as error:
        near = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise TaskError(
            f"{path}: no such task file{suggestion(path.name, near)} Give a YAML file with "
            "template and label_words; a path counts from the working folder."
        ) from error
    except yaml_files.YamlError as error:
        raise TaskError(str(error)) from error
