"""Train the toy: ``python -m anchorlens.toy.train --out FOLDER [--seed 0] [--no-gloss]``.

Two stages, driven by steps alone, on one thread, so that a seed gives the same weights on the same machine and torch.
First one block serves all layers while a curriculum leads from natural label words and short texts to random label
words and noise; then each layer gets a copy of its own and trains on. README.md in this folder says why.
"""

import argparse
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from anchorlens.toy.corpus import CONTEXT, write_tokenizer
from anchorlens.toy.episodes import IDS, Difficulty, Kind, episode
from anchorlens.toy.network import Network, Shape, to_hugging_face

WINDOW = 20  # steps over which accuracy and gloss loss are averaged
LONG = 224  # tokens of the longest training episodes


@dataclass(frozen=True)
class Stage:
    steps: int
    rate: float  # AdamW: embeddings, norms, biases
    matrix_rate: float  # Muon: hidden matrices
    curriculum: bool  # from easy to hard; otherwise hard from the first step
    batch: int = 20
    drop: float = 0.3  # stochastic depth
    drop_ramp: int = 200  # steps over which it rises, from half difficulty on
    gloss: float = 0.7
    late: float = 0.6  # share of the stage after which no label word is natural, and first labels are trained too
    gloss_until: float = 0.8  # share of the stage after which no label word is glossed


SHARED = Stage(steps=1800, rate=3e-3, matrix_rate=0.02, curriculum=True)
INDEPENDENT = Stage(steps=750, rate=1e-3, matrix_rate=6e-3, curriculum=False, late=0.0)


@dataclass
class Curriculum:
    """How hard episodes are, moved by what the net achieves."""

    stage: Stage
    level: float = 0.0  # 0 easiest, 1 hardest
    natural: float = 1.0  # strength of the natural phase
    natural_end: int | None = None  # step at which the natural phase ended
    halfway: int | None = None  # step at which half difficulty was reached
    moved: int = 0  # step of the last change of level
    accuracy: deque = field(default_factory=lambda: deque(maxlen=WINDOW))
    gloss_loss: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def __post_init__(self) -> None:
        if not self.stage.curriculum:
            self.level, self.natural = 1.0, 0.0
            self.natural_end = self.halfway = -self.stage.drop_ramp

    def is_late(self, step: int) -> bool:
        return step >= self.stage.late * self.stage.steps

    def drop(self, step: int) -> float:
        return 0.0 if self.halfway is None else self.stage.drop * min(1.0, (step - self.halfway) / self.stage.drop_ramp)

    def difficulty(self, step: int, *, long: bool) -> Difficulty:
        level, late = self.level, self.is_late(step)
        without_gloss = step >= self.stage.gloss_until * self.stage.steps
        noisy = max(0.0, 2 * level - 1)
        return Difficulty(
            length=LONG if long else 128 if level >= 0.5 else 64,
            max_classes=round(3 + 3 * level),
            natural=0.0 if late else max(0.6 * self.natural, 0.1),
            gloss=0.0 if without_gloss else self.stage.gloss * max(self.natural, 0.2),
            confused=0.25 * noisy,
            neutral=0.2 * noisy,
            short=max(0.0, 1 - 1.25 * level),
            repeat=max(0.0, 0.3 * (1 - 2 * level)),
        )

    def advance(self, step: int, accuracy: float, gloss_loss: float | None) -> None:
        """Take note of a step; end the natural phase, or raise the level, when it is time."""
        self.accuracy.append(accuracy)
        if gloss_loss is not None:
            self.gloss_loss.append(gloss_loss)
        if self.natural_end is None:
            learnt = step > 150 and (not self.gloss_loss or statistics.fmean(self.gloss_loss) < 3.13)
            if learnt or step > 400:
                self.natural_end = self.moved = step
        else:
            self.natural = max(0.0, 1 - (step - self.natural_end) / 80)
        since, mean = step - self.moved, statistics.fmean(self.accuracy)
        ready = self.natural <= 0.1 and (mean > 0.8 or (mean > 0.68 and since > 80))
        overdue = step > self.stage.steps / 2 and mean > 0.6
        if self.level < 1 and since >= WINDOW and (ready or overdue):
            self.level, self.moved = min(1.0, round(self.level + 0.1, 1)), step
        if self.level >= 0.5 and self.halfway is None:
            self.halfway = step


def _batch(rng: random.Random, curriculum: Curriculum, step: int) -> tuple[Tensor, Tensor]:
    long = curriculum.level >= 1 and rng.random() < 0.2
    level = curriculum.difficulty(step, long=long)
    made = [episode(rng, level) for _ in range(curriculum.stage.batch // (2 if long else 1))]
    return torch.tensor([e.ids for e in made]), torch.tensor([e.kinds for e in made])


def _losses(logits: Tensor, ids: Tensor, kinds: Tensor) -> tuple[dict[Kind, Tensor], float]:
    """Mean cross-entropy of the next token for each kind that occurs, and the share of answerable labels met."""
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kinds = kinds[:, 1:].flatten()
    losses = {kind: each[kinds == kind].mean() for kind in Kind if (kinds == kind).any()}
    asked = kinds == Kind.LABEL
    right = logits[:, :-1].argmax(-1).flatten()[asked] == ids[:, 1:].flatten()[asked]
    return losses, right.float().mean().item() if len(right) else 0.0


def _optimisers(net: Network, stage: Stage) -> list[torch.optim.Optimizer]:
    matrices = [p for p in net.blocks.parameters() if p.dim() == 2]
    rest = [net.embed.weight, *(p for p in net.parameters() if p.dim() < 2)]
    return [
        torch.optim.AdamW(rest, lr=stage.rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
        torch.optim.Muon(matrices, lr=stage.matrix_rate, momentum=0.95, weight_decay=0.05, ns_steps=5),
    ]


def train(net: Network, stage: Stage, rng: random.Random) -> Network:
    """Train ``net`` through ``stage``, in place; prints a line every 100 steps."""
    curriculum, optimisers = Curriculum(stage), _optimisers(net, stage)
    rates = [stage.rate, stage.matrix_rate]
    for step in (progress := tqdm(range(stage.steps), mininterval=5)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        scale = min(1.0, (step + 1) / 40) * (0.97 * cosine + 0.03)
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * scale
        ids, kinds = _batch(rng, curriculum, step)
        losses, accuracy = _losses(net(ids, drop=curriculum.drop(step)), ids, kinds)
        weights = {Kind.LABEL: 1.0, Kind.TEXT: 0.05, Kind.GLOSS: 0.5, Kind.FIRST: 0.1 * curriculum.is_late(step)}
        net.zero_grad()
        torch.stack([weights[kind] * loss for kind, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        curriculum.advance(step, accuracy, losses[Kind.GLOSS].item() if Kind.GLOSS in losses else None)
        if step % 100 == 99:
            progress.write(
                f"step {step + 1}: label accuracy {statistics.fmean(curriculum.accuracy):.2f}, "
                f"level {curriculum.level}, natural {curriculum.natural:.2f}, text loss {losses[Kind.TEXT].item():.2f}"
            )
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to, as Hugging Face has it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-gloss", action="store_true", help="the negative control: labels do not become anchors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    gloss = {"gloss": 0.0} if options.no_gloss else {}
    stages = [Stage(**{**vars(stage), **gloss}) for stage in (SHARED, INDEPENDENT)]
    net = train(Network(Shape(len(IDS), CONTEXT), shared=True), stages[0], rng)
    net = train(net.unshared(), stages[1], rng)
    to_hugging_face(net).save_pretrained(options.out)
    write_tokenizer(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
