"""How the cost of a query grows with demonstrations, queries and layers: what ``docs/scaling.json`` holds.

``python -m tests.benchmarks.scaling`` measures; ``make pictures`` draws it without measuring again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anchorlens import planner, readings
from anchorlens.batching import Group
from anchorlens.models import Lens

from . import table
from .gpu import load
from .shapes import SHAPES, Shape, Size, group, prompts
from .timing import Way, alternating

GIVEN = Size(examples=16, query=(40, 40))  # of one length, so that padding plays no part
VARIED: Mapping[str, Sequence[int]] = {
    "demonstrations": (1, 2, 4, 8, 16),
    "queries": (1, 2, 4, 16, 64),
    "layers": (2, 4, 8, 12, 24),
}
QUICK: Mapping[str, Sequence[int]] = {"demonstrations": (1, 2), "queries": (1, 2), "layers": (1, 2)}


def points(shape: Shape, size: Size, varied: Mapping[str, Sequence[int]], rounds: int) -> list[dict[str, Any]]:
    """CPU seconds per query of ``readings.read``, demonstrations included, and operations by formula."""
    device, loaded, found = torch.device("cpu"), {}, []
    for layers in {shape.layers, *varied["layers"]}:
        loaded[layers] = load(replace(shape, layers=layers), "cpu", "float32")
    for panel, values in varied.items():
        asked: dict[int, tuple[Lens, Group]] = {}
        for value in values:
            here = size
            if panel == "demonstrations":
                here = replace(size, demonstrations=value)
            elif panel == "queries":
                here = replace(size, examples=value)
            asked[value] = loaded[value if panel == "layers" else shape.layers], group(prompts(shape, here))
        ways = {str(value): Way(lambda _, one=one: readings.read(*one)) for value, one in asked.items()}
        print(f"{panel} ...", file=sys.stderr, flush=True)
        alternating(ways, 1, device)  # what is done once
        timed = alternating(ways, rounds, device)
        for value, (lens, shown) in asked.items():
            found.append(
                {"panel": panel, "value": value, "seconds": timed[str(value)].median / len(shown.prompts)}
                | {"low": min(timed[str(value)].seconds) / len(shown.prompts)}
                | {"high": max(timed[str(value)].seconds) / len(shown.prompts)}
                | formula(lens, shown)
            )
    return found


def formula(lens: Lens, shown: Group) -> dict[str, float]:
    """Operations per query: demonstrations once, then queries; and of whole prompts. The output matrix once a query."""
    shape, n = planner.of_model(lens.cfg), len(shown.prompts)
    output = 2 * shape.d_model * shape.d_vocab
    queries = sum(planner.operations(shape, len(prompt.ids) - shown.length, shown.length) for prompt in shown.prompts)
    whole = sum(planner.operations(shape, len(prompt.ids)) for prompt in shown.prompts)
    return {"operations": (planner.operations(shape, shown.length) + queries) / n + output, "whole": whole / n + output}


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="docs/scaling.json")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    shape, size, varied = SHAPES["gpt2"], GIVEN, VARIED
    if asked.quick:
        shape, size, varied = SHAPES["tiny"], Size(examples=2, demo=12, query=(10, 10)), QUICK
    told = {
        "machine": table.machine(torch.device("cpu")),
        "shape": vars(shape),
        "size": vars(size),
        "points": points(shape, size, varied, 1 if asked.quick else asked.rounds),
    }
    Path(asked.out).write_text(json.dumps(told, indent=1) + "\n")
    print(f"wrote {asked.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
