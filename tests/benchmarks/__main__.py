"""Time our way against the plain one and the floor: ``make bench``.

Exit code 0 also where a goal is missed, since this is a measurement; 1 where results disagree.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anchorlens import models, planner
from anchorlens.analyses.compression import kept
from anchorlens.passes import queries

from . import cases, commands, ours, table
from .cases import Agreement, Bench, Case
from .floor import Floor
from .plain import Plain
from .shapes import SHAPES, Shape, Size, group, prompts, write_folder
from .table import Row, ratio
from .timing import Timed, alternating

FEW = 16  # queries that compression is timed on, where its batch is no larger
QUICK = Size(examples=6, demo=16, query=(11, 16), training=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    asked = _parse(argv)
    torch.set_num_threads(asked.threads)
    device = torch.device(models.preflight.resolve_device(asked.device))
    shape, size = (SHAPES["tiny"], QUICK) if asked.quick else (SHAPES["gpt2"], Size())
    sizes = [int(batch) for batch in asked.batches.split(",")]
    if asked.quick:
        asked.plain, asked.rounds, sizes = size.examples, 1, [2]
    bench = _bench(shape, size, asked, device)
    timed: dict[str, dict[str, Timed]] = {}
    agreed: dict[str, list[Agreement]] = {}
    for name, make in _makers(sizes).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        alternating(make(_small(bench)).ways, 1, device)  # what is done once, such as the first allocations
        case = make(bench)
        timed[case.name] = alternating(case.ways, asked.rounds, device)
        agreed[case.name] = case.agree(timed[case.name])
    rows = [*_rows(bench, timed, sizes), *_around(asked)]
    told = {
        "machine": table.machine(device),
        "shape": vars(shape),
        "size": vars(size) | {"plain": asked.plain, "rounds": asked.rounds},
        "note": _note(asked, size),
        **table.as_json(rows, timed, agreed),
    }
    print(_said(told, rows, timed, agreed))
    if asked.out:
        Path(asked.out).write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(each.holds for some in agreed.values() for each in some) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs and results agree")
    parser.add_argument("--plain", type=int, default=16, help="prompts that the plain way does, spread over the rounds")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batches", default="8,16", help="batch sizes of compression")
    parser.add_argument("--out", help="a file for JSON")
    asked = parser.parse_args(argv)
    if not asked.quick and not 1 <= asked.rounds <= asked.plain <= Size.examples:
        parser.error(f"--rounds {asked.rounds} --plain {asked.plain}: give 1 <= rounds <= plain <= {Size.examples}")
    return asked


def _bench(shape: Shape, size: Size, asked: argparse.Namespace, device: torch.device) -> Bench:
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        write_folder(shape, Path(folder))
        lens = models.load(folder, device=str(device))
        plain: Any = GPT2LMHeadModel.from_pretrained(folder)
    plain = plain.to(device).eval().requires_grad_(False)
    shown, training = prompts(shape, size), prompts(shape, size, training=True)
    return Bench(lens, Plain(plain), Floor(plain), shown, training, slices=asked.rounds, subset=asked.plain)


def _small(bench: Bench) -> Bench:
    return replace(bench, prompts=bench.prompts[:1], training=bench.training[:1], slices=1, subset=1, epochs=1)


def _makers(sizes: Sequence[int]) -> dict[str, Callable[[Bench], Case]]:
    found: dict[str, Callable[[Bench], Case]] = {
        "extraction": cases.extraction,
        "isolation": cases.isolation,
        "saliency": cases.saliency,
        "re-weighting": cases.reweighting,
    }
    for batch in sizes:
        found[f"compression {batch}"] = lambda bench, batch=batch: cases.compression(bench, max(FEW, batch), batch)
    return found


def _rows(bench: Bench, timed: Mapping[str, Mapping[str, Timed]], sizes: Sequence[int]) -> list[Row]:
    deep, cut, flow, beta = (timed[name] for name in ("extraction", "isolation", "saliency", "re-weighting"))
    n_layers = bench.model.cfg.n_layers
    passes, padding, step = _counts(bench)
    rows = [
        Row("extraction", "plain / ours", ratio(deep, "plain", "ours"), least=6, unit="x"),
        Row("extraction", "ours / sdpa with the same reuse", ratio(deep, "ours", "floor"), most=1.15, unit="x"),
        Row("isolation", "plain / ours", ratio(cut, "plain", "ours"), least=9, unit="x"),
        Row("isolation", "passes of the queries (5 + 12 / layers)", passes, most=5 + 12 / n_layers),
        Row("isolation", "tokens with padding / without", padding, unit="x"),
        Row("saliency", "plain / ours", ratio(flow, "plain", "ours"), least=1.4, unit="x"),
        Row("saliency", "ours / forward and backward alone", ratio(flow, "ours", "floor"), most=1.05, unit="x"),
        Row("re-weighting", "plain / ours", ratio(beta, "plain", "ours"), least=25, unit="x"),
        Row("re-weighting", "tokens per step", step, most=1),
        Row(
            "re-weighting, full batch",
            "plain / ours, a step an epoch",
            ratio(beta, "plain", "ours, full batch"),
            unit="x",
        ),
    ]
    for batch in sizes:
        name = f"compression, batch {batch}"
        speed, share = ratio(timed[name], "plain", "ours"), _operations(bench, max(FEW, batch))
        cached = ratio(timed[name], "ours", "floor")
        rows += [
            Row(name, f"whole prompts / ours, of {share:.2f} by operations", speed / share, least=0.75),
            Row(name, "ours / sdpa with cached demonstrations", cached, most=1.05, unit="x"),
            Row(name, "ours / sdpa with the same kept tokens", ratio(timed[name], "ours", "sdpa"), unit="x"),
        ]
    return rows


def _counts(bench: Bench) -> tuple[float, float, float]:
    """Passes of the queries in isolation, what padding adds to each, and tokens of a step of re-weighting."""
    asked, training, n_layers = bench.group(), group(bench.training), bench.model.cfg.n_layers
    few = bench.group(bench.prompts[:4])
    counted: list[int] = []
    for count, run in (
        (few, lambda: ours.extract(bench.model, few)),
        (few, lambda: ours.isolate(bench.model, few)),
        (training, lambda: ours.learn(bench.model, training, epochs=1)),
        (training, lambda: ours.learn(bench.model, training, epochs=2)),
    ):
        with ours.counting(bench.model, count) as found:
            run()
        counted.append(found.others)
    once, cut, less, more = counted
    masks = [each.mask for each in queries(bench.model, asked)]
    padding = sum(mask.numel() for mask in masks) / sum(int(mask.sum()) for mask in masks)
    return cut / once, padding, (more - less) / n_layers / len(training.prompts)


def _operations(bench: Bench, size: int) -> float:
    """Floating-point operations of whole prompts over those of queries after the kept tokens."""
    few = bench.group(bench.prompts[:size])
    shape, held = planner.of_model(bench.model.cfg), len(kept.by_role(few, "hidden_anchor"))
    whole = sum(planner.operations(shape, len(prompt.ids)) for prompt in few.prompts)
    return whole / sum(planner.operations(shape, len(prompt.ids) - few.length, held) for prompt in few.prompts)


def _around(asked: argparse.Namespace) -> list[Row]:
    took, imported = commands.help_seconds(1 if asked.quick else 5)
    sweep = None if asked.quick else commands.sweep_seconds()
    return [
        Row("a sweep by one worker", f"wall of a run, of {commands.RUNS} on the toy", sweep, most=2, unit=" s"),
        Row("anchorlens --help", "wall", took, most=0.4, unit=" s"),
        Row("anchorlens --help", "times torch is imported", float(imported), most=0),
    ]


def _note(asked: argparse.Namespace, size: Size) -> str:
    if asked.quick:
        return "A tiny model, to see that it runs and that results agree: the goals are not meant for it."
    clock = "CUDA events" if asked.device.startswith("cuda") else "CPU seconds of the process"
    return (
        f"Medians of {clock} over {asked.rounds} rounds, ways taking turns. The plain way is additive over prompts: it "
        f"did {asked.plain} of {size.examples}, spread over the rounds, and {cases.STEPS} training steps a round; its "
        f"times are multiplied by tokens and steps. Saliency, which shares nothing between prompts, is timed on "
        f"{asked.plain} prompts for all ways."
    )


def _said(
    told: Mapping[str, Any],
    rows: Sequence[Row],
    timed: Mapping[str, Mapping[str, Timed]],
    agreed: Mapping[str, Sequence[Agreement]],
) -> str:
    held = told["machine"]
    where = f"{held['cpu']}, {held['cores']} cores, {held['threads']} threads, {held['ram_gb']} GB, GPU: {held['gpu']}"
    shape = "{layers} layers, width {width}, {heads} heads, vocabulary {vocabulary}".format(**told["shape"])
    parts = [table.markdown(rows), f"{where}; {shape}, random weights, float32", told["note"]]
    return "\n\n".join([*parts, table.seconds(timed), table.agreements(agreed)])


if __name__ == "__main__":
    sys.exit(main())
