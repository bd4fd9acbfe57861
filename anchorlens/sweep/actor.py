"""What an actor of a Ray cluster does, and what is sent to it; Ray imports this on every node."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anchorlens import batch, parameters, preflight, tasks
from anchorlens.sweep import inside, marks

_FILES = ("model", "task", "data", "pool", "prompts", "train_prompts")  # parameters that may name files
_SEEN = 5  # seconds for a new file to be seen through a network's file system


class Actor:
    """What an actor does; ends with all that it has started when its driver, its node's Ray or itself ends."""

    def __init__(self, mark: str, needs: Mapping[str, int]) -> None:
        marks.follow(mark)
        if not needs.get("GPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it has none to itself, so "auto" must not find another's
        inside.begin(mark, int(needs["CPU"]))

    def where(self) -> dict[str, str]:
        """The node, for people and for Ray."""
        import ray

        return {"name": socket.gethostname(), "id": ray.get_runtime_context().get_node_id()}

    def plan(self, notebook: str, parameters: Mapping[str, Any], root: str) -> dict[str, Any]:
        """What the key of a run is made of here, or ``kind`` and ``error``."""
        try:
            return {"made_of": batch.plan(notebook, parameters, Path(root)).made_of}
        except Exception as error:
            return {"kind": type(error).__name__, "error": str(error), "node": socket.gethostname()}

    def work(
        self, notebook: str, parameters: Mapping[str, Any], root: str, made_of: Mapping[str, Any], paths: list[str]
    ) -> dict[str, Any]:
        """One run, if all ``paths`` are here."""
        if absent := missing(paths):
            said = (
                f"{absent} is not there, and it is where the sweep was started. Nothing was run: have the store and "
                "all files in folders that every node mounts under the same path, or start the sweep without this node."
            )
            return inside.refused("PlaceError", said)
        return inside.work(notebook, parameters, root, made_of)

    def close(self) -> None:
        """End the kernel in good order."""
        inside.close()


def missing(paths: Sequence[str], patience: float = _SEEN) -> str:
    """The first of ``paths`` that is not on this node, also after a while; empty if all are."""
    until = time.monotonic() + patience
    for path in paths:
        while not Path(path).exists():
            if time.monotonic() > until:
                return path
            time.sleep(0.2)
    return ""


def sent(notebook: str, given: Mapping[str, Any], root: Path) -> tuple[str, dict[str, Any], str]:
    """A run as a node takes it: the files that are here by whole paths; shipped notebooks are found there by name."""
    path = parameters.find(notebook)
    named = notebook if parameters.notebooks().get(path.stem) == path else str(path.resolve())
    known = (*preflight.TOYS, *tasks.TASKS)
    found = dict(given)
    for name in _FILES:
        value = found.get(name)
        if isinstance(value, str) and value and value not in known:
            with suppress(OSError, RuntimeError):
                here = Path(value).expanduser()
                found[name] = str(here.resolve()) if here.exists() else value
    return named, found, str(root.resolve())


def files(sent: Mapping[str, Any]) -> list[str]:
    """The files that a run which was sent needs beside the store."""
    return [str(sent[name]) for name in _FILES if str(sent.get(name, "")).startswith("/")]
