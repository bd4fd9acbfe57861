"""What stored runs answer, one question a section: a number, a sentence, and whether the paper's claim is seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from anchorlens.report import drawings
from anchorlens.report.runs import WHOLE, Stored

Table = Any  # type checkers lose track of what selecting from a frame gives
_ALMOST_NONE, _REACHED = 0.05, 0.8  # a loss of loyalty that is none; AUCROC that the paper reaches in deep layers


@dataclass(frozen=True)
class Measured:
    """Numbers of one run; ``holds`` is None where they cannot tell."""

    numbers: dict[str, float]
    holds: bool | None
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Question:
    """What a section asks: ``paper`` is what was published, ``measure`` and ``say`` make numbers and words of runs."""

    notebook: str
    section: str
    asked: str
    paper: str
    measure: Callable[[Stored], Measured]
    say: Callable[[Mapping[str, float]], tuple[str, str]]  # the number, the sentence
    draw: Callable[[Mapping[str, float], Sequence[float]], Markup]


@dataclass(frozen=True)
class Answer:
    """What all runs of one model say: means over runs; ``holds`` is how many of the ``told`` ones that can tell."""

    model: str
    verdict: str  # yes, no, in part, cannot be told
    number: str
    said: str
    drawn: Markup
    runs: tuple[Stored, ...]
    tasks: str

    @property
    def mark(self) -> str:
        return {"yes": "✓", "no": "✗", "in part": "~"}.get(self.verdict, "?")


def answers(question: Question, runs: Sequence[Stored]) -> list[Answer]:
    """An answer for each model with whole runs of the question's notebook, own models before toys."""
    models = {run.value("model") for run in runs if run.notebook == question.notebook and run.state == WHOLE}
    return [_answer(question, model, runs) for model in sorted(models, key=rank)]


def rank(model: str) -> tuple[bool, str]:
    """Toys last, the plain one first of them."""
    return model.startswith("toy"), model


def _answer(question: Question, model: str, runs: Sequence[Stored]) -> Answer:
    own = tuple(r for r in runs if r.notebook == question.notebook and r.state == WHOLE and r.value("model") == model)
    found, lacking = [], 0
    for run in own:
        try:
            found.append(question.measure(run))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # of another version, or made by hand
            lacking += 1
    tasks = ", ".join(sorted({run.value("task") for run in own}))
    if not found:
        said = "The stored tables lack what this question takes: they are of another version. Run the notebook again."
        return Answer(model, "cannot be told", "–", said, Markup(), own, tasks)
    numbers = {name: _mean([m.numbers.get(name, np.nan) for m in found]) for name in found[0].numbers}
    curves = [m.curve for m in found]
    alike = len({len(curve) for curve in curves}) == 1
    curve = tuple(map(float, np.mean(curves, axis=0))) if alike else curves[0]
    told = [m.holds for m in found if m.holds is not None]
    verdict = "cannot be told" if not told else "yes" if all(told) else "in part" if any(told) else "no"
    number, said = question.say(numbers)
    if len(told) > 1:
        said += f" Seen in {sum(told)} of {len(told)} runs; numbers are means over them."
    if lacking:
        said += f" {lacking} more cannot be read: their tables are of another version."
    return Answer(model, verdict, number, said, question.draw(numbers, curve), own, tasks)


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


def _gathering(n: Mapping[str, float]) -> tuple[str, str]:
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
    return Measured(
        {**numbers, "depth": float(depth)}, numbers["label first"] < min(others) - _ALMOST_NONE if known else None
    )


def _needed(n: Mapping[str, float]) -> tuple[str, str]:
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


def _reading(n: Mapping[str, float]) -> tuple[str, str]:
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


def _reweighting(n: Mapping[str, float]) -> tuple[str, str]:
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


def _compressing(n: Mapping[str, float]) -> tuple[str, str]:
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


def _diagnosing(n: Mapping[str, float]) -> tuple[str, str]:
    if not np.isfinite(n["rank"]):
        return (
            "–",
            f"{n['pairs']:.0f} pair of classes makes no order to foretell: it takes a task of three classes or more.",
        )
    return f"ρ = {n['rank']:.2f}", (
        f"The order in which {n['pairs']:.0f} pairs of classes are confused agrees with the distances of their label "
        f"words' keys: rank correlation {n['rank']:.2f} in layer {n['layer']:.0f}; by chance up to {n['chance']:.2f}."
    )


def _mean(values: Sequence[float]) -> float:
    """Over those that are defined."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan


def _number(run: Stored, name: str, default: int) -> int:
    value = run.parameters.get(name, default)
    return value if isinstance(value, int) else default


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "an unknown share"


QUESTIONS = (
    Question(
        "2_1_information_flow",
        "2.1",
        "Do label words gather information in shallow layers?",
        "Figure 3: in shallow layers much flows from the text to label words and little to the target; in deep layers "
        "the flow from label words to the target is the largest.",
        gathering,
        _gathering,
        lambda n, _: drawings.bars(
            [("this model", n["own"], "strong"), ("untrained", n["twin"], "other")],
            unit=" ×",
            reference=1.0,
            words="as much as between others",
        ),
    ),
    Question(
        "2_2_isolation",
        "2.2",
        "Do answers depend on what label words gather there?",
        "Figure 4: isolating label words in the first 5 layers changes answers most; in the last 5 layers, or with as "
        "many random tokens, hardly at all.",
        needed,
        _needed,
        lambda n, _: drawings.bars(
            [
                ("label words, first", n["label first"], "strong"),
                ("label words, last", n["label last"], "other"),
                ("random, first", n["random first"], "other"),
            ],
            unit="%",
        ),
    ),
    Question(
        "2_3_extraction",
        "2.3",
        "Do deep layers read the answer from label words?",
        "Figure 5: AUCROC of attention to label words against the answer approaches 0.8 in deep layers; shallow layers "
        "contribute next to nothing.",
        reading,
        _reading,
        lambda _, curve: drawings.line(curve, low=0.0, high=1.0, reference=0.5, words="chance"),
    ),
    Question(
        "3_1_reweighting",
        "3.1",
        "Does weighing label words better raise accuracy?",
        "Table 1: accuracy rises from 51.90 to 68.64 on average over four tasks, where five shots a class reach 46.87.",
        reweighting,
        _reweighting,
        lambda n, _: drawings.bars(
            [
                ("learned weights", n["beta"], "strong"),
                ("prompt as it is", n["vanilla"], "other"),
                ("more examples", n["kshot"], "other"),
            ],
            unit="%",
            reference=n["majority"] if np.isfinite(n["majority"]) else None,
            words="commonest class",
        ),
    ),
    Question(
        "3_2_compression",
        "3.2",
        "Can the prompt be cut down to its label words?",
        "Table 2: of all ways to shorten the prompt, keeping hidden states of label words and template stays closest "
        "to the whole one.",
        compressing,
        _compressing,
        lambda n, _: drawings.bars(
            [
                ("anchors kept", n["hidden_anchor"], "strong"),
                ("random tokens", n["hidden_random"], "other"),
                ("as bare text", n["text_anchor"], "other"),
            ],
            unit="%",
        ),
    ),
    Question(
        "3_3_diagnosis",
        "3.3",
        "Do label words tell which classes get confused?",
        "Figure 6: classes whose label words have similar keys are those that the model confuses.",
        diagnosing,
        _diagnosing,
        lambda n, curve: drawings.line(curve, low=-1.0, high=1.0, reference=0.0, words="no relation"),
    ),
)
