"""What the paper publishes, as data: numbers with their tables, and shapes of figures with tolerances."""

import json
from pathlib import Path
from typing import Any

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def tolerance(shape: str) -> float:
    """Of a shape, by its id; the same for all measures that it is stated of."""
    (found,) = {each["tolerance"] for each in PUBLISHED["shapes"] if each["id"] == shape}
    return found


def shape(name: str, **where: str) -> dict[str, Any]:
    """The one shape of this id, and these other entries."""
    (found,) = [
        each
        for each in PUBLISHED["shapes"]
        if each["id"] == name and all(each[entry] == value for entry, value in where.items())
    ]
    return found


def mean_of_tasks(item: str, arm: str, model: str) -> float:
    """A published mean over the tasks."""
    rows = [each for each in PUBLISHED["numbers"] if (each["item"], each["arm"], each["task"]) == (item, arm, "")]
    (found,) = {each["published"][model] for each in rows}
    return found
