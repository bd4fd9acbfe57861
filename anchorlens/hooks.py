"""Where to intervene, what to do there, and for how long.

``Site`` names an activation. An *edit* (``Isolate``, ``Silence``, ``Scale``, ``Inject``) is a small frozen value that
knows its site and maps an activation to a new one, leaving the old as it was. ``editing``, ``capturing``, ``watching``
and ``differentiating`` install hooks for the length of a ``with`` block and always remove them. All of them nest: an
inner block sees what the outer one produced.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SettingError(ValueError):
    """A setting that this model, or these prompts, do not allow."""


class Site(StrEnum):
    """Activations we touch; the names hold for HookedTransformer and TransformerBridge alike."""

    SCORES = "attn.hook_attn_scores"  # [batch head query key], before the softmax
    PATTERN = "attn.hook_pattern"  # [batch head query key], rows sum to 1
    RESID_PRE = "hook_resid_pre"  # [batch pos d_model]
    QUERIES = "attn.hook_q"  # [batch pos head d_head]
    KEYS = "attn.hook_k"  # [batch pos kv_head d_head]
    ROTATED_QUERIES = "attn.hook_rot_q"  # the same after rotation, where positions are rotary
    ROTATED_KEYS = "attn.hook_rot_k"

    def at(self, layer: int) -> str:
        """The full hook name at ``layer`` (from 0)."""
        return f"blocks.{layer}.{self.value}"


@runtime_checkable
class Edit(Protocol):
    """What ``editing`` applies: maps the activation at its site to a new one."""

    site: ClassVar[Site]

    def __call__(self, act: Tensor, layer: int, /) -> Tensor: ...


def _within(edit: Edit, positions: Tensor, act: Tensor) -> None:
    """Refuse positions that the prompts do not have; comparing with them would silently do nothing."""
    if positions.numel():
        _inside(edit, int(positions.min()), int(positions.max()), act)


def _inside(edit: Edit, first: int, last: int, act: Tensor) -> None:
    if not 0 <= first <= last < act.shape[-1]:
        raise ValueError(
            f"{type(edit).__name__} names position {first} to {last} in prompts of {act.shape[-1]} tokens: positions "
            "count from 0 in each prompt."
        )


def _whole(edit: Edit, act: Tensor) -> None:
    """Refuse a pattern of queries after remembered tokens, where rows and columns count from different tokens."""
    if act.shape[-2] != act.shape[-1]:
        raise ValueError(
            f"{type(edit).__name__} names rows of whole prompts and met {act.shape[-2]} rows of {act.shape[-1]} "
            "tokens: apply it where these rows are run, to the demonstrations or to whole prompts."
        )


def _same_batch(edit: Edit, made_for: Tensor, act: Tensor) -> None:
    """Refuse a batch that the edit was not made for; broadcasting would hide the mistake."""
    if made_for.shape[0] != act.shape[0]:
        raise ValueError(
            f"{type(edit).__name__} was made for {made_for.shape[0]} prompts and met a batch of {act.shape[0]}: "
            "build it from the same batch that the model is run on."
        )


@dataclass(frozen=True, eq=False)
class Isolate:
    """Cut the given rows off from every earlier token (section 2.2: A_l(p, i) = 0 for i < p).

    Acts on scores, before the softmax, as the released code does: the row renormalises and attends to itself alone.
    ``rows`` [batch row] are positions in each prompt; ``before`` [batch row], from where on each may still look: the
    first token of its word, by default itself.
    """

    site: ClassVar[Site] = Site.SCORES
    rows: Int[Tensor, "batch row"]
    before: Int[Tensor, "batch row"] | None = None

    def __call__(
        self, scores: Float[Tensor, "batch head query key"], layer: int
    ) -> Float[Tensor, "batch head query key"]:
        return scores.masked_fill(_earlier(self, self.rows, self.before, scores)[:, None], -torch.inf)


@dataclass(frozen=True, eq=False)
class Silence:
    """Set A_l(p, i) = 0 for i < p after the softmax: the formula of section 2.2 read literally.

    Unlike ``Isolate``, a row keeps the weight that it had on itself and no longer sums to 1. ``rows`` and ``before``
    [batch row] as there.
    """

    site: ClassVar[Site] = Site.PATTERN
    rows: Int[Tensor, "batch row"]
    before: Int[Tensor, "batch row"] | None = None

    def __call__(
        self, pattern: Float[Tensor, "batch head query key"], layer: int
    ) -> Float[Tensor, "batch head query key"]:
        return pattern.masked_fill(_earlier(self, self.rows, self.before, pattern)[:, None], 0.0)


def _earlier(edit: Edit, rows: Tensor, before: Tensor | None, act: Tensor) -> Bool[Tensor, "batch query key"]:
    """The cells of the given rows that look at tokens before ``before`` (default: before themselves)."""
    _whole(edit, act)
    _same_batch(edit, rows, act)
    _within(edit, rows, act)
    rows = rows.to(act.device)  # layers may lie on several
    pos = torch.arange(act.shape[-1], device=act.device)
    limit = rows if before is None else before.to(act.device)
    until = rows.new_zeros(len(rows), len(pos)).scatter(1, rows, limit)  # [batch query], 0 where the query is no row
    return pos < until[:, :, None]


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiply A_l(q, p_i) by exp(beta) (section 3.1, equations 9 and 12); the row is not renormalised, as published.

    ``query`` [batch] is the row of each prompt's target, ``keys`` [batch demo] are its anchors, ``log_factor``
    [layer head demo] is beta, one for every layer of the model; one head stands for all.
    """

    site: ClassVar[Site] = Site.PATTERN
    query: Int[Tensor, " batch"]
    keys: Int[Tensor, "batch demo"]
    log_factor: Float[Tensor, "layer head demo"]

    def __call__(
        self, pattern: Float[Tensor, "batch head query key"], layer: int
    ) -> Float[Tensor, "batch head query key"]:
        _same_batch(self, self.query, pattern)
        _same_batch(self, self.keys, pattern)
        if self.query.numel():
            _inside(self, *self._span, pattern)
        batch, head = pattern.shape[:2]
        cells = (
            torch.arange(batch, device=pattern.device)[:, None, None],
            torch.arange(head, device=pattern.device)[None, :, None],
            self.query.to(pattern.device)[:, None, None],
            self.keys.to(pattern.device)[:, None, :],
        )
        factor = self.log_factor[layer].exp().to(pattern).expand(batch, head, -1)
        return pattern * torch.ones_like(pattern).index_put(cells, factor)

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The first and the last position that it names; looked up once, not at every layer."""
        if self.keys.shape[1] > 1 and (self.keys.sort(-1).values.diff(dim=-1) == 0).any():
            raise ValueError(f"Scale names a key twice in {self.keys.tolist()}: anchors that coincide have one factor.")
        named = torch.cat([self.query, self.keys.flatten()])
        return int(named.min()), int(named.max())


@dataclass(frozen=True, eq=False)
class Inject:
    """Overwrite the first positions with cached hidden states, the same for every prompt (section 3.2).

    ``cached`` [layer anchor d_model] is the residual stream before each layer, as ``capturing`` it at
    ``Site.RESID_PRE`` gives it. The prompt must begin with one token (any) for each anchor.
    """

    site: ClassVar[Site] = Site.RESID_PRE
    cached: Float[Tensor, "layer anchor d_model"]

    def __call__(self, resid: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        n = self.cached.shape[1]
        if n > resid.shape[1]:
            raise ValueError(
                f"Inject holds {n} anchors and met prompts of {resid.shape[1]} tokens: "
                "put one token for each anchor in front of the query."
            )
        front = self.cached[layer].to(resid).expand(resid.shape[0], -1, -1)
        return torch.cat([front, resid[:, n:]], dim=1)


def _checked(model: Any, layers: Iterable[int]) -> list[int]:
    """The layers as a list; a layer that the model lacks would otherwise be skipped without a word."""
    wanted = list(layers)
    for layer in wanted:
        if not 0 <= layer < model.cfg.n_layers:
            raise SettingError(
                f"layer {layer}: this model has {model.cfg.n_layers} layers, so it may be 0 to {model.cfg.n_layers - 1}"
            )
    return wanted


def _apply(act: Tensor, hook: Any, *, edit: Edit, layer: int) -> Tensor:
    return edit(act, layer)


@contextmanager
def editing(model: Any, edit: Edit, layers: Iterable[int]) -> Iterator[None]:
    """Within the block, every forward pass applies ``edit`` at each of ``layers`` (from 0).

    Raises:
        ValueError: for a layer that the model does not have.
    """
    at = [(edit.site.at(layer), partial(_apply, edit=edit, layer=layer)) for layer in _checked(model, layers)]
    with model.hooks(fwd_hooks=at):
        yield


@contextmanager
def capturing(model: Any, site: Site, layers: Iterable[int], *, grad: bool = False) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that each forward pass fills with the activation at ``site`` of each of ``layers``.

    With ``grad``, ``.grad`` of each is there after ``backward()``; everything is kept, so where a reduction is enough,
    ``differentiating`` needs far less memory. Inside ``editing``, it sees what the edit produced.

    Raises:
        ValueError: for a layer that the model does not have.
        RuntimeError: with ``grad`` where gradients are switched off.
    """
    kept: dict[int, Tensor] = {}
    keep = partial(_keep, kept=kept, site=site, grad=grad)
    with model.hooks(fwd_hooks=[(site.at(layer), partial(keep, layer=layer)) for layer in _checked(model, layers)]):
        yield kept


def _keep(act: Tensor, hook: Any, *, layer: int, kept: dict[int, Tensor], site: Site, grad: bool) -> Tensor | None:
    if not grad:
        kept[layer] = act.detach()
        return None
    kept[layer] = act = _tracked(act, site)
    act.retain_grad()
    return act


@contextmanager
def watching(model: Any, site: Site, layers: Iterable[int], consume: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block, each forward pass calls ``consume(layer, activation)``; only what that keeps is kept.

    Raises:
        ValueError: for a layer that the model does not have.
    """

    show = partial(_show, consume=consume)
    with model.hooks(fwd_hooks=[(site.at(layer), partial(show, layer=layer)) for layer in _checked(model, layers)]):
        yield


def _show(act: Tensor, hook: Any, *, layer: int, consume: Callable[[int, Tensor], None]) -> None:
    consume(layer, act.detach())


@contextmanager
def differentiating(
    model: Any, site: Site, layers: Iterable[int], consume: Callable[[int, Tensor, Tensor], None]
) -> Iterator[None]:
    """Within the block, each ``backward()`` calls ``consume(layer, activation, gradient)``, from the last layer down.

    Nothing is kept longer than the backward pass itself keeps it: what ``consume`` reduces is all that remains. Weights
    may be frozen; then the first of ``layers`` is where differentiation ends.

    Raises:
        ValueError: for a layer that the model does not have.
        RuntimeError: where gradients are switched off.
    """

    watch = partial(_watch, site=site, consume=consume)
    with model.hooks(fwd_hooks=[(site.at(layer), partial(watch, layer=layer)) for layer in _checked(model, layers)]):
        yield


def _watch(act: Tensor, hook: Any, *, layer: int, site: Site, consume: Callable[[int, Tensor, Tensor], None]) -> Tensor:
    return _Watched.apply(_tracked(act, site), layer, consume)


class _Watched(torch.autograd.Function):
    """The identity, which shows its value with its gradient on the way back.

    The value is saved as any other that a backward pass needs: nothing twice, and with checkpointing not at all.
    """

    @staticmethod
    def forward(ctx: Any, act: Tensor, layer: int, consume: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(act)
        ctx.layer, ctx.consume = layer, consume
        return act.view_as(act)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (act,) = ctx.saved_tensors
        ctx.consume(ctx.layer, act.detach(), gradients[0])
        return gradients[0], None, None


def _tracked(act: Tensor, site: Site) -> Tensor:
    """``act`` with a gradient; with frozen weights the first one becomes a leaf."""
    if not torch.is_grad_enabled():
        raise RuntimeError(f"gradients at {site.name} were asked for where they are switched off (torch.no_grad)")
    return act if act.requires_grad else act.detach().requires_grad_()
