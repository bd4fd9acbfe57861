"""Keeping some remembered tokens alone (section 3.2): both position rules, by exact identities."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import random_model
from hook_helpers import assert_near
from torch import Tensor

from anchorlens.hooks import Site, editing, watching
from anchorlens.models import Hooked

SHAPES = {
    "learned": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "rotary, all of a head, shared keys": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "n_key_value_heads": 1,
    },
}
TOKENS = (torch.arange(26) * 7919 + 11)[None] % 1487
SHOWN, QUERY = TOKENS[:, :20], TOKENS[:, 20:]
ALL = torch.arange(20)
SOME = torch.tensor([0, 3, 4, 9, 19])


@dataclass(frozen=True, eq=False)
class Hide:
    """Hide columns from all rows from ``first`` on: what compression must equal."""

    site: ClassVar[Site] = Site.SCORES
    columns: Tensor
    first: int

    def __call__(self, scores: Tensor, layer: int) -> Tensor:
        hidden = torch.zeros(scores.shape[-2:], dtype=torch.bool)
        hidden[self.first :, self.columns] = True
        return scores.masked_fill(hidden, -torch.inf)


@pytest.fixture(scope="module", params=SHAPES)
def lens(request) -> Hooked:
    return random_model(**SHAPES[request.param])


def read(lens: Hooked, memory, tokens: Tensor = QUERY) -> Tensor:
    return lens.all_logits(lens.read(memory, tokens, torch.ones_like(tokens)))


def remember(lens: Hooked, tokens: Tensor = SHOWN):
    return lens.remember(tokens, torch.ones_like(tokens))


def test_all_tokens_kept_with_positions_continued_are_the_whole_prompt(lens):
    assert_near(read(lens, lens.keep(remember(lens), ALL, 20, longest=24)), lens(TOKENS)[:, -1])


def test_some_tokens_kept_with_positions_continued_are_the_prompt_with_the_others_hidden_from_the_query(lens):
    hidden = torch.tensor([n for n in range(20) if n not in SOME])
    with editing(lens, Hide(hidden, 20), range(3)):
        want = lens(TOKENS)[:, -1]
    assert_near(read(lens, lens.keep(remember(lens), SOME, 20, longest=24)), want)
    assert (want - lens(TOKENS)[:, -1]).abs().max() > 0.1, "hiding did nothing"


def test_restarted_positions_are_those_of_a_prompt_of_the_query_alone():
    lens = random_model()
    memory, resid = lens.keep(remember(lens), SOME, 0, longest=24), {}
    with watching(lens, Site.RESID_PRE, [0], resid.__setitem__):
        read(lens, memory)
    assert_near(resid[0], lens.model.W_E[QUERY] + lens.model.W_pos[:6])


def test_restarted_rotary_positions_are_distances_to_where_the_kept_tokens_stood():
    # query i stands at i, kept token j where it stood: as if the whole query stood `SHOWN` tokens earlier
    lens = random_model(positional_embedding_type="rotary", rotary_dim=8)
    memory, sees = lens.keep(remember(lens), SOME, 0, longest=24), {}
    with watching(lens, Site.SCORES, [0], sees.__setitem__):
        read(lens, memory)
    attention = lens.model.blocks[0].attn
    shown, queries = remember(lens), {}
    with watching(lens, Site.QUERIES, [0], queries.__setitem__):
        read(lens, shown)  # what a token asks for in layer 0 does not depend on what is before it
    turned_query = attention.apply_rotary(queries[0], 0)  # at 0, 1, ...
    turned_key = attention.apply_rotary(shown.keys[0], 0)[:, SOME]  # where they stood
    want = torch.einsum("bqhd,bkhd->bhqk", turned_query, turned_key) / attention.attn_scale
    assert_near(sees[0][..., :5], want)


@pytest.mark.parametrize("first", [0, 20])
def test_a_padded_batch_after_kept_tokens_is_each_query_alone(lens, first):
    memory = lens.keep(remember(lens), SOME, first, longest=24)
    short = QUERY[:, 2:]
    tokens = torch.cat([QUERY, torch.cat([torch.zeros(1, 2, dtype=torch.int64), short], dim=1)])
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    together = lens.all_logits(lens.read(memory, tokens, mask))
    assert_near(together[:1], read(lens, memory))
    assert_near(together[1:], read(lens, memory, short))


def test_one_row_of_a_padded_memory_is_that_prompt_alone(lens):
    tokens = torch.cat([QUERY, torch.cat([torch.zeros(1, 2, dtype=torch.int64), QUERY[:, 2:]], dim=1)])
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    grown = lens.remember(tokens, mask, after=remember(lens))
    one = grown.row(1)
    assert (grown.tokens, one.tokens) == (26, 24)
    want = lens(torch.cat([SHOWN, QUERY[:, 2:], TOKENS[:, :1]], dim=1))[:, -1]
    assert_near(read(lens, one, TOKENS[:, :1]), want)


def test_bytes_are_those_of_keys_and_values(lens):
    heads = lens.cfg.n_key_value_heads or lens.cfg.n_heads
    assert remember(lens).nbytes == 3 * 2 * 20 * heads * 8 * 8
    assert lens.keep(remember(lens), SOME, 0, longest=24).nbytes == 3 * 2 * 5 * heads * 8 * 8


def test_a_long_prompt_is_turned_beyond_the_first_rotation_table():
    lens = random_model(positional_embedding_type="rotary", rotary_dim=8, n_ctx=4096)
    tokens = (torch.arange(2100) * 31)[None] % 1487
    kept = torch.tensor([0, 1, 2050])
    memory = lens.keep(remember(lens, tokens), kept, 2100, longest=2200)
    hidden = torch.tensor([n for n in range(2100) if n not in kept])
    with editing(lens, Hide(hidden, 2100), range(3)):
        want = lens(torch.cat([tokens, QUERY], dim=1))[:, -1]
    assert_near(read(lens, memory), want)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"positional_embedding_type": "alibi"}, "positions of kind 'alibi': keeping some tokens alone is exact for"),
        (
            {"use_local_attn": True, "attn_types": ["local"] * 3, "window_size": 8},
            "local attention .the last 8 tokens., and prompts have up to 24: keeping",
        ),
    ],
)
def test_positions_for_which_keeping_is_not_exact_are_refused(shape, said):
    lens = random_model(**shape)
    with pytest.raises(ValueError, match=said):
        lens.keep(remember(lens), SOME, 0, longest=24)
