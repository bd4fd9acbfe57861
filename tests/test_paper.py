"""Runs are held against the paper: what agrees passes, what does not says by how much, and what cannot be is not."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paper_helpers import (
    COST,
    KEPT,
    answers,
    compressed,
    row,
    stored,
)

from anchorlens import paper, parameters
from anchorlens.paper import PUBLISHED, published, shapes
from anchorlens.parameters import STANDARD


def test_without_runs_all_is_not_run():
    frame = paper.compare([])
    assert set(frame["verdict"]) == {"not run"}
    assert set(frame["model"]) == set(PUBLISHED["models"])
    assert list(frame.columns) == list(paper.COLUMNS)
    assert set(frame["holds"]) == {""}


def test_published_numbers_agree_with_one_another():
    by = {(each["item"], each["claim"], each["task"]): each for each in PUBLISHED["numbers"]}
    assert len(by) == len(PUBLISHED["numbers"])
    for each in PUBLISHED["numbers"]:
        for model, of_tasks in each.get("by_task", {}).items():
            assert np.mean(list(of_tasks.values())) == pytest.approx(each["published"][model], abs=0.006)
            for task, value in of_tasks.items():
                same = by.get((each["item"], each["claim"], task))
                assert same is None or same["published"][model] == value
    kept = {each["claim"]: each["published"] for each in PUBLISHED["numbers"] if each["item"] == "table 2"}
    lost = next(each for each in PUBLISHED["numbers"] if "lost" in each["claim"])
    for model, value in lost["published"].items():
        whole, anchors = kept["accuracy: the whole prompt"][model], kept["accuracy: label words kept"][model]
        assert whole - anchors == pytest.approx(value)


def test_every_shape_has_a_measure_and_every_tolerance_a_reason():
    assert {each["id"] for each in PUBLISHED["shapes"]} == set(shapes.CHECKS)
    assert all(each["reason"] for each in PUBLISHED["shapes"])
    assert {each["tolerance"] for each in PUBLISHED["numbers"]} == set(PUBLISHED["tolerances"])


def test_settings_of_the_paper_are_parameters_of_the_notebooks():
    assert set(PUBLISHED["settings"][""]) <= STANDARD
    for notebook, settings in PUBLISHED["settings"].items():
        if notebook:
            assert set(settings) <= set(parameters.declared(parameters.find(notebook))), notebook


def test_thresholds_are_those_by_which_a_single_run_is_judged():
    from anchorlens.analyses import diagnosis, extraction, isolation

    bounds = {each["id"]: each["tolerance"] for each in PUBLISHED["shapes"]}
    assert {bounds[name] for name in ("last_none", "random_none", "last_any")} == {isolation.ALMOST_NONE}
    assert published.tolerance("first_largest") == isolation.ALMOST_NONE, "and by which the report's card is"
    assert bounds["steady"] == diagnosis._STEADY
    assert bounds["share_shallow"] == extraction._NEGLIGIBLE
    assert shapes.extraction.TELLS == extraction._TELLS


def test_what_agrees_passes_and_what_does_not_says_by_how_much(tmp_path):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.61, "beta": 0.5, "kshot": 0.6475}))
    frame = paper.compare([run])
    same = row(frame, "accuracy of the prompt as it is", task="sst2")
    assert (same["verdict"], same["value"], same["n"], same["holds"]) == ("pass", 61, 100, "")
    assert same["published"] == "61.28 % (gpt2-xl)"
    assert same["low"] < 61 < same["high"]
    other = row(frame, "accuracy with label words re-weighted", task="sst2")
    assert other["verdict"] == "differs"
    assert other["why"].startswith("by -40.07 %")
    assert "1 seed of the paper's 5, which does not show how others would come out" in other["why"]
    assert row(frame, "accuracy of the prompt as it is", task="emo")["verdict"] == "not run"


def test_an_accuracy_comes_with_what_it_hides_where_classes_are_uneven(tmp_path):
    said = answers({"vanilla": 0.85, "beta": 0.85})
    said["gold"] = np.where(said["correct"], 0, said["example"] % 3 + 1)  # 85 % one class, which is always the answer
    run = stored(tmp_path, "3_1_reweighting", said.assign(predicted=0), task="emo")
    found = row(paper.compare([run]), "accuracy with label words re-weighted", task="emo")
    assert found["value"] == 85
    f1 = 100 * (2 * 85 / 185) / 4  # of four classes three are never the answer
    assert (
        f"the paper publishes accuracy alone; in macro-F1 ours is {f1:.2f} %, and always saying the commonest class "
        "would be right in 85.00 %"
    ) in found["why"]
    assert "macro-F1" not in row(paper.compare([run]), "accuracy of the prompt as it is", task="sst2")["why"]


@pytest.mark.parametrize("task", PUBLISHED["tasks"])
def test_query_lengths_are_published_and_not_kept_by_runs(tmp_path, task):
    run = stored(tmp_path, "3_2_compression", compressed(label=0.8), tables=COST, task=task)
    found = row(paper.compare([run]), "tokens of the query", task=task)
    lengths = {"sst2": 19, "trec": 7, "agnews": 37, "emo": 12}  # L_x of tables 3 and 6
    assert found["published"].startswith(f"{lengths[task]} ")
    assert (found["verdict"], found["ours"]) == ("not run", "")
    assert "runs do not keep how long queries are" in found["why"]


def test_a_mean_of_fewer_tasks_is_held_against_the_same_tasks_of_the_paper_or_against_nothing(tmp_path):
    runs = [
        stored(tmp_path, "3_1_reweighting", answers({"vanilla": share, "beta": 0.9}, n=1000), task=task)
        for task, share in (("sst2", 0.61), ("trec", 0.58))
    ]
    frame = paper.compare(runs)
    mean = row(frame, "accuracy of the prompt as it is", task="")
    assert (mean["verdict"], mean["value"]) == ("pass", 59.5)
    assert mean["published"] == "51.9 % (gpt2-xl); 59.42 % of sst2, trec"
    one = compressed(label=0.8)
    lacking = row(
        paper.compare([stored(tmp_path, "3_2_compression", one, tables=COST)]),
        "label loyalty: label words kept",
        item="table 2",
        task="",
        holds="",
    )
    assert lacking["verdict"] == "not comparable"
    assert "mean without trec, agnews, emo" in lacking["why"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "/somewhere/gpt2-xl", "weights": "sha256 0123456789"}, "the weights of a folder"),
        ({"model": "toy", "weights": "sha256 0123456789"}, "the shipped toy"),
        ({"model": "gpt2"}, "other model: gpt2"),
        ({"rows": "sha256 1"}, "queries from rows of a file; demonstrations from rows of a file"),
        ({"rows": "hub other/sst2 default test commit 2"}, "queries from rows of hub other/sst2 default test"),
        ({"shots": 2}, "shots=2"),
        ({"learning_rate": 0.1}, "learning_rate=0.1"),
        ({"label_words": "random"}, "label_words='random'"),
        ({"model": "EleutherAI/gpt-j-6B"}, "published for gpt2-xl"),
    ],
)
def test_another_model_other_rows_or_settings_are_not_comparable(tmp_path, change, said):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.61, "beta": 0.9}), **change)
    frame = paper.compare([run])
    found = row(frame, "accuracy of the prompt as it is", task="sst2")
    assert found["verdict"] == "not comparable"
    assert said in found["why"]
    assert found["value"] == 61
    assert set(frame["verdict"]) <= {"not comparable", "not run"}
    assert "somewhere" not in frame.to_csv()
    assert row(frame, "re-weighting beats the prompt")["holds"] == "yes"


def test_fewer_queries_compare_and_are_named(tmp_path):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.61}), limit=100)
    found = row(paper.compare([run]), "accuracy of the prompt as it is", task="sst2")
    assert found["verdict"] == "pass"
    assert "at most 100 queries a seed, the paper 1000" in found["why"]


def test_of_two_results_of_the_same_the_later_counts(tmp_path):
    first = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.1}), finished="2024-02-01T00:00:00+00:00")
    later = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.6}), finished="2024-03-01T00:00:00+00:00")
    for runs in ([first, later], [later, first]):
        found = row(paper.compare(runs), "accuracy of the prompt as it is", task="sst2")
        assert found["value"] == 60
        assert "others of the same seeds passed over: 1" in found["why"]


def test_models_have_rows_of_their_own(tmp_path):
    runs = [
        stored(tmp_path, "3_1_reweighting", answers({"vanilla": share}), model=model, weights=weights)
        for share, model, weights in (
            (0.6, "toy", "sha256 12345678a"),
            (0.5, "/a/m", "sha256 23456789b"),
            (0.4, "/b/m", "sha256 3456789c"),
        )
    ]
    frame = paper.compare(runs)
    assert set(frame["model"]) == {"toy", "m (23456789)", "m (3456789c)"}
    assert row(frame, "accuracy of the prompt as it is", task="sst2", model="m (23456789)")["value"] == 50


def test_why_a_task_was_not_run_is_said(tmp_path):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.6}))
    frame = paper.compare([run], missing={"emo": "no rows of emo"})
    assert set(frame[frame["task"] == "emo"]["verdict"]) == {"not run"}
    assert row(frame, "accuracy of the prompt as it is", task="emo")["why"] == "no rows of emo"


@pytest.mark.parametrize(("beta", "holds"), [(0.9, "yes"), (0.61, "no"), (0.3, "no")])
def test_a_gain_holds_beyond_chance_only(tmp_path, beta, holds):
    run = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.6, "beta": beta}))
    found = row(paper.compare([run]), "re-weighting beats the prompt")
    assert found["holds"] == holds
    assert found["value"] == pytest.approx(100 * (beta - 0.6))
    assert found["verdict"] == {"yes": "pass", "no": "differs"}[holds]
    assert "paired p" in found["why"]


@pytest.mark.parametrize(("model", "own"), [("gpt2-xl", "continue"), ("EleutherAI/gpt-j-6b", "restart")])
def test_positions_that_are_not_the_papers_are_said_and_not_comparable(tmp_path, model, own):
    both = compressed(label=0.8)
    frame = both[both["positions"].isin(("none", own))]
    run = stored(tmp_path, "3_2_compression", frame, model=model, positions=own, tables=COST)
    found = paper.compare([run])
    for claim in (KEPT, "label loyalty: label words kept beat template", "points of accuracy lost"):
        assert row(found, claim)["verdict"] == "not comparable"
        assert f"positions {own} of hidden_anchor, the paper's " in row(found, claim)["why"]
    assert f"; positions {own};" in row(found, KEPT)["why"]
    assert "positions" not in row(found, "label loyalty: the whole prompt")["why"]


def test_label_words_kept_are_read_by_the_released_rule_of_positions(tmp_path):
    run = stored(tmp_path, "3_2_compression", compressed(label=0.8), tables=COST)
    jay = stored(tmp_path, "3_2_compression", compressed(label=0.8), tables=COST, model="EleutherAI/gpt-j-6b")
    frame = paper.compare([run, jay])
    assert row(frame, KEPT, model="gpt2-xl")["value"] == 80
    assert row(frame, KEPT, model="EleutherAI/gpt-j-6b")["value"] == 1
    assert row(frame, "label loyalty: label words kept beat template", model="gpt2-xl")["holds"] == "yes"
    assert row(frame, "points of accuracy lost", model="gpt2-xl")["value"] == pytest.approx(20)
    assert row(frame, "tokens of the demonstrations", model="gpt2-xl", task="sst2")["verdict"] == "pass"


def test_speed_ups_are_told_by_one_query_at_a_time(tmp_path):
    run = stored(tmp_path, "3_2_compression", compressed(label=0.8), tables=COST)
    found = row(paper.compare([run]), "speed-up", task="sst2")
    assert found["value"] == pytest.approx(1.1)
    assert found["verdict"] == "pass"
    assert math.isnan(found["low"])


def test_speed_ups_are_told_of_prompts_that_a_file_fixes(tmp_path):
    frame = compressed(label=0.8).assign(seed=-1)
    run = stored(tmp_path, "3_2_compression", frame, tables=COST, prompts="own.jsonl")
    found = row(paper.compare([run]), "keeping label words only makes queries faster")
    assert (found["value"], found["holds"]) == (pytest.approx(1.1), "yes")


def test_a_comparison_is_kept_whole_in_place_of_an_earlier_one(tmp_path):
    (tmp_path / "comparison.csv").write_text("earlier")
    frame = paper.compare([])
    assert [path.name for path in paper.write(frame, tmp_path)] == ["comparison.parquet", "comparison.csv"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "comparison.parquet"), frame)
    assert len(pd.read_csv(tmp_path / "comparison.csv")) == len(frame)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_data_is_strict_json_without_paths():
    text = (Path(paper.__file__).parent / "published.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == PUBLISHED
    assert "/work" not in text


def test_a_trial_never_stands_in_for_the_real_thing(tmp_path):
    """Neither fewer queries nor other settings count before what is closer to the paper's, however late they come."""
    late = {"finished": "2024-03-01T00:00:00+00:00"}
    whole = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.6}), finished="2024-02-01T00:00:00+00:00")
    few = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.1}), limit=20, **late)
    other = stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.2}), epochs=3, **late)
    for runs in ([whole, few, other], [other, few, whole]):
        found = row(paper.compare(runs), "accuracy of the prompt as it is", task="sst2")
        assert (found["value"], found["verdict"]) == (60, "pass")
        assert "others of the same seeds passed over: 2" in found["why"]
