"""What a parameter is declared to be, which values it takes, and what to do about another."""

import json
import math
from dataclasses import dataclass
from typing import Any

_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
_LARGEST = 2**63 - 1  # what tables hold
_SHOWN = 200  # characters of a value in an error


class ParameterError(ValueError):
    """A notebook or a parameter that does not exist, or a value of the wrong type."""


@dataclass(frozen=True)
class Declared:
    """A parameter as its notebook declares it."""

    kind: str  # str, int, float, bool, or list[...] of these
    default: Any
    help: str

    def parse(self, name: str, text: str) -> Any:
        """The value that ``text`` from a command line means; lists are JSON or comma-separated."""
        inner = self._inner
        if not inner:
            return _parse_one(text, self.kind)
        text = text.strip()
        if text.startswith("["):
            try:
                return json.loads(text)  # its items are checked like any other value
            except (ValueError, RecursionError) as error:
                raise ParameterError(f"{name}={shown(text)}: not a JSON list ({error}).") from error
        return [_parse_one(part.strip(), inner) for part in text.split(",") if part.strip()]

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` has the declared type and reaches a notebook as it is, by way of JSON and of a table."""
        if self._inner:
            return isinstance(value, list) and all(_is(item, self._inner) for item in value)
        return _is(value, self.kind)

    def advice(self, value: Any) -> str:
        """What to give in place of a value that is not accepted; empty where nothing can be guessed."""
        if not self._inner:
            return _advice(value, self.kind)
        if isinstance(value, list):
            return next((_advice(item, self._inner) for item in value if not _is(item, self._inner)), "")
        if isinstance(value, tuple) and self.accepts(list(value)):
            return f"Give a list: {json.dumps(list(value))}."
        return f"Give a list: [{json.dumps(value)}]." if _is(value, self._inner) else ""

    @property
    def _inner(self) -> str:
        return self.kind[5:-1] if self.kind.startswith("list[") else ""


def shown(value: Any) -> str:
    """A value as Python writes it, within bounds."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return f"a number too long to be shown ({type(value).__name__})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind == "float":
        return isinstance(value, int | float) and _exact(value)
    if kind == "int":
        return type(value) is int and abs(value) <= _LARGEST
    return type(value) is _TYPES[kind] and _unicode(value)


def _exact(value: int | float) -> bool:
    try:
        return math.isfinite(value) and float(value) == value
    except OverflowError:  # an integer beyond what a float can be
        return False


def _unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _parse_one(text: str, kind: str) -> Any:
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return _TYPES[kind](text) if kind != "bool" else text
    except ValueError:
        return text  # whoever checks says what was expected


def _advice(value: Any, kind: str) -> str:
    if kind == "str":
        if isinstance(value, str):
            return "It holds bytes that are no text in UTF-8: rename the file, or encode the text anew."
        if isinstance(value, list | tuple | dict | set):
            return "Give one text."
        return "Put it into quotes: without them YAML takes no, on, 42, 1e3 or 2020-01-01 for other things than text."
    if isinstance(value, float) and not math.isfinite(value):
        return "Give a finite number."
    if type(value) is int and kind in ("int", "float"):
        return f"Give a number of at most {_LARGEST}." if kind == "int" else "Give a number that a float can be."
    meant: Any = value
    if isinstance(value, str):
        meant = _parse_one(value, "float" if kind == "int" else kind)
    if kind == "int" and isinstance(meant, float) and math.isfinite(meant) and meant == int(meant):
        meant = int(meant)
    if kind == "bool" and type(value) is int and value in (0, 1):
        meant = bool(value)
    if not _is(meant, kind):
        return ""
    told = " In quotes, or written like 1e-2, YAML takes it for text." if isinstance(value, str) else ""
    return f"Give {json.dumps(meant)}.{told}"
