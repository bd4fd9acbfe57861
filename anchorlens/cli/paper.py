"""The command that runs the paper's grid and holds it against the paper."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlens.cli.shared import Store, exit_codes


def reproduce(
    model: Annotated[
        str, typer.Option("--model", help="A toy, a folder, or a hub id; without it gpt2-xl or, lacking that, the toy.")
    ] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Draws, as in 42..46 or 42,43.")] = "42..46",
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with rows such as sst2_train.csv; else each task's own.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Queries per draw at most; 0: all.")] = 1000,
    notebook: Annotated[list[str] | None, typer.Option("-n", "--notebook", help="Only this one.")] = None,
    task: Annotated[list[str] | None, typer.Option("-t", "--task", help="Only this one.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray.")] = "local",
    address: Annotated[str, typer.Option("--address", help="Ray's, as of sweep.")] = "",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Runs at a time, as of sweep.")] = 0,
    store: Store = Path("outputs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs as cached, failed or new.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="All that happens as JSON, one object a line.")] = False,
) -> None:
    """Run the paper's grid, and say of each of its numbers and figures whether it agrees."""
    from anchorlens import paper, report, reproducing
    from anchorlens import sweep as sweep_
    from anchorlens.sweep import workers as workers_

    with exit_codes(json_, "reproduce"):
        chosen, rows, said = reproducing.model_or_toy(model, data)
        if said:
            print(said, file=sys.stderr)
        with sweep_.crew(engine, workers, address, {"model": chosen}) as crew:
            grid = reproducing.plan(
                chosen,
                store,
                seeds=reproducing.seeds(seeds),
                data=rows,
                limit=limit,
                only_notebooks=notebook or [],
                only_tasks=task or [],
                how=crew.plan,
            )
            for name, why in grid.missing.items():
                print(sweep_.plain(f"not run: {name}: {why}"), file=sys.stderr)
            if dry_run:
                for job in grid.jobs:
                    told = {"state": job.state, "job": job.name, "folder": str(job.folder), "error": job.said}
                    print(json.dumps(told) if json_ else sweep_.plain(f"{job.state:<7} {job.name}"))
                return
            with (
                sweep_.stoppable() as heed,
                sweep_.Events(store, len(grid.jobs), as_json=json_, heed=heed) as events,
            ):
                whole = workers_.run(grid.jobs, store, events, crew)
                heed()  # told when all was done, it makes no report
        written, held = [], []

        def compare(folders: Sequence[Path]) -> Any:  # of all runs of the store, so that nothing says two things
            held.append(paper.compare(folders, missing=grid.missing))
            written.extend(paper.write(held[-1], store))
            return held[-1]

        site = report.build(store, store / "report", compare, bar=not json_)
        frame = _asked(held[-1], chosen, notebook or [])
        frame = frame if len(frame) else paper.compare([], missing=grid.missing)  # nothing of it was done
    counts = {verdict: frame["verdict"].tolist().count(verdict) for verdict in paper.VERDICTS}
    if json_:
        status = "ok" if whole else "failed"
        print(
            json.dumps(
                {
                    "event": "compared",
                    "status": status,
                    "comparison": str(written[0]),
                    "report": str(site.index),
                    **counts,
                }
            )
        )
    else:
        _show(frame)
        print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()), *map(str, (*written, site.index)), sep="\n")
    if not whole:
        raise typer.Exit(1)


def _asked(frame: Any, model: str, notebooks: list[str]) -> Any:
    """The rows of a store's comparison that one command asks for; none where no run of its model is there."""
    name = Path(model).name if Path(model).is_dir() else model
    frame = frame[[each == name or each.startswith(f"{name} (") for each in frame["model"]]]
    return frame[frame["notebook"].isin(notebooks)] if notebooks else frame


def _show(frame: Any) -> None:
    """The comparison as a table; what came from data is text, not markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from anchorlens.sweep import plain

    console = Console(width=None if sys.stdout.isatty() else 200)
    for (section, model), rows in frame.groupby(["section", "model"], sort=False):
        table = Table(title=Text(plain(f"{section} {rows['notebook'].iloc[0]}: {model}")), title_justify="left")
        for name in ("item", "task", "claim", "published", "ours", "holds", "verdict"):
            table.add_column(name, overflow="fold")
        for row in rows.itertuples():
            task = row.task or "mean"
            cells = (row.item, task, row.claim, row.published, row.ours, row.holds, row.verdict)
            table.add_row(*(Text(plain(str(cell))) for cell in cells))
        console.print(table)
