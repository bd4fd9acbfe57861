"""Batches: every prompt once, within the budget, never of mixed shapes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlens.batching import batches, collate
from anchorlens.prompts import Prompt, Role


def prompt_of(row: int, length: int, demonstrations: int = 1, classes: int = 2, gold: int | None = 0) -> Prompt:
    """A prompt of ``length`` tokens, all of them 1000 + row."""
    return Prompt(
        text="",
        ids=(1000 + row,) * length,
        roles=(Role.TEXT,) * length,
        parts=(0,) * length,
        anchors=tuple(range(demonstrations)),
        anchor_classes=(0,) * demonstrations,
        target=length - 1,
        labels=tuple(range(classes)),
        gold=gold,
        example=row,
        seed=42,
    )


SHAPES = st.lists(st.tuples(st.integers(4, 40), st.integers(0, 3), st.integers(2, 3)), max_size=30)


@settings(deadline=None)
@given(shapes=SHAPES, budget=st.integers(1, 200))
def test_batches_hold_every_prompt_once_within_the_budget_and_never_mix_shapes(shapes, budget):
    prompts = [prompt_of(row, *shape) for row, shape in enumerate(shapes)]
    made = batches(prompts, lambda length: budget // length)
    assert sorted(row for batch in made for row in batch.example.tolist()) == list(range(len(prompts)))
    for batch in made:
        assert batch.tokens.numel() <= budget or len(batch.tokens) == 1
        assert batch.tokens.shape[1] == int(batch.target.max()) + 1, "wider than its longest prompt"
        for tokens, row, target in zip(batch.tokens, batch.example.tolist(), batch.target.tolist(), strict=True):
            length, demonstrations, classes = shapes[row]
            assert (target + 1, batch.anchors.shape[1], batch.labels.shape[1]) == (length, demonstrations, classes)
            assert tokens[:length].tolist() == [1000 + row] * length


def test_batches_begin_with_the_longest_and_keep_the_order_of_equals():
    prompts = [prompt_of(row, length) for row, length in enumerate([5, 9, 5, 9, 7])]
    assert [batch.example.tolist() for batch in batches(prompts, lambda length: 2)] == [[1, 3], [4, 0], [2]]


def test_collate_pads_on_the_right_and_marks_an_unknown_gold():
    batch = collate([prompt_of(0, 2), prompt_of(1, 4, gold=None)], pad=7)
    assert batch.tokens.tolist() == [[1000, 1000, 7, 7], [1001] * 4]
    assert (batch.target.tolist(), batch.gold.tolist(), batch.seed.tolist()) == ([1, 3], [0, -1], [42, 42])
    assert (batch.anchors.tolist(), batch.labels.tolist()) == ([[0], [0]], [[0, 1], [0, 1]])
    assert collate([prompt_of(0, 3, demonstrations=0)]).anchors.shape == (1, 0)
