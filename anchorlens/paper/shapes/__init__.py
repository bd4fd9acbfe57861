"""The shapes of the paper's figures that its text states: each a number, an interval, and whether it holds.

Thresholds, and why they are what they are, stand in ``published.json``; ``CHECKS`` has the measure of each.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from anchorlens.paper.measures import Tasks, of_each
from anchorlens.paper.shapes import arms, diagnosis, extraction, flow, isolation
from anchorlens.paper.shapes.seen import Seen
from anchorlens.paper.stored import Cell

__all__ = ["CHECKS", "Seen", "look"]

_PROMPTS = {"3_3_diagnosis": "predictions"}  # the table that has prompts, where it is not results


def look(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """Measure one shape of ``published.json``; None if no run has what it needs.

    Raises:
        UnreadableError: if one has it only in part.
    """
    if not cells:
        return None
    seen = CHECKS[spec["id"]](spec, cells)
    return seen and replace(seen, interval=replace(seen.interval, n=_asked(cells)))


def _asked(cells: Tasks) -> int:
    """How many prompts, those of each seed by themselves."""

    def of_cell(cell: Cell) -> int:
        return len(set(cell.table(_PROMPTS.get(cell.manifest["notebook"], "results"))["example"]))

    return sum(of_each(cells, of_cell).values())


CHECKS: dict[str, Callable[[Mapping[str, Any], Tasks], Seen | None]] = {
    **dict.fromkeys(("gathering", "shallow_order", "rising", "reading", "above_rest", "crossing"), flow.flow),
    **dict.fromkeys(("first_largest", "last_none", "random_none", "first_any", "last_any"), isolation.isolated),
    "auc_deep": extraction.auc_deep,
    "share_shallow": extraction.share_shallow,
    "gain": arms.gain,
    "kept": arms.kept,
    "faster": arms.faster,
    **dict.fromkeys(("worst_pair", "good_pairs", "abbreviation"), diagnosis.confused),
    "rank_order": diagnosis.rank_order,
    "steady": diagnosis.steady,
}
