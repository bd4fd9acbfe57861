"""The output matrix: from what it reads at a position to logits, of some tokens or of all."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The output matrix and what follows it.

    ``weights`` [d_model vocabulary] and ``bias`` are at least float32: half precision would make the largest logits
    equal. They may lie on another device than what is read, to which logits come back. Logits are multiplied by
    ``scale`` and, with ``cap`` above 0, kept below it by a tanh (Gemma 2).
    """

    weights: Float[Tensor, "d_model vocabulary"]
    bias: Float[Tensor, " vocabulary"]
    cap: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, weights: Tensor, bias: Tensor | None, cap: float | None = 0.0, scale: float = 1.0) -> "Unembedding":
        """From a model's own tensors; those that are wide enough are not copied."""
        wide = torch.promote_types(weights.dtype, torch.float32)
        bias = weights.new_zeros(weights.shape[1]) if bias is None else bias
        return cls(weights.to(wide), bias.to(wide), max(0.0, cap or 0.0), scale)

    def some(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        """Logits of the given tokens alone."""
        labels = labels.to(self.weights.device)
        columns = self.weights[:, labels]  # [d_model batch label]
        logits = torch.einsum("bd,dbl->bl", final.to(columns), columns) + self.bias[labels]
        return self._shaped(logits).to(final.device)

    def all(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits of all tokens."""
        return self._shaped(final.to(self.weights) @ self.weights + self.bias).to(final.device)

    def _shaped(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap > 0 else logits
