"""The command line: demo | run | sweep | status | reproduce | doctor | list. A command imports what it needs."""

import os
from typing import Annotated

import typer

from anchorlens import __version__
from anchorlens.cli.looks import doctor, list_
from anchorlens.cli.paper import reproduce
from anchorlens.cli.reports import report
from anchorlens.cli.runs import demo, run
from anchorlens.cli.shared import quietly
from anchorlens.cli.sweeps import status, sweep

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> bool:
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def anchorlens(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Label words are anchors: where in-context learning gathers and reads its information."""


for command in (run, demo, sweep, status, reproduce, report, doctor):
    app.command()(quietly(command))
app.command("list")(quietly(list_))


def main() -> None:
    """Entry point of the ``anchorlens`` command."""
    # Threads that wait for one another must sleep: by default they spin, and each pass of a small model takes up to ten
    # times as long wherever another process needs the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
