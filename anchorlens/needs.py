"""What every analysis would take with one model, task and rows: the second part of what the doctor says."""

from collections.abc import Mapping
from typing import Any

from anchorlens import dryrun, parameters, room, rows, tasks
from anchorlens.findings import Asked


def takes(asked: Asked) -> dict[str, Any]:
    """Device, memory and work of each analysis with its notebook's defaults, by arithmetic.

    Raises:
        ModelError, TaskError, ShapeError: as a run would, or for a model whose size cannot be told.
    """
    known: dict[tuple, list[rows.Example]] = {}

    def read(task: tasks.Task, data: str, *, split: rows.Split, toy: bool) -> list[rows.Example]:
        if (data, split) not in known:
            known[data, split] = rows.load(task, data, split=split, toy=toy)
        return known[data, split]

    found = []
    for name in sorted(set(dryrun.ANALYSES) - {"0_tour"}):
        path = parameters.find(name)
        found.append(dryrun.estimate(path, parameters.check(path, asked.parameters), asked.store, read=read))
    model = found[0]["model"]
    return {
        "device": found[0]["device"],
        "n_devices": found[0]["n_devices"],
        "dtype": model["dtype"],
        "free": found[0]["free"],
        "weights": model["weights"],
        "loading": found[0]["loading"],
        "loads": found[0]["loads"],
        "analyses": [
            {"notebook": each["notebook"], **each["analyses"][0]}
            | {name: each[name] for name in ("fits", "too_long")}
            | {"prompts": each["prompts"]["number"], "longest": each["prompts"]["longest"]}
            for each in found
        ],
    }


def report(taken: Mapping[str, Any]) -> str:
    """What ``takes`` found, in words."""
    size = room.in_units
    several = f" and the next {taken['n_devices'] - 1}" if taken["n_devices"] > 1 else ""
    lines = [
        f"device {taken['device']}{several}: {size(taken['free'])} free; weights {size(taken['weights'])} in "
        f"{taken['dtype']}, {size(taken['loading'])} for a moment while they are loaded"
    ]
    for each in taken["analyses"]:
        fits = "fits" if each["fits"] else "TOO LARGE"
        lines.append(
            f"{fits:<9} {each['analysis']:<13} {size(each['peak'])} at its peak beside the weights, batches of "
            f"{each['batch']}; {each['prompts']} prompts, {each['tokens']:,.0f} tokens through all layers"
        )
    if not all(each["fits"] for each in taken["analyses"]):
        smaller = "" if taken["dtype"] in ("bfloat16", "float16") else "dtype=bfloat16, which halves it, "
        lines.append(f"{'':<23}-> take {smaller}fewer shots, a smaller model, or a machine with more memory")
    if any(each["too_long"] for each in taken["analyses"]):
        longest = max(each["longest"] for each in taken["analyses"])
        lines.append(f"some prompts are TOO LONG: {longest} tokens")
        lines.append(f"{'':<23}-> take fewer shots, or too_long=skip, which leaves them out")
    return "\n".join(lines)
