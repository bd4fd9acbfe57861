"""Finished runs as they are kept, with tables made up of numbers that can be checked by hand."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from anchorlens import parameters, store, tasks

COST = {
    "cost": pd.DataFrame({"arm": ["icl", "hidden_anchor"] * 2, "batch": [1, 1, 8, 8], "seconds": [2.2, 2.0, 9.0, 1.0]})
}
KEPT = "label loyalty: label words kept"
HUB = {name: f"hub {task.hub.dataset} default validation commit c" for name, task in tasks.TASKS.items() if task.hub}


def stored(
    root: Path,
    notebook: str,
    frame: pd.DataFrame,
    *,
    task: str = "sst2",
    model: str = "gpt2-xl",
    weights: str = "commit 0123456789",
    seeds: tuple[int, ...] = (42,),
    rows: str = "",
    finished: str = "2024-01-01T00:00:00+00:00",
    tables: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    **given: object,
) -> Path:
    """A finished run as the store keeps it, of the paper's settings where nothing else is given."""
    declared = parameters.declared(parameters.find(notebook))
    values = {name: each.default for name, each in declared.items() if name != parameters.RESERVED}
    values |= {"task": task, "model": model, "seeds": list(seeds), **given}
    inputs = {**values, "data": rows or HUB.get(task, "sha256 1"), "pool": rows or HUB.get(task, "sha256 1")}
    name = store.key({"n": len(list(root.glob("*/*")))})
    run = store.Run(root / notebook / name)
    for each, table in {"results": frame, **tables}.items():
        run.write(table, {column: str(kind) for column, kind in table.dtypes.items()}, each)
    told = {"notebook": notebook, "weights": weights, "inputs": inputs, "parameters": values, "finished": finished}
    return run.finish(told)


def answers(shares: dict[str, float], *, seed: int = 42, n: int = 100) -> pd.DataFrame:
    """Table 1's results: of each arm the first so many of ``n`` prompts are correct."""
    parts = []
    for arm, share in shares.items():
        correct = np.arange(n) < round(share * n)
        parts.append(pd.DataFrame({"example": np.arange(n), "seed": seed, "gold": 1, "arm": arm, "correct": correct}))
    return pd.concat(parts, ignore_index=True)


def row(frame: pd.DataFrame, claim: str, **where: str) -> pd.Series:
    """The one row whose claim begins so."""
    found = frame[frame["claim"].str.startswith(claim)]
    if claim == KEPT:
        found = found[found["claim"] == claim]
    for column, value in where.items():
        found = found[found[column] == value]
    assert len(found) == 1, found[["model", "task", "claim"]]
    return found.iloc[0]


def compressed(*, label: float, n: int = 100) -> pd.DataFrame:
    """Table 2's results; under each rule of positions another loyalty, to see which is taken."""
    parts = []
    for arm, positions, loyal in (
        ("icl", "none", 1.0),
        ("hidden_anchor", "restart", label),
        ("hidden_anchor", "continue", 0.01),
        ("text_anchor", "none", 0.5),
    ):
        kept = np.arange(n) < round(loyal * n)
        columns = {"label_loyal": kept, "word_loyalty": kept.astype(float), "correct": kept, "tokens_kept": 18}
        one = {"example": np.arange(n), "seed": 42, "gold": 1, "arm": arm, "positions": positions, "draw": -1}
        parts.append(pd.DataFrame({**one, **columns}))
    return pd.concat(parts, ignore_index=True)


def flows(values: list[tuple[float, float, float]], n: int = 10) -> pd.DataFrame:
    """Saliency of each layer (S_wp, S_pq, S_ww), the same for every prompt."""
    rows = [
        {"example": example, "seed": 42, "layer": layer, "flow": flow, "value": value}
        for example in range(n)
        for layer, of_layer in enumerate(values)
        for flow, value in zip(("S_wp", "S_pq", "S_ww"), of_layer, strict=True)
    ]
    return pd.DataFrame(rows)


def isolated(loyalty: dict[tuple[str, str], float], depths=(1, 3, 5, 7), n: int = 20) -> pd.DataFrame:
    rows = []
    for (arm, end), share in loyalty.items():
        for depth in depths:
            for example in range(n):
                kept = example < round(share * n)
                where = {"example": example, "seed": 42, "arm": arm, "end": end, "depth": depth}
                rows.append({**where, "label_loyal": kept, "word_loyalty": float(kept)})
    return pd.DataFrame(rows)


def attended(aucs: list[float], tells: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attention that tells the answer in layer ``tells`` alone, and a summary as a run would keep it."""
    rows = []
    for example in range(40):
        for layer in range(len(aucs)):
            for label in range(2):
                told = label == example % 2 if layer == tells else example % 3 == label
                rows.append((example, 42, layer, label, example % 2, 1.0 + told))
    frame = pd.DataFrame(rows, columns=["example", "seed", "layer", "label", "predicted", "attention"])
    return frame, pd.DataFrame({"seed": 42, "layer": range(len(aucs)), "auc": aucs})


def confusions(worst: tuple[int, int], shift: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """TREC's pairs of classes, told apart the better the larger 6 a + b; ``worst`` is the pair most confused."""
    rows = []
    for layer in range(3):
        for components in (5, 10):
            for a in range(6):
                for b in range(6):
                    told = 0.0 if (min(a, b), max(a, b)) == worst else 0.3 + (6 * min(a, b) + max(a, b)) / 100
                    moved = told + shift * (components == 5)
                    rows.append((42, layer, components, a, b, moved, 0.5 + told / 2))
    names = ["seed", "layer", "n_components", "label_a", "label_b", "confusion_predicted", "confusion_observed"]
    return pd.DataFrame(rows, columns=names), pd.DataFrame({"example": range(7), "seed": 42})
