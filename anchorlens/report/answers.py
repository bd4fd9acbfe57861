"""What stored runs answer, one question a section: a number, a sentence, and whether the paper's claim is seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from anchorlens.paper.published import mean_of_tasks
from anchorlens.report import drawings, measures
from anchorlens.report.runs import WHOLE, Stored


@dataclass(frozen=True)
class Question:
    """What a section asks: ``paper`` is what was published, ``measure`` and ``say`` make numbers and words of runs."""

    notebook: str
    section: str
    asked: str
    paper: str
    measure: Callable[[Stored], measures.Measured]
    say: Callable[[Mapping[str, float]], tuple[str, str]]  # the number, the sentence
    draw: Callable[[Mapping[str, float], Sequence[float]], Markup]


@dataclass(frozen=True)
class Answer:
    """What all runs of one model say; numbers are means over those that can tell."""

    model: str
    verdict: str  # yes, no, in part, cannot be told
    number: str
    said: str
    drawn: Markup
    runs: tuple[Stored, ...]
    tasks: str


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


def _mean(values: Sequence[float]) -> float:
    """Over those that are defined."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan


_TABLE_1 = {arm: mean_of_tasks("table 1", arm, "gpt2-xl") for arm in ("vanilla", "beta", "kshot")}
QUESTIONS = (
    Question(
        "2_1_information_flow",
        "2.1",
        "Do label words gather information in shallow layers?",
        "Figure 3: in shallow layers much flows from the text to label words and little to the target; in deep layers "
        "the flow from label words to the target is the largest.",
        measures.gathering,
        measures.say_gathering,
        lambda n, _: drawings.bars(
            [("this model", n["own"], "strong"), ("untrained", n["twin"], "other")],
            unit=" ×",
            reference=1.0,
            words="as between others",
        ),
    ),
    Question(
        "2_2_isolation",
        "2.2",
        "Do answers depend on what label words gather there?",
        "Figure 4: isolating label words in the first 5 layers changes answers most; in the last 5 layers, or with as "
        "many random tokens, hardly at all.",
        measures.needed,
        measures.say_needed,
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
        measures.reading,
        measures.say_reading,
        lambda _, curve: drawings.line(curve, low=0.0, high=1.0, reference=0.5, words="chance"),
    ),
    Question(
        "3_1_reweighting",
        "3.1",
        "Does weighing label words better raise accuracy?",
        f"Table 1: accuracy rises from {_TABLE_1['vanilla']:.2f} to {_TABLE_1['beta']:.2f} on average over four tasks, "
        f"where five shots a class reach {_TABLE_1['kshot']:.2f}.",
        measures.reweighting,
        measures.say_reweighting,
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
        measures.compressing,
        measures.say_compressing,
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
        measures.diagnosing,
        measures.say_diagnosing,
        lambda n, curve: drawings.line(curve, low=-1.0, high=1.0, reference=0.0, words="no relation"),
    ),
)
