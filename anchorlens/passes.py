"""The few ways a model is run. For now: whole prompts, in batches sized from free memory."""

from collections.abc import Iterable
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from anchorlens.batching import Batch, batches
from anchorlens.models import Lens
from anchorlens.prompts import Prompt

SHARE = 0.5  # of free memory that a backward pass may take
ENOUGH = 4096  # tokens; larger batches gain nothing


def answer(model: Lens, batch: Batch) -> Float[Tensor, "batch label"]:
    """Logits of the label words at each prompt's target; nothing else of the output matrix is computed.

    Raises:
        FloatingPointError: if a logit is not finite; names the prompts.
    """
    logits = model.label_logits(model.at_target(batch.tokens, batch.target), batch.labels)
    if not logits.isfinite().all():
        wrong = batch.example[~logits.isfinite().all(-1)].tolist()
        raise FloatingPointError(
            f"label logits of examples {wrong} are not finite in {model.cfg.dtype}: "
            "half precision may have overflowed (use dtype=float32), or the weights hold NaN."
        )
    return logits


def plan(model: Lens, prompts: Iterable[Prompt], batch_tokens: int = 0) -> list[Batch]:
    """Batches of whole prompts for a backward pass, on the model's device.

    Args:
        batch_tokens: tokens per batch, padding included; 0: from free memory, at most ``ENOUGH``. A fixed number gives
            the same batches, and so the same bits, everywhere.
    """
    if batch_tokens < 0:
        raise ValueError(f"batch_tokens={batch_tokens}: give tokens per batch, or 0 to choose from free memory.")
    free = _free_bytes(model.cfg.device)

    def size(length: int) -> int:
        fits = min(ENOUGH, SHARE * free / bytes_per_token(model.cfg, length))
        return int((batch_tokens or fits) // length)

    return [batch.to(model.cfg.device) for batch in batches(prompts, size)]


def bytes_per_token(cfg: Any, length: int) -> float:
    """Memory that one token of a prompt of ``length`` takes from forward to backward, in bytes.

    What autograd keeps was measured at 14.6 vectors of d_model and 1.0 rows of attention for each head, per layer; the
    rest is headroom for what is alive only while a layer is computed.
    """
    per_layer = 17 * cfg.d_model + 1.5 * cfg.n_heads * length
    return cfg.n_layers * per_layer * torch.empty(0, dtype=cfg.dtype).element_size()


def _free_bytes(device: str | torch.device | None) -> int:
    if torch.device(device or "cpu").type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device or "cuda"))[0]
    return psutil.virtual_memory().available
