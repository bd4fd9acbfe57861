"""What a user would otherwise run, and an oracle: transformers alone, the whole prompt for every example.

Eager attention, one prompt at a time, attentions and hidden states returned, logits at every position. Nothing here
uses the package but for what a prompt is.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from anchorlens.prompts import Prompt

SCALED = "benchmark_scaled"  # the name of an attention that re-weights


class Plain:
    """``GPT2LMHeadModel``, frozen, with the analyses written straight from the paper."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.config.n_layer
        self.device = model.device

    def answers(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits of the label words at each target [query label]."""
        with torch.no_grad():
            return torch.stack([_labels(self._run(prompt), prompt) for prompt in prompts])

    @torch.no_grad()
    def extraction(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Label logits [query label], and attention to the label words of each class [query layer label]."""
        logits, attention = [], []
        for prompt in prompts:
            out = self._run(prompt)
            logits.append(_labels(out, prompt))
            paid = torch.zeros(self.layers, len(prompt.labels), device=self.device, dtype=logits[-1].dtype)
            for layer, pattern in enumerate(out.attentions):
                for anchor, label in zip(prompt.anchors, prompt.anchor_classes, strict=True):
                    paid[layer, label] += pattern[0, :, prompt.target, anchor].sum()
            attention.append(paid)
        return torch.stack(logits), torch.stack(attention)

    @torch.no_grad()
    def isolation(self, prompts: Sequence[Prompt], settings: Sequence[Collection[int]]) -> Tensor:
        """Label logits of the prompt as it is, and with its label words isolated in some layers [query run label]."""
        found = []
        for prompt in prompts:
            n = len(prompt.ids)
            hidden = torch.zeros(n, n, dtype=torch.bool)
            for anchor in prompt.anchors:
                hidden[anchor, :anchor] = True
            runs = [_labels(self._run(prompt), prompt)]
            for layers in settings:
                with self._hiding(hidden, layers):
                    runs.append(_labels(self._run(prompt), prompt))
            found.append(torch.stack(runs))
        return torch.stack(found)

    @torch.no_grad()
    def compression(self, prompts: Sequence[Prompt], before: int, kept: Collection[int]) -> Tensor:
        """Label logits when the query sees only the kept ones of the ``before`` first tokens [query label]."""
        found = []
        for prompt in prompts:
            hidden = torch.zeros(len(prompt.ids), len(prompt.ids), dtype=torch.bool)
            hidden[before:, [position for position in range(before) if position not in set(kept)]] = True
            with self._hiding(hidden, range(self.layers)):
                found.append(_labels(self._run(prompt), prompt))
        return torch.stack(found)

    def saliency(self, prompts: Sequence[Prompt]) -> Tensor:
        """S_wp, S_pq and S_ww of every layer [query layer flow]."""
        found = []
        for prompt in prompts:
            out = self._run(prompt, differentiable=True)
            for pattern in out.attentions:
                pattern.retain_grad()
            _loss(out, prompt).backward()
            maps = [(pattern * pattern.grad)[0].sum(0).abs().detach() for pattern in out.attentions]
            found.append(torch.stack([_flows(each, prompt) for each in maps]))
        return torch.stack(found)

    def training(self, steps: Sequence[Sequence[Prompt]], learning_rate: float = 0.01) -> tuple[Tensor, Tensor]:
        """Steps of Adam on the mean loss of some prompts: the losses before them, and beta after [layer head demo]."""
        AttentionInterface.register(SCALED, _scaled)
        AttentionMaskInterface.register(SCALED, eager_mask)
        blocks = self.model.transformer.h
        shape = (self.layers, self.model.config.n_head, len(steps[0][0].anchors))
        beta = torch.zeros(shape, device=self.device, requires_grad=True)
        adam = torch.optim.Adam([beta], lr=learning_rate)
        losses = []
        for prompts in steps:
            adam.zero_grad()
            losses.append(torch.zeros((), device=self.device))
            for prompt in prompts:
                cells = (slice(None), slice(None), prompt.target, list(prompt.anchors))
                for layer, block in enumerate(blocks):
                    block.attn.reweighted = (cells, beta[layer])
                loss = _loss(self._run(prompt, attention=SCALED, differentiable=True), prompt) / len(prompts)
                loss.backward()
                losses[-1] += loss.detach()
            adam.step()
        for block in blocks:
            del block.attn.reweighted
        return torch.stack(losses), beta.detach()

    def _run(self, prompt: Prompt, attention: str = "eager", *, differentiable: bool = False) -> Any:
        self.model.set_attn_implementation(attention)
        ids = torch.tensor([prompt.ids], device=self.device)
        wanted: Mapping[str, bool] = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
        if not differentiable:
            return self.model(ids, **wanted)
        embedded = self.model.transformer.wte(ids).requires_grad_()  # the weights are frozen
        return self.model(inputs_embeds=embedded, **wanted)

    @contextmanager
    def _hiding(self, hidden: Tensor, layers: Collection[int]) -> Iterator[None]:
        """Within the block, rows do not see the ``hidden`` columns [query key] in ``layers``."""
        added = torch.zeros(hidden.shape, dtype=self.model.dtype).masked_fill(hidden, torch.finfo(self.model.dtype).min)
        own = torch.full_like(added, torch.finfo(added.dtype).min).triu(1)
        mask = torch.minimum(added, own)[None, None].to(self.device)

        def masked(module: Any, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return given, {**named, "attention_mask": mask}

        hooks = [
            self.model.transformer.h[layer].attn.register_forward_pre_hook(masked, with_kwargs=True) for layer in layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _labels(out: Any, prompt: Prompt) -> Tensor:
    return out.logits[0, prompt.target, list(prompt.labels)]


def _loss(out: Any, prompt: Prompt) -> Tensor:
    assert prompt.gold is not None, "every prompt of a benchmark has a class"
    return F.cross_entropy(_labels(out, prompt)[None].float(), torch.tensor([prompt.gold], device=out.logits.device))


def _flows(saliency: Tensor, prompt: Prompt) -> Tensor:
    """Means over the cells of S_wp, S_pq and S_ww, cell by cell as equations 2 to 4 name them."""
    n = prompt.target + 1
    kind = torch.full((n, n), 2).tril(-1) - torch.ones(n, n, dtype=torch.int64).triu()  # -1 where there is no flow
    for anchor in prompt.anchors:
        kind[anchor, :anchor] = 0
        kind[prompt.target, anchor] = 1
    kind = kind.to(saliency.device)
    return torch.stack([saliency[kind == flow].mean() for flow in range(3)])


def _scaled(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention whose pattern is multiplied by exp(beta) in the cells of ``module.reweighted``."""
    cells, beta = module.reweighted
    pattern = (query @ key.transpose(-1, -2) * scaling + attention_mask).softmax(-1)
    factor = torch.ones_like(pattern)
    factor[cells] = beta.exp().to(pattern.dtype)
    pattern = pattern * factor
    return (pattern @ value).transpose(1, 2), pattern
