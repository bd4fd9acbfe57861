"""Section 2.1: by hand, by law, and against the released code's own numbers."""

import dataclasses
import json
from typing import ClassVar

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, random_model
from released import both
from released import model as load_released
from safetensors.torch import load_file

from anchorlens import passes, tasks
from anchorlens.analyses import information_flow as flow
from anchorlens.batching import Batch, collate
from anchorlens.drafts import Draft
from anchorlens.hooks import Site, capturing, editing
from anchorlens.prompts import Encoder, PromptError
from anchorlens.rows import Example

KEY = ["example", "layer", "flow"]
RELEASED = json.loads((FIXTURES / "saliency.json").read_text())
CASES = [case for entry in RELEASED.values() for case in entry["cases"]]


def hand_batch(anchors: list[int], target: int, width: int, start: int = 0, longer: int = 0) -> Batch:
    """One prompt; each label word is ``longer`` by so many tokens than one."""
    one = torch.zeros(1, dtype=torch.int64)
    where = torch.tensor([anchors])
    demo = [next((n for n, a in enumerate(anchors) if a <= p <= a + longer), -1) for p in range(width)]
    return Batch(
        tokens=torch.zeros(1, width, dtype=torch.int64),
        start=one + start,
        anchors=where,
        anchor_classes=where * 0,
        target=one + target,
        labels=torch.tensor([[0, 1]]),
        gold=one,
        example=one,
        seed=one,
        demo=torch.tensor([demo]),
        words=torch.tensor([[[0], [1]]]),
    )


def test_heads_are_summed_before_the_absolute_value():
    pattern = torch.tensor([[[[0.5]], [[0.5]]]])  # two heads, one cell
    grad = torch.tensor([[[[3.0]], [[-1.0]]]])
    torch.testing.assert_close(flow.saliency(pattern, grad), torch.tensor([[[1.0]]]))  # |1.5 - 0.5|


def test_with_each_head_by_itself_the_absolute_value_comes_first():
    pattern = torch.tensor([[[[0.5]], [[0.5]]]])
    grad = torch.tensor([[[[3.0]], [[-1.0]]]])
    torch.testing.assert_close(flow.saliency(pattern, grad, "each"), torch.tensor([[[2.0]]]))  # |1.5| + |-0.5|


def test_means_of_a_five_token_prompt_with_a_pad():
    # text, label word (1), text, target (3), pad; cell (i, j) holds 10 i + j
    sal = torch.tensor([[[10.0 * i + j for j in range(5)] for i in range(5)]])
    means = flow.mean_flows(sal, flow.averaging(hand_batch([1], 3, 5), torch.float32))
    torch.testing.assert_close(means, torch.tensor([[10.0, 31.0, (20 + 21 + 30 + 32) / 4]]))


def test_the_flow_between_two_label_words_counts_as_gathering():
    # label words at 1 and 2, target at 3: cells (1,0) (2,0) (2,1) gather, (3,1) (3,2) are read, (3,0) is the rest
    cells = flow.pairs(hand_batch([1, 2], 3, 4))
    found = {name: cell[0].nonzero().tolist() for name, cell in cells.items()}
    assert found == {"S_wp": [[1, 0], [2, 0], [2, 1]], "S_pq": [[3, 1], [3, 2]], "S_ww": [[3, 0]]}


def test_a_start_token_is_in_none_of_the_flows():
    # start token at 0, label word at 2, target at 3: only tokens 1, 2 and 3 count
    cells = flow.pairs(hand_batch([2], 3, 4, start=1))
    found = {name: cell[0].nonzero().tolist() for name, cell in cells.items()}
    assert found == {"S_wp": [[2, 1]], "S_pq": [[3, 2]], "S_ww": [[3, 1]]}


def test_every_pair_up_to_the_target_belongs_to_exactly_one_flow(batch):
    cells = torch.stack(list(flow.pairs(batch).values())).sum(0)
    width = batch.tokens.shape[1]
    for n, target in enumerate(batch.target.tolist()):
        want = torch.ones(width, width).tril(-1)
        want[target + 1 :] = 0
        torch.testing.assert_close(cells[n].double(), want.double(), rtol=0, atol=0)


def test_saliency_is_the_slope_of_the_loss_along_the_pattern(model, batch):
    """Where one cell of one head's pattern is multiplied by s, dL/ds at s = 1 is A * dL/dA of that cell."""
    layer, step = 1, 1e-5

    class Times:
        site: ClassVar[Site] = Site.PATTERN

        def __init__(self, factor: float, row: int, col: int) -> None:
            self.factor, self.row, self.col = factor, row, col

        def __call__(self, act: torch.Tensor, layer: int) -> torch.Tensor:
            scaled = act.clone()
            scaled[:, :, self.row, self.col] *= self.factor  # all heads: saliency sums over them
            return scaled

    def loss(factor: float, row: int, col: int) -> torch.Tensor:
        with torch.no_grad(), editing(model, Times(factor, row, col), [layer]):
            return F.cross_entropy(passes.answer(model, batch), batch.gold, reduction="none")

    maps = flow.saliency_maps(model, batch)
    anchor, target = int(batch.anchors[0, 0]), int(batch.target[0])
    for row, col in ((anchor, 0), (anchor, anchor - 1), (target, anchor), (target, 3)):
        slope = (loss(1 + step, row, col) - loss(1 - step, row, col))[0] / (2 * step)
        # central differences in float64: error of order step^2 and 1e-16 / step
        torch.testing.assert_close(maps[0, layer, row, col], slope.abs(), rtol=1e-6, atol=1e-10)
    assert maps[0, layer, target, anchor] > 1e-4, "a cell without any saliency tests nothing"


def test_the_fast_way_equals_keeping_everything_and_reducing_afterwards(model, batch):
    with torch.enable_grad(), capturing(model, Site.PATTERN, range(3), grad=True) as pattern:
        rows = torch.arange(len(batch.target))
        logits = model(batch.tokens)[rows, batch.target].gather(1, batch.labels)
        F.cross_entropy(logits, batch.gold, reduction="sum").backward()
    want = torch.stack([flow.saliency(pattern[layer].detach(), pattern[layer].grad) for layer in range(3)], dim=1)
    torch.testing.assert_close(flow.saliency_maps(model, batch), want, rtol=0, atol=1e-12)  # float64 rounding


def test_a_batch_equals_its_prompts_one_by_one_in_any_order(model, prompts, batch):
    together = flow.information_flow(model, batch)
    alone = [flow.information_flow(model, collate([prompt])) for prompt in prompts]
    alone = pd.concat(alone, ignore_index=True)
    pd.testing.assert_frame_equal(flow.information_flow(model, collate(prompts[::-1])), together, rtol=0, atol=1e-12)
    pd.testing.assert_frame_equal(together, alone, rtol=0, atol=1e-12)
    assert list(zip(together["example"], together["layer"], together["flow"], strict=True))[:4] == [
        (0, 0, "S_wp"),
        (0, 0, "S_pq"),
        (0, 0, "S_ww"),
        (0, 1, "S_wp"),
    ]
    assert {name: str(dtype) for name, dtype in together.dtypes.items()} == flow.COLUMNS


def test_nothing_flows_to_label_words_in_the_last_layer(model, batch):
    frame = flow.information_flow(model, batch)
    gathered = frame[frame["flow"] == "S_wp"].groupby("layer")["value"].max()
    assert gathered[2] == 0
    assert (gathered[[0, 1]] > 0).all()


def test_no_hook_and_no_gradient_is_left_behind(model, batch):
    flow.information_flow(model, batch)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.model.hook_dict.values())
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_a_prompt_without_gold_is_refused(model, prompts):
    unknown = collate([dataclasses.replace(prompts[0], gold=None)])
    with pytest.raises(PromptError, match=r"examples \[0\] have no gold class"):
        flow.information_flow(model, unknown)


def test_heads_of_another_name_are_refused(model, batch):
    with pytest.raises(ValueError, match="heads='mean': it may be 'sum'"):
        flow.information_flow(model, batch, heads="mean")


def test_saliency_that_is_not_finite_names_its_layers(batch):
    broken = random_model()

    def spoil(act: torch.Tensor, hook: object) -> torch.Tensor:
        act.register_hook(lambda grad: grad * torch.inf)
        return act

    with (
        broken.hooks(fwd_hooks=[("blocks.1.hook_resid_post", spoil)]),
        pytest.raises(FloatingPointError, match=r"saliency of examples \[0, 1\] in layers \[0, 1\] is not finite"),
    ):
        flow.information_flow(broken, batch)


def test_saliency_that_vanishes_in_half_precision_is_named(prompts):
    model = random_model(torch.float16)

    def fade(act: torch.Tensor, hook: object) -> torch.Tensor:
        act.register_hook(lambda grad: grad * 1e-5 * 1e-5)  # each factor is a float16, their product is none
        return act

    with (
        model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", fade)]),
        pytest.raises(FloatingPointError, match=r"of examples \[0, 1\] in layers \[0, 1, 2\] is 0, with a loss"),
    ):
        flow.information_flow(model, collate(prompts))


def test_in_full_precision_a_layer_without_effect_has_no_saliency_and_that_is_right(prompts):
    model = random_model(torch.float32)
    with torch.no_grad():
        model.model.blocks[1].attn.W_O.zero_()
    frame = flow.information_flow(model, collate(prompts))
    assert (frame.groupby("layer")["value"].sum() == 0).tolist() == [False, True, False]


def frame_of(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(0, 0, layer, name, value) for name, each in values.items() for layer, value in enumerate(each)]
    return pd.DataFrame(rows, columns=pd.Index(["seed", "example", "layer", "flow", "value"]))


def test_what_the_paper_states_is_held_against_the_numbers():
    paper = frame_of({"S_wp": [9, 6, 2, 1, 1, 0], "S_pq": [1, 1, 4, 6, 9, 9], "S_ww": [1.0] * 6})
    assert flow.stated(paper)["holds"].all()
    reverse = frame_of({"S_wp": [1, 1, 4, 6, 9, 0], "S_pq": [9, 9, 6, 4, 1, 1], "S_ww": [2.0] * 6})
    found = flow.stated(reverse).set_index("claim")["holds"]
    assert found.tolist() == [False, False, False, False, True]


def test_seeds_weigh_alike_in_what_is_stated_whatever_their_prompts_and_the_size_of_their_saliency():
    small = frame_of({"S_wp": [2, 1, 0], "S_pq": [1, 1, 3], "S_ww": [1.0] * 3})
    large = frame_of({"S_wp": [4, 1, 0], "S_pq": [15, 1, 3], "S_ww": [1.0] * 3}).assign(seed=1)
    three = [large.assign(example=example) for example in range(3)]
    found = flow.stated(pd.concat([small, *three], ignore_index=True))["found"]
    assert found[0] == "S_wp / S_ww = 3.00 in layers 1 to 1"
    assert found[1] == "share of S_pq 0.50 in the first third, +0.25 in the last", "the mean of 1/4 and 3/4"


def test_gathering_is_also_held_against_the_untrained_twin():
    seen = frame_of({"S_wp": [4, 4, 1, 0], "S_pq": [1, 1, 6, 9], "S_ww": [1.0] * 4})
    weaker = frame_of({"S_wp": [1, 1, 1, 0], "S_pq": [1, 1, 6, 9], "S_ww": [2.0] * 4})
    (last,) = flow.stated(seen, weaker).tail(1).to_dict("records")
    assert last["found"] == "S_wp / S_ww = 4.00 against 0.50 untrained"
    assert last["holds"]
    assert not flow.stated(weaker, seen)["holds"].iloc[-1]


# --- the released code's numbers ---

# largest error over the largest value of each tensor. float64: S_pq is stored in full, the others were rounded to
# float32 (2^-24 = 6e-8); float32: three layers of float32 rounding
TOLERANCES = {
    "float64": {"S_wp": 2e-7, "S_pq": 1e-9, "S_ww": 2e-7, "I": 2e-7},
    "float32": dict.fromkeys(("S_wp", "S_pq", "S_ww", "I"), 5e-5),
}


@pytest.fixture(scope="module", params=both(("gpt2", "float64"), ("gpt2", "float32")), ids="-".join)
def released(request):
    """gpt2-tiny in one dtype, with the released code's prompts in one ragged batch per shape."""
    family, dtype, backend = request.param
    model = load_released(family, dtype, backend)
    encode = Encoder(model.tokenizer, model.cfg.n_ctx)
    prompts = []
    for row, case in enumerate(CASES):
        demonstrations = tuple(Example(each["text"], each["label"]) for each in case["demonstrations"])
        task = tasks.get(case["id"].split(".")[0])
        prompts.append(encode(Draft(task, demonstrations, Example(case["query"], case["gold"], row))))
    return model, dtype, prompts


def test_prompts_are_token_for_token_those_of_the_released_code(released):
    for prompt, case in zip(released[2], CASES, strict=True):
        assert list(prompt.ids) == case["input_ids"]
        assert prompt.target == case["final_position"]
        by_class: list[list[int]] = [[] for _ in prompt.labels]
        for position, label in zip(prompt.anchors, prompt.anchor_classes, strict=True):
            by_class[label].append(position)
        assert by_class == [sorted(positions) for positions in case["class_positions"]]


def test_flows_are_those_of_the_released_code(released):
    model, dtype, prompts = released
    frame = pd.concat(flow.information_flow(model, each) for each in passes.plan(model, prompts, batch_tokens=700))
    for row, case in enumerate(CASES):
        for name in flow.FLOWS:
            want = torch.tensor(case[name], dtype=torch.float64)
            mine = frame[(frame["example"] == row) & (frame["flow"] == name)]["value"]
            error = (torch.tensor(mine.to_numpy()) - want).abs().max() / want.abs().max()
            assert error <= TOLERANCES[dtype][name], f"{case['id']} {name}: {error:.1e}"


def test_saliency_maps_are_those_of_the_released_code(released):
    model, dtype, prompts = released
    stored = load_file(FIXTURES / "saliency.safetensors")
    for prompt, case in zip(prompts, CASES, strict=True):
        want = stored[f"{case['id']}.I"].double()
        error = (flow.saliency_maps(model, collate([prompt]))[0].double() - want).abs().max() / want.abs().max()
        assert error <= TOLERANCES[dtype]["I"], f"{case['id']}: {error:.1e}"
