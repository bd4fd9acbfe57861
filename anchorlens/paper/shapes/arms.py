"""Sections 3.1 and 3.2: one arm against another on the same prompts."""

from collections.abc import Mapping
from typing import Any

from anchorlens.paper import measures
from anchorlens.paper.measures import Tasks, arrays
from anchorlens.paper.shapes.seen import Seen, better


def gain(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """Points of accuracy that learned factors gain."""
    found = arrays(cells, lambda cell: measures.difference(cell, "beta", spec["other"], "correct"))
    return better(found)


def kept(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """Points of loyalty by which kept label words are above another arm."""
    measure = spec["measure"]
    found = arrays(cells, lambda cell: measures.difference(cell, "hidden_anchor", spec["other"], measure))
    return better(found)


def faster(spec: Mapping[str, Any], cells: Tasks) -> Seen | None:
    """How often faster queries are with label words kept only."""
    shown, _ = measures.number("speed", "hidden_anchor", cells)
    return None if shown is None else Seen(shown, shown.value > spec["tolerance"])
