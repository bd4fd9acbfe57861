"""A lean model against transformer-lens as it comes."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchorlens.hooks import Site, differentiating
from anchorlens.models import Hooked, Kind
from anchorlens.models.lean import lean
from anchorlens.preflight import Checkpoint

SHAPES = {
    "gpt2": {"act_fn": "gelu_new"},
    "parallel": {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True},
    "llama": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "act_fn": "silu",
        "n_key_value_heads": 1,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "attention only": {"attn_only": True},
}


def built(dtype=torch.float64, **changes):
    """transformer-lens' own model, with random weights, and norms that are not the identity."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 48, "n_ctx": 32, "d_vocab": 50}
    cfg = HookedTransformerConfig(
        **{**shape, "act_fn": "gelu", "normalization_type": "LN", "dtype": dtype, "device": "cpu", **changes}
    )
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=chance, dtype=dtype) * 0.5)
    return model


@pytest.fixture(params=SHAPES)
def plain(request):
    return built(**SHAPES[request.param])


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(1))


def products(model, tokens) -> list[torch.Tensor]:
    """Pattern and gradient of each layer, and the logits at the last position."""
    found = {}

    def keep(layer, pattern, grad):
        found[layer] = torch.stack([pattern, grad])

    with differentiating(model, Site.PATTERN, range(3), keep):
        logits = model(tokens)[:, -1]
        logits.logsumexp(-1).sum().backward()
    return [logits.detach(), *(found[layer] for layer in range(3))]


def test_logits_patterns_and_gradients_are_those_of_transformer_lens(plain, tokens):
    want = products(plain, tokens)
    lean(plain)
    for got, expected in zip(products(plain, tokens), want, strict=True):
        assert_close(got, expected, rtol=1e-11, atol=1e-13)  # float64 rounding through three layers, seen: 2e-14


def test_parameters_keep_names_shapes_and_values(plain):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    lean(plain)
    after = plain.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_second_time_changes_nothing(plain, tokens):
    lean(plain)
    where = [parameter.data_ptr() for parameter in plain.parameters()]
    logits = plain(tokens)
    lean(plain)
    assert torch.equal(plain(tokens), logits)
    assert [parameter.data_ptr() for parameter in plain.parameters()] == where


class Copies(TorchDispatchMode):
    """Counts elements that are copied from the weights of blocks."""

    def __init__(self, model) -> None:
        super().__init__()
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.blocks.parameters()}
        self.copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            for each in tree_leaves(args):
                if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() in self.own:
                    self.copied += each.numel()
        return func(*args, **(kwargs or {}))


def copied(model, tokens) -> int:
    with Copies(model) as copies:
        model(tokens, stop_at_layer=3)
    return copies.copied


def test_no_weight_is_copied_by_a_run(plain, tokens):
    assert copied(plain, tokens) >= sum(block.attn.W_Q.numel() for block in plain.blocks), "the counter sees copies"
    lean(plain)
    assert copied(plain, tokens) == 0


@pytest.mark.parametrize("kind", ["LN", "RMS"])
def test_each_norm_is_computed_once_and_hooks_on_it_still_work(kind, tokens):
    model = built(normalization_type=kind)
    plain = deepcopy(model)
    lean(model)
    calls = []
    fused = type(model.blocks[0].ln1).fused

    def counted(self, x):
        calls.append(self)
        return fused(self, x)

    model.blocks[0].ln1.__class__ = type("Counted", (type(model.blocks[0].ln1),), {"fused": counted})
    model(tokens)
    assert len(calls) == 1, "query, key and value share it"
    model(tokens)
    assert len(calls) == 2, "but a second run computes it again"

    def halved(act, hook):
        seen.append(act)
        return act / 2

    results = []
    for each in (plain, model):
        seen = []
        with each.hooks(fwd_hooks=[("blocks.0.ln1.hook_normalized", halved), ("ln_final.hook_scale", halved)]):
            results.append((each(tokens), seen))
    (want, wanted), (got, seen) = results
    assert len(seen) == len(wanted) == 4
    assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_a_norm_is_computed_anew_when_its_input_was_changed_in_place():
    model = built()
    lean(model)
    norm, x = model.blocks[0].ln1, torch.randn(1, 2, 16, dtype=torch.float64)
    first = norm(x)
    assert norm(x) is first
    assert norm(x) is first
    assert norm.kept is None, "after its last reader nothing is kept"
    norm(x)
    x.mul_(2).add_(torch.arange(16))
    assert not torch.equal(norm(x), first)


def test_a_norm_left_half_way_through_its_readers_does_not_answer_for_another_tensor():
    model = built()
    lean(model)
    norm, (x, y) = model.blocks[0].ln1, torch.randn(2, 1, 2, 16, dtype=torch.float64)
    first = norm(x)  # as after an error in the middle of a layer
    assert not torch.equal(norm(y.clone()), first)


def test_a_norm_read_by_others_than_attention_keeps_nothing(tokens):
    model = built()
    lean(model)
    model(tokens)
    assert all(module.kept is None for module in model.modules() if hasattr(module, "kept"))


def test_a_norm_asked_without_gradients_is_computed_anew_with_them():
    model = built()
    lean(model)
    x = torch.randn(1, 2, 16, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert not model.blocks[0].ln1(x).requires_grad
    assert model.blocks[0].ln1(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_is_no_worse(dtype, tokens):
    exact = built(torch.float64, act_fn="gelu_new")
    model = built(torch.float64, act_fn="gelu_new").to(dtype)
    model.cfg.dtype = dtype
    as_it_comes = (model(tokens).double() - exact(tokens)).abs().mean()
    lean(model)
    logits = model(tokens)
    assert logits.dtype == dtype
    # less is rounded on the way; the margin is chance: both errors are means over 2000 logits
    assert (logits.double() - exact(tokens)).abs().mean() <= 1.2 * as_it_comes


def gradients(lens, tokens, *, checkpoint: bool) -> tuple[list[torch.Tensor], int]:
    found, saved = {}, {}
    own = {parameter.untyped_storage().data_ptr() for parameter in lens.model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with differentiating(lens, Site.PATTERN, range(3), lambda layer, *both: found.__setitem__(layer, both)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            final = lens.at_target(tokens, torch.tensor([19, 12]), checkpoint=checkpoint)
        final.logsumexp(-1).sum().backward()
    return [final.detach(), *(each for layer in range(3) for each in found[layer])], sum(saved.values())


def test_a_checkpointed_pass_has_the_same_gradients_to_the_bit_and_keeps_less(plain, tokens):
    lens = Hooked(plain, None, Checkpoint("random", Path()), Kind("random", "standard"))
    want, kept = gradients(lens, tokens, checkpoint=False)
    got, kept_less = gradients(lens, tokens, checkpoint=True)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    assert kept_less < kept / 3  # of what the graph itself holds; outputs of matrices are kept beside it
    assert all("forward" not in vars(block) for block in plain.blocks), "nothing stays behind"


def test_a_pass_that_fails_in_a_layer_leaves_nothing_in_its_norms(tokens):
    lens = Hooked(built(), None, Checkpoint("random", Path()), Kind("random", "standard"))
    norm = lens.model.blocks[1].ln1
    fused = type(norm).fused

    def second_reader_fails(self, x):
        fused(self, x)
        self.kept = (x, x._version, x, 2)  # as after the first of three
        raise RuntimeError("can't allocate memory")

    norm.__class__ = type("Failing", (type(norm),), {"fused": second_reader_fails})
    with pytest.raises(RuntimeError, match="can't allocate"):
        lens.at_target(tokens, torch.tensor([19, 12]))
    assert norm.kept is None


ATTENTION = {
    "learned positions": {},
    "rotary, adjacent pairs": {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "rotary, halves": {"positional_embedding_type": "rotary", "rotary_dim": 8},
    "rotary, a part": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "grouped heads": {"n_key_value_heads": 1, "positional_embedding_type": "rotary", "rotary_dim": 8},
    "normed heads": {
        "use_qk_norm": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "windows": {
        "use_local_attn": True,
        "window_size": 4,
        "attn_types": ["local", "global", "local"],
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "scores not scaled": {"use_attn_scale": False},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
}
HEAVY = {
    "soft cap": {"attn_scores_soft_cap": 5.0},
    "log n": {"use_logn_attn": True},
}


def seen_by_hooks(model, tokens) -> list[torch.Tensor]:
    """What each hook of attention sees in plain passes, padded ones, and after remembered tokens, and the logits."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    first, then = tokens[:, :9], tokens[:, 9:14]
    padded, padded_then = torch.ones_like(first), torch.ones_like(then)
    padded[0, :3] = padded_then[1, :2] = 0
    found = []

    def keep(act, hook):
        found.append(act.clone())

    with model.hooks(fwd_hooks=[(lambda name: ".attn." in name, keep)]):
        found.append(model(first))
        found.append(model(first, attention_mask=padded))
        cache = Cache.init_cache(model.cfg, "cpu", 2)
        found.append(model(first, attention_mask=padded, past_kv_cache=cache))
        cache.freeze()
        found.append(model(then, attention_mask=padded_then, past_kv_cache=cache))
        cache.unfreeze()
        for part in (then[:, :1], then[:, 1:]):
            found.append(model(part, attention_mask=torch.ones_like(part), past_kv_cache=cache))
    return found


@pytest.mark.parametrize("changes", [*ATTENTION.values(), *HEAVY.values()], ids=[*ATTENTION, *HEAVY])
def test_every_hook_of_attention_sees_what_it_sees_in_transformer_lens(changes, tokens):
    model = built(**changes)
    want = seen_by_hooks(model, tokens)
    lean(model)
    assert (type(model.blocks[0].attn).__module__ == "anchorlens.models.attention") == (changes in ATTENTION.values())
    for got, expected in zip(seen_by_hooks(model, tokens), want, strict=True):
        assert_close(got, expected, rtol=1e-11, atol=1e-12)  # float64 rounding, seen: 2e-14


@pytest.mark.parametrize("changes", ATTENTION.values(), ids=ATTENTION)
def test_one_memory_for_all_queries_is_that_of_each(changes, tokens):
    lens = Hooked(built(**changes), None, Checkpoint("random", Path()), Kind("random", "standard"))
    memory = lens.remember(tokens[:1, :9], torch.ones(1, 9, dtype=torch.int64))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    want = lens.read(memory.repeated(2), tokens[:, 9:14], mask)
    assert_close(lens.read(memory, tokens[:, 9:14], mask), want, rtol=1e-11, atol=1e-12)


def test_a_hook_on_attention_changes_no_bit_of_a_pass(tokens):
    model = built(torch.float32)
    lean(model)
    clean = model(tokens)
    with model.hooks(fwd_hooks=[(lambda name: ".attn." in name, lambda act, hook: act)]):
        assert torch.equal(model(tokens), clean)


def test_prompts_whose_memories_begin_with_padding_of_different_length_are_placed_apart(tokens):
    """Keys that are expanded, under masks that differ: only a cache made by hand is like that."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    def told(model, *, expanded: bool):
        cache = Cache.init_cache(model.cfg, "cpu", 1)
        model(tokens[:1, :9], attention_mask=torch.ones(1, 9, dtype=torch.int64), past_kv_cache=cache)
        for entry in cache.entries:
            for name in ("past_keys", "past_values"):
                both = getattr(entry, name).expand(2, -1, -1, -1)
                setattr(entry, name, both if expanded else both.contiguous())
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[1, :2] = 0
        cache.previous_attention_mask = mask
        cache.freeze()
        return model(tokens[:, 9:14], attention_mask=torch.ones(2, 5, dtype=torch.int64), past_kv_cache=cache)

    model = built(**ATTENTION["rotary, halves"])
    want = told(model, expanded=True)
    lean(model)
    assert_close(told(model, expanded=True), want, rtol=1e-11, atol=1e-12)
    assert_close(told(model, expanded=False), want, rtol=1e-11, atol=1e-12)


def test_padding_beyond_a_window_sees_nothing_and_does_no_harm(tokens):
    """Padding after a memory that lies further back than the window: its rows are empty, others read their values."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    def told(model):
        cache = Cache.init_cache(model.cfg, "cpu", 2)
        model(tokens[:, :6], attention_mask=torch.ones(2, 6, dtype=torch.int64), past_kv_cache=cache)
        cache.freeze()
        mask = torch.ones(2, 10, dtype=torch.int64)
        mask[0, :7] = 0
        return model(tokens[:, 6:16], attention_mask=mask, past_kv_cache=cache)

    model = built(**ATTENTION["windows"])
    want = told(model)
    lean(model)
    assert_close(told(model), want, rtol=1e-11, atol=1e-12)
    assert want.isfinite().all()


def test_a_model_that_was_changed_between_two_passes_is_run_as_it_is_now(tokens):
    model = built(**ATTENTION["windows"])
    plain = deepcopy(model)
    lean(model)
    model(tokens)
    for each in (plain, model):
        each.cfg.window_size = 2
        for block in each.blocks:
            block.attn.cfg.window_size = 2
            block.attn.rotary_cos, block.attn.rotary_sin = block.attn.rotary_sin, block.attn.rotary_cos
    assert_close(model(tokens), plain(tokens), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, ATTENTION["rotary, halves"]], ids=["learned positions", "rotary"])
def test_a_mask_that_was_changed_in_place_and_prompts_of_another_length_count_anew(changes, tokens):
    model, mask = built(**changes), torch.ones_like(tokens)
    plain = deepcopy(model)
    lean(model)
    for padding in (0, 4):
        mask[0, :padding] = 0
        want = plain(tokens, attention_mask=mask)
        assert_close(model(tokens, attention_mask=mask), want, rtol=1e-11, atol=1e-12)
    for n in (20, 7):
        assert_close(model(tokens[:, :n]), plain(tokens[:, :n]), rtol=1e-11, atol=1e-12)


def test_a_pass_leaves_nothing_behind(tokens):
    lens = Hooked(built(), None, Checkpoint("random", Path()), Kind("random", "standard"))
    lens(tokens)
    assert lens.model.sight.given[0] is None
    assert not lens.model.sight.made


def test_a_pass_in_inference_mode_does_not_get_in_the_way_of_gradients(tokens):
    model = built()
    lean(model)
    with torch.inference_mode():
        want = model(tokens)
        assert_close(model(tokens, attention_mask=torch.ones_like(tokens)), want)
    assert_close(products(model, tokens)[0], want[:, -1].clone(), rtol=1e-11, atol=1e-12)


def test_numbers_that_are_none_are_not_taken_for_padding(tokens):
    model = built()
    lean(model)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_q", lambda act, hook: act * float("nan"))]):
        assert model(tokens).isnan().all(), "transformer-lens gives such rows a pattern of zeros, and goes on"
