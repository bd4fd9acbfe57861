"""Peaks of memory, measured against what the planner expects: ``python -m tests.benchmarks.memory``.

Each analysis of each shape is measured in a process of its own, over the weights: on a GPU by the allocator's own
peak, otherwise from every allocation that torch's profiler sees. ``--resident`` puts beside it how far the process
grew, which holds what libraries take for themselves too.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from anchorlens import planner, readings
from anchorlens.analyses import compression, information_flow, isolation
from anchorlens.analyses.compression import kept
from anchorlens.analyses.reweighting import prepared
from anchorlens.batching import Group, collate
from anchorlens.models import Hooked, Lens, device_of
from anchorlens.preflight import Checkpoint
from anchorlens.prompts import Prompt

from .shapes import Shape, Size, group, prompts

ALL = 10**9  # tokens: everything in one batch
ALLOWED = 0.15  # by which an estimate may miss


@dataclass(frozen=True)
class Setup:
    """A model's config.json, prompts for it, and how many of these are run backward at once."""

    config: dict[str, Any]
    size: Size
    whole: int


GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SETUPS = {
    "12 x 768, GPT-2 small": Setup(Shape(12, 768, 12).config, Size(examples=12, training=6), 3),
    "8 x 1024, rotary, 4 heads share a key": Setup(
        {
            **LLAMA,
            **{"num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4},
            **{"intermediate_size": 2816, "vocab_size": 32000, "max_position_embeddings": 1024},
        },
        Size(examples=12, training=6),
        3,
    ),
    "6 x 512, 16 heads, long prompts": Setup(
        Shape(6, 512, 16).config, Size(examples=6, demonstrations=8, demo=80, query=(60, 90), training=4), 1
    ),
}


@dataclass(frozen=True)
class Case:
    """An analysis to be measured, and what the planner expects of it."""

    run: Callable[[], object]
    expected: float


def build(config: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Hooked:
    """A model of this shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from anchorlens.models.hooked import convert
    from anchorlens.models.kinds import kind_of

    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    plain.config.architectures = config["architectures"]
    checkpoint = Checkpoint("random", Path())
    model = convert(checkpoint, plain, [device])
    return Hooked(model, None, checkpoint, kind_of(plain.config, model.cfg.positional_embedding_type))


def cases(model: Lens, asked: Sequence[Prompt], training: Sequence[Prompt], whole: int) -> dict[str, Case]:
    """The analyses, each in one batch; ``whole`` prompts are run backward."""
    shape, shown, taught = planner.of_model(model.cfg), group(asked), group(training)
    sizes = _sizes(shown)
    batch = collate(sorted(asked, key=lambda prompt: -len(prompt.ids))[:whole]).to(device_of(model))
    longest, layers = batch.tokens.shape[1], range(shape.n_layers)
    settings = isolation.settings(shape.n_layers, [1, 3])
    left = len(kept.by_role(shown, "hidden_anchor"))

    def flow(checkpoint: bool) -> object:
        with patch("anchorlens.fitting.checkpointed", return_value=checkpoint):
            return information_flow.information_flow(model, batch)

    def read(vectors: Sequence[int] = ()) -> object:
        return readings.read(model, shown, batch_tokens=ALL, vectors=vectors)

    return {
        "saliency": Case(lambda: flow(False), planner.saliency(shape, whole, longest)),
        "saliency, layers run anew": Case(lambda: flow(True), planner.saliency(shape, whole, longest, checkpoint=True)),
        "extraction": Case(read, planner.extraction(shape, *sizes)),
        "diagnosis": Case(lambda: read(layers), planner.extraction(shape, *sizes, vectors=shape.n_layers)),
        "isolation": Case(
            lambda: isolation.isolation(model, shown, settings, batch_tokens=ALL),
            planner.isolation(shape, *sizes, [min(setting.layers) for setting in settings]),
        ),
        "compression": Case(
            lambda: compression.compression(model, shown, draws=1, positions="continue", batch_tokens=ALL),
            planner.compression(shape, *sizes, left),
        ),
        "re-weighting, preparation": Case(
            lambda: prepared(model, taught, batch_tokens=ALL), planner.preparing(shape, *_sizes(taught), len(training))
        ),
    }


def _sizes(shown: Group) -> tuple[int, int, int]:
    """Queries, tokens of the longest one, and tokens before them."""
    return len(shown.prompts), max(len(prompt.ids) for prompt in shown.prompts) - shown.length, shown.length


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes alive at once while ``run`` goes on, over those that were before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    seen: Any = profile.profiler
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def resident(run: Callable[[], object]) -> int:
    """How much larger the process became at most (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is resident now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measured(setup: Setup, name: str, device: str, dtype: str, *, by_process: bool = False) -> dict[str, float]:
    """Bytes expected and measured of one analysis."""
    model = build(setup.config, device, getattr(torch, dtype))
    of = Shape(0, 0, 0, model.cfg.d_vocab)
    case = cases(model, prompts(of, setup.size), prompts(of, setup.size, training=True), setup.whole)[name]
    model.all_logits(torch.zeros(1, model.cfg.d_model, dtype=model.cfg.dtype, device=device))  # makes it ready
    if device.startswith("cuda"):
        case.run()  # each thread takes a workspace of its own for products, once
    found = {"expected": case.expected, "measured": peak(case.run, torch.device(device))}
    return {**found, **({"resident": resident(case.run)} if by_process else {})}


def _in_its_own_process(setup: str, name: str, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--device", given.device, "--dtype", given.dtype]  # type: ignore
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        run = subprocess.run(
            [*command, "--one", setup, name, *(["--resident"] if given.resident else [])],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        if run.returncode:
            said.seek(0)
            raise RuntimeError(f"{setup}, {name}: {said.read()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure peaks of memory against the planner's estimates.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(planner.BYTES))
    parser.add_argument("--resident", action="store_true", help="also how far the process grew (Linux, CPU)")
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "ANALYSIS"), help="measure one, in this process")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.one:
        setup, name = given.one
        print(json.dumps(measured(SETUPS[setup], name, given.device, given.dtype, by_process=given.resident)))
        return 0
    rows = []
    for setup in SETUPS:
        for name in ANALYSES:
            row = {"shape": setup, "analysis": name, **_in_its_own_process(setup, name, given)}
            rows.append(row)
            share = row["expected"] / row["measured"]
            beside = f"  process {row['resident'] / 2**20:8.1f}" if given.resident else ""
            mark = "" if abs(share - 1) <= ALLOWED else "  MISSED"
            print(
                f"{setup:38} {name:26} expected {row['expected'] / 2**20:8.1f}  measured {row['measured'] / 2**20:8.1f}"
                f" MiB  {share:.2f}{beside}{mark}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps({"torch": torch.__version__, "device": given.device, "rows": rows}, indent=1))
    return int(any(abs(row["expected"] / row["measured"] - 1) > ALLOWED for row in rows))


ANALYSES = (
    "saliency",
    "saliency, layers run anew",
    "extraction",
    "diagnosis",
    "isolation",
    "compression",
    "re-weighting, preparation",
)


if __name__ == "__main__":
    sys.exit(main())
