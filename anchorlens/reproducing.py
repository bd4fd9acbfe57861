"""The paper's grid for one model: which tasks have rows, and the runs that it comes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorlens import batch, preflight, sweep, tasks
from anchorlens.paper import PUBLISHED
from anchorlens.sweep import Job
from anchorlens.tasks import MissingRowsError, Task
from anchorlens.values import ParameterError

MODEL = "gpt2-xl"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = ("test", "validation", "dev")  # of queries, after the one that the task's rows on the hub have for them
DIAGNOSIS = "3_3_diagnosis"  # for TREC alone, as in the paper
_MOST = 1000  # seeds; a slip of the keyboard asks for more
_HARD = {"data": "hard", "pool": "hard"}
ON_TOY = {"3_1_reweighting": {"learning_rate": 0.1, **_HARD}, DIAGNOSIS: _HARD}  # so that there is something to gain


@dataclass(frozen=True)
class Grid:
    """Runs, and of each task of the paper that has none, why."""

    jobs: list[Job]
    missing: dict[str, str]


def seeds(text: str) -> list[int]:
    """Seeds from "42..46", "42,43" or "42".

    Raises:
        ParameterError: for text that names none.
    """
    try:
        first, dots, last = text.partition("..")
        found = [int(each) for each in ((first, last) if dots else text.split(","))]
        found = list(range(found[0], min(found[1], found[0] + _MOST) + 1)) if dots else found
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or min(found) < 0 or len(found) > _MOST:
        raise ParameterError(
            f"--seeds {text!r}: expected whole numbers from 0 on, none twice and at most {_MOST}, as in 42..46 or "
            "42,43; the paper's are 42..46."
        )
    return found


def model_or_toy(model: str, data: Path | None) -> tuple[str, Path | None, str]:
    """The model and rows to take, and what is to be said of them; without a named model the paper's, or else the toy.

    Raises:
        preflight.ModelError, preflight.MissingModelError: for a named model that cannot be used; nothing stands in.
    """
    try:
        preflight.locate(model or MODEL)
    except preflight.MissingModelError as error:
        if model:
            raise
        said = (
            f"NOT THE PAPER'S MODEL: {error}\nThe grid runs on the shipped toy instead, and nothing of it will be "
            "comparable. Give --model a folder of weights, or connect once to fetch gpt2-xl."
        )
        return "toy", None, said + ("\nThe toy knows its own words only: --data is left aside." if data else "")
    return model or MODEL, data, ""


def files(folder: Path, task: Task) -> tuple[Path, Path]:
    """The files of a folder for a task's queries and demonstrations: TASK_SPLIT or TASK, with one of ``SUFFIXES``.

    Queries come from test, validation or dev, whichever the task takes first, demonstrations from train; a file called
    as the task itself is for both.

    Raises:
        MissingRowsError: if there is none.
        ParameterError: if there are several for the same.
    """
    hub = task.hub.splits.get("query", "") if task.hub else ""
    query = _first(folder, [f"{task.name}_{split}" for split in dict.fromkeys((hub, *SPLITS)) if split] + [task.name])
    pool = _first(folder, [f"{task.name}_train", task.name])
    query, pool = query or pool, pool or query
    if query is None or pool is None:
        raise MissingRowsError(
            f"no rows of {task.name}: folder {folder.name!r} has no {task.name}_test, {task.name}_validation, "
            f"{task.name}_train or {task.name} with {', '.join(SUFFIXES)}"
        )
    return query, pool


def plan(
    model: str,
    root: Path,
    *,
    seeds: Sequence[int],
    data: Path | None = None,
    limit: int = PUBLISHED["limit"],
    only_notebooks: Sequence[str] = (),
    only_tasks: Sequence[str] = (),
    how: Callable[..., batch.Plan] | None = None,
) -> Grid:
    """The runs of the paper's grid, one for each notebook, task and seed, looked up in the store ``root``.

    Prompts that are longer than the model can read are left out, and counted in the run.

    Args:
        model: a toy, a folder, or a hub id.
        data: folder with rows by task, see ``files``; None: each task's own.
        limit: queries per seed at most; 0: all.
        only_notebooks, only_tasks: these of the paper's alone.
        how: stands in for ``batch.plan`` where runs happen elsewhere.

    Raises:
        ParameterError: for a folder, notebook or task that there is not.
        MissingRowsError: if no task has rows.
        preflight.ModelError, tasks.TaskError: as ``batch.plan``.
    """
    notebooks = [each for each in PUBLISHED["settings"] if each]
    for name, asked, known in (("notebook", only_notebooks, notebooks), ("task", only_tasks, PUBLISHED["tasks"])):
        if strange := [each for each in asked if each not in known]:
            near = tasks.suggestion(strange[0], known)
            raise ParameterError(f"--{name} {strange[0]!r} is none of the paper's{near} It has {', '.join(known)}.")
    if data is not None and not data.is_dir():
        raise ParameterError(f"--data {data}: expected a folder with files such as sst2_train.csv, found none.")
    jobs, missing = [], {}
    for task in PUBLISHED["tasks"]:
        chosen = [each for each in only_notebooks or notebooks if each != DIAGNOSIS or task == "trec"]
        if only_tasks and task not in only_tasks:
            missing[task] = "not asked for"
            continue
        if not chosen:
            continue
        grid: dict[str, Any] = {"notebooks": chosen, "model": model, "task": task, "limit": limit, "too_long": "skip"}
        grid["seeds"] = [[seed] for seed in seeds]
        grid["only"] = {name: ON_TOY[name] for name in chosen if name in ON_TOY} if model in preflight.TOYS else {}
        try:
            if data is not None:
                grid["data"], grid["pool"] = map(str, files(data, tasks.TASKS[task]))
            jobs += sweep.jobs(grid, root, where="the paper's grid", plan=how)
        except MissingRowsError as error:
            missing[task] = str(error)
    if not jobs:
        lacking = "; ".join(f"{task}: {why}" for task, why in missing.items())
        raise MissingRowsError(f"no task has rows, so there is nothing to run. {lacking}. Give --data FOLDER.")
    return Grid(jobs, missing)


def _first(folder: Path, stems: Sequence[str]) -> Path | None:
    for stem in stems:
        found = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise ParameterError(
                f"--data {folder}: both {found[0].name} and {found[1].name} are there, and they could differ; keep one."
            )
        if found:
            return found[0]
    return None
