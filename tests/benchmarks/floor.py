"""The floor: transformers' fastest attention with our reuse, and nothing of what the analyses look at.

Demonstrations once, their keys and values expanded over batches of queries, logits of the last position only; for
saliency a plain forward and backward of the same batches.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from anchorlens.batching import Batch, Group, Queries


class Floor:
    """``GPT2LMHeadModel``, frozen; gradients begin where ours do, at the first layer's queries and keys."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device

    @torch.no_grad()
    def remember(self, group: Group) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the demonstrations, by layer."""
        self.model.set_attn_implementation("sdpa")
        cache = self.model.transformer(group.tokens.to(self.device), use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def answers(
        self, group: Group, asked: Sequence[Queries], remembered: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Label logits [query label] by example; ``remembered`` or made here."""
        self.model.set_attn_implementation("sdpa")
        memory = self.remember(group) if remembered is None else remembered
        labels, found, held = group.labels.to(self.device), {}, memory[0][0].shape[-2]
        for each in asked:
            n = len(each.tokens)
            cache = DynamicCache([(key.expand(n, -1, -1, -1), value.expand(n, -1, -1, -1)) for key, value in memory])
            mask = torch.cat([each.mask.new_ones(n, held), each.mask], dim=1)
            out = self.model(
                each.tokens,
                attention_mask=mask,
                position_ids=group.length + (each.mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            found |= dict(zip(each.example.tolist(), out.logits[:, -1, labels], strict=True))
        return torch.stack([found[example] for example in sorted(found)])

    @torch.no_grad()
    def whole(self, batches: Sequence[Batch]) -> Tensor:
        """Label logits of whole prompts in batches, nothing reused [query label] by example."""
        self.model.set_attn_implementation("sdpa")
        found = {}
        for batch in batches:
            logits = self._at_target(self.model.transformer(batch.tokens, use_cache=False)[0], batch)
            found |= dict(zip(batch.example.tolist(), logits, strict=True))
        return torch.stack([found[example] for example in sorted(found)])

    def differentiate(self, batches: Sequence[Batch]) -> Tensor:
        """Eager attention, forward, and back to the first layer's scores: the loss of each prompt [query]."""
        self.model.set_attn_implementation("eager")
        found = {}
        first = self.model.transformer.h[0].attn.c_attn  # the weights are frozen
        hook = first.register_forward_hook(lambda module, given, out: out.detach().requires_grad_())
        try:
            for batch in batches:
                hidden = self.model.transformer(batch.tokens, use_cache=False)[0]
                losses = F.cross_entropy(self._at_target(hidden, batch).float(), batch.gold, reduction="none")
                losses.sum().backward()
                found |= dict(zip(batch.example.tolist(), losses.detach(), strict=True))
        finally:
            hook.remove()
        return torch.stack([found[example] for example in sorted(found)])

    def _at_target(self, hidden: Tensor, batch: Batch) -> Tensor:
        row = hidden[torch.arange(len(batch.target), device=hidden.device), batch.target]
        return self.model.lm_head(row).gather(1, batch.labels)
