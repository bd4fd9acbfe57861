"""What the paper publishes against what runs show: every number and every stated shape, with a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anchorlens.intervals import Interval
from anchorlens.paper import measures, shapes
from anchorlens.paper.published import PUBLISHED
from anchorlens.paper.stored import Cell, Study, UnreadableError, forget, studies

__all__ = ["COLUMNS", "PUBLISHED", "VERDICTS", "compare", "write"]

COLUMNS = {
    "section": "str",
    "notebook": "str",
    "item": "str",
    "model": "str",
    "task": "str",
    "claim": "str",
    "published": "str",
    "ours": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "holds": "str",
    "verdict": "str",
    "why": "str",
}
VERDICTS = ("pass", "differs", "not run", "not comparable")
_HOLDS = {True: "yes", False: "no", None: ""}


def compare(runs: Iterable[Path], *, missing: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Hold finished runs against the paper.

    Args:
        runs: folders of finished runs, or objects with such a ``folder``. Of two with the same model, notebook, task
            and seed one counts (``stored.studies``); ``why`` says how many were passed over.
        missing: why a task was not run, by its name.

    Returns:
        One row per published number or shape, and model among the runs; without runs, as if of the paper's models.
        Columns as in ``COLUMNS``. ``task`` is "" for a mean of tasks; ``value`` with its 95 % interval (``intervals``;
        NaN where there is none) is in the unit that ``ours`` names; ``n`` counts prompts, those of each seed by
        themselves (of speeds, measurements). ``holds`` tells of shapes whether these runs show it, whatever the model:
        "yes", "no", or "" where it cannot be told, and for numbers. ``verdict`` judges agreement with the paper:
        "pass", "differs" (``why``: by how much), "not run", or "not comparable": other model, rows or settings than
        the paper's. Fewer queries or seeds than the paper's do compare, and ``why`` says so: the interval is so much
        wider, but that of one seed does not tell how another would have come out, and may be far too narrow. A run
        that lacks a table, of another version say, leaves the rows that need it "not run", and one whose manifest
        cannot be read is passed over; ``why`` names both.
    """
    folders = [Path(getattr(run, "folder", run)) for run in runs]
    try:
        found, unread = studies(folders)
        rows = []
        for study in found or [Study(name, name, "", {}) for name in PUBLISHED["models"]]:
            rows += [_number(study, spec, missing or {}) for spec in PUBLISHED["numbers"]]
            rows += [_shape(study, spec, missing or {}) for spec in PUBLISHED["shapes"]]
    finally:
        forget()
    for row in rows:
        row["why"] = "; ".join([*filter(None, [row["why"]]), *unread.get(row["notebook"], [])])
    order = {each["notebook"]: n for n, each in enumerate(sorted(rows, key=lambda row: row["section"]))}
    rows.sort(key=lambda row: order[row["notebook"]])
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write(frame: pd.DataFrame, root: Path) -> list[Path]:
    """Keep a comparison in the store ``root``, as ``comparison.parquet`` and ``.csv``, in place of an earlier one."""
    made = []
    for suffix, said in (("parquet", frame.to_parquet), ("csv", frame.to_csv)):
        made.append(root / f"comparison.{suffix}")
        beside = made[-1].with_suffix(".partial")
        said(beside, index=False)
        beside.replace(made[-1])  # never half of one
    return made


def _number(study: Study, spec: Mapping[str, Any], missing: Mapping[str, str]) -> dict[str, Any]:
    there = study.of(spec["notebook"], spec["task"]) if spec["measure"] else {}
    try:
        shown, cells = measures.number(spec["measure"], spec["arm"], there)
        told = measures.balance(spec["arm"], cells) if spec["measure"] == "accuracy" and spec["task"] else None
    except UnreadableError as error:
        return _row(study, spec, _theirs(study, spec, [])[0], "not run", [str(error)])
    theirs, restated = _theirs(study, spec, list(cells))
    said = [spec["remark"]] if "remark" in spec else []
    if shown is None:
        said = ["the runs of this notebook do not have it", *said] if there else said
        return _row(study, spec, theirs, *_absent(study, spec, missing, said))
    apart = _apart(study, spec, cells, restated)
    number = spec["published"].get(study.known)
    verdict = "not comparable"
    if not apart and number is not None:
        number = float(number) if restated is None else restated
        gap, margin = shown.value - number, _margin(spec["tolerance"], number, shown)
        verdict = "pass" if abs(gap) <= margin else "differs"
        said.insert(0, f"by {gap:+.2f} {spec['unit']}, where {margin:.2f} are allowed")
    for arm in _positioned(spec):
        ways = [measures.positions(cell, arm) for seeds in cells.values() for cell in seeds]
        said.append(f"positions {' or '.join(dict.fromkeys(ways))}")
    if told:
        said.append(
            f"the paper publishes accuracy alone; in macro-F1 ours is {told[0]:.2f} %, and always saying the commonest "
            f"class would be right in {told[1]:.2f} %"
        )
    return _row(study, spec, theirs, verdict, [*apart, *said, *_beside(study, spec, cells)], shown)


def _shape(study: Study, spec: Mapping[str, Any], missing: Mapping[str, str]) -> dict[str, Any]:
    spec = {**spec, "task": "trec" if spec["section"] == "3.3" else "", "published": dict.fromkeys(spec["models"])}
    cells = study.of(spec["notebook"], spec["task"])
    theirs = f"as stated ({', '.join(spec['models'])})"
    try:
        seen = shapes.look(spec, cells)
    except UnreadableError as error:
        return _row(study, spec, theirs, "not run", [str(error)])
    if seen is None:
        said = ["the runs of this notebook do not have it"] if cells else []
        return _row(study, spec, theirs, *_absent(study, spec, missing, said))
    apart = _apart(study, spec, cells, None, every=False)
    bound = spec["tolerance"] if seen.bound is None else seen.bound
    said = [*([seen.said] if seen.said else []), f"bound {bound:.3g}: {spec['reason']}"]
    verdict = "not comparable"
    if not apart and seen.holds is not None:
        verdict = "pass" if seen.holds else "differs"
        said = said if seen.holds else [f"by {seen.interval.value - bound:+.3g} {spec['unit']} from the bound", *said]
    return _row(study, spec, theirs, verdict, [*apart, *said, *_beside(study, spec, cells)], seen.interval, seen.holds)


def _theirs(study: Study, spec: Mapping[str, Any], ran: list[str]) -> tuple[str, float | None]:
    """The published number for people, and that of the tasks that ran, where these are not all and it can be had."""
    known = {name: value for name, value in spec["published"].items() if study.known in ("", name)}
    text = ", ".join(f"{value:.4g} {spec['unit']} ({name})" for name, value in (known or spec["published"]).items())
    by_task = spec.get("by_task", {}).get(study.known)
    if not by_task or spec["task"] or not ran or len(ran) == len(PUBLISHED["tasks"]):
        return text, None
    restated = sum(by_task[task] for task in ran) / len(ran)
    return f"{text}; {restated:.4g} {spec['unit']} of {', '.join(ran)}", restated


def _absent(
    study: Study, spec: Mapping[str, Any], missing: Mapping[str, str], said: list[str]
) -> tuple[str, list[str]]:
    """Verdict and reasons where nothing of ours is there."""
    if spec["task"] in missing:
        return "not run", [missing[spec["task"]], *said]
    if spec.get("measure") == "" and study.cells and study.known not in spec["published"]:  # by no run of any model
        return "not comparable", [study.why or f"published for {', '.join(spec['published'])}", *said]
    which = f" with task {spec['task']}" if spec["task"] else ""
    return "not run", said or [f"no run of this notebook{which}"]


def _apart(
    study: Study,
    spec: Mapping[str, Any],
    cells: Mapping[str, Sequence[Cell]],
    restated: float | None,
    *,
    every: bool = True,
) -> list[str]:
    """Why this is not what the paper measured; nothing if it is."""
    found = [study.why] if study.why else []
    if study.known and study.known not in spec["published"]:
        found.append(f"published for {', '.join(spec['published'])}")
    apart = [(task, each) for task, seeds in cells.items() for cell in seeds for each in cell.differences]
    by_reason: dict[str, list[str]] = {}
    for task, reason in dict.fromkeys(apart):
        by_reason.setdefault(reason, []).append(task)
    found += [
        reason if set(those) == set(cells) else f"{reason} with {', '.join(those)}"
        for reason, those in by_reason.items()
    ]
    for arm in _positioned(spec):
        ways = {measures.positions(cell, arm): measures.rule(cell, arm) for seeds in cells.values() for cell in seeds}
        found += [
            f"positions {own} of {arm}, the paper's {rule}" for own, rule in ways.items() if own not in ("", rule)
        ]
    lacking = [task for task in PUBLISHED["tasks"] if task not in cells]
    if lacking and every and not spec["task"] and restated is None:
        found.append(f"mean without {', '.join(lacking)}, the paper's is of {len(PUBLISHED['tasks'])} tasks")
    return found


def _positioned(spec: Mapping[str, Any]) -> list[str]:
    """Arms of a number or shape whose answers depend on where the query's positions start."""
    if spec["notebook"] != "3_2_compression" or spec.get("measure") not in ("label_loyal", "word_loyalty", "correct"):
        return []
    arms = spec.get("arm") or ["hidden_anchor", spec["other"]]
    return [arm for arm in ([arms] if isinstance(arms, str) else arms) if arm not in ("icl", "text_anchor")]


def _beside(study: Study, spec: Mapping[str, Any], cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """What else is to be known."""
    found = [f"tasks: {', '.join(cells)}"] if not spec["task"] and len(cells) < len(PUBLISHED["tasks"]) else []
    found += list(dict.fromkeys(note for seeds in cells.values() for cell in seeds for note in cell.notes))
    fewest = min(len(seeds) for seeds in cells.values())
    if fewest < len(PUBLISHED["seeds"]):
        seeds = f"{fewest} seed{'' if fewest == 1 else 's'} of the paper's {len(PUBLISHED['seeds'])}"
        found.append(f"{seeds}, which does not show how others would come out" if fewest == 1 else seeds)
    replaced = sum(study.replaced.get((spec["notebook"], task), 0) for task in cells)
    return [*found, *([f"others of the same seeds passed over: {replaced}"] if replaced else [])]


def _margin(tolerance: str, number: float, shown: Interval) -> float:
    rule = PUBLISHED["tolerances"][tolerance]
    if "relative" in rule:
        return rule["relative"] * abs(number)
    half = (shown.high - shown.low) / 2
    return max(rule["least"], rule["half_widths"] * half if math.isfinite(half) else 0.0)


def _row(
    study: Study,
    spec: Mapping[str, Any],
    theirs: str,
    verdict: str,
    why: list[str],
    shown: Interval | None = None,
    holds: bool | None = None,
) -> dict[str, Any]:
    value, low, high, n = (shown.value, shown.low, shown.high, shown.n) if shown else (math.nan, math.nan, math.nan, 0)
    ours = ""
    if math.isfinite(value):
        span = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
        ours = f"{value:.2f}{span} {spec['unit']}"
    given = {name: spec[name] for name in ("section", "notebook", "item", "task", "claim")}
    measured = {"value": value, "low": low, "high": high, "n": n}
    judged = {"holds": _HOLDS[holds], "verdict": verdict, "why": "; ".join(why)}
    return {**given, "model": study.name, "published": theirs, "ours": ours, **measured, **judged}
