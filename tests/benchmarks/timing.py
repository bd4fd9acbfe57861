"""Contestants timed in turn, so that a slow moment of the machine meets all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Way:
    """One way to get a result: ``run(round)`` gives it, ``factor(round)`` is by how much its time is multiplied.

    A way whose cost is additive over prompts may do a few of them a round.
    """

    run: Callable[[int], Any]
    factor: Callable[[int], float] = lambda _: 1.0


@dataclass
class Timed:
    """Seconds of each round, multiplied, and what each round gave."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def alternating(ways: Mapping[str, Way], rounds: int, device: torch.device) -> dict[str, Timed]:
    """Every way once a round, beginning with another one each time."""
    timed = {name: Timed() for name in ways}
    names: Sequence[str] = list(ways)
    for number in range(rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            seconds, result = clocked(partial(ways[name].run, number), device)
            timed[name].seconds.append(seconds * ways[name].factor(number))
            timed[name].results.append(result)
    return timed


def clocked(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one call and what it gave: of the process's CPU time, on a GPU between two events."""
    if device.type == "cuda":
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        began.record()
        result = call()
        ended.record()
        torch.cuda.synchronize(device)
        return began.elapsed_time(ended) / 1000, result
    start = time.process_time()
    result = call()
    return time.process_time() - start, result
