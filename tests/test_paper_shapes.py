"""The shapes of the paper's figures are seen where they are, and not where they are not."""

import numpy as np
import pytest
from paper_helpers import answers, attended, confusions, flows, isolated, row, stored

from anchorlens import intervals, paper


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


def test_one_prompt_decides_nothing_between_arms(tmp_path):
    loyalty = {("label", "first"): 0.0, ("label", "last"): 1.0, ("random", "first"): 1.0, ("random", "last"): 1.0}
    runs = [
        stored(tmp_path, "2_2_isolation", isolated(loyalty, n=1)),
        stored(tmp_path, "3_1_reweighting", answers({"vanilla": 0.0, "beta": 1.0, "kshot": 0.0}, n=1)),
    ]
    frame = paper.compare(runs)
    for found in (frame[frame["section"] == "2.2"], frame[frame["claim"].str.startswith("re-weighting beats")]):
        assert set(found["holds"]) == {""}
        assert set(found["verdict"]) == {"not comparable"}
        assert found["low"].isna().all()
        assert found["why"].str.startswith("undecided: one prompt has no interval").all()


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


def test_the_interval_of_the_same_attention_is_worked_out_once(tmp_path, monkeypatch):
    worked: list[int] = []
    whole = intervals.of_statistic

    def counted(*given, **more):
        worked.append(1)
        return whole(*given, **more)

    monkeypatch.setattr(intervals, "of_statistic", counted)
    frame, summary = attended([0.5, 0.5, 0.9], tells=2)
    frame["attention"] += np.random.default_rng(0).uniform(size=len(frame))  # as in no other test
    other = frame.assign(attention=4 - frame["attention"])
    runs = [stored(tmp_path, "2_3_extraction", each, tables={"summary": summary}) for each in (frame, frame, other)]
    low = [row(paper.compare([run]), "AUCROC approaches")["low"] for run in runs]
    assert (low[0], len(worked)) == (low[1], 2)
    assert low[2] != low[0]


@pytest.mark.parametrize(("aucs", "said"), [([0.5, np.nan, 0.9], "undefined"), ([0.5, 0.51, 0.52], "undecided")])
def test_what_is_undefined_is_neither_yes_nor_no(tmp_path, aucs, said):
    frame, summary = attended(aucs, tells=2)
    found = paper.compare([stored(tmp_path, "2_3_extraction", frame, tables={"summary": summary})])
    shallow = row(found, "R is negligible")
    assert (shallow["holds"], shallow["verdict"]) == ("", "not comparable")
    assert said in shallow["why"]


def test_a_pair_that_is_confused_as_much_as_others_is_not_the_one_confused_most(tmp_path):
    frame, asked = confusions((1, 2))
    alike = frame.assign(confusion_observed=1.0)  # nothing is confused
    found = paper.compare([stored(tmp_path, "3_3_diagnosis", alike, task="trec", tables={"predictions": asked})])
    found = found[found["section"] == "3.3"]
    assert found["value"].tolist()[:3] == [8, 6, 3]
    assert found["holds"].tolist() == ["no", "no", "no", "", "yes"]


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
