"""HookedTransformer's attention in fewer steps: the same hook points see the same tensors.

transformer-lens works out masks and positions in every layer, rotates what all queries share once for each of them,
and goes eight times over the scores.

With gradients, a hook that changes a pattern must give a new tensor: the softmax keeps the one that it is shown.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.components import Attention, GroupedQueryAttention
from transformer_lens.utilities import get_offset_position_ids


class Sight:
    """What tokens see and where they stand: worked out once a pass, and shared by its layers."""

    def __init__(self) -> None:
        self.alone = False
        self.forget()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block each layer works it out for itself, as where it is run anew on its own."""
        self.alone = True
        try:
            yield
        finally:
            self.alone = False

    def forget(self) -> None:
        """Let go of the last pass."""
        self.given: tuple = (None, 0, 0, 0)
        self.made: dict[tuple, Any] = {}

    def of(self, mask: Tensor | None, before: int, n: int, key: tuple, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for all ``n`` tokens after ``before`` under ``mask`` that ask for ``key``."""
        if self.alone or torch.is_inference_mode_enabled() or (mask is not None and mask.is_inference()):
            return make()  # in inference mode it could not serve a pass with gradients, nor be told from a changed one
        given = (mask, 0 if mask is None else mask._version, before, n)
        if given[0] is not self.given[0] or given[1:] != self.given[1:]:
            self.given, self.made = given, {}
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def lighten(attention: Any, sight: Sight) -> None:
    """Make attention light, in place, if it is of a kind that is known here; ``sight`` is shared by the layers."""
    light = _LIGHT.get(type(attention))
    if light is not None and _known(attention):
        attention.__class__, attention.sight = light, sight


def _known(attention: Any) -> bool:
    """Whether it does nothing but what ``_forward`` does."""
    cfg = attention.cfg
    others = (
        cfg.positional_embedding_type not in ("standard", "rotary"),
        (attention._attention_dir_override or cfg.attention_dir) != "causal",
        attention.q_norm is not None and not cfg.use_qk_norm,  # OLMo norms all heads together
        cfg.attn_scores_soft_cap > 0,
    )
    named = ("clip_qkv", "use_logn_attn", "use_dynamic_ntk_rope", "use_attention_sinks", "load_in_4bit")
    return not any(others) and not any(getattr(cfg, name, None) for name in named)


def _forward(
    self: Any,
    query_input: Tensor,
    key_input: Tensor,
    value_input: Tensor,
    past_kv_cache_entry: Any = None,
    additive_attention_mask: Tensor | None = None,
    attention_mask: Int[Tensor, "batch key"] | None = None,
    position_bias: Tensor | None = None,
) -> Float[Tensor, "batch query d_model"]:
    entry, mask = past_kv_cache_entry, attention_mask
    if self.layer_id == 0:
        self.sight.forget()  # of a pass before, after which somebody may have changed the model
    if self.cfg.use_attn_result or additive_attention_mask is not None or position_bias is not None:
        return self.heavy(query_input, key_input, value_input, entry, additive_attention_mask, mask, position_bias)
    q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
    before, past = 0 if entry is None else entry.past_keys.shape[1], None
    if entry is not None and entry.frozen and entry.past_keys.stride(0) == 0:  # one prompt's, for all queries
        past, v = entry.past_keys, _behind(entry.past_values, v)
    elif entry is not None:
        k, v = entry.append(k, v)
    if self.cfg.positional_embedding_type == "rotary":
        q, k = _rotated(self, q, k, past, mask, before)
    elif past is not None:
        k = _behind(past, k)
    z = _attended(self, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, before)
    z = self.hook_z(z.transpose(1, 2)).flatten(2)
    weights, bias = self.W_O.permute(2, 0, 1).flatten(1), self.b_O  # a view, as ``lean`` stores it
    if z.device.type == "mps":  # where a linear step of torch 2.8 is wrong
        return z.to(weights.dtype) @ weights.T + bias
    return F.linear(z.to(weights.dtype), weights, bias)


def _attended(
    self: Any,
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    v: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    before: int,
) -> Float[Tensor, "batch head query d_head"]:
    heads = q.shape[:3]
    each = (len(k), k.shape[1], -1)  # queries of heads that share a key stand one after the other
    scores = ((q / self.attn_scale).reshape(*each, q.shape[3]) @ k.mT).view(*heads, -1)
    hidden = _hidden(self, mask, before, q.shape[2], q.device)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    pattern = self.hook_attn_scores(scores).softmax(-1)
    del scores
    blind = mask is not None and (before == 0 or self.attn_type == "local")  # padding, in front or beyond a window
    if blind or self.hook_attn_scores.has_hooks():
        pattern = pattern.masked_fill(pattern.isnan(), 0)  # what sees nothing reads nothing
    pattern = self.hook_pattern(pattern).to(v)
    return (pattern.reshape(*each, pattern.shape[3]) @ v).view(*heads, -1)


def _hidden(
    self: Any, mask: Tensor | None, before: int, n: int, device: torch.device
) -> Bool[Tensor, "#batch 1 query key"] | None:
    """True where a token does not see another: a later one, one beyond its window, or padding; None: they see all."""

    make = partial(_covered, self, mask, before, n, device)
    return self.sight.of(mask, before, n, ("hidden", self.attn_type, device), make)


def _covered(self: Any, mask: Tensor | None, before: int, n: int, device: torch.device) -> Tensor | None:
    seen = self._make_causal_mask(n, before + n, before, device)
    seen = seen if mask is None else seen & mask[:, None, None].bool().to(device)
    return None if seen.all() else ~seen


class _Tables(NamedTuple):
    """Cosine and sine [batch or 1, pos, 1, rotary_dim] as ``turned`` takes them."""

    all: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]  # of the tokens that are run
    held: tuple[Tensor, Tensor]  # of the first prompt's remembered ones
    alike: bool  # whether all prompts have these where the first has them


def _rotated(
    self: Any, q: Tensor, k: Tensor, past: Tensor | None, mask: Tensor | None, before: int
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch key kv_head d_head"]]:
    """Queries and all keys after rotation; remembered keys that all queries share are rotated once."""
    n, adjacent = q.shape[1], self.cfg.rotary_adjacent_pairs
    if before + n > len(self.rotary_cos):
        self._extend_rotary_embeddings(min(self.cfg.n_ctx, max(before + n, 2 * len(self.rotary_cos))))

    key = ("places", self.attn_type, len(self.rotary_cos), q.device)
    tables = self.sight.of(mask, before, n, key, partial(_tables, self, mask, before, n))
    if past is not None and not tables.alike:
        k, past = _behind(past, k), None
    q = self.hook_rot_q(turned(q, *tables.new, adjacent=adjacent))
    k = turned(k, *(tables.all if k.shape[1] > n else tables.new), adjacent=adjacent)
    if past is not None:
        held = turned(past[:1], *tables.held, adjacent=adjacent)
        k = _behind(held.expand(len(k), -1, -1, -1), k)
    return q, self.hook_rot_k(k)


def _tables(self: Any, mask: Tensor | None, before: int, n: int) -> _Tables:
    places = torch.arange(before + n)[None] if mask is None else get_offset_position_ids(0, mask)
    at = places.to(self.rotary_cos.device)
    cosine, sine = self.rotary_cos[at], signed(self.rotary_sin[at], adjacent=self.cfg.rotary_adjacent_pairs)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    alike = bool((places[:, :before] == places[:1, :before]).all())
    new, held = (cosine[:, before:], sine[:, before:]), (cosine[:1, :before], sine[:1, :before])
    return _Tables((cosine, sine), new, held, alike)


def _behind(past: Tensor, new: Tensor) -> Float[Tensor, "batch key kv_head d_head"]:
    """Remembered keys or values and new ones, head by head in memory, as products need them."""
    return torch.cat([past.transpose(1, 2), new.transpose(1, 2)], dim=2).transpose(1, 2)


def turned(x: Tensor, cosine: Tensor, sine: Tensor, *, adjacent: bool) -> Float[Tensor, "batch pos head d_head"]:
    """``x`` with the pairs of its first numbers turned, by tables of their width; the other numbers as they are.

    ``sine`` is ``signed``. A pair is ``adjacent``, or half of the width apart.
    """
    width = cosine.shape[-1]
    first = x if width == x.shape[-1] else x[..., :width]
    swapped = first.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if adjacent else first.roll(width // 2, -1)
    made = first * cosine + swapped * sine
    return made if first is x else torch.cat([made, x[..., width:]], dim=-1)


def signed(sine: Float[Tensor, "... width"], *, adjacent: bool) -> Float[Tensor, "... width"]:
    """transformer-lens' table of sines, negative for the first number of each pair."""
    sign = sine.new_ones(sine.shape[-1])
    sign[slice(None, None, 2) if adjacent else slice(None, sine.shape[-1] // 2)] = -1
    return sine * sign


class _Light(Attention):
    sight: Sight
    heavy = Attention.forward
    forward = _forward


class _LightGrouped(GroupedQueryAttention):
    sight: Sight
    heavy = GroupedQueryAttention.forward
    forward = _forward


_LIGHT = {Attention: _Light, GroupedQueryAttention: _LightGrouped}
