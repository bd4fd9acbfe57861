"""Loading: unprocessed, frozen, checked against the plain Hugging Face run, and refused where that differs."""

import gc
import json
import shutil
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from conftest import BACKENDS, FIXTURES, random_model

from anchorlens import models, preflight
from anchorlens.hooks import Isolate, Site, capturing, editing
from anchorlens.models.unembedding import Unembedding
from anchorlens.preflight import ModelError

FAMILIES = {
    "gpt2": str(FIXTURES / "gpt2-tiny"),
    "gptj": str(FIXTURES / "gptj-tiny"),
    "neox": "toy",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return models.load(FAMILIES[request.param])


def plain(name: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(preflight.locate(name).folder).eval()


def tokens_for(model, length: int = 40) -> torch.Tensor:
    return torch.randint(0, model.cfg.d_vocab, (2, length), generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_hugging_face(family):
    tokens = tokens_for(family)
    want = plain(family.checkpoint.name if family.checkpoint.toy else str(family.checkpoint.folder))(tokens).logits
    # float32: a few layers of rounding; logits are of order 1 to 10
    torch.testing.assert_close(family(tokens), want.detach(), rtol=0, atol=5e-5)


def test_edits_of_attention_reach_the_logits(family):
    tokens = tokens_for(family)
    clean = family(tokens)
    with editing(family, Isolate(torch.tensor([[5], [6]])), [0]):
        edited = family(tokens)
    assert torch.equal(clean[0, :5], edited[0, :5]), "earlier positions cannot change"
    assert not torch.allclose(clean[0, 5:], edited[0, 5:])


def test_weights_are_frozen(family):
    assert not any(parameter.requires_grad for parameter in family.model.parameters())
    assert not family.model.training


def test_value_biases_are_not_folded():
    model = models.load(FAMILIES["gpt2"])
    weights = plain(FAMILIES["gpt2"]).transformer.h[1].attn.c_attn.bias.detach()
    d = model.cfg.d_model
    torch.testing.assert_close(model.model.blocks[1].attn.b_V.flatten(), weights[2 * d :], rtol=0, atol=0)
    torch.testing.assert_close(
        model.model.blocks[1].ln1.w, plain(FAMILIES["gpt2"]).transformer.h[1].ln_1.weight.detach(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtype_can_be_set(dtype):
    model = models.load(FAMILIES["gpt2"], dtype=dtype)
    assert {parameter.dtype for parameter in model.model.parameters()} == {getattr(torch, dtype)}
    assert model(tokens_for(model)).dtype == getattr(torch, dtype)


def test_a_random_twin_depends_on_its_seed_alone_and_leaves_global_chance_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, again, other = (models.load("toy", random_seed=seed).model.blocks[3].attn.W_Q for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, models.load("toy").model.blocks[3].attn.W_Q)


def test_toy_random_is_the_twin_of_toy():
    one, other = models.load("toy-random"), models.load("toy", random_seed=preflight.TOY_SEED)
    assert one.cfg.n_layers == models.load("toy").cfg.n_layers
    torch.testing.assert_close(one.model.W_E, other.model.W_E, rtol=0, atol=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / "gpt2-tiny", tmp_path / "gpt2"))


def test_a_config_without_n_ctx_loads(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["n_ctx"]
    (folder / "config.json").write_text(json.dumps(config))
    assert models.load(str(folder)).cfg.n_ctx == 512


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not a tensor file", "is damaged, or holds more than weights"), (b"PK\3\4", "Hugging Face cannot load")],
)
def test_weights_that_cannot_be_read_are_refused(folder, content, said):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        models.load(str(folder))


def test_missing_weights_in_a_file_are_refused_not_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*h\.1\.mlp\.c_fc\.weight"):
        models.load(str(folder))


def test_logits_that_differ_from_hugging_face_are_refused():
    model = models.load(FAMILIES["gpt2"])
    model.model.blocks[0].attn.b_V.add_(0.5)
    with pytest.raises(ModelError, match=r"differ from the plain Hugging Face run by .* in float32"):
        models._check_logits(model, tokens_for(model), plain(FAMILIES["gpt2"])(tokens_for(model)).logits, "float32")


def test_a_model_that_ignores_edits_is_refused(monkeypatch):
    model = random_model()
    monkeypatch.setattr(model, "hooks", lambda fwd_hooks=(), bwd_hooks=(): nullcontext())
    with pytest.raises(ModelError, match="editing attention scores has no effect"):
        models._check_edits(model, tokens_for(model)[:1])


def test_a_target_that_attends_to_one_token_alone_is_no_sign_that_hooks_are_ignored():
    """Half precision makes 0 and 1 of what is close to them; here such weights come from large queries."""
    model = random_model()
    model.model.blocks[0].attn.W_Q *= 1e4
    chance, seen = torch.Generator().manual_seed(0), set()
    while seen != {0.0, 1.0}:
        tokens = torch.randint(0, 1487, (1, 3), generator=chance)
        with capturing(model, Site.PATTERN, [0]) as pattern:
            model(tokens)
        own = set(pattern[0][0, :, -1, -1].tolist())
        if len(own) == 1 and own <= {0.0, 1.0}:  # in all heads
            seen |= own
            models._check_edits(model, tokens)


def test_a_soft_cap_on_logits_is_kept(batch):
    model = random_model(output_logits_soft_cap=2.0)
    rows = torch.arange(len(batch.target))
    want = model(batch.tokens)[rows, batch.target].gather(1, batch.labels)
    got = model.label_logits(model.at_target(batch.tokens, batch.target), batch.labels)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)  # float64: order of summation
    assert (got.abs() <= 2).all()


def test_logits_are_at_least_float32_so_that_half_precision_makes_no_ties():
    lens = models.load("toy", dtype="bfloat16")
    tokens = torch.arange(20)[None]
    final = lens.at_target(tokens, torch.tensor([19]))
    assert final.dtype == torch.bfloat16
    assert lens.all_logits(final).dtype == lens.label_logits(final, torch.tensor([[3, 4]])).dtype == torch.float32
    want = final.float() @ lens.model.W_U.float() + lens.model.b_U.float()
    torch.testing.assert_close(lens.all_logits(final), want, rtol=0, atol=0)


def test_logits_are_scaled_then_capped_by_hand():
    weights, bias = torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([0.0, 1.0, 0.0])
    plain, scaled = Unembedding.of(weights, None), Unembedding.of(weights, bias, 2.0, 0.5)
    final = torch.tensor([[2.0]])
    torch.testing.assert_close(plain.all(final), torch.tensor([[2.0, 4.0, -6.0]]), rtol=0, atol=0)
    want = 2 * torch.tensor([[0.5, 1.25, -1.5]]).tanh()  # 2, 5 and -6, halved, over the cap of 2
    torch.testing.assert_close(scaled.all(final), want)
    torch.testing.assert_close(scaled.some(final, torch.tensor([[2, 0]])), want[:, [2, 0]])


def test_stretched_rotations_are_not_judged_in_half_precision_by_hooked():
    lens = random_model()
    for scaled, dtype, refused in [("yarn", "bfloat16", True), ("yarn", "float32", False), ("", "bfloat16", False)]:
        lens.kind = replace(lens.kind, scaled=scaled)
        with pytest.raises(ModelError, match=r"stretched \(yarn\).*backend=bridge") if refused else nullcontext():
            models._check_scaling(lens, dtype)


def test_what_runs_a_model_is_told_with_what_was_passed_over():
    lens = models.load("toy", dtype="float64")
    assert models.described(lens) == "gpt_neox through hooked on cpu, float64"
    lens.passed_over = ("hooked: no",)
    assert models.described(lens) == "gpt_neox through hooked on cpu, float64; passed over: hooked: no"


def test_a_backend_that_is_asked_for_is_the_one_that_runs():
    for backend in BACKENDS:
        assert models.load(FAMILIES["gpt2"], backend=backend).backend == backend


def test_want_of_memory_is_no_reason_to_pass_a_backend_over():
    tokens = tokens_for(random_model())[:1]

    def fails(error: Exception):
        def made():
            raise error

        return models._tried(made, tokens, tokens, "float64")

    assert fails(AttributeError("no such layer")) == (
        None,
        "transformer-lens fails in running this architecture: AttributeError: no such layer",
    )
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")):
        with pytest.raises(type(error), match=str(error)):
            fails(error)


def test_nothing_of_a_model_that_is_passed_over_stays_in_memory():
    model = random_model()
    tokens, gone = tokens_for(model)[:1], weakref.ref(model.model)
    held = [model]
    del model
    found, reason = models._tried(held.pop, tokens, torch.zeros(1, 40, 1487, dtype=torch.float64), "float64")
    gc.collect()
    assert (found, gone()) == (None, None)
    assert "differ from the plain Hugging Face run" in reason


@pytest.mark.parametrize(
    ("given", "size", "want"),
    [
        ({"max_position_embeddings": 512}, 10**6, 48),
        ({"max_position_embeddings": 32}, 10**6, 32),
        ({"max_position_embeddings": 512, "sliding_window": 100}, 10**6, 116),
        ({"max_position_embeddings": 110, "sliding_window": 100}, 10**6, 110),
        ({"max_position_embeddings": 512, "sliding_window": 20}, 10**6, 48),
        ({"max_position_embeddings": 32768, "sliding_window": 4096}, 7 * 10**9, 48),
    ],
)
def test_a_model_is_tried_beyond_its_window_where_that_takes_seconds(given, size, want):
    from transformers import MistralConfig

    config = MistralConfig(**{"sliding_window": None, **given})
    assert models._probe(config, size).shape == (1, want)


def test_where_it_was_not_tried_beyond_its_window_prompts_end_there(tmp_path, monkeypatch):
    folder = str(families.built(families.FAMILIES["mistral"], tmp_path))
    assert models.load(folder).cfg.n_ctx == families.N_CTX
    monkeypatch.setattr(models, "AFFORDED", 0)
    monkeypatch.setattr(models, "PROBE", families.WINDOW)
    lens = models.load(folder)
    assert lens.cfg.n_ctx == families.WINDOW
    assert "for prompts of up to 20 tokens, which its window holds" in models.described(lens)
