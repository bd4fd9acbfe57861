"""Keep results: a run is a folder named by a content key, whole when it is there under that name.

Everything is written into ``<key>.partial`` beside it, the manifest last; then the folder is renamed. A result that was
damaged since gives way to a new run, and stays as ``<key>.broken`` to be looked at. Whoever works on
a partial folder owns the run (``claims``), so that two runners of one key leave exactly one result. A table may come in
parts, ``<table>-00003.parquet``: since the key covers all that decides a result, a later try goes on where an earlier
one ended.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from anchorlens import claims, parts
from anchorlens.claims import StoreError, writable

SCHEMA = 1  # version of the manifest
_SUMS, _DIGEST = _CHECKS = ("sha256", "digest")  # in a manifest: of the tables, and of all else in it


@dataclass(frozen=True)
class Run:
    """A run being written: tables go into ``partial``, ``finish`` makes it ``final``."""

    final: Path

    @property
    def partial(self) -> Path:
        return self.final.with_name(self.final.name + ".partial")

    @property
    def _replaced(self) -> Path:
        return self.final.with_name(self.final.name + ".replaced")

    @property
    def broken(self) -> Path:
        return self.final.with_name(self.final.name + ".broken")

    @property
    def whole(self) -> bool:
        """Whether the result is there; ``damage`` tells what is wrong with one."""
        return (self.final / "manifest.json").is_file()

    def write(self, frame: pd.DataFrame, columns: Mapping[str, str], name: str = "results") -> Path:
        """Write one table as ``<name>.parquet``, checked against the columns its analysis declares.

        Raises:
            StoreError: for a missing or an undeclared column, a wrong type, a table without rows, or a part's name.
        """
        _check(frame, columns, name)
        path = self.partial / f"{name}.parquet"
        if parts.is_name(path.name):
            raise StoreError(f"table {name!r}: names that end in five digits are those of parts; choose another.")
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(path, index=False)
        return path

    def write_part(
        self, frame: pd.DataFrame, columns: Mapping[str, str], name: str, number: int, *, of: int, whole: bool = True
    ) -> Path:
        """Write part ``number`` of ``of`` of a table, checked as by ``write``, but it may be empty; never half a part.

        ``whole=False`` is for what an error has left of a part: to be looked at, and none of ``parts``.
        """
        _check(frame, columns, name, empty=True)
        path = parts.place(self.partial, name, number, whole=whole)
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            parts.write(frame, path, self._stamp(name, number, of))
        return path

    def read_part(self, name: str, number: int) -> pd.DataFrame:
        """A part that was written.

        Raises:
            StoreError: if it is not as it was written.
        """
        try:
            return parts.read(parts.place(self.partial, name, number))[0]
        except ValueError as error:
            raise StoreError(f"{error}. The same run once more measures this part anew.") from error

    def parts(self, name: str, of: int) -> set[int]:
        """Which of ``of`` parts of a table are there as they were written; all are read for it."""
        found = set()
        for number in range(of):
            try:
                _, stamp = parts.read(parts.place(self.partial, name, number))
            except (OSError, ValueError):
                continue
            if stamp == self._stamp(name, number, of):
                found.add(number)
        return found

    def clear(self, *, keep_parts: bool = False) -> None:
        """Remove what is in ``partial``; with ``keep_parts``, all but files that bear the name of a part."""
        for path in self.partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not (keep_parts and parts.is_name(path.name)):
                path.unlink()

    def files(self) -> list[Path]:
        """What is in ``partial`` so far and will be in ``final``: all but parts, whose tables are there in the end."""
        return sorted(path for path in self.partial.iterdir() if not parts.is_of_part(path.name))

    def set_aside(self) -> Path:
        """Move a damaged result out of the way of a new run, in place of an earlier one; for the owner of the claim."""
        with writable(self.broken):
            if self.broken.exists():
                shutil.rmtree(self.broken)
            self.final.rename(self.broken)
        return self.broken

    def tidy(self) -> None:
        """Remove an empty partial folder that nobody works in: a runner who waited for this run was killed there."""
        if self.partial.is_dir():  # of most there is none, and so no need of a lock
            with suppress(OSError), claims.owning(self.final):
                self.partial.rmdir()

    def leave(self, name: str, text: str) -> None:
        """Write a file for people into the partial folder of a run that is not there, unless somebody works in it.

        Nobody may be left to be told that there is no room for it, so an error is none.
        """
        with suppress(OSError), claims.owning(self.final):
            if not self.whole:
                self.partial.mkdir(parents=True, exist_ok=True)
                try:
                    (self.partial / name).write_text(text)
                except OSError:
                    self.partial.rmdir()

    def _stamp(self, name: str, number: int, of: int) -> dict[str, Any]:
        return {"key": self.final.name, "table": name, "part": number, "of": of}

    def finish(self, manifest: Mapping[str, Any]) -> Path:
        """Write the manifest, make everything durable, and put the folder in its place; an older result gives way.

        Parts go last, so that a run whose end fails, on a full disk say, goes on after them. The file says more than it
        was given: ``schema``, and sums of the tables and of itself for ``damage``.

        Raises:
            StoreError: if there are no results, or the manifest is not strict JSON.
        """
        if not (self.partial / "results.parquet").is_file():
            raise StoreError(f"{self.partial}: no results.parquet was written, so there is nothing to keep.")
        try:
            sums = {path.name: _sum(path) for path in self.files() if path.suffix == ".parquet"}
            told = {"schema": SCHEMA, **manifest, _SUMS: sums}
            told = json.loads(json.dumps(told, allow_nan=False))  # as it will be read
            text = json.dumps({**told, _DIGEST: key(told)}, indent=2, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise StoreError(f"manifest of {self.final.name}: not strict JSON ({error}).") from error
        with writable(self.partial):
            (self.partial / "manifest.json").write_text(text + "\n")
            kept = self.files()
            for path in kept:
                parts.sync(path)
            for path in set(self.partial.iterdir()) - set(kept):
                path.unlink()
            parts.sync(self.partial)
            if self.final.exists():  # moved aside first: at no time is half a result under the key
                self.final.rename(self._replaced)
            self.partial.rename(self.final)
            parts.sync(self.final.parent)
            shutil.rmtree(self._replaced, ignore_errors=True)
        return self.final


@contextmanager
def claiming(run: Run, *, resume: bool = False, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block this process alone owns the run, whose partial folder is there; waits for another owner.

    What is left in the folder after an error stays there to be looked at, until the run is claimed again. Then it is
    emptied; with ``resume``, parts of tables stay. ``waits`` is called before it waits, and may raise instead.

    Raises:
        StoreError: if the folder cannot be made.
    """
    with ExitStack() as owned:
        with writable(run.partial):
            owned.enter_context(claims.owning(run.final, waits))
            run.partial.mkdir(parents=True, exist_ok=True)
            made = run.partial.stat()
        try:
            with writable(run.partial):
                run.clear(keep_parts=resume)
                if run._replaced.exists():  # left by a process that was killed between two renames
                    shutil.rmtree(run._replaced) if run.whole else run._replaced.rename(run.final)
            yield
        finally:
            with suppress(OSError):  # there is none, something is in it, or the folder became read-only
                if os.path.samestat(run.partial.stat(), made):  # and not one that somebody has made since
                    run.partial.rmdir()


def read(folder: Path, name: str = "results") -> pd.DataFrame:
    """A table of a finished run.

    Raises:
        StoreError: if the folder is no finished run, or has no such table.
    """
    manifest(folder)
    path = Path(folder) / f"{name}.parquet"
    if not path.is_file():
        tables = sorted(each.stem for each in Path(folder).glob("*.parquet"))
        raise StoreError(f"{folder} has no table {name!r}; it has {', '.join(tables)}.")
    return pd.read_parquet(path)


def manifest(folder: Path) -> dict[str, Any]:
    """How a finished run came about, without what ``damage`` compares.

    Raises:
        StoreError: if the folder is no finished run.
    """
    path = Path(folder) / "manifest.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in told.items() if name not in _CHECKS}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{folder} is not a finished run: its manifest.json cannot be read ({error}).") from error


def damage(run: Run) -> str:
    """What is wrong with a result that is there; empty if nothing is. Reads all bytes of the tables.

    Figures and notebooks may be opened and saved again: they must be there, and the notebook be one.
    """
    try:
        told = json.loads((run.final / "manifest.json").read_text(encoding="utf-8"))
        digest = told.pop(_DIGEST, None)  # results from before there was one are taken as they are
        if digest not in (None, key(told)):
            return "manifest.json is not as it was written: its digest differs"
        files, sums = set(told.get("files", ())), dict(told.get(_SUMS, {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error})"
    for name in sorted(files | set(sums) | {"results.parquet"}):
        path = run.final / name
        try:
            if name in sums and _sum(path) != sums[name]:
                return f"{name} is not as it was written: its sum differs"
            if name not in sums and path.suffix == ".parquet":
                pq.read_metadata(path)
            if path.suffix == ".ipynb" and not json.loads(path.read_text(encoding="utf-8"))["cells"]:
                return f"{name} has no cells"
            path.stat()
        except (OSError, ValueError, TypeError, KeyError) as error:  # pyarrow's are of these
            return f"{name} cannot be read ({error})"
    return ""


def key(content: Mapping[str, Any]) -> str:
    """16 hex digits that name a run by what it depends on."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(frame: pd.DataFrame, columns: Mapping[str, str], name: str, *, empty: bool = False) -> None:
    types = dict(zip(frame.columns, frame.dtypes, strict=True))
    wrong = [f"{c}: {types[c]}, not {t}" for c, t in columns.items() if c in types and types[c] != t]
    missing, extra = sorted(set(columns) - set(frame)), sorted(map(str, set(frame) - set(columns)))
    extra += [f"{column} twice" for column in frame.columns[frame.columns.duplicated()]]
    if wrong or missing or extra or (frame.empty and not empty):
        raise StoreError(
            f"table {name!r} does not match the COLUMNS of its analysis: missing {missing}, not declared {extra}, "
            f"wrong type {wrong}, {len(frame)} rows."
        )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
