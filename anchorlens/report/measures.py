"""What runs of one model show of a section's question, in numbers; and such numbers in words.

Verdicts are those of ``anchorlens.paper.shapes``, so that a card and the comparison judge the same rows alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anchorlens.intervals import Interval
from anchorlens.paper.measures import Tasks, arrays, number
from anchorlens.paper.published import shape
from anchorlens.paper.shapes import diagnosis, extraction, flow, isolation, look
from anchorlens.paper.stored import Cell

_NONE = Interval(np.nan, np.nan, np.nan, 0)


@dataclass(frozen=True)
class Measured:
    """Numbers of runs; ``holds`` is None where they cannot tell, ``span`` the interval of the number on the card."""

    numbers: dict[str, float]
    holds: bool | None
    span: str = ""
    said: str = ""
    curve: tuple[float, ...] = ()


def gathering(cells: Tasks) -> Measured:
    """S_wp / S_ww in shallow layers, as the comparison has it; and surely more than in the same model untrained."""
    spec = shape("gathering")
    seen, others = look(spec, cells), _having(cells, "twin")
    twin = look({**spec, "table": "twin"}, others) if others else None
    if seen is None:
        return Measured(dict.fromkeys(("own", "twin", "layers"), np.nan), None)
    own, beside = seen.interval, twin.interval.value if twin else np.nan
    lowest = own.low if np.isfinite(own.low) else own.value
    numbers = {"own": own.value, "twin": beside, "layers": float(flow.shallow(cells))}
    alike = bool(seen.holds) and lowest <= beside
    said = "not surely more than in the same model untrained" if alike else seen.said
    return Measured(numbers, False if alike else seen.holds, _span(own, ".2f"), said)


def say_gathering(n: Mapping[str, float]) -> tuple[str, str]:
    beside = f" In the same model untrained it is {n['twin']:.2f} times." if np.isfinite(n["twin"]) else ""
    where = "layer 1" if n["layers"] == 1 else f"layers 1 to {n['layers']:.0f}"
    return (
        f"{n['own']:.2f} × as much",
        f"In {where} the flow into a label word is {n['own']:.2f} times that between others.{beside}",
    )


def needed(cells: Tasks) -> Measured:
    """Label loyalty when label words, or random tokens, are isolated in the first or last layers: 5, else the most."""
    spec = shape("first_largest", measure="label_loyal")
    seen, held = look(spec, cells), isolation.loyalty("label_loyal", cells)
    ways = [(arm, end) for arm in ("label", "random") for end in ("first", "last")]
    if seen is None or held is None:
        return Measured({**{" ".join(way): np.nan for way in ways}, "depth": np.nan}, None)
    each = {" ".join(way): held.mean(*way) for way in ways}
    numbers = {name: interval.value for name, interval in each.items()}
    span = _span(each["label first"], ".0f", 100)
    return Measured({**numbers, "depth": float(held.depth)}, seen.holds, span, seen.said)


def say_needed(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["depth"]):
        return "–", "These runs isolate no number of layers that all of them do."
    return f"{_percent(n['label first'])} of answers kept", (
        f"Cut off in the first {n['depth']:.0f} layers, label words leave {_percent(n['label first'])} of answers as "
        f"they were; cut off in the last {n['depth']:.0f}, {_percent(n['label last'])}; random tokens, first "
        f"{_percent(n['random first'])}."
    )


def reading(cells: Tasks) -> Measured:
    """AUCROC of the target's attention to label words against the answer, in the deeper half of the layers."""
    seen, auc = look(shape("auc_deep"), cells), extraction.by_layer(cells)
    if seen is None or seen.holds is None:
        return Measured(dict.fromkeys(("best", "layer", "mean"), np.nan), None, said=seen.said if seen else "")
    deep = len(auc) // 2
    numbers = {"best": seen.interval.value, "layer": deep + float(auc[deep:].argmax()) + 1}
    numbers["mean"] = float(auc[deep:].mean())
    return Measured(numbers, seen.holds, _span(seen.interval, ".2f"), seen.said, tuple(map(float, auc)))


def say_reading(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["best"]):
        return "–", "AUCROC is undefined in some layer: the model always gives one answer."
    return f"AUCROC {n['best']:.2f}", (
        f"Attention to label words foretells the answer with AUCROC {n['mean']:.2f} on average in the deeper half of "
        f"the layers, {n['best']:.2f} at best, in layer {n['layer']:.0f}; chance is 0.5."
    )


def reweighting(cells: Tasks) -> Measured:
    """Accuracy with and without learned factors; a gain counts beyond chance by a paired test."""
    seen = look(shape("gain", other="vanilla"), cells)
    numbers = {arm: _share("accuracy", arm, cells) for arm in ("vanilla", "beta", "kshot")}
    commonest = [np.concatenate(seeds).mean() for seeds in arrays(cells, _majority)]
    numbers["majority"] = float(np.mean(commonest)) if commonest else np.nan
    numbers["gain"] = seen.interval.value if seen else np.nan
    if seen is None:
        return Measured(numbers, None)
    return Measured(numbers, seen.holds, _span(seen.interval, ".1f"), seen.said)


def say_reweighting(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["gain"]):
        return "–", "The class of no query is known, or one of the arms was not run."
    many = f"; more demonstrations instead reach {_percent(n['kshot'])}" if np.isfinite(n["kshot"]) else ""
    return f"{n['gain']:+.1f} points", (
        f"With learned weights {_percent(n['beta'])} of answers are right, {_percent(n['vanilla'])} without{many}. "
        f"Always saying the commonest class: {_percent(n['majority'])}."
    )


def compressing(cells: Tasks) -> Measured:
    """Label loyalty of kept anchors against as many random tokens, by prompt; what is kept, how much faster it is."""
    seen = look(shape("kept", measure="label_loyal", other="hidden_random"), cells)
    numbers = {arm: _share("label_loyal", arm, cells) for arm in ("hidden_anchor", "hidden_random", "text_anchor")}
    for name, arm in (("kept", "hidden_anchor"), ("all", "icl")):
        tokens, _ = number("tokens_kept", arm, cells)
        numbers[name] = tokens.value if tokens else np.nan
    timed = _having(cells, "cost")
    fast, _ = number("speed", "hidden_anchor", timed)
    numbers["faster"] = fast.value if fast else np.nan
    loyal, _ = number("label_loyal", "hidden_anchor", cells)
    return Measured(numbers, seen.holds if seen else None, _span(loyal or _NONE, ".0f"), seen.said if seen else "")


def say_compressing(n: Mapping[str, float]) -> tuple[str, str]:
    fast = f" One query at a time, that is {n['faster']:.2f} times as fast." if np.isfinite(n["faster"]) else ""
    tokens = f"Remembering {n['kept']:.0f} of {n['all']:.0f} tokens" if np.isfinite(n["all"]) else "Remembering those"
    return f"{_percent(n['hidden_anchor'])} of answers kept", (
        f"{tokens}, {_percent(n['hidden_anchor'])} of answers stay as with the whole prompt; with as many random "
        f"tokens {_percent(n['hidden_random'])}.{fast}"
    )


def diagnosing(cells: Tasks) -> Measured:
    """Rank correlation of predicted and observed confusion, at the run's layer and components, against chance."""
    seen, curve = look(shape("rank_order"), cells), tuple(map(float, diagnosis.by_layer(cells)))
    numbers = {"rank": np.nan, "pairs": float(diagnosis.told_apart(cells)), "chance": np.nan}
    if seen is None or seen.holds is None:
        return Measured(numbers, None, said=seen.said if seen else "", curve=curve)
    numbers |= {"rank": seen.interval.value, "chance": np.nan if seen.bound is None else seen.bound}
    return Measured(numbers, seen.holds, _span(seen.interval, ".2f"), seen.said, curve)


def say_diagnosing(n: Mapping[str, float]) -> tuple[str, str]:
    pairs = f"{n['pairs']:.0f} pair{'' if n['pairs'] == 1 else 's'} of classes"
    if not np.isfinite(n["rank"]):
        return "–", f"{pairs} with queries: no order to foretell. It takes a task of three classes or more."
    return f"ρ = {n['rank']:.2f}", (
        f"The order in which {pairs} are confused agrees with the distances of their label words' keys: rank "
        f"correlation {n['rank']:.2f}; by chance up to {n['chance']:.2f}."
    )


def _having(cells: Tasks, table: str) -> Tasks:
    """Those cells whose runs have a table that not every run makes."""
    found = {task: [cell for cell in seeds if cell.has(table)] for task, seeds in cells.items()}
    return {task: seeds for task, seeds in found.items() if seeds}


def _majority(cell: Cell) -> np.ndarray:
    """The share of the commonest class among prompts whose class is known."""
    gold = cell.table().drop_duplicates("example")["gold"]
    counts = np.bincount(gold[gold >= 0])
    return np.array([counts.max() / counts.sum()]) if counts.sum() else np.zeros(0)


def _share(measure: str, arm: str, cells: Tasks) -> float:
    found, _ = number(measure, arm, cells)
    return found.value / 100 if found else np.nan


def _span(shown: Interval, digits: str, scale: int = 1) -> str:
    """An interval as it stands behind its number."""
    if not np.isfinite([shown.low, shown.high]).all():
        return ""
    return f"[{scale * shown.low:{digits}}, {scale * shown.high:{digits}}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "an unknown share"
