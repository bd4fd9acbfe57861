"""``HookedTransformer`` as a ``Lens``, with frozen, unprocessed weights."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorlens.hooks import Site
from anchorlens.models.blocks import checkpointing
from anchorlens.models.kinds import ArchitectureError, Kind, length_of
from anchorlens.models.protocol import Memory, devices_of
from anchorlens.models.unembedding import Unembedding
from anchorlens.preflight import Checkpoint


class Hooked:
    """A ``HookedTransformer`` as a ``Lens``; its methods are documented there.

    The model is made ``lean``, which changes neither its numbers nor its hooks. Keys of a rotary model are remembered
    before their rotation: transformer-lens rotates them at each use by their place in the cache.
    """

    backend = "hooked"
    passed_over: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, checkpoint: Checkpoint, kind: Kind) -> None:
        from anchorlens.models.lean import lean  # takes the seconds in which transformer-lens is imported

        lean(model)
        self.model, self.tokenizer, self.checkpoint = model, tokenizer, checkpoint
        self.cfg, self.kind = model.cfg, kind
        if self.kind.steady and self.kind.steady < self.cfg.n_ctx:
            raise ArchitectureError(
                f"model {checkpoint.name!r}: from {self.kind.steady} tokens on its rotations depend on the length of "
                "the prompt, which HookedTransformer does not reproduce."
            )

    @contextmanager
    def hooks(self, fwd_hooks: Sequence = (), bwd_hooks: Sequence = ()) -> Iterator[Any]:
        model, added = self.model, {"fwd": list(fwd_hooks), "bwd": list(bwd_hooks)}
        points = [(point, way) for way, hooks in added.items() for name, _ in hooks for point in self._points(name)]
        # transformer-lens would go over all hook points of the model at the end, which takes as long as some layers do
        with model.hooks(fwd_hooks=added["fwd"], bwd_hooks=added["bwd"], reset_hooks_end=False):
            try:
                yield model
            finally:
                for point, way in points:
                    point.remove_hooks(way, level=model.context_level)

    def _points(self, name: str | Callable[[str], bool]) -> list[Any]:
        points = self.model.hook_dict
        return [point for each, point in points.items() if name(each)] if callable(name) else [points[name]]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        return self._run(tokens).to(tokens.device)

    def at_target(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"], *, checkpoint: bool = False
    ) -> Float[Tensor, "batch d_model"]:
        with checkpointing(self.model.blocks) if checkpoint else nullcontext():
            resid = self._run(tokens, stop_at_layer=self.cfg.n_layers)
        row = resid[torch.arange(len(target), device=resid.device), target.to(resid.device)]
        return self._final(row[:, None])

    def _run(self, *given: Any, **how: Any) -> Any:
        try:
            return self.model(*given, **how)
        except BaseException:
            from anchorlens.models.lean import forget

            forget(self.model)  # a norm that was left half-way through its readers would hold the whole pass
            raise
        finally:
            self.model.sight.forget()

    def _final(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """The last position after the final norm, on the device where prompts are."""
        last = resid[:, -1:]
        final = last if self.cfg.normalization_type is None else self.model.ln_final(last)
        return final[:, 0].to(self.cfg.device)

    def label_logits(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        return self._unembedding.some(final, labels)

    def all_logits(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocabulary"]:
        return self._unembedding.all(final)

    @cached_property
    def _unembedding(self) -> Unembedding:
        unembed = self.model.unembed  # its own forward would copy all of W_U at each call
        return Unembedding.of(unembed.W_U, unembed.b_U, getattr(self.cfg, "output_logits_soft_cap", 0.0))

    def remember(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], after: Memory | None = None
    ) -> Memory:
        cache = self._cache(after, len(tokens), frozen=False)
        with self._shifted(after, mask):
            self._run(tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=self.cfg.n_layers)
        return Memory(
            tuple(entry.past_keys for entry in cache.entries),
            tuple(entry.past_values for entry in cache.entries),
            cache.previous_attention_mask,
            after.shift if after else 0,
        )

    def remember_from(self, layer: int, resid: Float[Tensor, "1 pos d_model"], below: Memory) -> Memory:
        n_layers = self.cfg.n_layers
        cache = self._cache(None, 1, frozen=False)
        self._run(resid, start_at_layer=layer, stop_at_layer=n_layers, past_kv_cache=cache, attention_mask=below.mask)
        above = cache.entries[layer:]
        return Memory(
            below.keys[:layer] + tuple(entry.past_keys for entry in above),
            below.values[:layer] + tuple(entry.past_values for entry in above),
            below.mask,
            below.shift,
        )

    def read(
        self,
        memory: Memory,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        *,
        start: int = 0,
        resid: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        cache = self._cache(memory, len(tokens), frozen=True)
        given: dict[str, Any] = {"past_kv_cache": cache, "stop_at_layer": self.cfg.n_layers}
        if start:
            whole = torch.cat([cache.previous_attention_mask, mask], dim=1)
            return self._final(self._run(resid, start_at_layer=start, attention_mask=whole, **given))
        with self._shifted(memory, mask):
            return self._final(self._run(tokens, attention_mask=mask, **given))

    def keep(self, memory: Memory, kept: Int[Tensor, " kept"], first: int, *, longest: int) -> Memory:
        self.kind.check_keeping(self.checkpoint.name, longest)
        keys = tuple(each[:, kept.to(each.device)] for each in memory.keys)
        values = tuple(each[:, kept.to(each.device)] for each in memory.values)
        mask, places = memory.mask[:, kept], torch.arange(len(kept), device=kept.device)
        if self.kind.positions == "standard":  # the next token would stand at len(kept)
            return Memory(keys, values, mask, first - len(kept))
        # Scores depend on distances alone, and transformer-lens will place kept token j at j and the next at len(kept).
        by = kept - places + len(kept) - first
        layers = zip(keys, self.model.blocks, strict=True)
        turned = [_turned(key, by.to(key.device), block.attn) for key, block in layers]
        return Memory(tuple(turned), values, mask)

    @property
    def devices(self) -> tuple[str, ...]:
        return devices_of(self.model.blocks)

    def pads_exactly(self, length: int) -> bool:
        return self.kind.pads_exactly(length) and not getattr(self.cfg, "use_logn_attn", False)

    def attention_sites(self) -> tuple[Site, Site]:
        rotary = self.cfg.positional_embedding_type == "rotary"
        return (Site.ROTATED_QUERIES, Site.ROTATED_KEYS) if rotary else (Site.QUERIES, Site.KEYS)

    def _cache(self, memory: Memory | None, batch: int, *, frozen: bool) -> Any:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache
        from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry as Entry

        if memory is None:
            cache = Cache.init_cache(self.cfg, self.cfg.device, batch)
            for entry, block in zip(cache.entries, self.model.blocks, strict=True):
                where = block.attn.W_O.device
                entry.past_keys, entry.past_values = entry.past_keys.to(where), entry.past_values.to(where)
            return cache
        entries = [
            Entry(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), frozen)
            for key, value in zip(memory.keys, memory.values, strict=True)
        ]
        return Cache(entries, memory.mask.expand(batch, -1), frozen)

    def _shifted(self, memory: Memory | None, mask: Int[Tensor, "batch pos"]) -> AbstractContextManager:
        """Learned positions that do not follow on those of the memory."""
        if memory is None or memory.shift == 0:
            return nullcontext()
        positions = memory.mask.sum(1, keepdim=True) + (mask.cumsum(1) - 1).clamp(min=0) + memory.shift
        place = partial(_placed, learned=self.model.pos_embed.W_pos, positions=positions)
        return self.hooks(fwd_hooks=[("hook_pos_embed", place)])


def _placed(embedded: Tensor, hook: Any, *, learned: Tensor, positions: Tensor) -> Tensor:
    return learned[positions]


def _turned(
    keys: Float[Tensor, "batch pos kv_head d_head"], by: Int[Tensor, " pos"], attention: Any
) -> Float[Tensor, "batch pos kv_head d_head"]:
    """Keys as if they had been ``by`` positions later (negative: earlier), before any rotation."""
    from anchorlens.models.attention import signed, turned

    furthest = int(by.abs().max())
    if furthest >= len(attention.rotary_cos):
        attention._extend_rotary_embeddings(furthest + 1)  # transformer-lens does so itself when prompts grow
    scale = attention.rotary_cos[0]  # 1, or the attention factor of stretched positions, which must not count twice
    adjacent = attention.cfg.rotary_adjacent_pairs
    cosine = (attention.rotary_cos[by.abs()] / scale)[:, None]
    sine = (attention.rotary_sin[by.abs()] * by.sign()[:, None] / scale)[:, None]
    return turned(keys, cosine, signed(sine, adjacent=adjacent), adjacent=adjacent).to(keys.dtype)


def convert(checkpoint: Checkpoint, plain: Any, devices: Sequence[str]) -> Any:
    """A ``HookedTransformer`` with the weights of a Hugging Face model, none of them processed, over ``devices``."""
    device, dtype = devices[0] if len(devices) == 1 else "cpu", plain.dtype
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    config = plain.config.to_dict()
    if config.get("n_ctx") is None and "n_positions" in config:
        config["n_ctx"] = config["n_positions"]  # GPT-2 configs saved by transformers 5 leave it out
    with tempfile.TemporaryDirectory() as folder:  # transformer-lens reads the config from disk
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        try:
            cfg = loading.get_pretrained_model_config(folder, hf_cfg=config, fold_ln=False, device=device, dtype=dtype)
        except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
            raise ArchitectureError(
                f"model {checkpoint.name!r}: transformer-lens does not know its architecture "
                f"{config.get('architectures')}: {type(error).__name__}: {error}"
            ) from error
        state = loading.get_pretrained_state_dict(folder, cfg, plain, dtype=dtype)
    cfg.tokenizer_name = None  # prompts come as tokens; a tokenizer of its own would add start tokens and padding rules
    if cfg.positional_embedding_type == "rotary":  # transformer-lens caps some families at 2048 tokens, needlessly
        cfg.n_ctx = length_of(plain.config.get_text_config()) or cfg.n_ctx
    rotary = config.get("rope_parameters") or {}
    if cfg.positional_embedding_type == "rotary" and "rope_theta" in rotary:
        cfg.rotary_base = rotary["rope_theta"]  # transformer-lens 3.9 assumes 10000 for GPT-NeoX
    with warnings.catch_warnings():  # its successor differs from it in ways that matter here, so the notice is no news
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(cfg)
    # transformer-lens' own way goes through float32 and over all modules for each weight, to process none of them
    model.load_state_dict(model.fill_missing_keys(state), strict=False)
    if len(devices) > 1:
        place(model, devices)
    return model.eval().requires_grad_(False)


def place(model: Any, devices: Sequence[str]) -> None:
    """Spread the layers over ``devices``, which are consecutive, as the forward pass of transformer-lens expects them.

    transformer-lens' own placing puts each layer where most memory is free, and its forward pass looks elsewhere.
    """
    from transformer_lens.utilities.multi_gpu import get_device_for_block_index

    model.cfg.device, model.cfg.n_devices = devices[0], len(devices)
    model.to(devices[0], print_details=False)
    for layer, block in enumerate(model.blocks):
        block.to(get_device_for_block_index(layer, model.cfg))
    for last in (getattr(model, "ln_final", None), model.unembed):
        if last is not None:
            last.to(devices[-1])
