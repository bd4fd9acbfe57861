"""Run one notebook: parameters checked before it starts, results under a content key, never half a result."""

import errno
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from anchorlens import __version__, store
from anchorlens.claims import WAITS
from anchorlens.gathering import Gathering
from anchorlens.parameters import RESERVED, check, content, declared, examine, find
from anchorlens.warm import Kernel, cold

_FAILED = "failed.json"  # what a try ended with; gone when the run is tried again
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTES = "notes.json"  # what a notebook has to say for the manifest, which its runner writes
_VERSIONS = ("torch", "transformer-lens", "transformers", "tokenizers", "numpy", "pandas", "papermill")


class RunError(RuntimeError):
    """A notebook that failed; ``kind`` is the name of the exception in it, ``said`` what it said."""

    def __init__(self, message: str, *, kind: str, folder: Path, said: str) -> None:
        super().__init__(message)
        self.kind, self.folder, self.said = kind, folder, said


@dataclass(frozen=True)
class Result:
    """A finished run."""

    notebook: str
    folder: Path
    cached: bool

    @property
    def results(self) -> Path:
        return self.folder / "results.parquet"


@dataclass(frozen=True)
class Plan:
    """A run that may be started: all that was checked and looked up before."""

    path: Path
    parameters: dict[str, Any]  # defaults filled in
    facts: dict[str, Any]
    made_of: dict[str, Any]
    target: store.Run


def plan(notebook: str, parameters: Mapping[str, Any], root: Path) -> Plan:
    """Check a run and find its place in the store ``root``, without starting anything.

    Raises:
        ParameterError, preflight.ModelError, tasks.TaskError: for what a run would refuse.
    """
    path = find(notebook)
    values = check(path, parameters)
    facts = examine(values, path)
    made_of = content(path, values, facts)
    return Plan(path, values, facts, made_of, store.Run(root.resolve() / path.stem / store.key(made_of)))


def failure(target: store.Run) -> str:
    """What an earlier try of a run failed with; empty if none did."""
    try:
        return str(json.loads((target.partial / _FAILED).read_text())["error"])
    except (OSError, ValueError, KeyError, TypeError):  # or it is not as it was written
        return ""


def note_failure(target: store.Run, error: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Have ``failure`` tell what ended a try, where its own process could not; ``parameters`` for who lists it."""
    target.leave(_FAILED, json.dumps({"error": error, "ended": _now(), "parameters": dict(parameters or {})}))


def run(
    notebook: str,
    parameters: Mapping[str, Any],
    *,
    root: Path = Path("outputs"),
    force: bool = False,
    bar: bool = True,
    kernel: Kernel | None = None,
    waits: Callable[[], None] | None = None,
) -> Result:
    """Run a notebook with papermill, or return the result that is there already.

    A run that was interrupted, or failed, goes on after the last part that it completed. A result that was damaged
    since (``store.damage``) is moved aside as ``<key>.broken``, and run again.

    Args:
        notebook: name or path.
        parameters: values by name, of the types that the notebook declares.
        root: the store; the run's folder is ``root/<notebook>/<key>``.
        force: run from the beginning even if there is a result, or a part of one, and replace it.
        bar: show progress by cells on stderr.
        kernel: one that is kept between runs (``warm.kernel``); by default the run starts and ends its own.
        waits: called before this waits for another process that does the same run; may raise instead. By default stderr
            is told.

    Raises:
        ParameterError, preflight.ModelError, tasks.TaskError: before anything starts.
        RunError: if the notebook fails; it is kept in the partial folder, with its traceback.
        store.StoreError: if the folder cannot be written.
    """
    planned = plan(notebook, parameters, root)
    path, values, made_of, target = planned.path, planned.parameters, planned.made_of, planned.target
    if target.whole and not force and not store.damage(target):
        return Result(path.stem, target.final, cached=True)
    told = waits or (lambda: print(f"{path.stem} {WAITS}", file=sys.stderr))
    with store.claiming(target, resume=not force, waits=told):
        if target.whole and not force:
            if not (damaged := store.damage(target)):  # another runner was faster
                return Result(path.stem, target.final, cached=True)
            print(f"{target.final} was damaged since ({damaged}): moved to {target.set_aside()}", file=sys.stderr)
        started = time.monotonic()
        try:
            _hold(planned, notebook, parameters, "while it waited for another runner of it")
            _execute(planned, parameters, bar=bar, kernel=kernel)
            _hold(planned, notebook, parameters, "while it ran", only=("weights", "inputs"))
            manifest = {**_manifest(target, made_of, values, started), "kernel": "cold" if kernel is None else "warm"}
            return Result(path.stem, target.finish(manifest), cached=False)
        except (RunError, store.StoreError) as error:
            said = {"error": getattr(error, "said", str(error)), "ended": _now()}
            with suppress(OSError):  # a full disk, say, of which the error itself tells
                (target.partial / _FAILED).write_text(json.dumps(said))
            raise


def differing(planned: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What two contents of keys differ in, for people; empty if in nothing."""
    flat = [
        {**made, **{f"inputs {name}": value for name, value in made.get("inputs", {}).items()}}
        for made in (planned, found)
    ]
    names = [name for name in {**flat[0], **flat[1]} if name != "inputs" and flat[0].get(name) != flat[1].get(name)]
    shown = [[str(made.get(name))[:40] for made in flat] for name in names]
    return "; ".join(
        f"{name.removeprefix('inputs ')} was {was} and is {now}" for name, (was, now) in zip(names, shown, strict=True)
    )


def _hold(planned: Plan, notebook: str, parameters: Mapping[str, Any], when: str, only: Sequence[str] = ()) -> None:
    """Refuse to go on with a run whose key says what is so no more, all of it or ``only`` some.

    Code may change while a run goes on, since its kernel has it; rows and weights are read when it comes to them.
    """
    try:
        now = plan(notebook, parameters, planned.target.final.parents[1]).made_of
    except (ValueError, OSError) as error:
        changed = str(error)
    else:
        kept = [{name: made[name] for name in only or made} for made in (planned.made_of, now)]
        changed = differing(*kept)
    if changed:
        planned.target.clear()
        said = f"what its key is made of has changed {when}: {changed}. Nothing of it is kept: run it again"
        raise RunError(f"{planned.path.stem}: {said}", kind="ChangedError", folder=planned.target.partial, said=said)


def _execute(planned: Plan, parameters: Mapping[str, Any], *, bar: bool, kernel: Kernel | None) -> None:
    """Have papermill run the notebook into the partial folder, which is this process's."""
    import papermill  # takes seconds, so only when something is to be run
    from traitlets.config import Config

    path, folder = planned.path, planned.target.partial
    output = folder / "run.ipynb"
    given = {**parameters, **{name: planned.facts[name] for name in ("device", "dtype")}, RESERVED: str(folder)}
    try:
        with store.writable(output):
            papermill.execute_notebook(
                _verbatim(path),
                _verbatim(output),
                given,
                kernel_name="python3",
                progress_bar=bar,
                stderr_file=sys.stderr if bar else None,  # the notebook's own progress
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # otherwise each kernel warns
                **(cold() if kernel is None else kernel.options(planned.made_of["code"])),
            )
    except papermill.exceptions.PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
        full = any(f"[Errno {number}]" in said for number in _FULL)
        more = f"\nMake room there, or give another folder as --store: {folder.parent}" if full else ""
        more += f"\nThe notebook up to there: {output}"
        raise RunError(f"{path.stem}: {said}{more}", kind=error.ename, folder=folder, said=said) from None
    except (RuntimeError, TimeoutError) as error:  # the kernel died, or what it prints does not come through
        dead_at_start = type(error) is RuntimeError  # of which jupyter_client says it in words only
        kind = "DeadKernelError" if dead_at_start else type(error).__name__
        said = f"{kind}: {error}"
        raise RunError(f"{path.stem}: {said}", kind=kind, folder=folder, said=said) from error
    if not (folder / "results.parquet").is_file():
        said = f"the notebook ran through and stored no results: {output}"
        raise RunError(f"{path.stem}: {said}", kind="", folder=folder, said=said)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _verbatim(path: Path) -> str:
    """A path as papermill takes it, which formats paths with parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _manifest(
    target: store.Run, made_of: Mapping[str, Any], values: Mapping[str, Any], started: float
) -> dict[str, Any]:
    notes = target.partial / _NOTES
    noted = json.loads(notes.read_text()) if notes.is_file() else {}
    notes.unlink(missing_ok=True)
    finished, seconds = datetime.now(UTC), time.monotonic() - started  # the clock may have been set meanwhile
    return {
        **made_of,
        **noted,
        "parameters": dict(values),
        "key": target.final.name,
        "status": "ok",
        "device": made_of["inputs"]["device"],
        "dtype": made_of["inputs"]["dtype"],
        "started": (finished - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "files": [path.name for path in target.files()],
        "versions": {
            "anchorlens": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _VERSIONS},
        },
    }


@dataclass
class Session(Gathering):
    """Where a notebook writes: into the runner's folder or, run by hand, into one of its own in the store."""

    made_of: Mapping[str, Any] | None = None  # None: the runner finishes the run
    values: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    claim: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        """The folder while the run is going on."""
        return self.target.partial

    def write(self, frame: pd.DataFrame, columns: Mapping[str, str], name: str = "results") -> None:
        """Store one table, checked against its analysis' COLUMNS."""
        self.target.write(frame, columns, name)

    def finish(self, *, left_out: int = 0, **said: str) -> Path:
        """Complete the run, and say where it is (under a runner: will be).

        The manifest says how many prompts were ``left_out`` as too long, how many parts came from an earlier try, and
        what else is ``said``: with what prompts ``start``, what they ``ran`` through.
        """
        notes = {"left_out": left_out, "resumed": self.resumed, **said}
        (self.folder / _NOTES).write_text(json.dumps(notes))
        if self.made_of is not None:
            self.target.finish(_manifest(self.target, self.made_of, self.values, self.started))
            self.claim.close()
        return self.target.final


def here(notebook: str, namespace: Mapping[str, Any]) -> Session:
    """The session of a running notebook: pass its name and ``globals()``.

    By hand (JupyterLab, plain papermill) the parameters are read from ``namespace``, checked, and the run goes to
    ``outputs/<notebook>/<key>``, replacing what was there: below the working directory or, where that is the folder of
    the notebooks itself, beside it. Under ``anchorlens run`` it goes where the runner says.
    """
    if namespace[RESERVED]:
        return Session(store.Run(Path(namespace[RESERVED].removesuffix(".partial"))), resumes=True)
    path = find(notebook)
    values = check(path, {name: namespace[name] for name in declared(path) if name != RESERVED})
    # its cells may have been changed since they were saved, so it never stands in for a run of the saved notebook
    made_of = {**content(path, values, examine(values, path)), "by_hand": True}
    working = Path.cwd()
    root = (working.parent if working == path.parent.resolve() else working) / "outputs"
    target = store.Run(root / path.stem / store.key(made_of))
    for earlier in namespace.values():
        if isinstance(earlier, Session):
            earlier.claim.close()  # the cell is run again
    session = Session(target, made_of=made_of, values=values)
    session.claim.enter_context(store.claiming(target))
    return session
