"""Commands about many runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from anchorlens.cli.shared import MISSING, Json, Store, exit_codes, fail


def sweep(
    grid: Annotated[
        Path | None, typer.Argument(help="A YAML file of notebooks, and of parameters with one or more values.")
    ] = None,
    notebook: Annotated[list[str] | None, typer.Option("-n", "--notebook", help="One of the notebooks.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter; given twice, a run of each value."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray: on the nodes of a cluster.")] = "local",
    address: Annotated[
        str, typer.Option("--address", help="Ray's: auto, or HOST:PORT; else it is started on this machine.")
    ] = "",
    workers: Annotated[
        int,
        typer.Option("--workers", min=0, help="Runs at a time; 0: one, with ray one for each GPU or, without, node."),
    ] = 0,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Start no run after one that failed.")
    ] = False,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit", min=0, help="Seconds a run may take, 10 to 30 to start a kernel among them; 0: any."
        ),
    ] = 0,
    track: Annotated[list[str] | None, typer.Option("--track", help="Tell mlflow or wandb of each run.")] = None,
    store: Store = Path("outputs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs as cached, failed or new.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="All that happens as JSON, one object a line.")] = False,
) -> None:
    """Run a grid of models, tasks, draws and notebooks; what was done before is not done again."""
    from anchorlens import sweep as sweep_

    with exit_codes(json_, "sweep"):
        if not (grid or notebook or parameter):
            raise sweep_.ParameterError("nothing says what to run: give a grid file, -n NOTEBOOK or -p NAME=VALUE.")
        said = sweep_.with_words(sweep_.read(grid) if grid else {}, notebook or [], parameter or [])
        with sweep_.crew(engine, workers, address, said) as crew:
            jobs = sweep_.jobs(said, store, where=str(grid or "sweep"), plan=crew.plan)
            if dry_run:
                for job in jobs:
                    told = {"state": job.state, "job": job.name, "folder": str(job.folder), "error": job.said}
                    shown = f"{job.state:<7} {job.name}{job.said and f': {job.said}'}"
                    print(json.dumps(told) if json_ else sweep_.plain(shown))
                return
            from anchorlens.sweep import workers as workers_

            tracker = None
            if track:
                from anchorlens import tracking

                tracker = tracking.Tracker(store, track, {str(job.folder): job.parameters for job in jobs})
            with (
                sweep_.stoppable() as heed,
                sweep_.Events(store, len(jobs), as_json=json_, watcher=tracker, heed=heed) as events,
            ):
                whole = workers_.run(jobs, store, events, crew, limit=time_limit, fail_fast=fail_fast)
    if not whole:
        raise typer.Exit(1)


def status(
    store: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("outputs"), json_: Json = False
) -> None:
    """Say how the latest sweep of a store stands; also while another process runs it."""
    from anchorlens import sweep as sweep_

    with exit_codes(json_, "status"):
        try:
            found = sweep_.status(store)
        except FileNotFoundError as error:
            fail(str(error), MISSING, json_, "status")
            return
    if json_:
        print(json.dumps(found))
        return
    counts = ", ".join(f"{found[name]} {name}" for name in ("done", "cached", "failed"))
    left = f"; about {found['seconds_left']:.0f} s left" if found["seconds_left"] else ""
    print(f"{found['sweep']}: {found['state']} on {found['host']}; of {found['total']} runs {counts}{left}")
    for job, seconds in found["running"].items():
        within = ", cell {}/{}".format(*found["cells"][job]) if found["cells"][job] else ""
        print(f"  running for {seconds:.0f} s{within}: {sweep_.plain(job)}")
    for job in found["waiting"]:
        print(f"  waits for another process that runs it: {sweep_.plain(job)}")
    for job in found["cut"]:
        print(f"  not ended: {sweep_.plain(job)}")
    if found["cut"] or found["state"] in ("interrupted", "died"):
        print("  the command that started it goes on after what is done")
    for what, told in (("failed", found["errors"]), ("not tracked", found["untracked"])):
        for job, error in told.items():
            print(sweep_.plain(f"  {what}: {job}: {error}"))
