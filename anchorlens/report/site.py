"""Writes a site: into a folder beside its place first, so that there is never half of one."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from plotly.offline import get_plotlyjs
from tqdm import tqdm

from anchorlens.report import pages, runs
from anchorlens.report.pages import ReportError

Compare: TypeAlias = Callable[[Sequence[Path]], pd.DataFrame]
MARK = "report.json"  # by which a folder is known to be a report, which may be made anew
_MADE = {"made_by": "anchorlens report", "format": 1}


@dataclass(frozen=True)
class Site:
    """A site that was written."""

    index: Path
    runs: int
    pages: int
    bytes: int
    states: dict[str, int]


def build(store: Path, out: Path, compare: Compare | None = None, *, bar: bool = True) -> Site:
    """Write the site of a store to the folder ``out``, in place of an earlier one.

    The same store makes the same bytes.

    Args:
        store: a folder of runs; those that failed, were cut off or damaged are listed, and say so.
        out: a folder that is not there, is empty, or holds a report.
        compare: gives published numbers beside those of whole runs, with the columns ``pages.COMPARED``.
        bar: show progress on stderr, if that is a terminal.

    Raises:
        ReportError: if the store is no folder or has no runs, or ``out`` holds something else.
    """
    if not store.is_dir():
        raise ReportError(f"store {store}: is no folder. Give the folder of runs, by default outputs.")
    over = _showing if bar else runs.plainly
    found = runs.found(store, over)
    if not found:
        raise ReportError(f"store {store}: has no runs. Make some first, with `anchorlens demo` or `anchorlens run`.")
    whole = [run.folder for run in found if run.state == runs.WHOLE]
    compared = None
    for each in over([compare] if compare is not None else [], "comparing with the paper", "comparison"):
        compared = each(whole)
    with _replacing(out) as folder:
        _write(folder, pages.site(found, compared, out.resolve(), over))
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    states = {state: sum(run.state == state for run in found) for state in runs.STATES}
    n_pages = sum(path.suffix == ".html" for path in files)
    return Site(out.resolve() / "index.html", len(found), n_pages, size, states)


def _showing(each: Sequence[Any], doing: str, unit: str) -> Iterable[Any]:
    """An ``Over`` that shows bars, which are gone when they are done; none where stderr is no terminal."""
    return tqdm(each, desc=f"report: {doing}", unit=unit, leave=False, disable=None)


def _write(folder: Path, files: Iterator[tuple[str, bytes]]) -> None:
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    for asset in (resources.files("anchorlens.report") / "assets").iterdir():
        (assets / asset.name).write_bytes(asset.read_bytes())
    (assets / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    (folder / MARK).write_text(json.dumps(_MADE) + "\n")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` if the block ends well."""
    out = out.resolve()
    if out.exists() and not _is_ours(out):
        raise ReportError(
            f"report {out}: is there, and no report made by anchorlens, so that it is not replaced. Give a folder that "
            "is not there or is empty."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ReportError(
            f"report {out}: cannot be written ({error.strerror}: {error.filename}). Give a folder that you "
            "may write to."
        ) from error
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            out.rename(old / "report")
            folder.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            folder.rename(out)
    except OSError as error:
        raise ReportError(
            f"report {out}: cannot be written ({error.strerror or error}). Make room, or give another folder; what was "
            "there before is kept."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(out: Path) -> bool:
    if not out.is_dir():
        return False
    try:
        return not any(out.iterdir()) or json.loads((out / MARK).read_text())["made_by"] == _MADE["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
