"""The command that makes a site of stored runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from anchorlens.cli.shared import Json, exit_codes


def report(
    store: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("outputs"),
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder of the site; a report that is there is replaced. By default report in the store."),
    ] = None,
    json_: Json = False,
) -> None:
    """Make a static site of a store's runs, which opens from disk: answers, figures, tables, every notebook."""
    from anchorlens import paper
    from anchorlens import report as report_

    with exit_codes(json_, "report"):
        made = report_.build(store, out or store / "report", paper.compare, bar=not json_)
    if json_:
        print(json.dumps({"status": "ok", **asdict(made), "index": str(made.index)}))
        return
    counts = ", ".join(f"{n} {state}" for state, n in made.states.items() if n)
    print(f"report of {made.runs} runs ({counts}), {made.bytes / 1e6:.1f} MB:\n  {made.index}")
