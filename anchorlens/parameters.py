"""A run's parameters: what a notebook declares, what was given, and the content key they make with files and code.

All of it happens before a kernel starts, and without torch.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorlens import formats, preflight, rows, spreading, tasks, tokenizing
from anchorlens.values import Declared, ParameterError, shown

PACKAGE = Path(__file__).parent
NOTEBOOK_FOLDERS = (PACKAGE / "notebooks", PACKAGE.parent / "notebooks")  # an installed wheel; a checkout
TRAINING = ("0_tour", "3_1_reweighting")  # the notebooks that train something
_SPLITS: dict[str, formats.Split] = {"data": "query", "pool": "demonstration"}  # what rows are for, by parameter
RESERVED = "folder"  # the parameter by which a runner tells the notebook where to write
_COLUMNS = ("text_column", "label_column")
_MODEL = ("model", "backend", "revision", "remote_code")
_SOURCES = (*_MODEL, "task", "data", "pool", *_COLUMNS, "prompts", "train_prompts")
_DRAWS = ("shots", "seeds", "limit", "label_words", "label_token", "bos", "as_published", "too_long")
_MACHINE = ("device", "dtype", "n_devices", "batch_tokens")
STANDARD = frozenset((*_SOURCES, *_DRAWS, *_MACHINE))  # what every notebook declares
CHOICES = {
    "too_long": ("error", "skip"),
    "bos": ("auto", "yes", "no"),
    "heads": ("sum", "each"),
    "demonstrations": ("fresh", "shared"),
    "mask": ("before", "after"),
    "control": ("seeded", "published"),
    "against": ("predicted", "gold"),
    "positions": ("both", "restart", "continue"),
}  # what a parameter of that name may be, in whichever notebook
LEAST = {
    "epochs": (1, "training goes over the examples at least once"),
    "train_shots": (1, "re-weighting needs at least one training example per class"),
    "draws": (0, "0 leaves the random control out"),
    "n_components": (1, "queries are described by at least one principal component"),
    "layer": (-1, "layers count from 0, and -1 means two thirds of the depth"),
    "sets": (0, "0 takes each seed's own prompts"),
}


def notebooks() -> dict[str, Path]:
    """The shipped notebooks by name."""
    folder = next((folder for folder in NOTEBOOK_FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.ipynb"))} if folder else {}


def find(notebook: str) -> Path:
    """The file of a notebook given by name or by path."""
    known = notebooks()
    name = notebook.removesuffix(".ipynb")
    if name in known:
        return known[name]
    if Path(notebook).suffix == ".ipynb" and Path(notebook).is_file():
        return Path(notebook)
    tasks.refuse_generation(name, "notebook")
    raise ParameterError(f"no notebook {notebook!r}{tasks.suggestion(name, known)} Notebooks: {', '.join(known)}.")


def declared(notebook: Path) -> dict[str, Declared]:
    """The parameters that a notebook declares, in order: ``name: type = literal  # help``, one a line.

    Read here, since papermill's own reader takes seconds to import; a test holds the two against each other.

    Raises:
        ParameterError: for a file that is no notebook, or declares nothing in that form.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        found = {}
        for line in tagged[0].splitlines():
            (statement,) = ast.parse(line).body
            if not isinstance(statement, ast.AnnAssign) or statement.value is None:
                raise ValueError(f"{line!r} declares no parameter")
            found[ast.unparse(statement.target)] = Declared(
                ast.unparse(statement.annotation),
                ast.literal_eval(statement.value),
                line[statement.end_col_offset :].strip(" #"),
            )
    except (ValueError, KeyError, IndexError, SyntaxError, TypeError) as error:
        raise ParameterError(
            f"{notebook}: not a notebook with a cell tagged 'parameters' that has one `name: type = literal  # help` a "
            f"line ({type(error).__name__}: {error})."
        ) from error
    return found


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters with defaults filled in; papermill itself would only warn of a wrong one and run on.

    Raises:
        ParameterError: for an unknown name or a value of the wrong type.
    """
    known = declared(notebook)
    settable = [name for name in known if name != RESERVED]
    for name, value in parameters.items():
        if name not in settable:
            near = tasks.suggestion(str(name), settable)
            raise ParameterError(
                f"{notebook.name} has no parameter {shown(name)}{near} It takes: {', '.join(settable)}."
            )
        if not known[name].accepts(value):
            advice = known[name].advice(value)
            raise ParameterError(
                f"{notebook.name}: parameter {name}={shown(value)} is {type(value).__name__}, expected "
                f"{known[name].kind} (like its default {known[name].default!r}): {known[name].help}"
                f"{advice and f'. {advice}'}"
            )
    values = {name: parameters.get(name, known[name].default) for name in settable}
    return {name: float(value) if known[name].kind == "float" else value for name, value in values.items()}


def parse(notebook: Path, assignments: list[str]) -> dict[str, Any]:
    """Parameters from ``NAME=VALUE`` words of a command line, by the notebook's declared types."""
    known, parsed = declared(notebook), {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(f"-p {assignment!r}: expected NAME=VALUE.")
        if name in parsed:
            raise ParameterError(f"-p {assignment!r}: {name} is given twice; give it once.")
        parsed[name] = known[name].parse(name, text) if name in known else text
    return parsed


def examine(parameters: Mapping[str, Any], notebook: Path) -> dict[str, Any]:
    """Check names and files that parameters refer to, without torch, and fingerprint them.

    Returns:
        By parameter, what it comes to: device and dtype as resolved, rows and weights as fingerprints, and None for
        what does not matter here; what, beside the other parameters and the code, decides a result.

    Raises:
        preflight.ModelError, tasks.TaskError, tokenizing.PromptError: for a model, task or file that cannot be used.
    """
    if missing := sorted(STANDARD - set(parameters)):
        raise ParameterError(
            f"the notebook declares no {', '.join(missing)}: a notebook run by anchorlens has the parameters that all "
            "of them share. Copy the parameters cell of a shipped one."
        )
    if parameters["batch_tokens"] < 0:
        raise ParameterError(f"batch_tokens={parameters['batch_tokens']}: give tokens per batch, or 0 to choose.")
    for name, allowed in CHOICES.items():
        if name in parameters and parameters[name] not in allowed:
            values = ", ".join(map(repr, allowed[:-1]))
            raise ParameterError(f"{name}={parameters[name]!r}: it may be {values} or {allowed[-1]!r}.")
    for name, (least, why) in LEAST.items():
        if parameters.get(name, least) < least:
            raise ParameterError(f"{name}={parameters[name]}: at least {least}, since {why}.")
    if parameters["as_published"] and parameters.get("full_batch"):
        raise ParameterError(
            "as_published=True with full_batch=True: the released code trains on one example a step and divides an "
            "epoch's loss by one less than its steps, so with one step there is nothing to divide by."
        )
    if any(depth < 0 for depth in parameters.get("depths", [])):
        raise ParameterError(f"depths={parameters['depths']}: each counts layers, from 0 to as many as the model has.")
    if not parameters.get("learning_rate", 1) > 0:
        raise ParameterError(f"learning_rate={parameters['learning_rate']}: it must be above 0, or nothing is learned.")
    if parameters["train_prompts"] and notebook.stem not in TRAINING:
        raise ParameterError(
            f"train_prompts={parameters['train_prompts']!r}: {notebook.stem} trains nothing, so leave it empty."
        )
    if parameters["train_prompts"] and not parameters["prompts"]:
        raise ParameterError(
            f"train_prompts={parameters['train_prompts']!r} goes with prompts=FILE, which fixes the prompts to be "
            "answered; without it, training prompts are drawn from pool."
        )
    if parameters["prompts"] and (given := [name for name in _COLUMNS if parameters[name]]):
        raise ParameterError(
            f"{' and '.join(given)} with prompts={parameters['prompts']!r}: a file of prompts has text and label. "
            f"Leave {' and '.join(given)} empty."
        )
    rows.check_request(**{name: parameters[name] for name in ("shots", "seeds", "limit", "prompts", "data", "pool")})
    backends = preflight.resolve_backend(parameters["backend"])
    device, dtype = preflight.resolve_device(parameters["device"]), preflight.resolve_dtype(parameters["dtype"])
    spreading.check(device, parameters["n_devices"])
    task = task_of(parameters)
    if parameters["label_words"] not in ("auto", "random"):
        tasks.with_words(task, parameters["label_words"])
    checkpoint = preflight.locate(parameters["model"], parameters["revision"], remote_code=parameters["remote_code"])
    weights = checkpoint.fingerprint()
    named = parameters["model"] if checkpoint.toy or checkpoint.revision else weights  # a folder may move
    facts: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights, "model": named}
    facts |= {"backend": " or ".join(backends), "label_token": task.label_token}
    if parameters["task"] not in tasks.TASKS:
        facts["task"] = task.fingerprint()  # a file may move
    files = _files(parameters, task, checkpoint.toy)
    texts: dict[str, list[str]] = {}
    for name, path in files.items():
        if name in ("prompts", "train_prompts"):
            fixed = rows.read_prompts(path, task)
            texts[str(path)] = [task.context(each.text) for shown, query in fixed for each in (*shown, query)]
        else:
            found = rows.read_file(path, task, split=_SPLITS[name])
            texts[str(path)] = [task.context(each.text) for each in found]
            if name == "pool":
                replacement = parameters["as_published"] and "demonstrations" in parameters  # a row may come twice
                same = files.get("data") == path and path.is_file()  # a folder may have a split for each
                own = same and not (parameters["limit"] or replacement)  # then each row is a query, too
                shots = 1 if replacement else parameters["shots"]
                rows.check_shots(found, task, shots, own=own, where=str(path))
        facts[name] = formats.fingerprint(path, _SPLITS.get(name, "query"))
    if checkpoint.toy:
        tokenizing.check_known(checkpoint.folder, texts)
    if parameters["prompts"]:
        facts |= {"shots": None}
        facts["seeds"] = parameters["seeds"][:1] if parameters["label_words"] == "random" else None
    else:
        for name in sorted(set(_SPLITS) - set(facts)):
            facts[name] = rows.fingerprint(task, parameters[name], split=_SPLITS[name], toy=checkpoint.toy)
    return facts


def task_of(parameters: Mapping[str, Any]) -> tasks.Task:
    """The task that a run's parameters name, read as they say."""
    return tasks.get(parameters["task"], **{name: parameters[name] for name in ("label_token", *_COLUMNS)})


def _files(parameters: Mapping[str, Any], task: tasks.Task, toy: bool) -> dict[str, Path]:
    """The files that a run will read, by the parameter that names them."""
    if parameters["prompts"]:
        return {name: rows.path_of(parameters[name]) for name in ("prompts", "train_prompts") if parameters[name]}
    files = {name: rows.file_of(task, parameters[name], split=split, toy=toy) for name, split in _SPLITS.items()}
    return {name: path for name, path in files.items() if path}


def content(notebook: Path, parameters: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a run's results; ``store.key`` of it names the run.

    Parameters that ``facts`` has resolved or fingerprinted count by what they mean, not by how they were written.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = hashlib.sha256()
    for path in (path for kind in ("py", "toml", "js", "css") for path in sorted(PACKAGE.rglob(f"*.{kind}"))):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "notebook": notebook.stem,
        "cells": hashlib.sha256("\0".join(sources).encode()).hexdigest(),
        "code": code.hexdigest(),
        "weights": facts["weights"],
        "inputs": {name: facts.get(name, value) for name, value in parameters.items()},
    }
