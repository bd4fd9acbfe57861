"""Section 3.2: exact identities on random models."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from compression_helpers import KINDS, after, encoded, whole
from conftest import random_model

from anchorlens import passes
from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, groups
from anchorlens.hooks import Site, editing

# float64, three layers: the order of summation, and for rotary positions a rotation undone, alone differ
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(scope="module", params=KINDS)
def lens(request):
    return random_model(**KINDS[request.param])


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    (one,) = groups(encoded(tokenizer))
    return one


class Hide:
    """Take the given columns away from all rows from the query on."""

    site: ClassVar[Site] = Site.SCORES

    def __init__(self, columns: list[int], query: int) -> None:
        self.columns, self.query = columns, query

    def __call__(self, act: torch.Tensor, layer: int) -> torch.Tensor:
        hidden = torch.zeros(act.shape[-2:], dtype=torch.bool)
        hidden[self.query :, self.columns] = True
        return act.masked_fill(hidden, -torch.inf)


class HideRemembered:
    """Take the given columns away from every row of queries after a memory."""

    site: ClassVar[Site] = Site.SCORES

    def __init__(self, columns: list[int]) -> None:
        self.columns = columns

    def __call__(self, act: torch.Tensor, layer: int) -> torch.Tensor:
        return act.index_fill(-1, torch.tensor(self.columns), -torch.inf)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_keeping_all_tokens_with_positions_continued_is_the_whole_prompt(lens, group, size):
    memory = passes.demonstrate(lens, group).memory
    all_kept = lens.keep(memory, torch.arange(group.length), group.length, longest=group.longest)
    torch.testing.assert_close(after(lens, group, all_kept, size), whole(lens, group), **EXACT)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("arm", kept.ROLES)
def test_kept_tokens_with_positions_continued_are_the_whole_prompt_with_all_others_hidden(lens, group, arm, size):
    left = kept.by_role(group, arm)
    others = sorted(set(range(group.length)) - set(left.tolist()))
    with editing(lens, Hide(others, group.length), range(3)):
        want = whole(lens, group)
    assert (want - whole(lens, group)).abs().max() > 0.1, "hiding did nothing"
    memory = lens.keep(passes.demonstrate(lens, group).memory, left, group.length, longest=group.longest)
    torch.testing.assert_close(after(lens, group, memory, size), want, **EXACT)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_restarted_learned_positions_are_those_of_a_prompt_that_begins_with_the_query(group, size):
    """As the whole prompt with other tokens hidden, where the query's own embeddings are those of positions 0 to n."""
    lens, left = random_model(), kept.by_role(group, "hidden_anchor")
    others, learned = sorted(set(range(group.length)) - set(left.tolist())), lens.model.pos_embed.W_pos

    def restarted(act: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.cat([act[:, : group.length], learned[None, : act.shape[1] - group.length]], dim=1)

    with editing(lens, Hide(others, group.length), range(3)), lens.hooks(fwd_hooks=[("hook_pos_embed", restarted)]):
        want = whole(lens, group)
    memory = lens.keep(passes.demonstrate(lens, group).memory, left, 0, longest=group.longest)
    torch.testing.assert_close(after(lens, group, memory, size), want, **EXACT)
    assert (want - after(lens, group, dataclasses.replace(memory, shift=memory.shift + 1), size)).abs().max() > 1e-3


def test_restarted_rotary_positions_see_kept_tokens_at_the_distances_of_a_query_at_zero(group):
    """As if the demonstrations' keys, once computed, had been turned by as many positions as the query is moved."""
    lens = random_model(**KINDS["rotary"])
    left, memory = kept.by_role(group, "hidden_anchor"), passes.demonstrate(lens, group).memory
    others = sorted(set(range(group.length)) - set(left.tolist()))
    attention = lens.model.blocks[0].attn

    def turned(keys: torch.Tensor, hook: object) -> torch.Tensor:
        before, own = keys.split([group.length, keys.shape[1] - group.length], dim=1)
        turning, passing = before.split([4, 4], dim=-1)
        cosine, sine = attention.rotary_cos[group.length], attention.rotary_sin[group.length]
        further = turning * cosine + attention.rotate_every_two(turning) * sine
        return torch.cat([torch.cat([further, passing], dim=-1), own], dim=1)

    want = []
    with (
        editing(lens, HideRemembered(others), range(3)),
        lens.hooks(fwd_hooks=[(Site.ROTATED_KEYS.at(layer), turned) for layer in range(3)]),
    ):
        for prompt in group.prompts:
            asked = torch.tensor([prompt.ids[group.length :]])
            want.append(lens.all_logits(lens.read(memory, asked, torch.ones_like(asked)))[0])
    restarted = after(lens, group, lens.keep(memory, left, 0, longest=group.longest), 4)
    torch.testing.assert_close(restarted, torch.stack(want), **EXACT)
    continued = after(lens, group, lens.keep(memory, left, group.length, longest=group.longest), 4)
    assert (restarted - continued).abs().max() > 1e-3
