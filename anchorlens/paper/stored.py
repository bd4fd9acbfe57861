"""Stored runs in order: by model, notebook, task and seed, and what sets them apart from the paper's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from anchorlens import preflight, store, tasks
from anchorlens.paper.published import PUBLISHED

_KEPT: list[Any] = []


@dataclass(frozen=True)
class Cell:
    """One seed of a finished run."""

    folder: Path
    seed: int
    manifest: Mapping[str, Any] = field(hash=False, compare=False)

    def table(self, name: str = "results") -> pd.DataFrame:
        """The seed's rows of a table.

        Raises:
            store.StoreError: if the run has no such table.
        """
        frame: Any = _read(self.folder, name)
        return frame[frame["seed"] == self.seed] if "seed" in frame else frame

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
    replaced: int = 0  # cells that a later run of the same model, notebook, task and seed stands in for

    def of(self, notebook: str, task: str = "") -> dict[str, list[Cell]]:
        """Cells by task, in the paper's order; of one task, if it is named."""
        found = self.cells.get(notebook, {})
        return {each: found[each] for each in PUBLISHED["tasks"] if each in found and task in ("", each)}


def studies(runs: Iterable[Path]) -> list[Study]:
    """Finished runs, by model.

    Args:
        runs: folders of runs. Of two with the same model, notebook, task and seed the one that was finished last
            counts. Notebooks and tasks that the paper does not have are passed over.

    Raises:
        store.StoreError: for a folder that is no finished run.
    """
    told = [(Path(folder), store.manifest(folder)) for folder in runs]
    told = [each for each in told if _concerns(each[1])]
    by_model: dict[tuple[str, str], dict[tuple[str, str, int], Cell]] = {}
    replaced: dict[tuple[str, str], int] = {}
    for folder, manifest in sorted(told, key=lambda each: (each[1]["finished"], str(each[0]))):
        given = manifest["parameters"]
        model = Path(given["model"]).name if _is_folder(manifest) else given["model"], manifest["weights"]
        for seed in [-1] if given["prompts"] else given["seeds"]:
            place = manifest["notebook"], given["task"], seed
            replaced[model] = replaced.get(model, 0) + (place in by_model.setdefault(model, {}))
            by_model[model][place] = Cell(folder, seed, manifest)
    names = [name for name, _ in by_model]
    found = []
    for (name, weights), cells in by_model.items():
        ordered: dict[str, dict[str, list[Cell]]] = {}
        for (notebook, task, _), cell in sorted(cells.items()):
            ordered.setdefault(notebook, {}).setdefault(task, []).append(cell)
        shown = name if names.count(name) == 1 else f"{name} ({weights.split()[1][:8]})"
        known, why = _known(next(iter(cells.values())).manifest)
        found.append(Study(shown, known, why, ordered, replaced[name, weights]))
    return found


def kept(function: Any) -> Any:
    """``functools.cache``, until ``forget``."""
    _KEPT.append(cache(function))
    return _KEPT[-1]


def forget() -> None:
    """Drop the tables that were read, and what was made of them."""
    for each in _KEPT:
        each.cache_clear()


@kept
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
