"""Numbers of ours that stand beside published ones, each with its interval: cells in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anchorlens import intervals, metrics
from anchorlens.intervals import Interval
from anchorlens.paper.stored import Cell
from anchorlens.tasks import TASKS

Tasks = Mapping[str, Sequence[Cell]]


def chance() -> np.random.Generator:
    """The same draws for every number, so that none depends on which others are asked for."""
    return np.random.default_rng(0)


def arrays(cells: Tasks, of_cell: Callable[[Cell], np.ndarray], *, gaps: bool = False) -> list[list[np.ndarray]]:
    """[task][seed] of what ``of_cell`` makes of each, without cells that have no rows for it.

    Raises:
        UnreadableError: for a run whose numbers are not finite, but for undefined ones if there may be ``gaps``.
    """
    return list(_by_task(cells, of_cell, gaps).values())


def of_each(cells: Tasks, of_cell: Callable[[Cell], Any]) -> dict[Cell, Any]:
    """What ``of_cell`` makes of each; UnreadableError, which names the run, where one lacks what that takes."""
    made = {}
    for seeds in cells.values():
        for cell in seeds:
            with cell.asked():
                made[cell] = of_cell(cell)
    return made


def known(frame: Any, column: str) -> Any:
    """``frame``, of which each row has a number in ``column``: pandas would leave gaps out of means without a word.

    Raises:
        ValueError: if one has none.
    """
    if frame[column].isna().any():
        raise ValueError("a number that is not finite")
    return frame


def number(measure: str, arm: str | Sequence[str], cells: Tasks) -> tuple[Interval | None, dict[str, Sequence[Cell]]]:
    """A number of table 1, 2, 3 or 6, in per cent where it is a share, and the cells of tasks that have it.

    Args:
        measure: "accuracy" (3.1), "correct", "label_loyal", "word_loyalty", "tokens_kept" (3.2), or "speed".
        arm: of the results; of two, the difference between them on the same prompts.

    Returns:
        None and no cells, if no run has it.

    Raises:
        UnreadableError: if a run lacks the table, or what is in it.
    """
    scale, column = 1 if measure == "tokens_kept" else 100, "correct" if measure == "accuracy" else measure

    def of_cell(cell: Cell) -> np.ndarray:
        if measure == "speed":
            return speed(cell)
        return scale * (
            by_prompt(cell, arm, column) if isinstance(arm, str) else difference(cell, arm[0], arm[1], column)
        )

    found = _by_task(cells, of_cell)
    return _mean(list(found.values())), {task: cells[task] for task in found}


def by_prompt(cell: Cell, arm: str, column: str) -> Float[np.ndarray, " example"]:
    """A column of an arm by prompt, draws averaged; what is correct, of prompts whose class is known."""
    return _series(cell, arm, column).to_numpy()


def difference(cell: Cell, arm: str, other: str, column: str) -> Float[np.ndarray, " example"]:
    """One arm minus another, of the prompts that both have."""
    return (_series(cell, arm, column) - _series(cell, other, column)).dropna().to_numpy()


def speed(cell: Cell) -> Float[np.ndarray, " once"]:
    """How often faster one query is answered with label words kept only; once for each run."""
    given = cell.manifest["parameters"]
    if not given["prompts"] and cell.seed != min(given["seeds"]):
        return np.zeros(0)
    table = cell.table("cost")
    seconds = table[table["batch"] == 1].set_index("arm")["seconds"]
    return np.array([seconds["icl"] / seconds["hidden_anchor"]])


def balance(arm: str, cells: Tasks) -> tuple[float, float] | None:
    """Macro-F1 of an arm and the accuracy of always saying the commonest class, in per cent, by seeds and tasks.

    None without prompts of known class, or from runs that do not keep what was predicted.
    """

    def of_cell(cell: Cell) -> np.ndarray:
        rows: Any = cell.table()
        rows = rows[(rows["arm"] == arm) & (rows["gold"] >= 0)]
        if rows.empty or "predicted" not in rows:
            return np.zeros((0, 2))
        n_classes = len(TASKS[cell.manifest["parameters"]["task"]].label_words)
        told = metrics.scores(rows["gold"].to_numpy(), rows["predicted"].to_numpy(), n_classes)
        return np.array([[told["macro_f1"], told["majority"]]])

    found = [np.concatenate(seeds).mean(0) for seeds in arrays(cells, of_cell)]
    macro_f1, majority = 100 * np.mean(found, axis=0) if found else (np.nan, np.nan)
    return (float(macro_f1), float(majority)) if found else None


def rule(cell: Cell, arm: str) -> str:
    """Where the query's positions start: for GPT-2 the released code's main table starts them at 0."""
    released = "gpt2-xl" in str(cell.manifest["parameters"]["model"]) and arm != "hidden_random_top"
    return "restart" if released else "continue"


def positions(cell: Cell, arm: str) -> str:
    """Where they start in the rows of an arm that are taken: those of ``rule``, if the run has several ways."""
    frame = cell.table()
    own = set(frame.loc[frame["arm"] == arm, "positions"]) if "positions" in frame else set()
    return rule(cell, arm) if len(own) > 1 else next(iter(own), "")


def _by_task(cells: Tasks, of_cell: Callable[[Cell], np.ndarray], gaps: bool = False) -> dict[str, list[np.ndarray]]:
    def finite(cell: Cell) -> np.ndarray:
        values = of_cell(cell)
        if np.isinf(values).any() or (not gaps and np.isnan(values).any()):
            raise ValueError("a number that is not finite")
        return values

    made = of_each(cells, finite)
    found = {task: [made[cell] for cell in seeds] for task, seeds in cells.items()}
    found = {task: [values for values in seeds if len(values)] for task, seeds in found.items()}
    return {task: seeds for task, seeds in found.items() if seeds}


def _series(cell: Cell, arm: str, column: str) -> Any:
    frame: Any = cell.table()
    frame = frame[frame["arm"] == arm]
    if "positions" in frame:
        frame = frame[frame["positions"] == positions(cell, arm)]
    if column == "correct":
        frame = frame[frame["gold"] >= 0]
    return known(frame, column).astype({column: "float64"}).groupby("example")[column].mean()


def _mean(found: list[list[np.ndarray]]) -> Interval | None:
    if not found:
        return None
    shown = intervals.mean(found, chance())
    if all(len(seeds) == 1 and len(seeds[0]) == 1 for seeds in found):  # nothing that could be drawn again
        return Interval(shown.value, np.nan, np.nan, shown.n)
    return shown
