"""Section 3.1 against the released code's numbers."""

from functools import cache

import pytest
import released
import torch
from conftest import random_model

from anchorlens import tasks
from anchorlens.analyses import reweighting
from anchorlens.analyses.reweighting import training
from anchorlens.batching import Group, groups
from anchorlens.drafts import Draft
from anchorlens.rows import Example

NUMBERS = released.numbers("gpt2", "reweighting")
# largest error over the largest value. float64: betas are stored in full (seen: 5e-14), losses were rounded to float32
# (6e-8); float32: rounding, which Adam magnifies where a gradient is small (seen: 2e-5)
TOLERANCE = {"float64": 2e-7, "float32": 2e-4}


def group_of(key: str, split: str, dtype: str) -> Group:
    entry, task = NUMBERS[key], tasks.get(key.split(".")[0])
    shown = tuple(Example(each["text"], each["label"]) for each in entry["demonstrations"])
    queries = [Example(each["text"], each["label"], row) for row, each in enumerate(entry[split])]
    drafts = [Draft(task, shown, query) for query in queries]
    (group,) = groups(released.prompts_of(released.model("gpt2", dtype), drafts))
    return group


@cache
def trained(key: str, dtype: str, backend: str) -> training.Trained:
    entry, lens = NUMBERS[key], released.model("gpt2", dtype, backend)
    ready = training.prepared(lens, group_of(key, "train", dtype))
    order = [list(range(len(ready)))] * entry["epochs"]
    heads = "all" if entry["n_head"] > 1 else "shared"
    return training.train(lens, ready, order=order, learning_rate=entry["lr"], epochs=entry["epochs"], heads=heads)


@pytest.fixture(params=NUMBERS)
def key(request) -> str:
    return request.param


@pytest.fixture(params=[each[1:] for each in released.both(*(("gpt2", dtype) for dtype in TOLERANCE))], ids="-".join)
def how(request) -> tuple[str, str]:
    """dtype and backend."""
    return request.param


def test_training_prompts_are_token_for_token_those_of_the_released_code(key):
    entry, group = NUMBERS[key], group_of(key, "train", "float64")
    assert [prompt.text for prompt in group.prompts] == entry["train_prompts"]
    assert [prompt.target for prompt in group.prompts] == entry["train_final_position"]
    by_class = [group.anchors[group.anchor_classes == label].tolist() for label in range(len(group.labels))]
    assert [by_class] * len(group.prompts) == entry["train_class_positions"]


def test_losses_are_those_of_the_released_code(key, how):
    losses = torch.tensor(trained(key, *how).losses["loss"].to_numpy())
    want = torch.tensor(NUMBERS[key]["step_loss"], dtype=torch.float64)
    assert released.error(losses.reshape(want.shape), want) <= TOLERANCE[how[0]]


def test_factors_after_each_epoch_are_those_of_the_released_code(key, how):
    classes = group_of(key, "train", how[0]).anchor_classes
    want = released.tensors("gpt2", "reweighting")[f"{key}.beta_per_epoch"][..., classes]  # stored in class order
    assert released.error(trained(key, *how).by_epoch, want) <= TOLERANCE[how[0]]


def test_answers_with_and_without_are_those_of_the_released_code(key, how):
    entry, group = NUMBERS[key], group_of(key, "test", how[0])
    answers = reweighting.compare(released.model("gpt2", *how), group, trained(key, *how).beta)
    for logits, arm in zip(answers, ("without", "with"), strict=True):
        want = torch.tensor(entry[f"label_logits_{arm}"], dtype=torch.float64)
        assert released.error(logits, want) <= TOLERANCE[how[0]]
        gold = torch.tensor([prompt.gold for prompt in group.prompts])
        assert (logits.argmax(-1) == gold).double().mean().item() == pytest.approx(entry[f"accuracy_{arm}"])


@pytest.mark.parametrize("as_published", [False, True])
def test_printed_losses_are_those_of_the_released_code_only_as_published(key, as_published):
    losses = trained(key, "float64", "").losses.assign(seed=42, group=0)
    name = "official_divisor_n_minus_1" if as_published else "mean"
    mean = reweighting.mean_losses(losses, as_published=as_published)
    want = [each[name] for each in NUMBERS[key]["epoch_loss"]]
    assert mean["loss"].tolist() == pytest.approx(want, rel=2e-7)  # rounded to float32
    assert mean["epoch"].tolist() == list(range(10))


def test_another_model_does_not_meet_them():
    """What the tolerances are worth."""
    key = "sst2.heads4.lr0.01"
    other = random_model(n_layers=4, n_heads=4, n_ctx=512)
    ready = training.prepared(other, group_of(key, "train", "float64"))
    found = training.train(other, ready, order=[list(range(len(ready)))] * 10).by_epoch
    classes = group_of(key, "train", "float64").anchor_classes
    want = released.tensors("gpt2", "reweighting")[f"{key}.beta_per_epoch"][..., classes]
    assert released.error(found, want) > 0.1
