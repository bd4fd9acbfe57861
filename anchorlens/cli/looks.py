"""Commands that look at what is there, and run nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from anchorlens.cli.shared import EXIT_CODES, Json, Store, exit_codes


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
    with exit_codes(json_, "doctor"):
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


def list_(what: Annotated[str, typer.Argument(help="notebooks, tasks or models")] = "notebooks") -> None:
    """List notebooks with their parameters, tasks with their label words and rows, or models."""
    from anchorlens import parameters, preflight, rows, tasks

    with exit_codes(False, what):
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
            print("or the path of a .yaml file with a template and label words of your own (docs/own.md)")
        elif what == "models":
            print("\n".join(preflight.TOYS))
            print("or a Hugging Face folder, or a hub id such as gpt2-xl")
        else:
            raise parameters.ParameterError(f"cannot list {what!r}: choose notebooks, tasks or models.")
