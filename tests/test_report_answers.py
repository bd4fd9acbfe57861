"""What a site answers, and how that stands beside the published numbers."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_helpers import FLAT, GATHERS, add, compared, site

from anchorlens import report
from anchorlens.report import measures, pages, runs


def test_the_index_answers_first_and_lists_the_runs_then(root, out):
    add(root)
    text = site(root, out) and (out / "index.html").read_text()
    assert text.index("Do label words gather") < text.index("3.0 × as much") < text.index('id="runs"')
    assert "No whole run of <code>3_1_reweighting</code>" in text
    assert "trained so that its label words become anchors" in text


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


def stored(frames: dict[str, pd.DataFrame], tmp_path: Path, **given) -> runs.Stored:
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    return runs.Stored("x", tmp_path, runs.WHOLE, "", {"parameters": given})


@pytest.mark.parametrize(("twin", "holds"), [(FLAT, True), (GATHERS, False), (None, True)])
def test_gathering_holds_beyond_other_pairs_and_beyond_the_untrained_model(tmp_path, twin, holds):
    frames = {"results": GATHERS} | ({} if twin is None else {"twin": twin})
    found = measures.gathering(stored(frames, tmp_path))
    assert found.numbers["own"] == 3.0  # 6 / 2 in the first of three layers
    assert found.holds is holds


def test_isolation_holds_where_only_the_first_layers_matter(tmp_path):
    rows = [
        (42, arm, end, 5, loyal)
        for arm, end, many in (
            ("label", "first", 1),
            ("label", "last", 4),
            ("random", "first", 4),
            ("random", "last", 4),
        )
        for loyal in [True] * many + [False] * (4 - many)
    ]
    frame = pd.DataFrame(rows, columns=["seed", "arm", "end", "depth", "label_loyal"])
    found = measures.needed(stored({"results": frame}, tmp_path))
    assert (found.numbers["label first"], found.holds) == (0.25, True)
    frame.loc[frame["arm"] == "random", "label_loyal"] = False
    assert measures.needed(stored({"results": frame}, tmp_path)).holds is False


def test_reading_looks_at_the_deeper_half(tmp_path):
    frame = pd.DataFrame({"seed": 42, "layer": range(4), "auc": [1.0, 1.0, 0.5, 0.75]})
    found = measures.reading(stored({"summary": frame}, tmp_path))
    assert (found.numbers, found.holds) == ({"best": 0.75, "layer": 4, "mean": 0.625}, False)


def test_a_gain_counts_beyond_chance_and_in_most_seeds(tmp_path):
    def scores(*beta: float) -> pd.DataFrame:
        rows = [(s, arm, 100, v, 0.25) for s, b in enumerate(beta) for arm, v in (("beta", b), ("vanilla", 0.5))]
        return pd.DataFrame(rows, columns=["seed", "arm", "n", "accuracy", "majority"])

    assert measures.reweighting(stored({"scores": scores(0.75, 0.75)}, tmp_path)).holds is True
    assert measures.reweighting(stored({"scores": scores(0.53, 0.53)}, tmp_path)).holds is False
    assert measures.reweighting(stored({"scores": scores(1.0, 0.5, 0.5)}, tmp_path)).holds is False


def test_a_confusion_of_two_classes_cannot_be_told(tmp_path):
    table = pd.DataFrame({"seed": 42, "layer": [0, 1], "n_components": 10, "spearman": np.nan})
    rows = pd.DataFrame({"layer": [0, 1], "label_a": 0, "label_b": 1, "confusion_observed": 0.9})
    assert measures.diagnosing(stored({"agreement": table, "results": rows}, tmp_path)).holds is None
