"""Stored runs in order: by model, notebook, task and seed, and what sets them apart from the paper's."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from anchorlens import preflight, store, tasks
from anchorlens.paper.published import PUBLISHED

_KEPT: list[Any] = []
_AGAIN = "run it again with --force"
_TOLD = ("notebook", "weights", "finished")  # of a manifest, in words
_GIVEN = ("model", "task", "seeds", "prompts", "limit")


class UnreadableError(store.StoreError):
    """A run of another version, or one that was damaged: it lacks what is asked of it."""

    def __init__(self, folder: Path, lacks: str) -> None:
        said = lacks.replace(f"{folder.parent.parent}{os.sep}", "")  # a comparison is shown to others
        super().__init__(f"run {folder.parent.name}/{folder.name} {' '.join(said.split())}; {_AGAIN}")
        self.folder = folder


@dataclass(frozen=True)
class Cell:
    """One seed of a finished run."""

    folder: Path
    seed: int
    manifest: Mapping[str, Any] = field(hash=False, compare=False)

    def table(self, name: str = "results") -> pd.DataFrame:
        """The seed's rows of a table.

        Raises:
            UnreadableError: if the run has no such table, or one that cannot be read.
        """
        if not self.has(name):
            tables = sorted(path.stem for path in self.folder.glob("*.parquet"))
            raise UnreadableError(self.folder, f"has no table {name!r} (it has {', '.join(tables) or 'none'})")
        try:
            frame: Any = _read(self.folder, name)
        except (OSError, ValueError) as error:  # pyarrow's are of these
            raise UnreadableError(self.folder, f"has a table {name!r} that cannot be read ({error})") from error
        return frame[frame["seed"] == self.seed] if "seed" in frame else frame

    def has(self, name: str) -> bool:
        """Whether the run has such a table."""
        return (self.folder / f"{name}.parquet").is_file()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Within the block, what the run's tables and manifest lack is said as the run's.

        Raises:
            UnreadableError: for a column, row or parameter that is not there, or is of another type.
        """
        try:
            yield
        except UnreadableError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise UnreadableError(self.folder, f"has tables without what this takes ({said})") from error

    @property
    def differences(self) -> list[str]:
        """What is not as in the paper's runs, for people: rows and settings, not the model."""
        given, task = self.manifest["parameters"], tasks.TASKS[self.manifest["parameters"]["task"]]
        settings = {**PUBLISHED["settings"][""], **PUBLISHED["settings"][self.manifest["notebook"]]}
        found = []
        if not given["prompts"]:
            for name, what in (("data", "queries"), ("pool", "demonstrations")):
                made = str(self.manifest["inputs"][name])
                if task.hub is None or not made.startswith(f"hub {task.hub.dataset} "):
                    whose = "the toy" if self.toy else made.split(" commit")[0] if made.startswith("hub ") else "a file"
                    found.append(f"{what} from rows of {whose}")
        for name, value in settings.items():
            asked = given.get(name, value)
            asked = "natural" if name == "label_words" and asked == "auto" and not self.toy else asked
            if asked not in (value if isinstance(value, list) else [value]):
                found.append(f"{name}={asked!r}")
        return list(dict.fromkeys(found))

    @property
    def notes(self) -> list[str]:
        """What is to be known beside a number, though it may be compared."""
        limit, left_out = self.manifest["parameters"]["limit"], self.manifest.get("left_out", 0)
        found = []
        if 0 < limit < PUBLISHED["limit"]:
            found.append(f"at most {limit} queries a seed, the paper {PUBLISHED['limit']}")
        return [*found, *([f"{left_out} prompts left out as too long"] if left_out else [])]

    @property
    def toy(self) -> bool:
        return self.manifest["parameters"]["model"] in preflight.TOYS


@dataclass(frozen=True)
class Study:
    """All runs of one model; ``known`` is the paper's name for it, or empty, and then ``why`` says why."""

    name: str
    known: str
    why: str
    cells: Mapping[str, Mapping[str, list[Cell]]]  # notebook, task, by seed
    replaced: Mapping[tuple[str, str], int] = field(default_factory=dict)  # cells another stands in for, likewise

    def of(self, notebook: str, task: str = "") -> dict[str, list[Cell]]:
        """Cells by task, in the paper's order; of one task, if it is named."""
        found = self.cells.get(notebook, {})
        return {each: found[each] for each in PUBLISHED["tasks"] if each in found and task in ("", each)}


def studies(runs: Iterable[Path]) -> tuple[list[Study], dict[str, list[str]]]:
    """Finished runs, by model.

    Args:
        runs: folders of runs. Of two with the same model, notebook, task and seed the one counts that differs less from
            the paper's settings; of those alike, the one of more queries; then the one that was finished last.
            Notebooks and tasks that the paper does not have are passed over.

    Returns:
        The studies; and by notebook, what is said of runs whose manifest cannot be read.
    """
    told, unread = [], dict[str, list[str]]()
    for folder in map(Path, runs):
        try:
            told.append((folder, manifest(folder)))
        except UnreadableError as error:
            unread.setdefault(folder.parent.name, []).append(str(error))
    by_model: dict[tuple[str, str], list[tuple[Path, Mapping[str, Any]]]] = {}
    for folder, each in told:
        if _concerns(each):
            given = each["parameters"]
            model = Path(given["model"]).name if _is_folder(each) else given["model"]
            by_model.setdefault((model, each["weights"]), []).append((folder, each))
    names = [name for name, _ in by_model]
    found = []
    for (name, weights), own in by_model.items():
        cells, replaced = chosen(own)
        shown = name if names.count(name) == 1 else f"{name} ({weights.split()[1][:8]})"
        known, why = _known(own[0][1])
        found.append(Study(shown, known, why, cells, replaced))
    return found, unread


def chosen(
    told: Iterable[tuple[Path, Mapping[str, Any]]],
) -> tuple[dict[str, dict[str, list[Cell]]], Counter[tuple[str, str]]]:
    """Cells of one model's runs by notebook and task, in order of seeds; and for how many another stands in."""
    by_place: dict[tuple[str, str, int], Cell] = {}
    replaced = Counter[tuple[str, str]]()
    for folder, each in sorted(told, key=_worth):
        given = each["parameters"]
        for seed in [-1] if given["prompts"] else given["seeds"]:
            place = each["notebook"], given["task"], seed
            replaced[place[:2]] += place in by_place
            by_place[place] = Cell(folder, seed, each)
    cells: dict[str, dict[str, list[Cell]]] = {}
    for (notebook, task, _), cell in sorted(by_place.items()):
        cells.setdefault(notebook, {}).setdefault(task, []).append(cell)
    return cells, replaced


def _worth(one: tuple[Path, Mapping[str, Any]]) -> tuple[Any, ...]:
    """The larger, the more a run says of what the paper measured: a trial never stands in for the real thing."""
    folder, told = one
    apart = len(Cell(folder, 0, told).differences) if _concerns(told) else 0
    return -apart, told["parameters"]["limit"] or math.inf, told["finished"], str(folder)


def manifest(folder: Path) -> dict[str, Any]:
    """A finished run's manifest, with all that places it among others.

    Raises:
        UnreadableError: if there is none, or it lacks that.
    """
    try:
        told = store.manifest(folder)
    except store.StoreError as error:
        raise UnreadableError(folder, f"cannot be read ({error})") from error
    given, inputs = told.get("parameters"), told.get("inputs")
    lacks = [name for name in _TOLD if not isinstance(told.get(name), str)]
    lacks += [f"parameters.{name}" for name in _GIVEN if not isinstance(given, dict) or name not in given]
    lacks += [f"inputs.{name}" for name in ("data", "pool") if not isinstance(inputs, dict) or name not in inputs]
    if lacks or not isinstance(given, dict) or not isinstance(given["seeds"], list):
        raise UnreadableError(folder, f"has a manifest.json without {', '.join(lacks) or 'a list of seeds'}")
    return told


def cached(function: Any) -> Any:
    """``functools.cache``, until ``forget``."""
    _KEPT.append(cache(function))
    return _KEPT[-1]


def forget() -> None:
    """Drop the tables that were read, and what was made of them."""
    for each in _KEPT:
        each.cache_clear()


@cached
def _read(folder: Path, name: str) -> pd.DataFrame:
    return store.read(folder, name)


def _concerns(manifest: Mapping[str, Any]) -> bool:
    return manifest["notebook"] in PUBLISHED["settings"] and manifest["parameters"]["task"] in PUBLISHED["tasks"]


def _is_folder(manifest: Mapping[str, Any]) -> bool:
    return manifest["parameters"]["model"] not in preflight.TOYS and not manifest["weights"].startswith("commit ")


def _known(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """The paper's name for a run's model, or why it is none."""
    model = manifest["parameters"]["model"]
    if model in preflight.TOYS:
        return "", "other model: the shipped toy"
    if _is_folder(manifest):
        return "", "other model: the weights of a folder, which are known to be the paper's only by hub id"
    for known, ids in PUBLISHED["models"].items():
        if model.lower() in [each.lower() for each in ids]:
            return known, ""
    return "", f"other model: {model}"
