"""The whole paper on one card, projected: tokens per second and FLOP utilisation of each analysis.

``python -m tests.benchmarks.gpu`` builds a random model of GPT2-XL's shape and runs every analysis on one set of
demonstrations; ``--device cpu --shape tiny`` tries it anywhere.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from anchorlens import models, passes, planner, readings
from anchorlens.analyses import compression, diagnosis, extraction, isolation, reweighting
from anchorlens.analyses.information_flow import information_flow
from anchorlens.batching import Group
from anchorlens.models import Lens

from . import ours, table
from .shapes import SHAPES, Shape, Size, group, prompts, write_config
from .timing import clocked

TASKS, SEEDS, QUERIES = 4, 5, 1000  # of the paper
LEFT_OUT = (
    "the untrained control of 2.1, more demonstrations in 3.1, the arm text_anchor of 3.2, and the further sets of "
    "demonstrations whose queries 3.3 takes principal components from"
)
# Dense operations per second, in 1e12, from the vendors' data sheets: bfloat16 with float32 sums, and plain float32.
PEAKS = {
    "H200": {"bfloat16": 989, "float16": 989, "float32": 67},
    "H100 PCIe": {"bfloat16": 756, "float16": 756, "float32": 51},
    "H100": {"bfloat16": 989, "float16": 989, "float32": 67},
    "A100": {"bfloat16": 312, "float16": 312, "float32": 19.5},
    "L4": {"bfloat16": 121, "float16": 121, "float32": 30.3},
    "V100": {"float16": 125, "float32": 15.7},
}


@dataclass(frozen=True)
class Work:
    """One part of the paper: ``run`` on the prompts at hand; whether it grows with the queries, or is done per set.

    ``whole``: nothing is remembered, and prompts are run forward and backward.
    """

    name: str
    run: Callable[[], Any]
    per_query: bool = True
    whole: bool = False


@dataclass(frozen=True)
class Found:
    """What one part took."""

    analysis: str
    dtype: str
    seconds: float
    tokens_per_second: float
    tflops: float
    utilisation: float | None
    projected_minutes: float


def works(lens: Lens, shown: Group, training: Group) -> list[Work]:
    """What the paper needs of all six analyses; what its notebooks add is in ``LEFT_OUT``."""
    layer = diagnosis.layer_of(lens.cfg.n_layers)
    settings = isolation.settings(lens.cfg.n_layers)
    components = (min(10, len(shown.prompts), lens.cfg.d_model),)
    beta = torch.zeros(lens.cfg.n_layers, lens.cfg.n_heads, len(shown.anchors), device=models.device_of(lens))

    def saliency() -> None:
        for batch in passes.plan(lens, shown.prompts):
            information_flow(lens, batch)

    def diagnose() -> None:
        diagnosis.diagnosis([readings.read(lens, shown, vectors=[layer])], n_components=components)

    return [
        Work("2.1 saliency", saliency, whole=True),
        Work("2.2 isolation", partial(isolation.isolation, lens, shown, settings)),
        Work("2.3 extraction", lambda: extraction.extraction(readings.read(lens, shown))),
        Work("3.1 re-weighting, training", partial(ours.learn, lens, training, epochs=10), per_query=False),
        Work("3.1 re-weighting, answers", partial(reweighting.compare, lens, shown, beta)),
        Work("3.2 compression", partial(compression.compression, lens, shown)),
        Work("3.3 diagnosis", diagnose),
    ]


def measure(lens: Lens, shown: Group, work: Work, rounds: int, peak: float | None) -> Found:
    """Median seconds after one untimed run, in which its tokens are counted."""
    with ours.counting(lens, shown) as counted:
        work.run()
    seconds = median(clocked(work.run, models.device_of(lens))[0] for _ in range(rounds))
    n_layers = lens.cfg.n_layers
    if work.whole:  # where memory is short, layers are run anew, which is no further work done
        counted.others = n_layers * sum(batch.tokens.numel() for batch in passes.plan(lens, shown.prompts))
    shape, before = planner.of_model(lens.cfg), shown.length
    length = sum(len(prompt.ids) - before for prompt in shown.prompts) // len(shown.prompts)
    if work.whole:  # of a token, with its share of attention
        each = planner.operations_with_gradient(shape, before + length) / (before + length)
    else:
        each = planner.operations(shape, length, before) / length
    of_demonstrations = planner.operations(shape, before) / before
    done = (counted.demonstrations * of_demonstrations + counted.others * each) / n_layers
    tokens = (counted.demonstrations + counted.others) / n_layers
    grid = TASKS * SEEDS * (QUERIES / len(shown.prompts) if work.per_query else 1)
    return Found(
        work.name,
        str(lens.cfg.dtype).removeprefix("torch."),
        seconds,
        tokens / seconds,
        done / seconds / 1e12,
        done / seconds / 1e12 / peak if peak else None,
        seconds * grid / 60,
    )


def load(shape: Shape, device: str, dtype: str) -> Lens:
    """A random model; its weights are in no folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(shape, Path(folder))
        return models.load(folder, device=device, dtype=dtype, random_seed=0)


def peak_of(device: torch.device, dtype: str) -> float | None:
    """What the card can do, in 1e12 operations per second; None for one that is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((float(peak[dtype]) for card, peak in PEAKS.items() if card in name and dtype in peak), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-xl")
    parser.add_argument("--dtype", default="bfloat16,float32", help="one or several, with commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--examples", type=int, default=256, help="queries that are run, and projected to the grid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, help="1e12 operations per second, for a card that is not in the table")
    parser.add_argument("--out", help="a file for JSON")
    asked = parser.parse_args(argv)
    device = torch.device(models.preflight.resolve_device(asked.device))
    shape, size = SHAPES[asked.shape], Size(examples=asked.examples)
    shown, training = group(prompts(shape, size)), group(prompts(shape, size, training=True))
    machine, found = table.machine(device), list[Found]()
    for dtype in asked.dtype.split(","):
        lens = load(shape, str(device), dtype)
        peak = asked.peak or peak_of(device, dtype)
        if peak is None:
            print(f"no peak is known of this device in {dtype}: give --peak for utilisation", file=sys.stderr)
        for work in works(lens, shown, training):
            print(f"{dtype} {work.name} ...", file=sys.stderr, end=" ", flush=True)
            found.append(measure(lens, shown, work, asked.rounds, peak))
            print(f"{found[-1].seconds:.3f} s", file=sys.stderr, flush=True)
        del lens, work
        gc.collect()  # or batches of the next are sized by what this one still takes
    told = {"machine": machine, "shape": vars(shape), "size": vars(size), "found": [*map(asdict, found)]}
    print(_said(told, found))
    if asked.out:
        Path(asked.out).write_text(json.dumps(told, indent=1) + "\n")
    return 0


def _said(told: Mapping[str, Any], found: Sequence[Found]) -> str:
    lines = [
        "| analysis | dtype | seconds | tokens/s | TFLOP/s | utilisation | whole paper, minutes |",
        "|" + "---|" * 7,
    ]
    for each in found:
        used = "-" if each.utilisation is None else f"{each.utilisation:.0%}"
        lines.append(
            f"| {each.analysis} | {each.dtype} | {each.seconds:.3f} | {each.tokens_per_second:,.0f} "
            f"| {each.tflops:.3g} | {used} | {each.projected_minutes:.2f} |"
        )
    for dtype in dict.fromkeys(each.dtype for each in found):
        total = sum(each.projected_minutes for each in found if each.dtype == dtype)
        lines.append(f"| all | {dtype} | | | | | {total:.2f} |")
    size, machine = told["size"], told["machine"]
    note = (
        f"{machine['gpu'] or machine['cpu']}; {size['examples']} queries behind one set of {size['demonstrations']} "
        f"demonstrations of {size['demo']} tokens, projected to {TASKS} tasks x {SEEDS} seeds x {QUERIES} queries. "
        f"Left out: {LEFT_OUT}; loading and drawing. Padding counts as tokens; demonstrations are counted as if they "
        f"were run anew every {size['examples']} queries, which projects a little too much."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    sys.exit(main())
