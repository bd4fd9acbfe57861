"""What a store holds: whole runs, and those that failed, were cut off, or were damaged since."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from anchorlens import parts, store

WHOLE, FAILED, UNFINISHED, DAMAGED = STATES = ("whole", "failed", "unfinished", "damaged")
TOYS = {  # by name, as ``preflight`` has them; and what each is
    "toy": "is trained so that its label words become anchors",
    "toy-random": "is the toy untrained",
    "toy-unanchored": "is trained so that its label words do not become anchors",
}
# Goes through a sequence and shows how far it is: what is done, and what one of it is called.
Over: TypeAlias = Callable[[Sequence[Any], str, str], Iterable[Any]]
_FOLDER = re.compile(r"([0-9a-f]{16})(\.partial|\.broken|\.replaced)?")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}")
_OF_THE_RUNNER = ("model", "task", "seeds", "device", "dtype", "folder")  # given to every run, or shown by themselves


@dataclass(frozen=True)
class Stored:
    """A run's folder: ``said`` is what is wrong with it, ``given`` what its notebook was given, where it tells."""

    notebook: str
    folder: Path
    state: str
    said: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def slug(self) -> str:
        """A file name that is this run's alone, whatever its notebook is called."""
        return slug(f"{self.notebook}-{self.key}")

    @property
    def parameters(self) -> dict[str, Any]:
        told = self.manifest.get("parameters")
        return {**self.given, **(told if isinstance(told, dict) else {})}

    @property
    def settings(self) -> dict[str, Any]:
        """What it was given beside model, task and seeds."""
        return {name: value for name, value in self.given.items() if name not in _OF_THE_RUNNER}

    def value(self, name: str) -> str:
        """A parameter, in words."""
        told = self.parameters.get(name, "")
        return ", ".join(map(str, told)) if isinstance(told, list) else str(told)

    @property
    def from_folder(self) -> bool:
        """Whether its model was named by a path; told by its spelling where no weights were seen."""
        model, weights = self.value("model"), str(self.manifest.get("weights", ""))
        if model in TOYS or weights.startswith("commit "):
            return False
        return bool(weights) or model.startswith((".", "/", "~")) or model.count("/") > 1

    def table(self, name: str = "results") -> pd.DataFrame:
        """A table of a whole run."""
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def tables(self) -> list[Path]:
        """Tables of a whole run; what is left of others is none."""
        return sorted(self.folder.glob("*.parquet")) if self.state == WHOLE else []


def plainly(each: Sequence[Any], doing: str, unit: str) -> Iterable[Any]:
    """An ``Over`` that shows nothing."""
    return each


def found(root: Path, over: Over = plainly) -> list[Stored]:
    """All runs of a store, by notebook and time; reads all bytes of their tables, to see that they are as written."""
    folders = [
        folder
        for notebook in sorted(Path(root).iterdir())
        if notebook.is_dir()
        for folder in sorted(notebook.iterdir())
        if folder.is_dir() and _FOLDER.fullmatch(folder.name)
    ]
    looked = [_look(folder) for folder in over(folders, "checking runs", "run")]
    return sorted(looked, key=lambda run: (run.notebook, str(run.manifest.get("finished", "")), run.key))


def toys(found: Iterable[Stored]) -> list[str]:
    """Which of the toys there is something to see of."""
    there = {run.value("model") for run in found if run.state == WHOLE}
    return [name for name in TOYS if name in there]


def called(found: Iterable[Stored]) -> dict[str, str]:
    """What to call each model: of a path its last folder, or as many as tell it from all others and the toys."""
    split: dict[str, tuple[str, ...]] = {name: (name,) for name in TOYS}
    for run in found:
        model = run.value("model")
        if run.from_folder or model not in split:
            split[model] = Path(model).parts if run.from_folder else (model,)
    names = {}
    for model, own in split.items():
        others = [each for name, each in split.items() if name != model]
        ends = (own[-n:] for n in range(1, len(own)) if all(each[-n:] != own[-n:] for each in others))
        names[model] = "/".join(next(ends, (model,)))
    return names


def slug(name: str) -> str:
    """``name`` as a file name that needs no escaping anywhere; names that had to be changed stay different."""
    if _PLAIN.fullmatch(name):
        return name
    kept = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("-")
    return f"{kept or '_'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _look(folder: Path) -> Stored:
    notebook, given = folder.parent.name, _given(folder / "run.ipynb")
    told = _json(folder / "manifest.json")
    if folder.suffix in (".partial", ".replaced"):
        failed = _json(folder / "failed.json")
        if (error := failed.get("error")) is not None:
            known = failed.get("parameters")
            return Stored(
                notebook, folder, FAILED, str(error), told, given or (known if isinstance(known, dict) else {})
            )
        done = sum(parts.is_name(path.name) for path in folder.iterdir())
        kept = f"; {done} stored parts of its tables are kept" if done else ""
        said = f"still running, or cut off{kept}. The same command goes on after what is done."
        return Stored(notebook, folder, UNFINISHED, said, told, given)
    if folder.suffix == ".broken":
        said = "set aside by a later run of the same key, since it was not as it was written; nothing needs it any more"
        return Stored(notebook, folder, DAMAGED, said, told, given)
    wrong = store.damage(store.Run(folder)).replace(f"{folder}/", "")
    wrong += ". The same command once more sets it aside and runs it anew" if wrong else ""
    return Stored(notebook, folder, DAMAGED if wrong else WHOLE, wrong, told, given)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read, of which ``store.damage`` tells."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _given(notebook: Path) -> dict[str, Any]:
    told: Any = _json(notebook)
    for name in ("metadata", "papermill", "parameters"):
        told = told.get(name) if isinstance(told, dict) else None
    return told if isinstance(told, dict) else {}
