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
