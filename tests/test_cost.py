"""Section 3.2's costs: operations counted by hand, and what is timed."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from compression_helpers import encoded
from conftest import random_model

from anchorlens import passes
from anchorlens.analyses.compression import cost, kept
from anchorlens.batching import Group, groups
from anchorlens.hooks import Site, watching

SMALL = {"n_layers": 1, "n_heads": 2, "n_key_value_heads": None, "d_model": 4, "d_head": 2, "d_mlp": 8}
OTHER = {"d_vocab": 9, "n_ctx": 8, "positional_embedding_type": "standard", "normalization_type": "LN"}
OTHER |= {"attn_only": False, "gated_mlp": False, "parallel_attn_mlp": False, "dtype": torch.float32}
PLAIN = SimpleNamespace(**SMALL, **OTHER)


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    (one,) = groups(encoded(tokenizer))
    return one


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, 4 * 16 + 2 * 32),  # queries, keys, values, output of 4 x 4; into and out of an MLP of 4 x 8
        ({"n_key_value_heads": 1}, 2 * 16 + 2 * 8 + 2 * 32),  # one head of keys and values
        ({"gated_mlp": True}, 4 * 16 + 3 * 32),
        ({"attn_only": True, "d_mlp": None}, 4 * 16),
        ({"experts_per_token": 2}, 4 * 16 + 2 * 2 * 32),
    ],
)
def test_operations_of_three_tokens_after_five_by_hand(changes, weights):
    cfg = SimpleNamespace(**{**vars(PLAIN), **changes})
    # scores and values: 3 rows of 8 cells, 2 heads of width 2, multiplied and added, twice
    assert cost.operations(cfg, 3, 5) == 2 * 3 * weights + 4 * 2 * 2 * 3 * 8
    assert cost.operations(SimpleNamespace(**{**vars(cfg), "n_layers": 7}), 3, 5) == 7 * cost.operations(cfg, 3, 5)


def test_running_a_prompt_in_two_parts_saves_only_the_masked_corner():
    whole, parts = cost.operations(PLAIN, 8), cost.operations(PLAIN, 5) + cost.operations(PLAIN, 3, 5)
    assert whole - parts == 4 * 2 * 2 * 5 * 3


def test_each_arm_has_a_row_for_every_size_that_the_queries_fill(model, group):
    table = cost.cost(model, group, repeats=1)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == cost.COLUMNS
    arms = ("icl", "icl_cached", "hidden_anchor")
    want = [(arm, size) for size in (1, 4, 16) for arm in arms] + [("demonstrations", 1)]
    assert list(zip(table["arm"], table["batch"], strict=True)) == want
    fewer = cost.cost(model, Group(group.prompts[:15]), repeats=1)
    assert set(fewer["batch"]) == {1, 4}, "15 queries do not fill a batch of 16"
    assert (table["seconds"] > 0).all()


def test_ratios_and_bytes_are_those_of_the_memories(model, group):
    table = cost.cost(model, group, sizes=[16], repeats=1).set_index("arm")
    n, left = group.length, len(kept.by_role(group, "hidden_anchor"))
    lengths = [len(prompt.ids) for prompt in group.prompts]
    whole = sum(cost.operations(model.cfg, each) for each in lengths)
    for arm, before in (("icl_cached", n), ("hidden_anchor", left)):
        less = sum(cost.operations(model.cfg, each - n, before) for each in lengths)
        assert table.loc[arm, "flops_ratio"] == pytest.approx(whole / less)
        assert table.loc[arm, "kv_bytes"] == before * 3 * 2 * 16 * 8  # layers, keys and values, width, float64
    assert (table.loc["icl", "flops_ratio"], table.loc["icl", "kv_bytes"]) == (1, 0)
    made = table.loc["demonstrations"]
    assert made["flops_ratio"] == pytest.approx(whole / 16 / cost.operations(model.cfg, n))
    assert made["kv_bytes"] == n * 3 * 2 * 16 * 8
    assert 1 < table.loc["icl_cached", "flops_ratio"] < table.loc["hidden_anchor", "flops_ratio"]


def test_what_is_timed_are_the_label_logits_of_the_analysis(model, group, monkeypatch):
    """Every arm answers all queries of whole batches: the logits that it computes are those of the passes."""
    seen: dict[str, list[torch.Tensor]] = {}

    def once(arms, repeats, wait):
        seen.update({arm: call() for arm, call in arms.items()})
        return dict.fromkeys(arms, 1.0)

    monkeypatch.setattr(cost, "_timed", once)
    monkeypatch.setattr(cost, "LEAST", 13)
    table = cost.cost(model, group, sizes=[5], repeats=1).set_index("arm")
    assert table.loc["icl", "seconds"] == 1 / 10, "10 of 13 queries fill batches of 5"
    first = Group(group.prompts[:10])
    memory = passes.demonstrate(model, group).memory
    anchored = model.keep(memory, kept.by_role(group, "hidden_anchor"), group.length, longest=group.longest)
    asked = first.queries(lambda _: 5)
    for arm, used in (("icl", memory), ("icl_cached", memory), ("hidden_anchor", anchored)):
        want = torch.cat([passes.respond(model, first, used, each).label_logits for each in asked])
        # float64: whole prompts and cached demonstrations differ by the order of summation
        torch.testing.assert_close(torch.cat(list(seen[arm])), want, rtol=0, atol=1e-10)


def test_arms_take_turns_after_one_untimed_round_and_the_device_is_waited_for(monkeypatch):
    order, clock = [], iter([0.0, 9.0, 0.0, 9.0, *[0.0, 1.0, 0.0, 5.0], *[0.0, 3.0, 0.0, 7.0], *[0.0, 2.0, 0.0, 6.0]])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    arms = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert cost._timed(arms, 3, lambda: order.append("wait")) == {"a": 2.0, "b": 6.0}
    assert order == ["wait", "a", "wait", "wait", "b", "wait"] * 4


def test_a_cuda_device_is_synchronised(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    cost._waiting(torch.device("cuda:1"))()
    cost._waiting(torch.device("cpu"))()
    assert waited == [torch.device("cuda:1")]


def test_no_more_queries_are_run_than_are_timed(model, group, monkeypatch):
    monkeypatch.setattr(cost, "LEAST", 2)
    tokens = []
    with watching(model, Site.RESID_PRE, [0], lambda layer, resid: tokens.append(resid.shape[0] * resid.shape[1])):
        cost.cost(model, group, sizes=[1], repeats=1)
    asked = sum(len(prompt.ids) - group.length for prompt in group.prompts[:2])
    # two rounds of: two whole prompts, the same queries twice after a memory, the memory; which is made once before
    assert sum(tokens) == 2 * (2 * group.length + 3 * asked + group.length) + group.length


@pytest.mark.parametrize("given", [{"sizes": []}, {"sizes": [0, 4]}, {"repeats": 0}])
def test_sizes_and_repeats_below_one_are_refused(model, group, given):
    with pytest.raises(ValueError, match="give at least one size and one repeat, all 1 or more"):
        cost.cost(model, group, **given)


def test_a_size_that_no_batch_fills_is_refused(model, group):
    with pytest.raises(ValueError, match=r"sizes=\[17\]: this group has 16 queries and at most 32 are timed"):
        cost.cost(model, group, sizes=[17])


def test_a_model_whose_tokens_cannot_be_kept_is_refused(group):
    with pytest.raises(ValueError, match="kind 'alibi'"):
        cost.cost(random_model(positional_embedding_type="alibi"), group)


def test_speed_is_stated_against_whole_prompts_and_against_cached_demonstrations():
    seconds = {"icl": (2.2, 2.0), "icl_cached": (1.05, 1.5), "hidden_anchor": (1.0, 0.5)}
    rows = [(arm, size, each, 1.0, 0) for arm, pair in seconds.items() for size, each in zip((1, 8), pair, strict=True)]
    table = pd.DataFrame([*rows, ("demonstrations", 1, 9.0, 1.0, 0)], columns=list(cost.COLUMNS)).astype(cost.COLUMNS)
    said = cost.stated(table)
    assert said["found"].tolist() == [
        "2.2 times with 1 at a time, 4.0 times with 8 at a time",
        "1.1 times with 1 at a time, 3.0 times with 8 at a time",
    ]
    assert said["holds"].tolist() == [True, False], "1.05 times is within what repeated measurements differ by"
    assert (
        said["claim"].iloc[0]
        == "speed, 1 at a time: hidden_anchor above whole prompts (tables 3 and 6: 1.1 to 2.9 times)"
    )
