"""What a model and a pass take: by hand, against models, and against measured peaks."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.memory import ALLOWED, ANALYSES, GPT2, LLAMA, build, cases, peak
from benchmarks.shapes import Shape as Drawn
from benchmarks.shapes import Size, prompts

from anchorlens import fitting, passes, planner
from anchorlens.analyses.information_flow import information_flow
from anchorlens.batching import collate
from anchorlens.planner import Shape, ShapeError

SMALL = Shape(
    n_layers=1, d_model=4, n_heads=2, kv_heads=2, d_head=2, d_mlp=8, d_vocab=9, n_ctx=5, learned=True, itemsize=4
)
SIZES = {"n_layer": 3, "n_embd": 48, "n_head": 3, "vocab_size": 300, "n_positions": 512, "n_ctx": 512}
LONG = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 300}
LONG |= {"intermediate_size": 100, "max_position_embeddings": 512}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT-2": {**GPT2, **SIZES},
    "GPT-J": {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], **SIZES, "rotary_dim": 8},
    "GPT-NeoX": {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        **{**LONG, "num_attention_heads": 3, "rotary_pct": 0.5},
    },
    "Llama": {**LLAMA, **LONG, "num_key_value_heads": 2},
    "Llama, one key": {**LLAMA, **LONG, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module", params=CONFIGS)
def config(request) -> dict[str, Any]:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def lens(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, 4 * 16 + 2 * 32),  # queries, keys, values, output of 4 x 4; into and out of an MLP of 4 x 8
        ({"kv_heads": 1}, 2 * 16 + 2 * 8 + 2 * 32),  # one head of keys and values
        ({"gated": True}, 4 * 16 + 3 * 32),
        ({"d_mlp": 0}, 4 * 16),
        ({"experts_used": 2}, 4 * 16 + 2 * 2 * 32),
    ],
)
def test_operations_of_three_tokens_after_five_by_hand(changes, weights):
    shape = replace(SMALL, **changes)
    # scores and values: 3 rows of 8 cells, 2 heads of width 2, multiplied and added, twice
    assert planner.operations(shape, 3, 5) == 2 * 3 * weights + 4 * 2 * 2 * 3 * 8
    assert planner.operations(replace(shape, n_layers=7), 3, 5) == 7 * planner.operations(shape, 3, 5)


def test_backward_costs_weights_once_more_and_scores_twice_more_and_again_if_they_are_run_anew():
    weights, scores = 2 * 3 * 128, 4 * 2 * 2 * 9
    assert planner.operations_with_gradient(SMALL, 3) == 2 * weights + 3 * scores
    assert planner.operations_with_gradient(SMALL, 3, checkpoint=True) == 2 * weights + 4 * scores


def test_keys_and_values_are_one_number_each_for_every_layer_and_key_head():
    assert planner.memory_bytes(replace(SMALL, n_layers=3, kv_heads=1), 7) == 3 * 2 * 7 * 2 * 4


def test_a_config_and_the_loaded_model_have_the_same_shape(config, lens):
    assert planner.of_config(config) == planner.of_model(lens.cfg)


def test_weights_are_those_of_the_loaded_model(lens):
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in lens.model.state_dict().values()}
    held |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in lens.model.buffers()}
    # a constant of transformer-lens in every layer is not counted
    assert planner.weight_bytes(planner.of_model(lens.cfg)) == pytest.approx(sum(held.values()), abs=4 * 3 + 1)


def test_half_precision_halves_weights_and_keeps_a_wide_output_matrix():
    whole, half = planner.weight_bytes(SMALL), planner.weight_bytes(replace(SMALL, itemsize=2))
    assert half == whole / 2 + (4 + 1) * 9 * 4


@pytest.mark.parametrize(
    ("left_out", "said"),
    [("n_layer", r"n_layers \(n_layer or num_hidden_layers"), ("vocab_size", "d_vocab"), ("n_head", "n_heads")],
)
def test_a_config_that_lacks_a_size_is_refused_by_its_name(left_out, said):
    config = {name: value for name, value in CONFIGS["GPT-2"].items() if name != left_out}
    with pytest.raises(ShapeError, match=said):
        planner.of_config(config)


def test_an_unknown_kind_of_model_must_say_how_wide_its_mlp_is():
    with pytest.raises(ShapeError, match=r"type 'new' does not say how wide its MLP is \(intermediate_size or n_inner"):
        planner.of_config({**SIZES, "model_type": "new"})


@pytest.mark.parametrize("analysis", ANALYSES)
def test_estimates_are_within_15_per_cent_of_measured_peaks(lens, analysis):
    of = Drawn(0, 0, 0, lens.cfg.d_vocab)
    for size in (
        Size(examples=6, demo=20, query=(20, 24), training=4),
        Size(examples=3, demo=60, query=(70, 90), training=4),
    ):
        case = cases(lens, prompts(of, size), prompts(of, size, training=True), 3)[analysis]
        case.run()
        assert case.expected == pytest.approx(peak(case.run, torch.device("cpu")), rel=ALLOWED), size


@pytest.mark.parametrize(("free", "want"), [(100, 5), (99, 4), (19, 0), (10**9, planner.ENOUGH // 16)])
def test_a_batch_holds_what_fits_into_the_share_of_free_memory(free, want):
    assert planner.rows(lambda n: 10 * n, 16, free) == want


@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_further_layer_adds_what_it_keeps_for_a_backward_pass(checkpoint):
    three, four, six = (planner.saliency(replace(SMALL, n_layers=n), 2, 5, checkpoint=checkpoint) for n in (3, 4, 6))
    assert six - four == 2 * (four - three) > 0


def test_layers_are_run_anew_only_where_one_prompt_would_not_fit_otherwise():
    shape = replace(SMALL, n_layers=40)
    one = planner.saliency(shape, 1, 50)
    roomy, tight = 2 * one / planner.SHARE, 0.9 * one / planner.SHARE
    assert planner.differentiating(shape, 3, 50, roomy) == planner.saliency(shape, 3, 50)
    assert planner.differentiating(shape, 3, 50, tight) == planner.saliency(shape, 3, 50, checkpoint=True)
    assert planner.saliency(shape, 3, 50, checkpoint=True) < planner.saliency(shape, 3, 50) / 2


def test_every_peak_grows_with_prompts_and_with_tokens():
    shape = replace(SMALL, n_layers=4, rotary=2, learned=False)
    for peak_of in (planner.reading, planner.remembering):
        for rows, length in itertools.product((1, 4), (10, 40)):
            assert peak_of(shape, rows, length, 30) < peak_of(shape, rows + 1, length, 30)
            assert peak_of(shape, rows, length, 30) < peak_of(shape, rows, length + 1, 30)


@pytest.mark.parametrize(("share", "anew"), [(2.0, False), (0.9, True)])
def test_a_backward_pass_runs_layers_anew_when_memory_is_short_and_gives_the_same(
    model, batch, monkeypatch, share, anew
):
    asked: list[bool] = []
    at_target = model.at_target

    def seen(*given, checkpoint=False):
        asked.append(checkpoint)
        return at_target(*given, checkpoint=checkpoint)

    need = planner.saliency(planner.of_model(model.cfg), *batch.tokens.shape)
    monkeypatch.setattr(model, "at_target", seen)
    monkeypatch.setattr(fitting.room, "free_bytes", lambda device: share * need / planner.MOST)
    with torch.enable_grad():
        passes.answer(model, batch, checkpoint=None)
        passes.answer(model, batch)
    with torch.no_grad():
        passes.answer(model, batch, checkpoint=None)
    assert asked == [anew, False, False], "unasked, or without gradients, nothing is run anew"
    information_flow(model, batch)
    assert asked[3:] == [anew]


def test_a_cpu_is_given_no_more_tokens_than_keep_it_busy_and_a_small_model_or_a_gpu_as_many_as_are_useful():
    gpt2 = planner.Shape(12, 768, 12, 12, 64, 3072, 50257, 1024)
    assert 600 < planner.enough(gpt2, "cpu") < 800, "7.1 million multiplications a token and layer"
    assert planner.enough(replace(gpt2, d_model=4096, d_mlp=16384), "cpu") == planner.LEAST
    assert planner.enough(replace(gpt2, d_model=64, d_mlp=256), "cpu") == planner.ENOUGH
    assert planner.enough(gpt2, "cuda:1") == planner.ENOUGH


def test_one_prompt_longer_than_a_batch_should_be_is_a_batch():
    assert planner.rows(lambda n: 10 * n, 900, 1000, 512) == 1
    assert planner.rows(lambda n: 10 * n, 100, 1000, 512) == 5


def test_queries_that_are_remembered_are_planned_in_smaller_batches(model, prompts, monkeypatch):
    from anchorlens.batching import groups

    (group,) = groups(prompts)
    shape = planner.of_model(model.cfg)
    rows, length = len(prompts), max(len(prompt.ids) for prompt in prompts) - group.length
    free = planner.reading(shape, rows, length, group.length) / planner.SHARE
    assert free < planner.remembering(shape, rows, length, group.length) / planner.SHARE
    monkeypatch.setattr(fitting.room, "free_bytes", lambda device: free + 1)
    assert [len(each.gold) for each in passes.queries(model, group)] == [2]
    assert [len(each.gold) for each in passes.queries(model, group, remembered=True)] == [1, 1]


def test_whole_prompts_are_collated_as_large_as_memory_allows(model, prompts, monkeypatch):
    shape, longest = planner.of_model(model.cfg), max(len(prompt.ids) for prompt in prompts)
    need = planner.saliency(shape, 2, longest) / planner.SHARE
    assert collate(prompts).tokens.shape == (2, longest)
    for free, sizes in ((1.05 * need, [2]), (0.95 * need, [1, 1])):
        monkeypatch.setattr(fitting.room, "free_bytes", lambda device, free=free: free)
        assert [len(batch.target) for batch in passes.plan(model, prompts)] == sizes
