"""A grid of runs from a YAML file: every job checked, and looked up in the store, before any starts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal

from anchorlens import batch, parameters, store, yaml_files
from anchorlens.values import Declared, ParameterError, shown

KEYS = ("notebooks", "only")  # what a grid says beside parameters
RELOADS = ("model", "revision", "backend", "device", "dtype", "n_devices")  # what makes a worker load another model

State = Literal["cached", "failed", "new"]


@dataclass(frozen=True)
class Job:
    """One run: what is given to its notebook, where its result is or will be, and whether it is there.

    ``state`` is "failed" where an earlier try ended in an error, of which ``said`` tells; of a new one it tells what is
    wrong with the result that is there. ``made_of`` is what its key is made of.
    """

    notebook: str
    parameters: Mapping[str, Any]
    folder: Path
    state: State
    said: str = ""
    made_of: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        """For people."""
        given = " ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.notebook} {given}".strip()


class Grid(dict[str, Any]):
    """What a grid says; of one from a file also in which line, except what a command line says ``instead``."""

    def __init__(
        self,
        said: Mapping[str, Any],
        name: str = "sweep",
        line: Callable[..., int] | None = None,
        instead: Sequence[str] = (),
    ) -> None:
        super().__init__(said)
        self.name, self.line, self.instead = name, line, instead

    def at(self, where: str, *places: tuple[Any, ...]) -> str:
        """``where`` with the lines of some places, each of keys and numbers within lists."""
        known = [place for place in places if place[0] not in self.instead]
        lines = sorted({self.line(*place) for place in known}) if self.line is not None else []
        return f"{where}, line{'s'[: len(lines) > 1]} {' and '.join(map(str, lines))}" if lines else where


def read(path: Path) -> Grid:
    """What a grid file says.

    Raises:
        ParameterError: for a file that is none.
    """
    try:
        found, line = yaml_files.placed(path)
    except FileNotFoundError as error:
        raise ParameterError(f"{path}: no such file; give a grid as YAML, like notebooks/paper.yaml.") from error
    except yaml_files.YamlError as error:
        raise ParameterError(str(error)) from error
    if not isinstance(found, dict):
        what = "nothing" if found is None else type(found).__name__
        raise ParameterError(f"{path}: expected notebooks: and parameters, found {what}.")
    return Grid(found, str(path), line)


def with_words(grid: Mapping[str, Any], notebooks: Sequence[str], assignments: Sequence[str]) -> Grid:
    """A grid with what a command line says in place of what a file does: names of notebooks, and ``NAME=VALUE``.

    A parameter that is given several times makes a run of each value.

    Raises:
        ParameterError: for a word that is no ``NAME=VALUE``.
    """
    grid = grid if isinstance(grid, Grid) else Grid(grid)
    found = Grid({**grid, **({"notebooks": list(notebooks)} if notebooks else {})}, grid.name, grid.line)
    found.instead = ["notebooks"] if notebooks else []
    known = {
        name: declared
        for notebook in _notebooks(found, grid.name)
        for name, declared in parameters.declared(parameters.find(notebook)).items()
    }
    said: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(f"-p {assignment!r}: expected NAME=VALUE.")
        said.setdefault(name, []).append(known[name].parse(name, text) if name in known else text)
    if isinstance(only := grid.get("only"), Mapping):  # which goes before what is common
        there = _notebooks(grid, grid.name) if notebooks else []
        left_out = set(there) - set(_notebooks(found, grid.name))  # notebooks of the file that the words leave out
        found["only"] = {
            notebook: {name: value for name, value in each.items() if name not in said}
            if isinstance(each, Mapping)
            else each
            for notebook, each in only.items()
            if notebook not in left_out
        }
    return Grid({**found, **said}, grid.name, grid.line, [*found.instead, *said])


def jobs(
    grid: Mapping[str, Any], root: Path, *, where: str = "grid", plan: Callable[..., batch.Plan] | None = None
) -> list[Job]:
    """The runs of a grid, those of one model together, otherwise in the grid's order; equal ones once.

    A parameter is one value or a list of them, each for a run of its own with every combination of the others; of a
    parameter that is a list itself (``seeds``), a list of lists. ``notebooks`` are names, by default all but the tour;
    ``only`` holds parameters of single notebooks. ``plan`` stands in for ``batch.plan`` where runs happen elsewhere.

    Raises:
        ParameterError: for a name that no notebook declares, a value of the wrong type, or an empty grid.
        ModelError, TaskError: as ``batch.run``, before anything starts.
    """
    found: dict[Path, Job] = {}
    grid = grid if isinstance(grid, Grid) else Grid(grid)
    for notebook, given, places in _combined(grid, where):
        try:
            planned = (plan or batch.plan)(notebook, given, root)
        except (ValueError, RuntimeError) as error:
            _place(error, grid.at(where, *(places[name] for name in _named(error, given))), where)
            raise
        state, said = _state(planned.target)
        found.setdefault(planned.target.final, Job(notebook, given, planned.target.final, state, said, planned.made_of))
    first: dict[tuple, int] = {}
    for n, job in enumerate(found.values()):
        first.setdefault(_model(job), n)
    return sorted(found.values(), key=lambda job: first[_model(job)])


def _model(job: Job) -> tuple[Any, ...]:
    return tuple(str(job.parameters.get(name, "")) for name in RELOADS)


def _state(target: store.Run) -> tuple[State, str]:
    if target.whole:
        said = store.damage(target)
        return ("new", said) if said else ("cached", "")
    said = batch.failure(target)
    return ("failed", said) if said else ("new", "")


def _place(error: Exception, at: str, where: str) -> None:
    """Have an error say first at which line of the file it is, where that is known."""
    if at != where and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{at}: {error}",)


def _named(error: Exception, given: Mapping[str, Any]) -> list[str]:
    """Which parameters an error is about: those that it shows as NAME=VALUE, else of which it has the value or name."""
    said = str(error)
    for shows in (
        lambda name, value: re.search(rf"\b{re.escape(name)}=", said),
        lambda name, value: isinstance(value, str) and value and value in said,
        lambda name, value: re.search(rf"\b{re.escape(name)}\b", said),
    ):
        if found := [name for name, value in given.items() if shows(name, value)]:
            return found
    return []


def _combined(grid: Grid, where: str) -> Iterator[tuple[str, dict[str, Any], dict[str, tuple[Any, ...]]]]:
    """Notebooks with parameters, and the place of each of these in the grid."""
    names = _notebooks(grid, where)
    declared = {name: parameters.declared(parameters.find(name)) for name in names}
    common = {name: value for name, value in grid.items() if name not in KEYS}
    only = grid.get("only") or {}
    if not isinstance(only, Mapping) or not all(isinstance(each, Mapping) for each in only.values()):
        raise ParameterError(
            f"{grid.at(where, ('only',))}: only: expected {{notebook: {{parameter: values}}}}, found {only!r}."
        )
    if unnamed := [name for each in (grid, only, *only.values()) for name in each if not isinstance(name, str)]:
        raise ParameterError(
            f"{where}: {unnamed[0]!r} is no name: without quotes YAML takes yes, on, null and 42 for other things than "
            "text. Give names of notebooks and of parameters."
        )
    if strange := sorted(set(only) - set(names)):
        at = grid.at(where, *(("only", name) for name in strange))
        raise ParameterError(f"{at}: only: {', '.join(strange)} is not among the notebooks {', '.join(names)}.")
    for name in common:
        near = get_close_matches(name, KEYS, n=1)
        if near and not any(name in known for known in declared.values()):
            raise ParameterError(f"{grid.at(where, (name,))}: a grid has no {name!r}; did you mean {near[0]!r}?")
        _check_common(name, declared, grid.at(where, (name,)))
    for notebook in names:
        asked = {**common, **only.get(notebook, {})}
        known = declared[notebook]
        unknown = [name for name in asked if name not in known or name == parameters.RESERVED]
        of_one = only.get(notebook, {})
        place = {name: ("only", notebook, name) if name in of_one else (name,) for name in asked}
        if unknown:
            try:
                parameters.check(parameters.find(notebook), {unknown[0]: None})  # says what there is
            except ParameterError as error:
                _place(error, grid.at(where, place[unknown[0]]), where)
                raise
        values = [_values(name, known[name], value, grid, where, place[name]) for name, value in asked.items()]
        for chosen in product(*values):
            given = {name: value for name, (value, _) in zip(asked, chosen, strict=True)}
            yield notebook, given, {name: at for name, (_, at) in zip(asked, chosen, strict=True)}


def _notebooks(grid: Grid, where: str) -> list[str]:
    asked = grid.get("notebooks", "all")
    if asked == "all":
        return [name for name in parameters.notebooks() if name[0] != "0"]
    if not isinstance(asked, Sequence) or not asked or not all(isinstance(each, str) for each in asked):
        raise ParameterError(
            f"{grid.at(where, ('notebooks',))}: notebooks: expected all, a name or a list of names, found {asked!r}."
        )
    names = [asked] if isinstance(asked, str) else list(asked)
    shipped = parameters.notebooks()
    found: dict[Path, str] = {}
    for n, name in enumerate(names):
        try:
            found.setdefault(parameters.find(name), name)
        except ParameterError as error:
            _place(error, grid.at(where, ("notebooks", n)), where)
            raise
    return [path.stem if shipped.get(path.stem) == path else name for path, name in found.items()]


def _check_common(name: str, declared: Mapping[str, Mapping[str, Declared]], where: str) -> None:
    """Refuse a parameter that some notebook of the grid does not have; there it would silently change nothing."""
    having = [notebook for notebook, known in declared.items() if name in known]
    if having and len(having) < len(declared):
        lacking = ", ".join(sorted(set(declared) - set(having)))
        raise ParameterError(
            f"{where}: {name} is no parameter of {lacking}. Put it under only:, as in only: {{{having[0]}: {{{name}: "
            "VALUE}}."
        )


def _values(
    name: str, declared: Declared, value: Any, grid: Grid, where: str, place: tuple[Any, ...]
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The values of one parameter, each for runs of its own, with its place in the grid."""
    several = isinstance(value, list) and (
        any(isinstance(each, list) for each in value) if declared.kind.startswith("list[") else True
    )
    values = value if several else [value]
    places = [(*place, n) for n in range(len(values))] if several else [place]
    if not values:
        raise ParameterError(
            f"{grid.at(where, place)}: {name} is an empty list; give at least one value, or leave it out."
        )
    if repeated := [n for n, each in enumerate(values) if each in values[:n]]:
        at = grid.at(where, places[repeated[0]])
        raise ParameterError(f"{at}: {name} has {shown(values[repeated[0]])} twice; give each value once.")
    return list(zip(values, places, strict=True))
