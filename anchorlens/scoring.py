"""What a label word is worth as an answer: its logit or, where words have several tokens, its whole log-probability."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anchorlens.models import Lens


@dataclass(frozen=True)
class Scoring:
    """How the label words of a task, given as token ids, are scored behind a prompt.

    Where all words are one token, by their logits. Otherwise each by its log-probability, the sum over its tokens,
    every one given those before it: then a prompt is run in several rows, once as it is and once followed by each
    beginning of a word. The first of its rows is the prompt itself.
    """

    words: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, words: Int[Tensor, "label token"]) -> "Scoring":
        """From a table in which shorter words are filled up with -1."""
        return cls(tuple(tuple(token for token in word if token >= 0) for word in words.tolist()))

    @cached_property
    def beginnings(self) -> tuple[tuple[int, ...], ...]:
        """What follows the prompt in each of its rows: nothing, then all that a word has before its last token."""
        return tuple(dict.fromkeys(word[:n] for n in range(self.more + 1) for word in self.words if n < len(word)))

    @property
    def rows(self) -> int:
        """Rows of a prompt."""
        return len(self.beginnings)

    @property
    def more(self) -> int:
        """Tokens of the longest beginning."""
        return max(map(len, self.words)) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, " row"]:
        """Tokens of each beginning."""
        return torch.tensor([len(each) for each in self.beginnings])

    def whole(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, "row longer"], Int[Tensor, " row"]]:
        """All rows of whole prompts, one prompt after the other, padded on the right, and where each is read."""
        if self.rows == 1:
            return tokens, target
        made = F.pad(tokens, (0, self.more)).repeat_interleave(self.rows, 0)
        for row, beginning in enumerate(self.beginnings):
            for n, token in enumerate(beginning, start=1):
                made[row :: self.rows].scatter_(1, (target + n)[:, None], token)
        return made, (target[:, None] + self.lengths.to(target.device)).flatten()

    def behind(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> tuple[Int[Tensor, "row longer"], Int[Tensor, "row longer"]]:
        """All rows of queries, one query after the other, padded on the left, and their mask: each ends in its row's
        last token."""
        if self.rows == 1:
            return tokens, mask
        made = []
        for beginning in self.beginnings:
            own = tokens.new_tensor(beginning).expand(len(tokens), -1)
            pad = (self.more - len(beginning), 0)
            made.append((F.pad(torch.cat([tokens, own], 1), pad), F.pad(torch.cat([mask, own * 0 + 1], 1), pad)))
        ids, masks = (torch.stack(each, 1).flatten(0, 1) for each in zip(*made, strict=True))
        return ids, masks

    def scores(
        self, model: Lens, final: Float[Tensor, "row d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        """Scores of the label words, from what the output matrix reads at the end of each row; differentiable.

        ``labels``: first token of each word.
        """
        return model.label_logits(final, labels) if self.rows == 1 else self.summed(model.all_logits(final))

    def summed(self, every: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "batch label"]:
        """Log-probabilities of the words, from all logits at the end of each row; at least in float32."""
        wide = every.to(torch.promote_types(every.dtype, torch.float32)).log_softmax(-1)
        by_row = wide.unflatten(0, (-1, self.rows))  # [batch row vocabulary]
        row = {beginning: n for n, beginning in enumerate(self.beginnings)}
        words = [sum(by_row[:, row[word[:n]], token] for n, token in enumerate(word)) for word in self.words]
        return torch.stack([torch.as_tensor(word) for word in words], dim=1)
