"""What a site answers, and how that stands beside the published numbers."""

import re

import pandas as pd
import pytest
from markupsafe import Markup
from paper_helpers import COST, answers, attended, compressed, confusions, isolated, row
from paper_helpers import flows as flows_of
from paper_helpers import stored as finished
from report_helpers import FLAT, GATHERS, add, compared, site, words_of

from anchorlens import paper, preflight, report
from anchorlens.paper.stored import chosen, manifest
from anchorlens.report import measures, pages, runs
from anchorlens.report.answers import QUESTIONS, Answer, beside
from anchorlens.report.answers import answers as answered


def test_the_index_answers_first_and_lists_the_runs_then(root, out):
    add(root)
    text = site(root, out) and (out / "index.html").read_text()
    assert text.index("Do label words gather") < text.index("3.00 × as much") < text.index('id="runs"')
    assert "No whole run of <code>3_1_reweighting</code>" in text
    assert "trained so that its label words become anchors" in text


@pytest.mark.parametrize(
    ("models", "of", "on_index", "on_section"),
    [
        (["toy"], "of the toy shows", 1, 1),
        (["toy", "mine"], "of the toy shows", 0, 1),  # mine is the headline
        (["toy-random", "toy", "mine"], "of the toys (toy, toy-random) shows", 0, 2),
        (["mine", "toyota"], "", 0, 0),
    ],
)
def test_what_is_found_of_a_toy_is_said_to_be_no_evidence_wherever_it_is_shown(
    root, out, models, of, on_index, on_section
):
    for i, model in enumerate(models):
        add(root, key=f"{i:016x}", model=model)
    add(root, notebook="2_2_isolation", key="f" * 16, model="mine", tables={"results": GATHERS})
    found = {name: words_of(page) for name, page in site(root, out).items()}
    flow = "sections/2_1_information_flow.html"
    for name, cards in (("index.html", on_index), (flow, on_section)):
        assert ("the tools, not evidence: " in found[name]) == bool(of), name
        assert of in found[name], name
        assert found[name].count("Of a toy: this shows the tools, not evidence.") == cards, name
    assert found["index.html"].count(" (no evidence): ") == sum(model in preflight.TOYS for model in models) - on_index
    assert "not evidence" not in found["sections/2_2_isolation.html"]
    for i, model in enumerate(models):
        page = found[f"runs/2_1_information_flow-{i:016x}.html"]
        assert ("the tools, not evidence" in page) == (model in preflight.TOYS), model


def test_the_report_knows_all_toys():
    assert tuple(runs.TOYS) == preflight.TOYS


def test_why_a_claim_is_judged_so_is_folded_and_the_claim_is_not(root, out):
    add(root)
    found = site(root, out, compare=lambda _: pd.concat([compared(why="long words"), compared()]))
    page = found["sections/2_1_information_flow.html"]
    assert page.tags.count("details") == 1
    assert re.search(
        r"<div>a<details[^>]*><summary>figure 3: why</summary>long words</details>",
        (out / "sections/2_1_information_flow.html").read_text(),
    )


def test_verdicts_are_words_and_marks_and_the_interval_is_there_only_whole(root, out):
    add(root)
    site(root, out, compare=lambda _: pd.concat([compared(), compared(high=0.75, verdict="differs")]))
    text = (out / "sections" / "2_1_information_flow.html").read_text()
    assert re.search(r"○</span> not comparable", text)
    assert re.search(r"✗</span> differs", text)
    assert text.count("0.25 to 0.75") == 1
    assert "nan" not in text.lower()
    table = pd.read_csv(out / "data" / "2_1_information_flow-compared.csv")
    assert list(table) == list(pages.COMPARED)


def test_a_comparison_without_its_columns_is_refused(root, out):
    add(root)
    with pytest.raises(report.ReportError, match="lacks the columns \\['verdict'\\]"):
        report.build(root, out, lambda _: compared().drop(columns="verdict"))
    assert not out.exists()


def test_a_table_that_lacks_what_an_answer_needs_gives_no_answer(root, out):
    add(root, tables={"results": GATHERS.drop(columns="flow")})
    site(root, out)
    assert "Cannot be told" in (out / "index.html").read_text()


def cells(tmp_path, notebook: str, *frames: pd.DataFrame, tables=None, task: str = "sst2", **given) -> dict:
    """Cells of finished runs, one for each frame, of seeds from 42 on."""
    told = []
    for seed, frame in enumerate(frames, 42):
        more = {name: table.assign(seed=seed) for name, table in (tables or {}).items()}
        run = finished(
            tmp_path, notebook, frame.assign(seed=seed), tables=more, task=task, seeds=(seed,), model="toy", **given
        )
        told.append((run, manifest(run)))
    return chosen(told)[0][notebook]


@pytest.mark.parametrize(("twin", "holds"), [(FLAT, True), (GATHERS, False), (None, True)])
def test_gathering_holds_beyond_other_pairs_and_beyond_the_untrained_model(tmp_path, twin, holds):
    tables = {} if twin is None else {"twin": twin}
    found = measures.gathering(cells(tmp_path, "2_1_information_flow", GATHERS, tables=tables))
    assert found.numbers["own"] == 3.0  # 6 / 2 in the first of three layers
    assert found.holds is holds
    assert found.span == "[3.00, 3.00]"  # prompts alike
    assert found.said == ("" if holds else "not surely more than in the same model untrained")


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.section for question in QUESTIONS])
def test_the_page_of_a_section_says_by_which_rule_its_cards_are_judged(root, out, question):
    add(root)
    said = " ".join("".join(site(root, out)[f"sections/{question.notebook}.html"].words).split())
    rule = f"{question.judged['claim']} ({question.judged['reason']}){question.also}."
    assert f"Seen or not is told as in the comparison with the paper: {rule}" in said
    assert "95 % interval" in said


def test_of_one_prompt_no_flow_can_be_told(tmp_path):
    one = GATHERS[GATHERS["example"] == 0]
    found = measures.gathering(cells(tmp_path, "2_1_information_flow", one))
    assert (found.numbers["own"], found.holds, found.span) == (3.0, None, "")
    assert found.said == "undecided: one prompt has no interval"


def test_isolation_holds_where_only_the_first_layers_matter(tmp_path):
    loyalty = {("label", "first"): 0.25, ("label", "last"): 1.0, ("random", "first"): 1.0, ("random", "last"): 1.0}
    found = measures.needed(cells(tmp_path / "a", "2_2_isolation", isolated(loyalty)))
    assert (found.numbers["label first"], found.numbers["depth"], found.holds) == (0.25, 5, True)
    low, high = map(float, found.span.strip("[]").split(", "))
    assert low < 25 < high
    alike = isolated({**loyalty, ("random", "first"): 0.25, ("random", "last"): 0.25})
    assert measures.needed(cells(tmp_path / "b", "2_2_isolation", alike)).holds is False
    one = measures.needed(cells(tmp_path / "c", "2_2_isolation", isolated(loyalty, n=1)))
    assert (one.holds, one.span, one.said) == (None, "", "undecided: one prompt has no interval")


@pytest.mark.parametrize(("best", "holds"), [(0.75, True), (0.74, False)])
def test_reading_looks_at_the_deeper_half_and_holds_from_where_the_comparison_does(tmp_path, best, holds):
    frame, summary = attended([1.0, 1.0, 0.5, best], tells=3)
    found = measures.reading(cells(tmp_path, "2_3_extraction", frame, tables={"summary": summary}))
    assert found.numbers == {"best": best, "layer": 4, "mean": (0.5 + best) / 2}
    assert (found.holds, found.span) == (holds, "[1.00, 1.00]")
    assert found.curve == (1.0, 1.0, 0.5, best)


def test_a_gain_counts_beyond_chance_and_has_its_interval_over_seeds(tmp_path):
    def gained(place: str, *beta: float) -> measures.Measured:
        frames = [answers({"beta": share, "vanilla": 0.5}) for share in beta]
        return measures.reweighting(cells(tmp_path / place, "3_1_reweighting", *frames))

    sure = gained("a", 0.75, 0.75)
    assert (sure.holds, sure.numbers["gain"], sure.numbers["majority"]) == (True, 25, 1)
    low, high = map(float, sure.span.strip("[]").split(", "))
    assert 15 < low < 25 < high < 35
    assert "paired p" in sure.said
    assert gained("b", 0.53, 0.53).holds is True  # 6 of 6 prompts that differ
    assert gained("c", 0.52, 0.51).holds is False


def test_a_confusion_of_two_classes_cannot_be_told(tmp_path):
    rows = pd.DataFrame({"layer": [0, 1], "n_components": 10, "label_a": 0, "label_b": 1, "confusion_predicted": 0.5})
    asked = pd.DataFrame({"example": range(3)})
    frame = rows.assign(confusion_observed=0.9)
    found = measures.diagnosing(cells(tmp_path, "3_3_diagnosis", frame, tables={"predictions": asked}))
    assert (found.holds, found.numbers["pairs"], found.span) == (None, 1, "")


def test_confusion_is_told_over_seeds_against_chance(tmp_path):
    frame, asked = confusions((1, 2))
    found = measures.diagnosing(
        cells(tmp_path, "3_3_diagnosis", frame, frame, task="trec", tables={"predictions": asked})
    )
    assert (found.holds, found.numbers["pairs"], found.span) == (True, 15, "[1.00, 1.00]")
    assert found.numbers["chance"] == pytest.approx(1.645 / 14**0.5), "two seeds of one task have the same classes"


def test_a_task_of_two_classes_beside_others_takes_no_part_in_the_order_of_pairs(tmp_path):
    frame, asked = confusions((1, 2))
    tables = {"predictions": asked, "agreement": pd.DataFrame({"layer": range(3), "n_components": 10, "spearman": 0.5})}
    two = frame[(frame["label_a"] < 2) & (frame["label_b"] < 2)]
    undefined = {**tables, "agreement": tables["agreement"].assign(spearman=float("nan"))}
    few = frame[(frame["label_a"] < 3) & (frame["label_b"] < 3)]
    both = {
        **cells(tmp_path / "a", "3_3_diagnosis", frame, task="trec", tables=tables),
        **cells(tmp_path / "b", "3_3_diagnosis", two, two, tables=undefined),
    }
    found = measures.diagnosing(both)
    assert (found.holds, found.numbers["pairs"], found.curve) == (True, 15, (0.5, 0.5, 0.5))
    assert found.numbers["chance"] == pytest.approx(1.645 / 14**0.5)
    three = {**both, **cells(tmp_path / "c", "3_3_diagnosis", few, few, task="agnews", tables=tables)}
    found = measures.diagnosing(three)
    assert found.numbers["pairs"] == 3
    assert found.numbers["chance"] == pytest.approx(1.645 * (1 / 14 + 1 / 2) ** 0.5 / 2)


def test_answers_kept_are_judged_against_random_tokens(tmp_path):
    frame = compressed(label=0.8)
    whole = measures.compressing(cells(tmp_path / "a", "3_2_compression", frame, tables=COST))
    assert whole.holds is None  # without random tokens
    frame = pd.concat([frame, frame[frame["arm"] == "text_anchor"].assign(arm="hidden_random", label_loyal=False)])
    found = measures.compressing(cells(tmp_path / "b", "3_2_compression", frame, tables=COST))
    assert found.numbers["hidden_anchor"] == 0.01  # the toy's queries keep their positions
    assert (found.holds, found.numbers["faster"], found.numbers["all"]) == (False, pytest.approx(1.1), 18)


@pytest.mark.parametrize("notebook", [question.notebook for question in QUESTIONS])
def test_a_card_and_the_comparison_judge_alike_and_name_the_same_number(tmp_path, notebook):
    loyalty = {("label", "first"): 0.5, ("label", "last"): 0.9, ("random", "first"): 0.95, ("random", "last"): 1.0}
    attention, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
    pairs, asked = confusions((1, 2))
    kept = compressed(label=0.8)
    few = kept[kept["arm"] == "text_anchor"].assign(arm="hidden_random", label_loyal=False)
    frame, tables = {
        "2_1_information_flow": (flows_of([(6, 1, 1), (5, 3, 2), (3, 5, 2), (0, 9, 1)]), {}),
        "2_2_isolation": (isolated(loyalty), {}),
        "2_3_extraction": (attention, {"summary": summary}),
        "3_1_reweighting": (answers({"beta": 0.75, "vanilla": 0.5}), {}),
        "3_2_compression": (pd.concat([kept, few]), COST),
        "3_3_diagnosis": (pairs, {"predictions": asked}),
    }[notebook]
    task = "trec" if notebook == "3_3_diagnosis" else "sst2"
    run = finished(tmp_path, notebook, frame, tables=tables, task=task, model="toy")
    (question,) = [each for each in QUESTIONS if each.notebook == notebook]
    (said,) = answered(question, runs.found(tmp_path))
    frame = paper.compare([run])
    compared = row(frame, question.judged["claim"])
    assert said.verdict == compared["holds"]
    assert said.why in compared["why"]
    if notebook in ("2_1_information_flow", "2_3_extraction", "3_1_reweighting", "3_3_diagnosis"):
        assert f"{compared['value']:.1f}"[:3] in said.number


def test_runs_of_other_weights_under_the_same_name_are_not_averaged(tmp_path):
    for seed, beta, weights in ((42, 0.9, "sha256 0123456789"), (43, 0.1, "sha256 abcdef0123")):
        frame = answers({"vanilla": 0.5, "beta": beta}, seed=seed)
        finished(tmp_path, "3_1_reweighting", frame, model="mine", seeds=(seed,), weights=weights)
    (question,) = [each for each in QUESTIONS if each.notebook == "3_1_reweighting"]
    told = {
        said.model: (said.number, said.verdict, len(said.runs)) for said in answered(question, runs.found(tmp_path))
    }
    assert told == {
        "mine (01234567)": ("+40.0 points", "yes", 1),
        "mine (abcdef01)": ("-40.0 points", "no", 1),
    }


def test_a_run_that_lacks_a_table_is_left_out_of_its_card_and_named(root, out):
    old = add(root, notebook="3_1_reweighting", tables={"results": answers({"vanilla": 0.5})[["example", "seed"]]})
    add(
        root,
        notebook="3_1_reweighting",
        key="1" * 16,
        task="trec",
        tables={"results": answers({"vanilla": 0.5, "beta": 0.75})},
    )
    said = "".join(site(root, out)["index.html"].words)
    assert f"Left out: run 3_1_reweighting/{old.final.name} has tables without what this takes" in said
    assert "+25.0 points" in said
    assert "[" in said[said.index("+25.0 points") :][:20]


@pytest.mark.parametrize(
    ("verdict", "held", "want"),
    [
        ("yes", ["yes", "yes"], "yes"),
        ("yes", ["yes", "no"], "in part"),
        ("no", ["yes", "no"], "no"),
        ("cannot be told", ["no"], "cannot be told"),
    ],
)
def test_a_yes_beside_shapes_that_are_not_seen_is_one_in_part(verdict, held, want):
    plain = Answer("toy", verdict, "1", "", "", "", (), Markup(), (), "sst2")
    found = beside(plain, held)
    assert (found.verdict, found.shapes[:8]) == (want, f"{held.count('yes')} of {len(held)} s")
    assert beside(plain, []) is plain
