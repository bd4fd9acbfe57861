"""Whether all that a run needs is there, told in under two seconds without a network.

Nothing here imports torch, fetches anything, or reads more than config files and small files of rows.
"""

import importlib.util
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from anchorlens import browser, folders, hub, planner, preflight, room, rows, tasks
from anchorlens.findings import BAD_INPUT, MISSING, Asked, Finding, refused

PACKAGES = ("torch", "transformers", "transformer-lens", "huggingface-hub", "datasets", "plotly", "papermill")
READ = 16 * 2**20  # bytes up to which a file of rows is read
LEAST = 2**30  # bytes that should be left on the disk
_NAMED_IN = {"hooked": "loading_from_pretrained.py", "bridge": "factories/architecture_adapter_factory.py"}


def look(asked: Asked) -> Iterator[Finding]:
    """What is there for a run, one thing after the other; the hub is waited for once, while the rest is looked at."""
    reachable: list[bool] = []
    waiting = threading.Thread(target=lambda: reachable.append(preflight.hub_reachable()), daemon=True)
    waiting.start()
    yield _packages()
    folder = yield from _held(asked)
    if folder is not None:
        yield from _inside(asked, folder)
    rest = [_token(), _disk("disk", asked.store, LEAST), _browser()]
    waiting.join()
    yield _hub(reachable[0])
    if folder is None:
        yield from _elsewhere(asked, reachable[0])
    with settled(reachable[0]):
        yield from _data(asked, toy=asked.model in preflight.TOYS, reachable=reachable[0])
    yield from rest


def _packages() -> Finding:
    versions, missing = {"python": ".".join(map(str, sys.version_info[:3]))}, []
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        return Finding("packages", "problem", said, f"pip install {' '.join(missing)}", BAD_INPUT)
    return Finding("packages", "ok", f"{said}; backends {', '.join(preflight.resolve_backend('auto'))}")


# --- model ---


def _held(asked: Asked) -> Iterator[Any]:
    """Where the model's files are; None: nowhere here, and for a name that is none that is said."""
    try:
        return preflight.locate(asked.model, asked.revision, fetch=False, remote_code=asked.remote_code).folder
    except preflight.ModelError as error:
        folder = _folder(asked)
        missing = isinstance(error, preflight.MissingModelError)
        if folder is None and not (missing and preflight.may_be_hub_id(asked.model)):
            yield refused("model", error)
        return folder


def _folder(asked: Asked) -> Path | None:
    """The model's folder as far as it is there, whatever may be wrong with it."""
    try:
        folder = Path(asked.model).expanduser()
        if folder.is_dir():
            return None if asked.revision else folder
        return None if asked.model in preflight.TOYS else hub.held_folder(asked.model, asked.revision)
    except (preflight.ModelError, RuntimeError):
        return None


def _inside(asked: Asked, folder: Path) -> Iterator[Finding]:
    """Architecture, weights and tokenizer of a folder; of the hub's cache, what is not there can be fetched."""
    name, own = asked.model, Path(asked.model).expanduser().is_dir() or asked.model in preflight.TOYS
    try:
        folders.check_config(name, folder, remote_code=asked.remote_code)
        yield _architecture(folder)
    except preflight.ModelError as error:
        yield refused("architecture", error)
    for what, tell in {"weights": _weights, "tokenizer": _tokenizer}.items():
        try:
            yield tell(name, folder)
        except preflight.ModelError as error:
            yield refused(what, error if own else preflight.MissingModelError(str(error)))


def _weights(name: str, folder: Path) -> Finding:
    folders.check_weights(name, folder)
    held = folders.weights(folder)
    size = room.in_units(sum(path.stat().st_size for path in held))
    return Finding("weights", "ok", f"{size} in {len(held)} file{'s' * (len(held) > 1)}, {folder}")


def _architecture(folder: Path) -> Finding:
    config = folders.read(str(folder), folder / "config.json")
    name = (config.get("architectures") or [""])[0]
    said = name or f"model type {config.get('model_type')}"
    try:
        shape = planner.of_config(config)
        said += f", {shape.n_layers} layers of {shape.d_model}, {shape.n_heads} heads, {shape.n_ctx} tokens at most"
    except (planner.ShapeError, TypeError, ZeroDivisionError):
        pass  # said where it matters, with the analyses
    if not name or "auto_map" in config:
        return Finding("architecture", "ok", said)
    if known := [backend for backend in preflight.resolve_backend("auto") if _names(backend, name)]:
        return Finding("architecture", "ok", f"{said}; named by {' and '.join(known)}")
    said += f"; transformer-lens {metadata.version('transformer-lens')} does not name it"
    return Finding(
        "architecture", "problem", said, "install a newer transformer-lens, or give another model", BAD_INPUT
    )


def _names(backend: str, architecture: str) -> bool:
    """Whether transformer-lens' source names an architecture, which is what can be told without importing it."""
    spec = importlib.util.find_spec("transformer_lens")
    path = Path(spec.origin).parent / _NAMED_IN[backend] if spec and spec.origin else None
    return path is None or not path.is_file() or f'"{architecture}"' in path.read_text(encoding="utf-8")


def _tokenizer(name: str, folder: Path) -> Finding:
    folders.check_tokenizer(name, folder)
    file = next(file for file in folders.TOKENIZERS if (folder / file).is_file())
    if file == "tokenizer.json":
        return Finding("tokenizer", "ok", "tokenizer.json, which is fast")
    needed = "sentencepiece" if file.endswith(".model") else ""
    if needed and importlib.util.find_spec(needed) is None:
        todo = f"pip install {needed}, or save the tokenizer once where it is installed"
        return Finding("tokenizer", "problem", f"{file}, which takes {needed} to be read", todo, BAD_INPUT)
    if file == "vocab.json" and not (folder / "merges.txt").is_file():
        return Finding("tokenizer", "problem", "vocab.json without merges.txt", "copy merges.txt there", BAD_INPUT)
    return Finding("tokenizer", "ok", f"{file}, made fast when it is loaded")


def _elsewhere(asked: Asked, reachable: bool) -> Iterator[Finding]:
    """Of a model that is not on this machine: whether the hub has it, and whether it would find room here."""
    if not preflight.may_be_hub_id(asked.model) or Path(asked.model).exists() or asked.model in preflight.TOYS:
        return  # said
    try:
        if not reachable:
            with settled(False):
                hub.find(asked.model, asked.revision, fetch=True, remote_code=asked.remote_code)
        hub.held_folder(asked.model)  # refuses a name that the hub would never give
        offer = hub.offer(asked.model, asked.revision, remote_code=asked.remote_code)
    except preflight.MissingModelError as error:
        yield refused("weights", error)
        return
    except preflight.ModelError:
        return  # said
    said = f"not on this machine; the hub has {room.in_units(offer.nbytes)} of it at commit {offer.commit[:12]}"
    todo = f"the first run fetches it, or `hf download {asked.model}` does"
    yield Finding("weights", "missing", said, todo, MISSING)
    from huggingface_hub import constants

    yield _disk("disk for weights", Path(constants.HF_HUB_CACHE), offer.nbytes + LEAST, "HF_HOME")


# --- the rest ---


def _hub(reachable: bool) -> Finding:
    if reachable:
        return Finding("hub", "ok", f"{hub.endpoint()} answers")
    if hub.forbidden():
        return Finding("hub", "missing", "not asked, since HF_HUB_OFFLINE is set", "unset it to fetch models or rows")
    said = f"{hub.endpoint()} does not answer within {preflight.PATIENCE} s"
    return Finding("hub", "missing", said, "connect to fetch models or rows; what is on this machine needs no hub")


def _data(asked: Asked, *, toy: bool, reachable: bool) -> Iterator[Finding]:
    """Rows for queries and, where they come from another file, for demonstrations."""
    try:
        task = tasks.get(asked.task)
        path = rows.file_of(task, asked.data, toy=toy)
        shown = rows.file_of(task, asked.data, split="demonstration", toy=toy)
        if path is None:
            yield _hub_rows(task, asked.data, reachable=reachable)
            return
    except tasks.TaskError as error:
        yield refused("data", error)
        return
    yield _file("data", task, asked.data, path, "query", toy=toy)
    if shown is not None and shown != path:
        yield _file("pool", task, asked.data, shown, "demonstration", toy=toy)


def _file(what: str, task: tasks.Task, data: str, path: Path, split: rows.Split, *, toy: bool) -> Finding:
    try:
        if _size(path) > READ:
            said = f"{path}: {room.in_units(_size(path))}, not read here"
            return Finding(what, "ok", said, "run a notebook with --dry-run to have it checked")
        found = rows.load(task, data, split=split, toy=toy)
    except tasks.TaskError as error:
        return refused(what, error)
    counts = Counter(example.label for example in found)
    classes = ", ".join(f"{word.strip()} {counts[label]}" for label, word in enumerate(task.label_words))
    if lacking := [word.strip() for label, word in enumerate(task.label_words) if not counts[label]]:
        todo = f"give rows of {' and '.join(lacking)}: each class needs a demonstration"
        return Finding(what, "problem", f"{path}: {len(found)} rows ({classes})", todo, BAD_INPUT)
    return Finding(what, "ok", f"{len(found)} rows ({classes}), {path}")


def _hub_rows(task: tasks.Task, data: str, *, reachable: bool) -> Finding:
    try:
        with settled(False):
            return Finding("data", "ok", f"{rows.fingerprint(task, data)}, on this machine")
    except rows.MissingRowsError:
        if not reachable:
            raise
    found = rows.fingerprint(task, data)
    return Finding("data", "missing", f"not on this machine; there is {found}", "the first run fetches it", MISSING)


def large(asked: Asked) -> bool:
    """Whether the rows are a file too large to be read for a look."""
    path = rows.file_of(tasks.get(asked.task), asked.data, toy=asked.model in preflight.TOYS)
    return path is not None and _size(path) > READ


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())


def _token() -> Finding:
    if hub.has_token():
        return Finding("hub token", "ok", "set")
    return Finding("hub token", "missing", "none; gated models alone need one")


def _disk(what: str, folder: Path, needed: int, by: str = "--store") -> Finding:
    there = folder.expanduser().absolute()
    there = next(each for each in (there, *there.parents) if each.exists())
    free = shutil.disk_usage(there).free
    said = f"{room.in_units(free)} free at {folder}"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(what, "problem", f"{there} cannot be written into", f"name another folder with {by}", BAD_INPUT)
    if free < needed:
        return Finding(what, "problem", said, f"make room: {room.in_units(needed)} should be free", MISSING)
    return Finding(what, "ok", said)


def _browser() -> Finding:
    if browser.has_browser():
        return Finding("browser", "ok", "figures come as HTML and PNG")
    lacks = "a Chromium or Chrome" if browser.has_kaleido() else "the package kaleido"
    return Finding("browser", "missing", "figures come as HTML alone", f"install {lacks} for PNG as well")


@contextmanager
def settled(reachable: bool) -> Iterator[None]:
    """Let nobody wait for the hub a second time when it did not answer the first."""
    before = os.environ.get("HF_HUB_OFFLINE")
    if not reachable:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if not reachable:
            os.environ.pop("HF_HUB_OFFLINE")
            os.environ |= {} if before is None else {"HF_HUB_OFFLINE": before}
