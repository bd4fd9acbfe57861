"""Commands that run one notebook, or each."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from anchorlens.cli.shared import DryRun, Force, Json, Store, exit_codes

HARD = {"data": "hard", "pool": "hard", "seeds": [42, 43, 44]}
DEMO = {
    "0_tour": {"task": "emo"},  # four classes, and the plain prompt leaves re-weighting something to gain
    "3_1_reweighting": {"task": "emo", "learning_rate": 0.1, **HARD},
    "3_3_diagnosis": {"task": "trec", **HARD},  # six classes, and answers that are confused
}  # what the demo sets so that the toy has something to show; notebooks that are not named run as they are


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

        with exit_codes(json_, notebook):
            path = parameters.find(notebook)
            values = parameters.check(path, parameters.parse(path, parameter or []))
            found = dryrun.estimate(path, values, store)
        print(json.dumps({"status": "ok", "dry_run": True, **found}) if json_ else dryrun.report(found))
        return
    with exit_codes(json_, notebook):
        given = parameters.parse(parameters.find(notebook), parameter or [])
        result = batch.run(notebook, given, root=store, force=force)
    if json_:
        print(json.dumps(_summary(result)))
    else:
        _say(result)


def demo(store: Store = Path("outputs"), force: Force = False, json_: Json = False) -> None:
    """Run every notebook on the shipped toy model, then make the report of the store in its folder `report`."""
    from anchorlens import batch, paper, parameters, report, warm

    done = []
    with warm.kernel() as kernel:
        for name in parameters.notebooks():
            print(f"{name}: running on the toy model", file=sys.stderr)
            with exit_codes(json_, name):
                done.append(batch.run(name, DEMO.get(name, {}), root=store, force=force, kernel=kernel))
            if not json_:
                _say(done[-1])
    with exit_codes(json_, "report"):
        site = report.build(store, store / "report", paper.compare, bar=not json_)
    if json_:
        runs = [_summary(result) for result in done]
        print(json.dumps({"status": "ok", "runs": runs, "report": str(site.index)}))
    else:
        print(f"report: what these runs answer, to be opened in a browser\n  {site.index}")


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
