"""The goals, what was measured against them, and the table and JSON that say so."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from .cases import Agreement
from .timing import Timed

VERSIONS = ("anchorlens", "torch", "transformers", "transformer-lens", "tokenizers", "papermill", "numpy")


@dataclass(frozen=True)
class Row:
    """One measure with its goal: at least, or at most, so much; no goal, or nothing measured, is None."""

    analysis: str
    against: str
    measured: float | None
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def goal(self) -> str:
        """In words."""
        if self.least is not None:
            return f">= {self.least:g}{self.unit}"
        return f"<= {self.most:.3g}{self.unit}" if self.most is not None else "-"

    @property
    def met(self) -> bool | None:
        """None where there is no goal, or nothing was measured."""
        if self.measured is None or (self.least is None and self.most is None):
            return None
        return self.measured >= self.least if self.least is not None else self.measured <= (self.most or 0.0)

    @property
    def said(self) -> tuple[str, str, str, str, str]:
        """As the table shows it."""
        measured = "-" if self.measured is None else f"{self.measured:.3g}{self.unit}"
        return self.analysis, self.against, self.goal, measured, {True: "yes", False: "NO", None: "-"}[self.met]


def ratio(timed: Mapping[str, Timed], over: str, under: str) -> float:
    """Of medians."""
    return timed[over].median / timed[under].median


def markdown(rows: Sequence[Row]) -> str:
    """A table that reads as plain text too."""
    lines = [("analysis", "against", "goal", "measured", "met"), *(row.said for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def seconds(timed: Mapping[str, Mapping[str, Timed]]) -> str:
    """The seconds behind the ratios, as a table."""
    lines = ["| analysis | way | seconds (median) | spread |", "|---|---|---|---|"]
    for analysis, ways in timed.items():
        lines += [f"| {analysis} | {way} | {each.median:.3f} | {each.spread:.0%} |" for way, each in ways.items()]
    return "\n".join(lines)


def agreements(found: Mapping[str, Sequence[Agreement]]) -> str:
    """What was compared, as lines."""
    return "\n".join(
        f"{'agrees' if each.holds else 'DISAGREES'}: {analysis}: {each.what}: {each.error:.1e} "
        f"(at most {each.tolerance.value:.0e} {each.tolerance.reason})"
        for analysis, some in found.items()
        for each in some
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def as_json(
    rows: Sequence[Row], timed: Mapping[str, Mapping[str, Timed]], found: Mapping[str, Sequence[Agreement]]
) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "rows": [
            {"analysis": row.analysis, "against": row.against, "goal": row.goal, "measured": row.measured}
            | {"unit": row.unit.strip(), "met": row.met}
            for row in rows
        ],
        "seconds": {
            analysis: {
                way: {"median": each.median, "spread": each.spread, "rounds": each.seconds}
                for way, each in ways.items()
            }
            for analysis, ways in timed.items()
        },
        "agreement": [
            {"analysis": analysis, "what": each.what, "error": each.error, "tolerance": each.tolerance.value}
            | {"reason": each.tolerance.reason, "agrees": each.holds}
            for analysis, some in found.items()
            for each in some
        ],
    }
