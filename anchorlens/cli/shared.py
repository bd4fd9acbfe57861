"""What commands share: options, and errors as messages and exit codes."""

import functools
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

BAD_INPUT, MISSING, INTERRUPTED = 2, 3, 130
CLOSED = 141  # nobody reads what is said any more; as the shell tells of a program that ends by SIGPIPE
EXIT_CODES = {
    "ParameterError": BAD_INPUT,
    "TaskError": BAD_INPUT,
    "PromptError": BAD_INPUT,
    "TooLongError": BAD_INPUT,
    "ModelError": BAD_INPUT,
    "StoreError": BAD_INPUT,
    "ReportError": BAD_INPUT,
    "IncompleteModelError": BAD_INPUT,
    "PermissionError": BAD_INPUT,
    "SettingError": BAD_INPUT,
    "ShapeError": BAD_INPUT,
    "UndefinedError": BAD_INPUT,
    "TrackingError": BAD_INPUT,
    "ClusterError": BAD_INPUT,
    "MissingClusterError": MISSING,
    "UnplacedError": MISSING,
    "MissingRowsError": MISSING,
    "MissingModelError": MISSING,
    "KeyboardInterrupt": INTERRUPTED,
}  # by the name of the exception, which is all that is known of one raised inside a notebook; any other: 1

Store = Annotated[Path, typer.Option("--store", help="Folder of all runs.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Run again even if there is a result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and run nothing.")]


@contextmanager
def exit_codes(as_json: bool, notebook: str) -> Iterator[None]:
    """Turn errors into a message on stderr (with --json also an object on stdout) and the exit code of their kind."""
    try:
        yield
    except KeyboardInterrupt:
        said = "interrupted; what was stored is kept: the same command goes on after it"
        fail(said, INTERRUPTED, as_json, notebook)
    except typer.Exit:
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise
        kind = getattr(error, "kind", type(error).__name__)  # a failed run says what failed in it
        if not hasattr(error, "kind") and kind not in EXIT_CODES and not isinstance(error, OSError):
            traceback.print_exc()  # not foreseen, so say where
        prefix = "" if hasattr(error, "kind") else f"{kind}: "
        fail(f"{prefix}{error}", EXIT_CODES.get(kind, 1), as_json, notebook)


def quietly(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends without a word when whoever read its output has gone, as ``head`` does."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
            sys.stdout.flush()
        except BrokenPipeError:
            if not (unread := _unread()):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in unread:  # what is left in buffers is written at the end
                os.dup2(nowhere, output)
            raise typer.Exit(CLOSED) from None

    return run


def _unread() -> list[int]:
    """Which of stdout and stderr are pipes that nobody reads."""
    asked = select.poll()
    for output in (1, 2):
        asked.register(output, 0)
    return [output for output, said in asked.poll(0) if said & (select.POLLERR | select.POLLHUP)]


def fail(message: str, code: int, as_json: bool, notebook: str) -> None:
    """Say what is wrong, and end with its exit code; after Ctrl-C also where nobody reads."""
    _say("stderr", message, code)
    if as_json:
        _say(
            "stdout", json.dumps({"status": "failed", "notebook": notebook, "error": message, "exit_code": code}), code
        )
    raise typer.Exit(code)


def _say(name: Literal["stdout", "stderr"], line: str, code: int) -> None:
    from anchorlens.outlet import Outlet

    outlet = Outlet(name)
    outlet.say(line)
    outlet.close(None if code == INTERRUPTED else lambda: None)
    outlet.check()
