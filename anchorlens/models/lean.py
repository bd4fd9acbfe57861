"""HookedTransformer without its copies: the same mathematics and hooks, in less time and memory.

As it comes, transformer-lens copies its attention weights at every call and keeps the copies for a backward pass, norms
the input of attention three times, and builds GELU from eight elementwise steps that are each kept.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.components import LayerNorm, RMSNorm
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from anchorlens.models.attention import Sight, lighten

_GELU_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # one function under three names
_SHARED = ("W_Q", "W_K", "W_V", "_W_K", "_W_V")  # underscored where several heads share a key


@torch.no_grad()
def lean(model: Any) -> None:
    """Make a HookedTransformer lean, in place; parameters keep their names, shapes and values, hooks what they see.

    Results differ by rounding, since norms, GELU and attention take fewer steps; hooks change no bit of them.
    """
    for module in model.modules():
        if type(module) in _NORMS:
            module.__class__ = _NORMS[type(module)]
    model.sight = vars(model).get("sight") or Sight()
    for block in model.blocks:
        lighten(block.attn, model.sight)
        if isinstance(block.ln1, _Once) and model.cfg.original_architecture not in POST_NORM_ARCHITECTURES:
            block.ln1.readers = 3  # query, key and value
        for name in _SHARED:
            if name in block.attn._parameters:
                _store(block.attn._parameters[name], (1, 0, 2))
        _store(block.attn.W_O, (2, 0, 1))
        mlp = getattr(block, "mlp", None)  # none in attention-only models
        if mlp is None:
            continue
        if "W_gate" in mlp._parameters:
            for name in ("W_gate", "W_in", "W_out"):
                _store(mlp._parameters[name], (1, 0))
        if model.cfg.act_fn in _GELU_TANH:
            mlp.act_fn = partial(F.gelu, approximate="tanh")


def forget(model: Any) -> None:
    """Let go of what norms keep for their next reader, as after an error."""
    for module in model.modules():
        if isinstance(module, _Once):
            module.kept = None


def _store(weight: Any, order: tuple[int, ...]) -> None:
    """Keep the shape, but lay the numbers out in ``order`` of axes: as transformer-lens reads them, a view suffices."""
    back = tuple(order.index(axis) for axis in range(len(order)))
    weight.data = weight.data.permute(order).contiguous().permute(back)


class _Once:
    """A norm in one step; what several readers ask for of the same tensor, one after the other, is computed once."""

    readers = 1
    kept: tuple[Tensor, int, Tensor, int] | None = None  # input, its version, output, readers still to come

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.hook_scale.has_hooks() or self.hook_normalized.has_hooks():
            return super().forward(x)  # type: ignore[misc]
        if x.is_inference():  # whether it was changed cannot be told
            return self.fused(x)
        made, waiting = self._found(x)
        if made is None:
            made, waiting = self.fused(x), self.readers
        self.kept = (x, x._version, made, waiting - 1) if waiting > 1 else None
        return made

    def _found(self, x: Tensor) -> tuple[Tensor | None, int]:
        if self.kept is None:
            return None, 0
        given, version, made, waiting = self.kept
        same = given is x and version == x._version
        tracked = torch.is_grad_enabled() and x.requires_grad
        return (made, waiting) if same and made.requires_grad == tracked else (None, 0)


class _FusedLayerNorm(_Once, LayerNorm):
    def fused(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.length,), self.w, self.b, self.eps).to(self.cfg.dtype)


class _FusedRMSNorm(_Once, RMSNorm):
    def fused(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, (self.length,), eps=self.eps).to(self.cfg.dtype) * self.w


_NORMS = {LayerNorm: _FusedLayerNorm, RMSNorm: _FusedRMSNorm}
