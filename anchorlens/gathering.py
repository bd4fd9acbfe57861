"""Tables that come in parts: each is stored when it is done, and none is done twice, however often a run is begun."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TypeVar

import pandas as pd
from tqdm import tqdm

from anchorlens import store

Work = TypeVar("Work", bound=Sized)


@dataclass
class Gathering:
    """Measures parts one by one into the folder of ``target``."""

    target: store.Run
    resumes: bool = False  # whether parts of an earlier try are taken; by hand, a cell may have changed meanwhile
    resumed: int = 0  # how many were
    _gathered: set[str] = field(default_factory=set)

    def gather(
        self,
        measure: Callable[[Work], Iterable[pd.DataFrame]],
        parts: Sequence[Work],
        columns: Mapping[str, str],
        name: str = "results",
        *,
        anew: bool = False,
    ) -> pd.DataFrame:
        """Measure one part after the other, store the table that they make, sorted by seed and example, and return it.

        Each part is written when it is done, and no longer kept. Under a runner, a part that an earlier try has
        completed is not measured again. Progress is shown on stderr.

        Args:
            measure: the rows of a part, as one frame or several (``passes.over``). After an error the rows so far are
                in the folder, but the part does not count as done.
            parts: what is measured; ``len`` of a part is its number of prompts. They must depend on the run's key alone
                (not, say, on free memory).
            columns: of the table, as its analysis declares them.
            anew: measure every part, whatever is there; for a ``measure`` that hands on more than its rows.

        Raises:
            StoreError: for rows that do not match ``columns``, or none at all.
        """

        def tables(part: Work) -> Iterator[Mapping[str, pd.DataFrame]]:
            return ({name: frame} for frame in measure(part))

        return self.gather_tables(tables, parts, {name: columns}, anew=anew)[name]

    def gather_tables(
        self,
        measure: Callable[[Work], Iterable[Mapping[str, pd.DataFrame]]],
        parts: Sequence[Work],
        columns: Mapping[str, Mapping[str, str]],
        *,
        anew: bool = False,
    ) -> dict[str, pd.DataFrame]:
        """``gather`` for a measure that gives several tables at once, by name; parts may lack rows of one."""
        if self.resumes and (twice := self._gathered & set(columns)):
            raise store.StoreError(
                f"table {', '.join(sorted(twice))} is gathered twice in one run, so that parts of one could be taken "
                "for the other's when the run goes on after an interruption; give each gathering a name of its own."
            )
        there: set[int] = set()
        if self.resumes and not anew:
            there = set.intersection(*(self.target.parts(name, len(parts)) for name in columns))
        self._gathered |= set(columns)
        self.resumed += len(there)
        what = ", ".join(columns)
        if there:
            print(f"{what}: resuming: {len(there)} of {len(parts)} parts are there", file=sys.stderr)
        with _bar(what, parts, sum(len(parts[n]) for n in there)) as bar:
            for number, part in enumerate(parts):
                if number not in there:
                    self._measure(measure(part), columns, number, len(parts), bar, len(part))
        whole = {}
        for name, declared in columns.items():
            found = (self.target.read_part(name, number) for number in range(len(parts)))
            frame = _joined(found, declared)
            if frame.empty:
                raise store.StoreError(f"table {name!r} has no rows: there were no prompts.")
            order = [column for column in ("seed", "example") if column in declared]
            whole[name] = frame.sort_values(order, kind="stable", ignore_index=True)
            self.target.write(whole[name], declared, name)
        return whole

    def _measure(
        self,
        given: Iterable[Mapping[str, pd.DataFrame]],
        columns: Mapping[str, Mapping[str, str]],
        number: int,
        of: int,
        bar: tqdm,
        prompts: int,
    ) -> None:
        """Store one part; what there is of it, if an error ends it."""
        frames: dict[str, list[pd.DataFrame]] = {name: [] for name in columns}
        whole, end = False, bar.n + prompts
        try:
            for tables in given:
                for name, frame in tables.items():
                    frames[name].append(frame)
                bar.update(min(_prompts(tables), end - bar.n))
            whole = True
        finally:
            for name, declared in columns.items():
                frame = _joined(frames[name], declared)
                if whole or not frame.empty:
                    self.target.write_part(frame, declared, name, number, of=of, whole=whole)
        bar.update(end - bar.n)

    def progress(self, parts: Sequence[Work], name: str) -> Iterator[Work]:
        """One part after the other, with the progress that ``gather`` shows; for what is not stored."""
        with _bar(name, parts) as bar:
            for part in parts:
                yield part
                bar.update(len(part))


def _bar(name: str, parts: Sequence[Sized], done: int = 0) -> tqdm:
    """Progress over prompts, on stderr, with the time that is left."""
    return tqdm(desc=name, total=sum(map(len, parts)), initial=done, unit="prompt")


def _joined(frames: Iterable[pd.DataFrame], columns: Mapping[str, str]) -> pd.DataFrame:
    filled = [frame for frame in frames if not frame.empty]
    if not filled:
        return pd.DataFrame(columns=pd.Index(list(columns))).astype(dict(columns))
    return pd.concat(filled, ignore_index=True)


def _prompts(tables: Mapping[str, pd.DataFrame]) -> int:
    """How many prompts the rows are about."""
    told = [frame for frame in tables.values() if {"seed", "example"} <= set(frame)]
    return max((len(frame[["seed", "example"]].drop_duplicates()) for frame in told), default=0)
