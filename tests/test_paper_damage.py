"""Runs of another version, or damaged since: what needs them is not run and says why, all else is compared."""

import json

import numpy as np
import pandas as pd
import pytest
from paper_helpers import COST, KEPT, answers, attended, compressed, confusions, flows, isolated, row, stored

from anchorlens import paper

ISOLATED = {(arm, end): 0.5 for arm in ("label", "random") for end in ("first", "last")}


def test_a_run_without_a_table_leaves_the_rows_that_need_it_not_run(tmp_path):
    old = stored(tmp_path, "3_2_compression", compressed(label=0.8))
    frame = paper.compare([old, stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.61}))])
    found = row(frame, "speed-up", task="sst2")
    assert found["verdict"] == "not run"
    assert f"run 3_2_compression/{old.name} has no table 'cost' (it has results); run it again with --" in found["why"]
    assert row(frame, "keeping label words only makes queries faster")["verdict"] == "not run"
    assert row(frame, KEPT)["value"] == 80
    assert row(frame, "accuracy of the prompt as it is", task="sst2")["verdict"] == "pass"


def made(tmp_path, notebook: str):
    if notebook == "2_3_extraction":
        frame, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
        return stored(tmp_path, notebook, frame, tables={"summary": summary})
    if notebook == "3_3_diagnosis":
        frame, asked = confusions((1, 2))
        return stored(tmp_path, notebook, frame, task="trec", tables={"predictions": asked})
    frame = isolated(ISOLATED) if notebook == "2_2_isolation" else compressed(label=0.8)
    return stored(tmp_path, notebook, frame, tables=COST)


@pytest.mark.parametrize(
    ("notebook", "table", "claim"),
    [
        ("2_2_isolation", "results", "label loyalty: isolating label words in the first"),
        ("2_3_extraction", "summary", "AUCROC approaches"),
        ("2_3_extraction", "summary", "R is negligible"),
        ("3_2_compression", "cost", "keeping label words only"),
        ("3_3_diagnosis", "predictions", "Description-Entity"),
        ("3_3_diagnosis", "results", "the prediction is similar"),
    ],
)
@pytest.mark.parametrize("how", ["gone", "torn", "other columns"])
def test_a_table_that_is_gone_torn_or_of_another_version_is_named(tmp_path, notebook, table, claim, how):
    run = made(tmp_path, notebook)
    path = run / f"{table}.parquet"
    if how == "gone":
        path.unlink()
    elif how == "torn":
        path.write_bytes(path.read_bytes()[:40])
    else:
        pd.DataFrame({"seed": [42], "other": [1]}).to_parquet(path)
    said = {"gone": "has no table", "torn": "cannot be read", "other columns": "without what this takes"}[how]
    found = row(paper.compare([run]), claim)
    assert found["verdict"] == "not run"
    assert f"run {notebook}/{run.name} " in found["why"]
    assert str(tmp_path) not in found["why"]
    assert said in found["why"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_a_number_that_cannot_be_is_said_as_the_runs(tmp_path, wrong):
    frame, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
    frame.loc[frame["layer"] == 4, "attention"] = wrong
    run = stored(tmp_path, "2_3_extraction", frame, tables={"summary": summary})
    flow = flows([(6, 1, 1), (5, 3, 2), (0, 9, 1)]).astype({"value": float})
    flow.loc[3, "value"] = wrong
    other = stored(tmp_path, "2_1_information_flow", flow)
    found = paper.compare([run, other])
    assert row(found, "AUCROC approaches")["verdict"] == "not run"
    assert f"run 2_3_extraction/{run.name} has tables without what this takes" in row(found, "AUCROC approaches")["why"]
    if wrong >= 0 or np.isnan(wrong):
        assert f"run 2_1_information_flow/{other.name} " in row(found, "deep layers")["why"]
    assert row(found, "R is negligible")["holds"] == "yes"


@pytest.mark.parametrize(
    ("notebook", "column", "where", "claim"),
    [
        ("2_1_information_flow", "value", {"example": 3}, "deep layers"),
        ("2_2_isolation", "label_loyal", {"example": 3}, "label loyalty: isolating label words in the first"),
        ("2_2_isolation", "word_loyalty", {"depth": 7}, "word loyalty: the first 1, 3, 5 or 7"),
        ("2_3_extraction", "attention", {"example": 3, "layer": 4}, "AUCROC approaches"),
        ("3_2_compression", "word_loyalty", {"draw": 1, "example": 3}, "word loyalty: label words kept beat random"),
        ("3_3_diagnosis", "confusion_predicted", {"n_components": 5, "label_a": 1}, "the prediction is similar"),
    ],
)
def test_numbers_that_are_not_there_are_not_left_out_of_a_mean_in_silence(tmp_path, notebook, column, where, claim):
    frame, task, tables = flows([(6, 1, 1), (5, 3, 2), (0, 9, 1)]), "sst2", {}
    if notebook == "2_2_isolation":
        frame = isolated(ISOLATED)
    elif notebook == "2_3_extraction":
        frame, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
        tables = {"summary": summary}
    elif notebook == "3_2_compression":
        kept = compressed(label=0.8)
        drawn = kept[kept["arm"] == "text_anchor"].assign(arm="hidden_random", positions="restart")
        frame = pd.concat([kept, drawn.assign(draw=0), drawn.assign(draw=1)], ignore_index=True)
    elif notebook == "3_3_diagnosis":
        frame, asked = confusions((1, 2))
        task, tables = "trec", {"predictions": asked}
    frame = frame.astype({column: float})
    frame.loc[(frame[list(where)] == pd.Series(where)).all(axis=1), column] = np.nan
    run = stored(tmp_path, notebook, frame, task=task, tables=tables)
    found = row(paper.compare([run]), claim)
    assert found["verdict"] == "not run"
    assert f"run {notebook}/{run.name} has tables without what this takes" in found["why"]


def test_a_class_without_demonstrations_does_not_take_the_place_of_another(tmp_path):
    frame, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
    moved = frame.assign(label=2 * frame["label"], predicted=2 * frame["predicted"])  # class 1 is not demonstrated
    others = [moved[moved["label"] == 0].assign(label=label, attention=value) for label, value in ((1, np.nan), (3, 1))]
    run = stored(tmp_path, "2_3_extraction", pd.concat([moved, *others]), task="agnews", tables={"summary": summary})
    found = row(paper.compare([run]), "AUCROC approaches")
    assert (found["low"], found["high"]) == (1, 1)


def test_isolation_without_the_control_is_of_another_version(tmp_path):
    frame = isolated({where: share for where, share in ISOLATED.items() if where[0] == "label"})
    found = row(paper.compare([stored(tmp_path, "2_2_isolation", frame)]), "label loyalty: isolating random")
    assert found["verdict"] == "not run"
    assert "without what this takes" in found["why"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"finished": 1}', "has a manifest.json without notebook, weights, finished, parameters.model"),
    ],
)
def test_a_broken_manifest_is_named_in_the_rows_of_its_notebook_and_stops_nothing(tmp_path, text, said):
    broken = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.2}))
    whole = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.61}), task="trec")
    path = broken / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    frame = paper.compare([broken, whole])
    assert row(frame, "accuracy of the prompt as it is", task="trec")["value"] == 61
    lost = row(frame, "accuracy of the prompt as it is", task="sst2")
    assert lost["verdict"] == "not run"
    assert f"run 3_1_reweighting/{broken.name} {said}" in lost["why"]
    assert "run it again with --force" in lost["why"]
    assert str(tmp_path) not in frame.to_csv(), "it may be shown to others"
    assert broken.name not in "".join(frame.loc[frame["notebook"] == "3_2_compression", "why"])


def test_of_broken_manifests_alone_nothing_is_run(tmp_path):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.2}))
    (run / "manifest.json").write_text(json.dumps([]))
    assert set(paper.compare([run])["verdict"]) == {"not run"}
