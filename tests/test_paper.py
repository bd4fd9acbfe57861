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
    attended,
    compressed,
    confusions,
    flows,
    isolated,
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
    assert "1 seed of the paper's 5" in other["why"]
    assert row(frame, "accuracy of the prompt as it is", task="emo")["verdict"] == "not run"


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
        assert "1 earlier results passed over" in found["why"]


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


def test_flows_are_judged_by_their_shares_in_shallow_and_deep_layers(tmp_path):
    as_stated = flows([(6, 1, 1), (5, 3, 2), (3, 5, 2), (2, 6, 2), (1, 8, 1), (0, 9, 1)])
    frame = paper.compare([stored(tmp_path, "2_1_information_flow", as_stated)])
    held = frame[(frame["section"] == "2.1") & (frame["item"] != "headline")]
    assert set(held["holds"]) == {"yes"}
    assert row(frame, "shallow layers: S_wp is high")["value"] == pytest.approx((6 + 2.5) / 2)
    assert row(frame, "shallow layers: S_wp is above")["value"] == pytest.approx((5 / 8 + 2 / 10) / 2)
    assert row(frame, "neither")["value"] == pytest.approx(2 / 5)
    assert row(frame, "deep layers")["value"] == pytest.approx((7 / 10 + 8 / 10) / 2)


def test_flows_the_other_way_round_hold_nowhere(tmp_path):
    reverse = flows([(0.1, 9, 1), (0.1, 8, 2), (0.1, 1, 5), (0.1, 1, 6), (0.1, 1, 7), (0, 1, 8)])
    frame = paper.compare([stored(tmp_path, "2_1_information_flow", reverse)])
    held = frame[(frame["section"] == "2.1") & (frame["item"] != "headline")]
    assert set(held["holds"]) == {"no"}
    assert set(held["verdict"]) == {"differs"}
    assert row(frame, "shallow layers: S_wp is high")["why"].startswith("by -0.925 times S_ww from the bound")


@pytest.mark.parametrize(
    ("first", "held"),
    [(0.5, ["yes"] * 5), (0.95, ["no", "yes", "yes", "no", "yes"]), (0.85, ["no", "yes", "yes", "yes", "yes"])],
)
def test_isolation_holds_where_first_layers_alone_matter(tmp_path, first, held):
    loyalty = {("label", "first"): first, ("label", "last"): 0.9, ("random", "first"): 0.95, ("random", "last"): 1.0}
    frame = paper.compare([stored(tmp_path, "2_2_isolation", isolated(loyalty))])
    found = frame[(frame["section"] == "2.2") & frame["claim"].str.startswith("label")]
    assert found["holds"].tolist() == held
    assert row(frame, "label loyalty: isolating label words in the first")["value"] == pytest.approx(0.9 - first)


def test_isolation_of_label_words_must_matter_more_than_that_of_other_tokens(tmp_path):
    loyalty = {("label", "first"): 0.5, ("label", "last"): 1.0, ("random", "first"): 0.55, ("random", "last"): 1.0}
    frame = paper.compare([stored(tmp_path, "2_2_isolation", isolated(loyalty))])
    found = row(frame, "label loyalty: isolating label words in the first")
    assert (found["value"], found["holds"]) == (pytest.approx(0.05), "no")
    assert row(frame, "label loyalty: isolating random")["holds"] == "no"


def test_runs_that_isolate_at_different_depths_are_compared_where_both_do(tmp_path):
    loyalty = {("label", "first"): 0.5, ("label", "last"): 1.0, ("random", "first"): 1.0, ("random", "last"): 1.0}
    runs = [
        stored(tmp_path, "2_2_isolation", isolated(loyalty, depths=depths), task=task, depths=list(depths))
        for task, depths in (("sst2", (1, 3)), ("trec", (3, 5)))
    ]
    frame = paper.compare(runs)
    assert "3 layers" in row(frame, "label loyalty: the first")["why"]
    assert "depths=[1, 3] with sst2" in row(frame, "label loyalty: the first")["why"]
    other = stored(tmp_path, "2_2_isolation", isolated(loyalty, depths=(7,)), task="agnews", depths=[7])
    assert row(paper.compare([*runs, other]), "label loyalty: the first")["verdict"] == "not run"


def test_isolation_of_a_model_of_few_layers_says_at_how_many_it_was_seen(tmp_path):
    loyalty = {("label", "first"): 0.5, ("label", "last"): 1.0, ("random", "first"): 1.0, ("random", "last"): 1.0}
    frame = paper.compare([stored(tmp_path, "2_2_isolation", isolated(loyalty, depths=(1, 3)))])
    assert (
        "at 3 layers, the most that were isolated"
        in row(frame, "label loyalty: isolating label words in the first")["why"]
    )


def test_auc_is_the_highest_of_the_deeper_half_and_shares_are_against_layers_alike(tmp_path):
    frame, summary = attended([0.5, 0.5, 1.0, 0.0, 0.9, 0.6], tells=4)
    found = paper.compare([stored(tmp_path, "2_3_extraction", frame, tables={"summary": summary})])
    deep, shallow = row(found, "AUCROC approaches"), row(found, "R is negligible")
    assert (deep["value"], deep["low"], deep["high"], deep["holds"], deep["n"]) == (0.9, 1, 1, "yes", 40)
    assert "layer 5 of 6" in deep["why"]
    assert (shallow["value"], shallow["holds"]) == (0, "yes")


@pytest.mark.parametrize(("aucs", "said"), [([0.5, np.nan, 0.9], "undefined"), ([0.5, 0.51, 0.52], "undecided")])
def test_what_is_undefined_is_neither_yes_nor_no(tmp_path, aucs, said):
    frame, summary = attended(aucs, tells=2)
    found = paper.compare([stored(tmp_path, "2_3_extraction", frame, tables={"summary": summary})])
    shallow = row(found, "R is negligible")
    assert (shallow["holds"], shallow["verdict"]) == ("", "not comparable")
    assert said in shallow["why"]


@pytest.mark.parametrize(
    ("worst", "shift", "held"),
    [((1, 2), 0.05, ["yes", "yes", "no", "yes", "yes"]), ((0, 2), 0.2, ["no", "yes", "yes", "yes", "no"])],
)
def test_confusion_is_judged_by_ranks(tmp_path, worst, shift, held):
    frame, asked = confusions(worst, shift)
    run = stored(tmp_path, "3_3_diagnosis", frame, task="trec", tables={"predictions": asked})
    found = paper.compare([run])
    found = found[found["section"] == "3.3"]
    assert found["holds"].tolist() == held
    assert set(found["n"]) == {7}


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
