"""What one stored run shows of a section's question, in numbers; and such numbers in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anchorlens.paper.published import tolerance
from anchorlens.report.runs import Stored

Table = Any  # type checkers lose track of what selecting from a frame gives
_REACHED = 0.8  # AUCROC that the paper reaches in deep layers


@dataclass(frozen=True)
class Measured:
    """Numbers of one run; ``holds`` is None where they cannot tell."""

    numbers: dict[str, float]
    holds: bool | None
    curve: tuple[float, ...] = ()


def gathering(run: Stored) -> Measured:
    """S_wp / S_ww in the first third of the layers, the last one left out, where S_wp is 0 by construction."""

    def ratio(frame: Table) -> tuple[float, float]:
        mean = frame.groupby(["seed", "layer", "flow"])["value"].mean().groupby(["layer", "flow"]).mean().unstack()
        shallow = mean.iloc[: max(1, len(mean) // 3)] if len(mean) > 1 else mean
        return float((shallow["S_wp"] / shallow["S_ww"]).mean()), float(len(shallow))

    own, layers = ratio(run.table())
    twin = ratio(run.table("twin"))[0] if (run.folder / "twin.parquet").is_file() else np.nan
    if not np.isfinite(own):
        return Measured({"own": own, "twin": twin, "layers": layers}, None)
    return Measured({"own": own, "twin": twin, "layers": layers}, own > 1 and not own <= twin)


def say_gathering(n: Mapping[str, float]) -> tuple[str, str]:
    beside = f" In the same model untrained it is {n['twin']:.2f} times." if np.isfinite(n["twin"]) else ""
    where = "layer 1" if n["layers"] == 1 else f"layers 1 to {n['layers']:.0f}"
    return (
        f"{n['own']:.1f} × as much",
        f"In {where} the flow into a label word is {n['own']:.2f} times that between others.{beside}",
    )


def needed(run: Stored) -> Measured:
    """Label loyalty when label words, or random tokens, are isolated in the first or last layers: 5, else the most."""
    frame: Table = run.table()
    depths = sorted(frame["depth"].unique())
    depth = 5 if 5 in depths else depths[-1]
    mean = frame[frame["depth"] == depth].groupby(["seed", "arm", "end"])["label_loyal"].mean()
    mean = mean.groupby(["arm", "end"]).mean().to_dict()
    numbers = {
        f"{arm} {end}": float(mean.get((arm, end), np.nan)) for arm in ("label", "random") for end in ("first", "last")
    }
    others = [value for name, value in numbers.items() if name != "label first"]
    known = bool(np.isfinite(list(numbers.values())).all())
    lost = numbers["label first"] < min(others) - tolerance("first_largest")
    return Measured({**numbers, "depth": float(depth)}, lost if known else None)


def say_needed(n: Mapping[str, float]) -> tuple[str, str]:
    return f"{_percent(n['label first'])} of answers kept", (
        f"Cut off in the first {n['depth']:.0f} layers, label words leave {_percent(n['label first'])} of answers as "
        f"they were; cut off in the last {n['depth']:.0f}, {_percent(n['label last'])}; random tokens, first "
        f"{_percent(n['random first'])}."
    )


def reading(run: Stored) -> Measured:
    """AUCROC of the target's attention to label words against the answer, in the deeper half of the layers."""
    summary: Table = run.table("summary")
    auc = summary.groupby("layer")["auc"].mean().to_numpy()
    deep = auc[len(auc) // 2 :]
    if not np.isfinite(deep).all():
        return Measured({"best": np.nan, "layer": np.nan, "mean": np.nan}, None, tuple(map(float, auc)))
    best = int(deep.argmax()) + len(auc) // 2
    numbers = {"best": float(auc[best]), "layer": best + 1.0, "mean": float(deep.mean())}
    return Measured(numbers, bool(auc[best] >= _REACHED), tuple(map(float, auc)))


def say_reading(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["best"]):
        return "–", "AUCROC is undefined in deep layers: the model always gives one answer."
    return f"AUCROC {n['best']:.2f}", (
        f"Attention to label words foretells the answer with AUCROC {n['mean']:.2f} on average in the deeper half of "
        f"the layers, {n['best']:.2f} at best; chance is 0.5."
    )


def reweighting(run: Stored) -> Measured:
    """Accuracy with and without learned factors; a gain counts beyond twice its standard error, in most seeds."""
    scores: Table = run.table("scores")
    accuracy: Table = scores.pivot_table(index="seed", columns="arm", values="accuracy")
    names = ("vanilla", "beta", "kshot")
    numbers = {name: float(accuracy[name].mean()) if name in accuracy else np.nan for name in names}
    shares = np.array([numbers["beta"], numbers["vanilla"]])
    numbers |= {"majority": float(scores["majority"].mean()), "gain": float(shares[0] - shares[1])}
    if not np.isfinite(shares).all():
        return Measured(numbers, None)
    asked = scores.loc[scores["arm"] == "beta", "n"].sum()
    margin = 2 * np.sqrt((shares * (1 - shares)).sum() / asked)
    most = (accuracy["beta"] > accuracy["vanilla"]).mean() > 0.5
    return Measured(numbers, bool(numbers["gain"] > margin and most))


def say_reweighting(n: Mapping[str, float]) -> tuple[str, str]:
    many = f"; more demonstrations instead reach {_percent(n['kshot'])}" if np.isfinite(n["kshot"]) else ""
    return f"{100 * n['gain']:+.1f} points", (
        f"With learned weights {_percent(n['beta'])} of answers are right, {_percent(n['vanilla'])} without{many}. "
        f"Always saying the commonest class: {_percent(n['majority'])}."
    )


def compressing(run: Stored) -> Measured:
    """Label loyalty of kept anchors against as many random tokens, by prompt; what is kept, how much faster it is."""
    frame: Table = run.table()
    rules = [rule for rule in ("continue", "restart") if rule in set(frame["positions"])]
    rule = rules[0] if rules else ""
    known = frame["positions"] == rule

    def loyal(arm: str) -> Table:
        rows = frame[(frame["arm"] == arm) & known]
        rows = rows if len(rows) else frame[frame["arm"] == arm]
        return rows.assign(of=rows["label_loyal"].astype(float)).groupby(["seed", "example"])["of"].mean()

    each = {arm: loyal(arm) for arm in ("hidden_anchor", "hidden_random", "text_anchor")}
    numbers = {arm: float(values.mean()) if len(values) else np.nan for arm, values in each.items()}
    kept = frame.groupby("arm")["tokens_kept"].mean()
    numbers |= {"kept": float(kept.get("hidden_anchor", np.nan)), "all": float(kept.get("icl", np.nan))}
    numbers["faster"] = _faster(run)
    gap = (each["hidden_anchor"] - each["hidden_random"]).dropna()
    if len(gap) < 2:
        return Measured(numbers, None)
    return Measured(numbers, bool(gap.mean() > 2 * gap.std() / len(gap) ** 0.5))


def _faster(run: Stored) -> float:
    """Seconds of the whole prompt over those of the kept anchors, in the largest batch that both were timed in."""
    if not (run.folder / "cost.parquet").is_file():
        return np.nan
    seconds: Table = run.table("cost").pivot_table(index="batch", columns="arm", values="seconds")
    if not {"icl", "hidden_anchor"} <= set(seconds):
        return np.nan
    ratio = (seconds["icl"] / seconds["hidden_anchor"]).dropna()
    return float(ratio.sort_index().iloc[-1]) if len(ratio) else np.nan


def say_compressing(n: Mapping[str, float]) -> tuple[str, str]:
    fast = f" That is {n['faster']:.1f} times as fast." if np.isfinite(n["faster"]) else ""
    return f"{_percent(n['hidden_anchor'])} of answers kept", (
        f"Remembering {n['kept']:.0f} of {n['all']:.0f} tokens, {_percent(n['hidden_anchor'])} of answers stay as with "
        f"the whole prompt; with as many random tokens {_percent(n['hidden_random'])}.{fast}"
    )


def diagnosing(run: Stored) -> Measured:
    """Rank correlation of predicted and observed confusion, at the run's layer and components, against chance."""
    table: Table = run.table("agreement")
    n_components = _number(run, "n_components", 10)
    if n_components in set(table["n_components"]):
        table = table[table["n_components"] == n_components]
    mean = table.groupby("layer")["spearman"].mean()
    layer = _number(run, "layer", -1)
    layer = layer if layer in mean.index else min(round(2 * len(mean) / 3), len(mean) - 1)
    rows: Table = run.table()
    rows = rows[(rows["layer"] == layer) & (rows["label_a"] < rows["label_b"])].dropna(subset=["confusion_observed"])
    pairs = len(rows[["label_a", "label_b"]].drop_duplicates())
    rank, seeds = float(mean.get(layer, np.nan)), table["seed"].nunique()
    numbers = {"rank": rank, "layer": layer + 1.0, "pairs": float(pairs), "chance": np.nan}
    if pairs < 3 or not np.isfinite(rank):
        return Measured(numbers, None, tuple(map(float, mean)))
    numbers["chance"] = float(1.645 / np.sqrt((pairs - 1) * seeds))
    return Measured(numbers, bool(rank > numbers["chance"]), tuple(map(float, mean)))


def say_diagnosing(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["rank"]):
        return (
            "–",
            f"{n['pairs']:.0f} pair of classes makes no order to foretell: it takes a task of three classes or more.",
        )
    return f"ρ = {n['rank']:.2f}", (
        f"The order in which {n['pairs']:.0f} pairs of classes are confused agrees with the distances of their label "
        f"words' keys: rank correlation {n['rank']:.2f} in layer {n['layer']:.0f}; by chance up to {n['chance']:.2f}."
    )


def _number(run: Stored, name: str, default: int) -> int:
    value = run.parameters.get(name, default)
    return value if isinstance(value, int) else default


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "an unknown share"
