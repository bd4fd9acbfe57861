"""A model spread over several devices gives what it gives on one; on a CPU, with devices that are not there."""

import sys
from pathlib import Path

import pandas as pd
import pretend
import pytest
import torch
from analyses_helpers import everything
from conftest import random_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from anchorlens import fitting, preflight
from anchorlens.models import bridge, hooked
from anchorlens.models.kinds import kind_of
from anchorlens.preflight import Checkpoint, ModelError
from anchorlens.spreading import spread

SHAPE = {"vocab_size": 1487, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=1487, n_embd=16, n_layer=3, n_head=2, n_positions=96),
    "neox": GPTNeoXConfig(**SHAPE, intermediate_size=32, max_position_embeddings=96),
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=1, intermediate_size=32, max_position_embeddings=96),
}


def bridged(name: str, devices: list[str], tokenizer) -> bridge.Bridged:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager", dtype=torch.float64)
    plain = plain.eval().requires_grad_(False)
    checkpoint = Checkpoint("random", Path())
    model = bridge.convert(checkpoint, plain, devices, tokenizer=tokenizer)
    return bridge.Bridged(model, tokenizer, checkpoint, kind_of(plain.config, model.cfg.positional_embedding_type))


@pytest.fixture
def apart(monkeypatch):
    """transformer-lens places layers on GPUs only; here on devices that are not there."""
    import transformer_lens.HookedTransformer  # noqa: F401
    from transformer_lens.utilities import multi_gpu

    def at(layer, cfg, device=None):
        return torch.device("cpu", layer * cfg.n_devices // cfg.n_layers)

    monkeypatch.setattr(multi_gpu, "get_device_for_block_index", at)
    inside = sys.modules["transformer_lens.HookedTransformer"]
    monkeypatch.setattr(inside, "get_device_for_block_index", at)
    plain = lambda each: torch.Tensor if isinstance(each, pretend.Placed) else type(each)  # noqa: E731
    monkeypatch.setattr(inside, "type", plain, raising=False)  # it asks for the class itself


@pytest.mark.parametrize("positions", ["standard", "rotary"])
def test_hooked_layers_on_three_devices_give_what_one_gives(tokenizer, apart, positions):
    how = {"positional_embedding_type": positions, **({"rotary_dim": 8} if positions == "rotary" else {})}
    want = everything(random_model(**how), tokenizer)
    with pretend.devices():
        lens = random_model(**how)
        hooked.place(lens.model, ["cpu:0", "cpu:1", "cpu:2"])
        assert lens.devices == ("cpu:0", "cpu:1", "cpu:2")
        found = everything(lens, tokenizer)
    for name, frame in want.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True, obj=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_bridged_layers_on_three_devices_give_what_one_gives(tokenizer, name):
    lens = bridged(name, ["cpu"], tokenizer)
    want = everything(lens, tokenizer)
    with pretend.devices():
        lens = bridged(name, ["cpu:0", "cpu:1", "cpu:2"], tokenizer)
        assert lens.devices == ("cpu:0", "cpu:1", "cpu:2")
        found = everything(lens, tokenizer)
    for what, frame in want.items():
        pd.testing.assert_frame_equal(found[what], frame, check_exact=True, obj=what)


GIB = 2**30


@pytest.mark.parametrize(
    ("device", "n_devices", "gib", "free", "chosen"),
    [
        ("cpu", 0, 9, {}, ["cpu"]),
        ("cpu", 1, 9, {}, ["cpu"]),
        ("cuda", 0, 6, {0: 10, 1: 10}, ["cuda"]),
        ("cuda", 0, 12, {0: 10, 1: 10}, ["cuda:0", "cuda:1"]),
        ("cuda:1", 0, 12, {0: 2, 1: 10, 2: 10, 3: 10}, ["cuda:1", "cuda:2"]),
        ("cuda", 0, 12, {0: 10, 1: 6, 2: 10}, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, 1, {0: 10, 1: 10, 2: 10}, ["cuda:0", "cuda:1"]),
        ("cuda", 1, 12, {0: 10, 1: 10}, ["cuda"]),
        ("cuda:1", 0, 12, {0: 10, 1: 10}, ["cuda:1"]),
    ],
)
def test_a_model_goes_to_as_few_devices_as_hold_it(monkeypatch, device, n_devices, gib, free, chosen):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: len(free))
    index = lambda where: int(where.partition(":")[2] or 0)  # noqa: E731
    assert spread(gib * GIB, device, n_devices, free=lambda where: free[index(where)] * GIB) == chosen


@pytest.mark.parametrize(
    ("device", "n_devices", "said"),
    [
        ("cpu", 2, r"n_devices=2: layers are spread over GPUs, and device='cpu' is none"),
        ("cuda:1", 2, r"n_devices=2: from 'cuda:1' on there are 1 GPUs"),
        ("cuda", -1, r"n_devices=-1: give the number of GPUs"),
        ("cuda", 0, r"the weights take 107,374,182,400 bytes, and 2 GPUs with 10,737,418,240 free bytes each"),
    ],
)
def test_devices_that_are_not_there_or_too_small_are_refused(monkeypatch, device, n_devices, said):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 2)
    with pytest.raises(ModelError, match=said):
        spread(100 * GIB, device, n_devices, free=lambda _: 10 * GIB)


def test_batches_are_sized_by_the_device_with_the_least_free_memory(monkeypatch):
    lens, told = random_model(), []
    monkeypatch.setattr(type(lens), "devices", ("cuda:0", "cuda:1"))
    monkeypatch.setattr(fitting.room, "free_bytes", {"cuda:0": 5, "cuda:1": 3}.__getitem__)
    fitting.sizing(lens, 0, lambda shape, rows, length, free: told.append(free) or 0.0)(10)
    assert set(told) == {3}
