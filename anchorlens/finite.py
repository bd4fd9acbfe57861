"""Answers that are numbers, or an error that says whose are not and where it begins."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from anchorlens.batching import Batch, Group
from anchorlens.hooks import Site, capturing
from anchorlens.models import Lens, device_of


class NotFiniteError(FloatingPointError):
    """Answers that are not numbers; ``examples`` are those of the prompts concerned.

    ``kept``: what an analysis has to hand over all the same, where leaving these prompts out would not help it.
    """

    def __init__(self, message: str, examples: Iterable[int], kept: Any = None) -> None:
        super().__init__(message)
        self.examples, self.kept = list(examples), kept


def finite(
    model: Lens,
    logits: Tensor,
    asked: Any,
    group: Group | None = None,
    every: Tensor | None = None,
) -> Tensor:
    """``logits`` of label words, if they are numbers; of the whole vocabulary (``every``), none may be NaN.

    Args:
        asked: what was run, of which ``example`` tells the rows: a ``Batch``, or what belongs to ``group``.

    Raises:
        NotFiniteError: names the prompts, and the layer where it begins.
    """
    good = logits.isfinite().all(-1)
    what = "label logits" if not good.all() else "logits"
    if every is not None:
        good = good & ~every.isnan().any(-1)
    if not good.all():
        wrong, begins = asked.example[~good].tolist(), _begins(model, asked, ~good, group)
        seed = int(asked.seed[0]) if isinstance(asked, Batch) else group.seed if group else -1
        raise NotFiniteError(
            f"{what} of examples {wrong} are not finite in {model.cfg.dtype}{f', seed {seed}' if seed >= 0 else ''}, "
            f"{begins}: half precision may have overflowed (use dtype=float32), or the weights hold NaN.",
            wrong,
        )
    return logits


def _begins(model: Lens, asked: Any, wrong: Tensor, group: Group | None) -> str:
    """In which layer the first wrong prompt, run whole, stops being finite; under the edits that are installed."""
    first = int(wrong.nonzero()[0])
    if isinstance(asked, Batch):
        tokens = asked.tokens[first, : int(asked.target[first]) + 1]
    else:
        assert group is not None
        (prompt,) = [each for each in group.prompts if each.example == int(asked.example[first])]
        tokens = torch.tensor(prompt.ids, device=device_of(model))
    last = len(tokens) - 1
    try:
        with capturing(model, Site.RESID_PRE, range(model.cfg.n_layers)) as resid:
            final = model.at_target(tokens[None], torch.tensor([last], device=tokens.device))
    except ValueError:  # an edit made for the whole batch does not fit one prompt of it
        return "in a layer that cannot be told, under an edit made for several prompts"
    bad = [layer for layer, each in resid.items() if not each.isfinite().all()]
    if bad:
        return f"first after layer {bad[0] - 1} (from 0)" if bad[0] else "from the embedding on"
    if not final.isfinite().all():
        return f"first after layer {model.cfg.n_layers - 1} (from 0)"
    return "with finite activations in every layer of the plain run: it begins in the output matrix or under an edit"
