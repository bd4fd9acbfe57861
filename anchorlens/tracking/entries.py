"""What is told of a run elsewhere: parameters, facts from its manifest, headline figures, and small files."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from numbers import Integral
from pathlib import Path
from time import time
from typing import Any, Literal, NamedTuple

import pandas as pd

from anchorlens import store

LIMIT = 10_000_000  # bytes of a file that goes along; results as large as that stay where they are
KINDS = (".html", ".png", ".parquet", ".ipynb", ".json")
_FACTS = ("key", "notebook", "status", "device", "dtype", "weights", "ran", "kernel", "started", "finished", "seconds")
_SCRIPT = "../../plotly.min.js"  # by which a figure finds the library in its store


class Series(NamedTuple):
    """A figure to be drawn from a table: means over all rows of a group."""

    table: str
    values: Sequence[str]
    by: Sequence[str] = ()
    axis: str = ""


class Metric(NamedTuple):
    """A number; along ``axis`` (layer, depth, epoch) it is one of a series, at ``step``."""

    name: str
    value: float
    axis: str = ""
    step: int = 0


SCORES = Series("scores", ("accuracy", "macro_f1"), ("arm",))
HEADLINES: dict[str, Sequence[Series]] = {
    "2_1_information_flow": (Series("results", ("value",), ("flow",), "layer"), SCORES),
    "2_2_isolation": (Series("results", ("label_loyal", "word_loyalty"), ("arm", "mask", "end"), "depth"), SCORES),
    "2_3_extraction": (Series("summary", ("auc", "contribution"), (), "layer"), SCORES),
    "3_1_reweighting": (
        Series("results", ("correct",), ("arm",)),
        Series("losses", ("loss",), (), "epoch"),
        SCORES,
    ),
    "3_2_compression": (
        Series("results", ("label_loyal", "word_loyalty", "correct", "tokens_kept"), ("arm", "positions")),
        Series("cost", ("flops_ratio",), ("arm", "batch")),
        SCORES,
    ),
    "3_3_diagnosis": (Series("agreement", ("spearman",), ("n_components",), "layer"), SCORES),
}  # by notebook; of one that is not named, whatever numbers its results hold


@dataclass(frozen=True)
class Entry:
    """One run, as it is told to a sink."""

    key: str
    notebook: str
    state: Literal["done", "failed"]
    parameters: Mapping[str, Any]
    facts: Mapping[str, Any]
    started: float  # seconds since 1970
    finished: float
    metrics: Sequence[Metric] = ()
    files: Sequence[Path] = ()
    error: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.notebook} {self.key}"

    @contextmanager
    def portable(self) -> Iterator[list[Path]]:
        """Its files as they can be opened elsewhere: figures take plotly.js from its own site, not from the store."""
        with tempfile.TemporaryDirectory() as made:
            yield [_portable(path, Path(made)) for path in self.files]


def done(folder: Path) -> Entry:
    """A finished run.

    Raises:
        store.StoreError: if the folder is none.
    """
    said = store.manifest(folder)
    facts = {name: said[name] for name in _FACTS if name in said}
    facts |= {f"versions.{name}": version for name, version in said.get("versions", {}).items()}
    there = [path for path in sorted(folder.iterdir()) if path.suffix in KINDS]
    files = [path for path in there if path.stat().st_size <= LIMIT]
    if left := [path.name for path in there if path not in files]:
        facts["left_out"] = f"{', '.join(left)}: more than {LIMIT} bytes, so only in {folder}"
    return Entry(
        said["key"],
        said["notebook"],
        "done",
        said["parameters"],
        facts,
        datetime.fromisoformat(said["started"]).timestamp(),
        datetime.fromisoformat(said["finished"]).timestamp(),
        headlines(folder, said["notebook"]),
        files,
    )


def failed(folder: Path, parameters: Mapping[str, Any], error: str, seconds: float = 0.0) -> Entry:
    """A run that ended in an error; ``folder`` is where its result would be."""
    path, now = store.Run(folder).partial / "run.ipynb", time()
    files = [path] if path.is_file() and path.stat().st_size <= LIMIT else []
    facts = {"key": folder.name, "notebook": folder.parent.name, "status": "failed", "error": error}
    given = (dict(parameters), facts, now - seconds, now)
    return Entry(folder.name, folder.parent.name, "failed", *given, files=files, error=error)


def headlines(folder: Path, notebook: str) -> list[Metric]:
    """The figures that a section is read by; what is undefined (NaN) is left out, since it is no number.

    Named by column and group, as in ``label_loyal/label/before/first``; the saliency flow by its own name, ``S_wp``.
    """
    shown = HEADLINES.get(notebook) or _whatever(folder)
    shown = [series for series in shown if (folder / f"{series.table}.parquet").is_file()]
    return [metric for series in shown for metric in _means(store.read(folder, series.table), series)]


def _whatever(folder: Path) -> list[Series]:
    frame = store.read(folder)
    values = [name for name in frame if _is_number(frame[name])]
    by = [name for name in frame if frame[name].dtype == "object" or isinstance(frame[name].dtype, pd.StringDtype)]
    return [Series("results", values, by, next((name for name in ("layer", "depth") if name in frame), ""))]


def _is_number(column: Any) -> bool:
    return pd.api.types.is_float_dtype(column) or pd.api.types.is_bool_dtype(column)  # whole numbers are names here


def _means(frame: pd.DataFrame, series: Series) -> Iterator[Metric]:
    values = list(series.values)
    by = [*series.by, *([series.axis] if series.axis else [])]
    table = frame[values].astype("float64")
    groups: Any = table.groupby([frame[name] for name in by]) if by else [((), table)]
    for group, rows in groups:
        labels = [
            f"{name}={label}" if isinstance(label, Integral) else str(label)
            for name, label in zip(by, group, strict=True)
            if name != series.axis and str(label)
        ]
        step = int(group[-1]) if series.axis else 0
        for value, mean in rows.mean().items():
            if pd.notna(mean):
                stem = [] if value == "value" and labels else [value]
                yield Metric("/".join([*stem, *labels]), float(mean), series.axis, step)


def _portable(path: Path, made: Path) -> Path:
    if path.suffix != ".html":
        return path
    text, library = path.read_text(encoding="utf-8"), path.parent / _SCRIPT
    copy = made / path.name
    if _SCRIPT in text and library.is_file():
        with library.open(encoding="utf-8") as file:
            version = re.search(r"plotly\.js v(\d+\.\d+\.\d+)", file.read(1000))
        if version:
            copy.write_text(text.replace(_SCRIPT, f"https://cdn.plot.ly/plotly-{version[1]}.min.js"), encoding="utf-8")
            return copy
    return Path(shutil.copy(path, copy))
