"""``TransformerBridge`` as a ``Lens``: the Hugging Face model itself, with hooks, its weights unprocessed.

Works with transformer-lens 3.x and 4.x, and for architectures that ``HookedTransformer`` does not know.
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import ModuleList

from anchorlens.hooks import SettingError, Site
from anchorlens.models.blocks import checkpointing, entering
from anchorlens.models.kinds import ArchitectureError, Kind
from anchorlens.models.protocol import Memory, devices_of
from anchorlens.models.unembedding import Unembedding
from anchorlens.preflight import Checkpoint


class Bridged:
    """A ``TransformerBridge`` as a ``Lens``; its methods are documented there.

    Keys are remembered as attention meets them, so after their rotation where positions are rotary. What is run is
    the Hugging Face model below its output matrix, whose layers the bridge has replaced by its own.
    """

    backend = "bridge"
    passed_over: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, checkpoint: Checkpoint, kind: Kind) -> None:
        self.model, self.tokenizer, self.checkpoint = model, tokenizer, checkpoint
        self.cfg, self.kind = model.cfg, kind
        if self.kind.steady:  # beyond it, keys that were remembered would have been rotated otherwise
            self.cfg.n_ctx = min(self.cfg.n_ctx, self.kind.steady)
        for block in model.blocks:
            if hasattr(block, "attn"):
                block.attn.register_forward_pre_hook(_known_as_before, with_kwargs=True)
        self._tuples = self._return_tuples()

    @property
    def _whole(self) -> Any:
        return self.model.original_model

    @property
    def _body(self) -> Any:
        """All but the output matrix."""
        return self._whole.base_model

    def hooks(self, fwd_hooks: Sequence = (), bwd_hooks: Sequence = ()) -> AbstractContextManager:
        return self.model.hooks(fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks))

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        return self._whole(tokens, use_cache=False).logits.to(tokens.device)

    def at_target(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"], *, checkpoint: bool = False
    ) -> Float[Tensor, "batch d_model"]:
        with checkpointing(self.model.blocks) if checkpoint else nullcontext():
            final = self._body(tokens, use_cache=False).last_hidden_state
        return final[torch.arange(len(target), device=final.device), target.to(final.device)].to(tokens.device)

    def label_logits(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        return self._unembedding.some(final, labels)

    def all_logits(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocabulary"]:
        return self._unembedding.all(final)

    @cached_property
    def _unembedding(self) -> Unembedding:
        head, config = self._whole.get_output_embeddings(), self._whole.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return Unembedding.of(head.weight.T, getattr(head, "bias", None), cap, scale)

    def remember(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], after: Memory | None = None
    ) -> Memory:
        cache, whole = self._cache(after, len(tokens), frozen=False), mask
        if after is not None:
            whole = torch.cat([after.mask.expand(len(tokens), -1), mask], dim=1)
        self._run(tokens, mask, whole, cache, after)
        return self._memory(cache, range(self.cfg.n_layers), whole, after.shift if after else 0)

    def remember_from(self, layer: int, resid: Float[Tensor, "1 pos d_model"], below: Memory) -> Memory:
        cache = self._cache(None, 1, frozen=False)
        with entering(self.model.blocks, layer, resid, tuples=self._tuples):
            self._run(torch.zeros_like(below.mask), below.mask, below.mask, cache, None)
        above = self._memory(cache, range(layer, self.cfg.n_layers), below.mask, below.shift)
        return Memory(below.keys[:layer] + above.keys, below.values[:layer] + above.values, below.mask, below.shift)

    def read(
        self,
        memory: Memory,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        *,
        start: int = 0,
        resid: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        whole = torch.cat([memory.mask.expand(len(tokens), -1), mask], dim=1)
        entered = nullcontext()
        if start:
            assert resid is not None, "a start beyond the first layer comes with the residual stream before it"
            entered = entering(self.model.blocks, start, resid, tuples=self._tuples)
        with entered:
            cache = self._cache(memory, len(tokens), frozen=True)
            return self._run(tokens, mask, whole, cache, memory)[:, -1].to(tokens.device)

    def keep(self, memory: Memory, kept: Int[Tensor, " kept"], first: int, *, longest: int) -> Memory:
        self.kind.check_keeping(self.checkpoint.name, longest)
        return Memory(
            tuple(each[:, kept.to(each.device)] for each in memory.keys),
            tuple(each[:, kept.to(each.device)] for each in memory.values),
            memory.mask[:, kept],
            first - len(kept),  # the next token would stand at len(kept)
        )

    @property
    def devices(self) -> tuple[str, ...]:
        return devices_of(self.model.blocks)

    def pads_exactly(self, length: int) -> bool:
        return self.kind.pads_exactly(length)

    def attention_sites(self) -> tuple[Site, Site]:
        if self.kind.positions != "rotary":
            return Site.QUERIES, Site.KEYS
        if not self._rotated_seen:
            raise SettingError(
                f"model {self.checkpoint.name!r}: the bridge shows no queries and keys after their rotation for "
                f"{self.kind.name}, and those before it do not give the scores. Use backend=hooked, "
                "which transformer-lens has up to 3.x."
            )
        return Site.ROTATED_QUERIES, Site.ROTATED_KEYS

    @cached_property
    def _rotated_seen(self) -> bool:
        """Whether the hooks on rotated vectors are called; some architectures have them in name only."""
        seen = set()

        def note(act: Tensor, hook: Any) -> None:
            seen.add(hook.name)

        sites = [(site.at(0), note) for site in (Site.ROTATED_QUERIES, Site.ROTATED_KEYS)]
        known = set(self.model.hook_dict)
        if not {name for name, _ in sites} <= known:
            return False
        with torch.no_grad(), self.hooks(fwd_hooks=sites):
            self._body(torch.zeros(1, 2, dtype=torch.int64, device=self.cfg.device), use_cache=False)
        return len(seen) == 2

    @torch.no_grad()
    def _return_tuples(self) -> bool:
        """Whether layers return their output in a tuple, which differs between architectures."""
        found: list[bool] = []
        watch = self.model.blocks[0].register_forward_hook(lambda *seen: found.append(isinstance(seen[2], tuple)))
        try:
            self._body(torch.zeros(1, 1, dtype=torch.int64, device=self.cfg.device), use_cache=False)
        finally:
            watch.remove()
        return found[0]

    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        whole: Int[Tensor, "batch seen"],
        cache: Any,
        after: Memory | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the final norm; ``whole`` is the mask of remembered tokens and these."""
        given: dict[str, Any] = {}
        if self._takes_positions:
            before = 0 if after is None else after.mask.sum(1, keepdim=True) + after.shift
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + before
        given["cache" if "cache" in self._parameters else "past_key_values"] = cache
        return self._body(tokens, attention_mask=whole, use_cache=True, **given).last_hidden_state

    @property
    def _takes_positions(self) -> bool:
        return "position_ids" in self._parameters

    @cached_property
    def _parameters(self) -> set[str]:
        return set(inspect.signature(self._body.forward).parameters)

    def _cache(self, memory: Memory | None, batch: int, *, frozen: bool) -> Any:
        """What Hugging Face attends to beside new tokens; without a config, no layer forgets what left its window.

        ``frozen``: new tokens are not remembered, which would hold every layer's keys for the whole batch at once.
        """
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for key, value in zip(memory.keys, memory.values, strict=True) if memory else ():
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys = key.transpose(1, 2).expand(batch, -1, -1, -1)
            layer.values = value.transpose(1, 2).expand(batch, -1, -1, -1)
            if frozen:
                vars(layer)["update"] = partial(_beside, layer)
            cache.layers.append(layer)
        return cache

    def _memory(self, cache: Any, layers: range, mask: Int[Tensor, "batch pos"], shift: int) -> Memory:
        held = [cache.layers[layer] for layer in layers]
        return Memory(
            tuple(each.keys.transpose(1, 2) for each in held),
            tuple(each.values.transpose(1, 2) for each in held),
            mask,
            shift,
        )


def _beside(layer: Any, keys: Tensor, values: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What is remembered, and new keys and values after it [batch kv_head pos d_head]."""
    return torch.cat([layer.keys, keys], dim=-2), torch.cat([layer.values, values], dim=-2)


def _known_as_before(attention: Any, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """From transformers 5.24 on, layers are handed their cache as ``cache``, which the bridge does not look for."""
    return given, {"past_key_values" if name == "cache" else name: each for name, each in named.items()}


def convert(checkpoint: Checkpoint, plain: Any, devices: Sequence[str], *, tokenizer: Any) -> Any:
    """A ``TransformerBridge`` around a Hugging Face model, spread over ``devices``.

    It changes that model: run it plainly before.
    """
    from transformer_lens.model_bridge import TransformerBridge

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    plain = place(plain, devices)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="transformer_lens")
            model = TransformerBridge.boot_transformers(
                str(checkpoint.folder),
                hf_model=plain,
                tokenizer=copy.deepcopy(tokenizer),  # it changes padding and start tokens
                device=devices[0] if len(devices) == 1 else None,
                dtype=plain.dtype,
            )
    except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
        raise ArchitectureError(
            f"model {checkpoint.name!r}: transformer-lens' bridge does not know its architecture "
            f"{plain.config.architectures or plain.config.model_type}: {type(error).__name__}: {error}"
        ) from error
    model.cfg.device = devices[0]
    return model.eval().requires_grad_(False)


def place(plain: Any, devices: Sequence[str]) -> Any:
    """A Hugging Face model on one device, or its layers spread evenly over several, with accelerate's hooks."""
    if len(devices) == 1:
        return plain.to(devices[0])
    from accelerate import dispatch_model

    return dispatch_model(plain, _placing(plain, devices))


def _placing(plain: Any, devices: Sequence[str]) -> dict[str, Any]:
    """A device for each layer and for what stands before and after them, by the modules' names.

    An output matrix that is the embedding's lies where that lies.
    """
    n_layers = plain.config.get_text_config().num_hidden_layers
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    stacks = [name for name, each in plain.named_modules() if isinstance(each, ModuleList) and len(each) == n_layers]
    if not stacks:
        raise ArchitectureError(f"a {type(plain).__name__} keeps its layers where they are not found: use n_devices=1.")
    stack = stacks[0]
    found = {f"{stack}.{layer}": devices[layer * len(devices) // n_layers] for layer in range(n_layers)}
    around = ["", *accumulate(stack.split(".")[:-1], "{}.{}".format)]
    for outer, inner in zip(around, [*around[1:], stack], strict=True):
        after = False
        for name, each in plain.get_submodule(outer).named_children():
            name = f"{outer}.{name}".lstrip(".")
            if name == inner:
                after = True
                continue
            owns = next(each.parameters(), None) is not None and not (tied and each is plain.get_output_embeddings())
            found[name] = devices[-1 if after and owns else 0]
    return found
