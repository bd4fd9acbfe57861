"""What stored runs answer, one question a section: a number, its interval, a sentence, and whether the claim is seen.

Whether it is seen is told by the shape that ``anchorlens.paper`` judges the same statement by, of the same rows: of two
runs with the same task and seed the one counts that ``paper.stored`` chooses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from markupsafe import Markup

from anchorlens.paper.published import mean_of_tasks, shape
from anchorlens.paper.stored import UnreadableError, chosen, forget, manifest
from anchorlens.report import drawings, measures
from anchorlens.report.runs import TOYS, WHOLE, Stored


@dataclass(frozen=True)
class Question:
    """What a section asks: ``paper`` is what was published, ``measure`` and ``say`` make numbers and words of runs.

    ``judged`` is the shape of ``published.json`` by which the answer is yes or no, ``also`` what else it takes.
    """

    notebook: str
    section: str
    asked: str
    paper: str
    judged: Mapping[str, Any]
    measure: Callable[[measures.Tasks], measures.Measured]
    say: Callable[[Mapping[str, float]], tuple[str, str]]  # the number, the sentence
    draw: Callable[[Mapping[str, float], Sequence[float]], Markup]
    also: str = ""


@dataclass(frozen=True)
class Answer:
    """What all runs of one model say: means over tasks of means over seeds; ``interval`` as in "[12.1, 23.0]"."""

    model: str
    verdict: str  # yes, in part, no, cannot be told
    number: str
    interval: str
    said: str
    why: str  # the verdict is what it is
    left_out: tuple[str, ...]  # runs, and what they lack
    drawn: Markup
    runs: tuple[Stored, ...]
    tasks: str
    shapes: str = ""  # how many of the section's are seen

    @property
    def toy(self) -> bool:
        return any(run.value("model") in TOYS for run in self.runs)

    @property
    def settings(self) -> tuple[str, ...]:
        """What its runs were given beside model, task and seeds."""
        return tuple(dict.fromkeys(f"{name}={value}" for run in self.runs for name, value in run.settings.items()))


def beside(answer: Answer, held: Sequence[str]) -> Answer:
    """The answer beside what is held of all shapes of its section, "yes" or "no" each: a yes may be one in part."""
    if not held:
        return answer
    seen = held.count("yes")
    verdict = "in part" if answer.verdict == "yes" and seen < len(held) else answer.verdict
    return replace(answer, verdict=verdict, shapes=f"{seen} of {len(held)} stated shapes of this section are seen")


def answers(question: Question, runs: Sequence[Stored]) -> list[Answer]:
    """An answer for each model with whole runs of the question's notebook, own models before toys.

    Other weights under the same name, as of a folder that was trained further, are another model.
    """
    by_model: dict[str, list[Stored]] = {}
    for run in runs:
        if run.notebook == question.notebook and run.state == WHOLE:
            by_model.setdefault(run.value("model"), []).append(run)
    found = []
    try:
        for model in sorted(by_model, key=rank):
            weights = dict.fromkeys(_weights(run) for run in by_model[model] if _weights(run)) or [""]
            for each in weights:
                name = model if len(weights) == 1 else f"{model} ({each.split()[-1][:8]})"
                own = tuple(run for run in by_model[model] if _weights(run) in (each, ""))
                found.append(_answer(question, name, own))
    finally:
        forget()
    return found


def rank(model: str) -> tuple[bool, str]:
    """Toys last, the plain one first of them."""
    return model in TOYS, model


def _weights(run: Stored) -> str:
    """By which the model is told from others of its name; empty where the run does not say, and is named for it."""
    return str(run.manifest.get("weights", "")).strip()


def _answer(question: Question, model: str, own: tuple[Stored, ...]) -> Answer:
    tasks = ", ".join(sorted({run.value("task") for run in own}))
    measured, replaced, left_out = _measured(question, own)
    if measured is None:
        said = "No run has all that this question takes: of another version, or damaged. Run the notebook again."
        return Answer(model, "cannot be told", "–", "", said, "", left_out, Markup(), own, tasks)
    verdict = {True: "yes", False: "no", None: "cannot be told"}[measured.holds]
    number, said = question.say(measured.numbers)
    said += f" Passed over for another run of the same task and seed: {replaced}." if replaced else ""
    drawn = question.draw(measured.numbers, measured.curve)
    return Answer(model, verdict, number, measured.span, said, measured.said, left_out, drawn, own, tasks)


def _measured(question: Question, runs: Sequence[Stored]) -> tuple[measures.Measured | None, int, tuple[str, ...]]:
    """Of those runs that have what the question takes; how many a later one stands in for, and what the others lack."""
    told, left_out = [], []
    for run in runs:
        try:
            told.append((run.folder, manifest(run.folder)))
        except UnreadableError as error:
            left_out.append(str(error))
    while told:
        cells, replaced = chosen(told)
        try:
            return question.measure(cells[question.notebook]), replaced.total(), tuple(left_out)
        except UnreadableError as error:
            left_out.append(str(error))
            told = [each for each in told if each[0] != error.folder]
        except (LookupError, TypeError, ValueError) as error:  # tables made by hand, each in order and not together
            left_out.append(f"these runs cannot be taken together ({error})")
            break
    return None, 0, tuple(left_out)


_TABLE_1 = {arm: mean_of_tasks("table 1", arm, "gpt2-xl") for arm in ("vanilla", "beta", "kshot")}
QUESTIONS = (
    Question(
        "2_1_information_flow",
        "2.1",
        "Do label words gather information in shallow layers?",
        "Figure 3: in shallow layers much flows from the text to label words and little to the target; in deep layers "
        "the flow from label words to the target is the largest.",
        shape("gathering"),
        measures.gathering,
        measures.say_gathering,
        lambda n, _: drawings.bars(
            [("this model", n["own"], "strong"), ("untrained", n["twin"], "other")],
            unit=" ×",
            reference=1.0,
            words="as between others",
        ),
        also=", and its interval above the ratio in the same model untrained, where that was run",
    ),
    Question(
        "2_2_isolation",
        "2.2",
        "Do answers depend on what label words gather there?",
        "Figure 4: isolating label words in the first 5 layers changes answers most; in the last 5 layers, or with as "
        "many random tokens, hardly at all.",
        shape("first_largest", measure="label_loyal"),
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
        shape("auc_deep"),
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
        shape("gain", other="vanilla"),
        measures.reweighting,
        measures.say_reweighting,
        lambda n, _: drawings.bars(
            [
                ("learned weights", n["beta"], "strong"),
                ("prompt as it is", n["vanilla"], "other"),
                ("more examples", n["kshot"], "other"),
            ],
            unit="%",
            reference=n["majority"] if isfinite(n["majority"]) else None,
            words="commonest class",
        ),
    ),
    Question(
        "3_2_compression",
        "3.2",
        "Can the prompt be cut down to its label words?",
        "Table 2: of all ways to shorten the prompt, keeping hidden states of label words and template stays closest "
        "to the whole one.",
        shape("kept", measure="label_loyal", other="hidden_random"),
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
        shape("rank_order"),
        measures.diagnosing,
        measures.say_diagnosing,
        lambda n, curve: drawings.line(curve, low=-1.0, high=1.0, reference=0.0, words="no relation"),
    ),
)
