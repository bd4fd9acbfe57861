"""Prompts for the tests of section 3.2, and their answers by plain means."""

import torch
from conftest import random_model

from anchorlens.batching import Group
from anchorlens.drafts import Draft
from anchorlens.models import Hooked, Memory
from anchorlens.prompts import Encoder, Prompt
from anchorlens.rows import Example
from anchorlens.tasks import SST2

KINDS = {"learned": {}, "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4}}
SHOWN = (Example("a joy from start to end", 1), Example("a slow drama", 0))
WORDS = tuple("nothing to say , slow and dull , but warm and funny from the first scene to the last".split())  # noqa: SIM905
# 16 ragged queries behind two demonstrations, every fifth of unknown class
QUERIES = [Example(" ".join(WORDS[n : n + 1 + n % 5]), None if n % 5 == 4 else n % 2, n) for n in range(16)]
DRAFTS = [Draft(SST2, SHOWN, query, 7) for query in QUERIES]


def encoded(tokenizer, drafts: list[Draft] = DRAFTS) -> list[Prompt]:
    encode = Encoder(tokenizer, 96)
    return [encode(draft) for draft in drafts]


def whole(lens: Hooked, group: Group) -> torch.Tensor:
    """All logits at the target of each whole prompt, run alone [query vocabulary]."""
    return torch.stack([lens(torch.tensor([prompt.ids]))[0, -1] for prompt in group.prompts])


def after(lens: Hooked, group: Group, memory: Memory, size: int) -> torch.Tensor:
    """The same after ``memory``, in ragged batches."""
    found = {}
    for asked in group.queries(lambda _: size):
        logits = lens.all_logits(lens.read(memory, asked.tokens, asked.mask))
        found |= dict(zip(asked.example.tolist(), logits, strict=True))
    return torch.stack([found[prompt.example] for prompt in group.prompts])


def undecided(kind: str, group: Group) -> Hooked:
    """A random model that predicts each of two classes for about half of the prompts, with no tie."""
    lens = random_model(**KINDS[kind])
    negative, positive = group.labels.tolist()
    logits = whole(lens, group)
    with torch.no_grad():
        lens.model.unembed.b_U[negative] -= (logits[:, negative] - logits[:, positive]).quantile(0.45)
    return lens
