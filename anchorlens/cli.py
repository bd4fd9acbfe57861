"""The command line: anchorlens demo | run | sweep | status | doctor | list. A command imports what it needs."""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from anchorlens import __version__

BAD_INPUT, MISSING, INTERRUPTED = 2, 3, 130
EXIT_CODES = {
    "ParameterError": BAD_INPUT,
    "TaskError": BAD_INPUT,
    "PromptError": BAD_INPUT,
    "TooLongError": BAD_INPUT,
    "ModelError": BAD_INPUT,
    "StoreError": BAD_INPUT,
    "IncompleteModelError": BAD_INPUT,
    "PermissionError": BAD_INPUT,
    "SettingError": BAD_INPUT,
    "ShapeError": BAD_INPUT,
    "UndefinedError": BAD_INPUT,
    "TrackingError": BAD_INPUT,
    "ClusterError": BAD_INPUT,
    "MissingClusterError": MISSING,
    "NoRoomError": MISSING,
    "MissingRowsError": MISSING,
    "MissingModelError": MISSING,
    "KeyboardInterrupt": INTERRUPTED,
}  # by the name of the exception, which is all that is known of one raised inside a notebook; any other: 1

HARD = {"data": "hard", "pool": "hard", "seeds": [42, 43, 44]}
DEMO = {
    "0_tour": {"task": "emo"},  # four classes, and the plain prompt leaves re-weighting something to gain
    "3_1_reweighting": {"task": "emo", "learning_rate": 0.1, **HARD},
    "3_3_diagnosis": {"task": "trec", **HARD},  # six classes, and answers that are confused
}  # what the demo sets so that the toy has something to show; notebooks that are not named run as they are

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Store = Annotated[Path, typer.Option("--store", help="Folder of all runs.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Run again even if there is a result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and run nothing.")]


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


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="A name from `anchorlens list notebooks`, or an .ipynb file.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the notebook.")
    ] = None,
    store: Store = Path("outputs"),
    force: Force = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run one notebook with parameters; a run that was done before is returned at once."""
    from anchorlens import batch, parameters

    if dry_run:
        from anchorlens import dryrun

        with _exit_codes(json_, notebook):
            path = parameters.find(notebook)
            values = parameters.check(path, parameters.parse(path, parameter or []))
            found = dryrun.estimate(path, values, store)
        print(json.dumps({"status": "ok", "dry_run": True, **found}) if json_ else dryrun.report(found))
        return
    with _exit_codes(json_, notebook):
        given = parameters.parse(parameters.find(notebook), parameter or [])
        result = batch.run(notebook, given, root=store, force=force)
    if json_:
        print(json.dumps(_summary(result)))
    else:
        _say(result)


@app.command()
def demo(store: Store = Path("outputs"), force: Force = False, json_: Json = False) -> None:
    """Run every notebook on the shipped toy model."""
    from anchorlens import batch, parameters, warm

    done = []
    with warm.kernel() as kernel:
        for name in parameters.notebooks():
            print(f"{name}: running on the toy model", file=sys.stderr)
            with _exit_codes(json_, name):
                done.append(batch.run(name, DEMO.get(name, {}), root=store, force=force, kernel=kernel))
            if not json_:
                _say(done[-1])
    if json_:
        print(json.dumps({"status": "ok", "runs": [_summary(result) for result in done]}))


@app.command()
def doctor(
    model: Annotated[str, typer.Option("--model", help="A toy, a Hugging Face folder, or a hub id.")] = "toy",
    task: Annotated[str, typer.Option("--task", help="A name from `anchorlens list tasks`, or a YAML file.")] = "sst2",
    data: Annotated[str, typer.Option("--data", help="Rows, for queries and demonstrations alike.")] = "",
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = "",
    remote_code: Annotated[bool, typer.Option("--remote-code", help="Code that comes with the model may run.")] = False,
    device: Annotated[str, typer.Option("--device", help="As in a notebook.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="As in a notebook.")] = "auto",
    store: Store = Path("outputs"),
    json_: Json = False,
) -> None:
    """Say whether model, rows and machine have all that a run needs, what each analysis takes, and what to do."""
    from anchorlens import doctor as doctor_
    from anchorlens import findings as found_

    asked = found_.Asked(model, task, data, revision, remote_code, device, dtype, store)
    findings, taken = [], None
    with _exit_codes(json_, "doctor"):
        for found in doctor_.look(asked):
            findings.append(found)
            if not json_:
                print(found_.table(found), flush=True)
        code = found_.exit_code(findings)
        if not code and not doctor_.large(asked):
            from anchorlens import needs  # imports pandas, so after the first table

            try:
                with doctor_.settled(False):  # nothing is fetched, nor waited for
                    taken = needs.takes(asked)
            except ValueError as error:  # of the kinds that a run would fail with
                if type(error).__name__ not in EXIT_CODES:
                    raise
                findings.append(found_.refused("a run", error))
                code = found_.exit_code(findings)
                if not json_:
                    print(found_.table(findings[-1]))
    if json_:
        print(json.dumps(found_.summary(findings, taken)))
    elif taken:
        print(f"\n{needs.report(taken)}")
    if code:
        raise typer.Exit(code)


@app.command()
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
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start no run after one that failed.")] = False,
    time_limit: Annotated[float, typer.Option("--time-limit", min=0, help="Seconds a run may take; 0: any.")] = 0,
    track: Annotated[list[str] | None, typer.Option("--track", help="Tell mlflow or wandb of each run.")] = None,
    store: Store = Path("outputs"),
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run a grid of models, tasks, draws and notebooks; what was done before is not done again."""
    from anchorlens import sweep as sweep_

    with _exit_codes(json_, "sweep"):
        said = sweep_.with_words(sweep_.read(grid) if grid else {}, notebook or [], parameter or [])
        with sweep_.crew(engine, workers, address, said) as crew:
            jobs = sweep_.jobs(said, store, where=str(grid or "sweep"), plan=crew.plan)
            if dry_run:
                for job in jobs:
                    told = {"state": job.state, "job": job.name, "folder": str(job.folder), "error": job.said}
                    print(json.dumps(told) if json_ else f"{job.state:<7} {job.name}{job.said and f': {job.said}'}")
                return
            from anchorlens.sweep import workers as workers_

            tracker = None
            if track:
                from anchorlens import tracking

                tracker = tracking.Tracker(store, track, {str(job.folder): job.parameters for job in jobs})
            with sweep_.stoppable(), sweep_.Events(store, len(jobs), as_json=json_, watcher=tracker) as events:
                whole = workers_.run(jobs, store, events, crew, limit=time_limit, fail_fast=fail_fast)
    if not whole:
        raise typer.Exit(1)


@app.command()
def status(
    store: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("outputs"), json_: Json = False
) -> None:
    """Say how the latest sweep of a store stands; also while another process runs it."""
    from anchorlens import sweep as sweep_

    try:
        found = sweep_.status(store)
    except FileNotFoundError as error:
        _fail(str(error), MISSING, json_, "status")
        return
    if json_:
        print(json.dumps(found))
        return
    counts = ", ".join(f"{found[name]} {name}" for name in ("done", "cached", "failed"))
    left = f"; about {found['seconds_left']:.0f} s left" if found["seconds_left"] else ""
    print(f"{found['sweep']}: {found['state']}; of {found['total']} runs {counts}{left}")
    for job, seconds in found["running"].items():
        within = ", cell {}/{}".format(*found["cells"][job]) if found["cells"][job] else ""
        print(f"  running for {seconds:.0f} s{within}: {job}")
    for what, told in (("failed", found["errors"]), ("not tracked", found["untracked"])):
        for job, error in told.items():
            print(f"  {what}: {job}: {error}")


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="notebooks, tasks or models")] = "notebooks") -> None:
    """List notebooks with their parameters, tasks with their label words and rows, or models."""
    from anchorlens import parameters, preflight, rows, tasks

    with _exit_codes(False, what):
        if what == "notebooks":
            for name, path in parameters.notebooks().items():
                print(name)
                for parameter, declared in parameters.declared(path).items():
                    if parameter != parameters.RESERVED:
                        print(f"  {parameter}: {declared.kind} = {declared.default!r}  {declared.help}")
        elif what == "tasks":
            for task in tasks.TASKS.values():
                words = ",".join(task.label_words)
                print(f"{task.name}\t{task.context('{text}')!r}\t{words.strip()}\trows: {rows.whence(task)}")
            print("or the path of a .yaml file with a template and label words of your own (see the README)")
        elif what == "models":
            print("\n".join(preflight.TOYS))
            print("or a Hugging Face folder, or a hub id such as gpt2-xl")
        else:
            raise parameters.ParameterError(f"cannot list {what!r}: choose notebooks, tasks or models.")


def _summary(result) -> dict[str, object]:
    return {
        "status": "ok",
        "folder": str(result.folder),
        "notebook": result.notebook,
        "results": str(result.results),
        "cached": result.cached,
    }


def _say(result) -> None:
    print(f"{result.notebook}: {'done before' if result.cached else 'done'}")
    for path in sorted(result.folder.iterdir()):
        if path.suffix in {".ipynb", ".html", ".png", ".parquet"}:
            print(f"  {path}")


@contextmanager
def _exit_codes(as_json: bool, notebook: str) -> Iterator[None]:
    """Turn errors into a message on stderr (with --json also an object on stdout) and the exit code of their kind."""
    try:
        yield
    except KeyboardInterrupt:
        said = "interrupted; whole windows of prompts are kept: the same command goes on after them"
        _fail(said, INTERRUPTED, as_json, notebook)
    except typer.Exit:
        raise
    except Exception as error:
        kind = getattr(error, "kind", type(error).__name__)  # a failed run says what failed in it
        if not hasattr(error, "kind") and kind not in EXIT_CODES and not isinstance(error, OSError):
            traceback.print_exc()  # not foreseen, so say where
        prefix = "" if hasattr(error, "kind") else f"{kind}: "
        _fail(f"{prefix}{error}", EXIT_CODES.get(kind, 1), as_json, notebook)


def _fail(message: str, code: int, as_json: bool, notebook: str) -> None:
    print(message, file=sys.stderr)
    if as_json:
        print(json.dumps({"status": "failed", "notebook": notebook, "error": message, "exit_code": code}))
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the ``anchorlens`` command."""
    # Threads that wait for one another must sleep: by default they spin, and each pass of a small model takes up to ten
    # times as long wherever another process needs the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


if __name__ == "__main__":
    main()
