"""What the analyses ask of a model, whatever backend runs it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorlens.hooks import Site
from anchorlens.models.kinds import Kind
from anchorlens.preflight import Checkpoint


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values of tokens that were run, for later tokens to attend to; nothing ever writes to them.

    Attributes:
        keys, values: one tensor [batch pos kv_head d_head] for each layer; what a key holds is the backend's affair.
        mask: [batch pos], 0 where a token is padding.
        shift: what is added to the positions of later tokens, where positions are learned (``Lens.keep``).
    """

    keys: tuple[Float[Tensor, "batch pos kv_head d_head"], ...]
    values: tuple[Float[Tensor, "batch pos kv_head d_head"], ...]
    mask: Int[Tensor, "batch pos"]
    shift: int = 0

    def row(self, index: int) -> "Memory":
        """What one prompt of a batch remembers, without its padding."""
        real = self.mask[index].bool()
        return Memory(
            tuple(each[index : index + 1, real] for each in self.keys),
            tuple(each[index : index + 1, real] for each in self.values),
            self.mask[index : index + 1, real],
            self.shift,
        )

    def repeated(self, times: int) -> "Memory":
        """Each prompt so many times in a row."""
        if times == 1:
            return self
        keys, values = (tuple(each.repeat_interleave(times, 0) for each in held) for held in (self.keys, self.values))
        return Memory(keys, values, self.mask.repeat_interleave(times, 0), self.shift)

    @property
    def tokens(self) -> int:
        """How many positions it holds, padding included."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(each.numel() * each.element_size() for each in (*self.keys, *self.values))


@runtime_checkable
class Lens(Protocol):
    """A model with frozen, unprocessed weights."""

    cfg: Any  # n_layers, n_heads, d_model, d_head, n_ctx, d_vocab, device, dtype
    tokenizer: Any
    checkpoint: Checkpoint
    kind: Kind  # of positions and windows
    backend: str  # "hooked" or "bridge"
    passed_over: tuple[str, ...]  # why backends that were tried before do not run it

    @property
    def devices(self) -> tuple[str, ...]:
        """Where its layers are, the first layer's first; prompts and results are on that one."""
        ...

    def hooks(self, fwd_hooks: Sequence = (), bwd_hooks: Sequence = ()) -> AbstractContextManager:
        """Install hooks, by name, for the length of a ``with`` block."""
        ...

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        """Logits at every position: the plain run, which every faster way is tested against."""
        ...

    def at_target(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"], *, checkpoint: bool = False
    ) -> Float[Tensor, "batch d_model"]:
        """What the output matrix reads at ``target``: the last residual stream after the final norm.

        With ``checkpoint``, what a backward pass needs is kept as far as it is dear (outputs of weight matrices);
        scores, patterns and activation functions are computed again, layer by layer: less memory for a little more
        time, the same gradients to the bit. Hooks are then called again.
        """
        ...

    def label_logits(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        """Logits of the given tokens alone, from what ``at_target`` or ``read`` gives."""
        ...

    def all_logits(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits of all tokens, likewise."""
        ...

    def remember(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], after: Memory | None = None
    ) -> Memory:
        """Run ``tokens`` (padded on the left, ``mask`` 0 there) after what is remembered, and remember both."""
        ...

    def remember_from(self, layer: int, resid: Float[Tensor, "1 pos d_model"], below: Memory) -> Memory:
        """``below`` with the layers from ``layer`` on run anew from the residual stream before that layer."""
        ...

    def read(
        self,
        memory: Memory,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        *,
        start: int = 0,
        resid: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """As ``at_target`` for the last of ``tokens`` (padded on the left), run after what is remembered.

        A memory of one prompt serves a batch without being copied. With ``start``, only the layers from there on are
        run, from ``resid``, the residual stream of ``tokens`` before layer ``start``. Nothing is remembered.
        """
        ...

    def keep(self, memory: Memory, kept: Int[Tensor, " kept"], first: int, *, longest: int) -> Memory:
        """The memory of some tokens alone (section 3.2); later tokens take positions from ``first`` on.

        Kept tokens keep the positions they had. ``memory`` is of one prompt without padding. ``longest`` counts tokens
        of the longest whole prompt that it stands for, with all demonstrations and what will be read after them.

        Raises:
            SettingError: for a kind of positions for which this is not exact.
        """
        ...

    def pads_exactly(self, length: int) -> bool:
        """Whether padding between demonstrations and query changes nothing in prompts of ``length`` tokens."""
        ...

    def attention_sites(self) -> tuple[Site, Site]:
        """Where the queries and keys [batch pos head d_head] are that scores are products of (after rotation).

        Raises:
            SettingError: where the backend shows none of which that is true.
        """
        ...


def device_of(model: Lens) -> torch.device:
    """The device that prompts must be on."""
    return torch.device(model.cfg.device or "cpu")


def devices_of(blocks: Iterable[Any]) -> tuple[str, ...]:
    """The devices of some layers' weights, each once, in the order of layers."""
    return tuple(dict.fromkeys(str(next(block.parameters()).device) for block in blocks))
