"""Batches that do not fit into memory are halved: nothing is lost, nothing done twice, results as ever."""

import gc
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import pandas as pd
import pytest
import torch
from compression_helpers import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batching import prompt_of
from torch import Tensor

from anchorlens import fitting, passes, readings
from anchorlens.analyses.compression import compression
from anchorlens.analyses.information_flow import information_flow
from anchorlens.analyses.isolation import isolation
from anchorlens.analyses.isolation import settings as depths
from anchorlens.analyses.reweighting import compare, prepared
from anchorlens.batching import Batch, Group, batches, collate, groups
from anchorlens.fitting import NoRoomError, halving
from anchorlens.hooks import Site, watching
from anchorlens.prompts import Prompt

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), RuntimeError(CPU), MemoryError()]


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    (one,) = groups(encoded(tokenizer))
    return one


def short_of_memory(limit: int, error: Exception | None = None) -> tuple[Callable[[Batch], list[int]], list[list[int]]]:
    """Gives the examples of a batch, but fails for more than ``limit`` of them; and all that were tried."""
    tried: list[list[int]] = []

    def run(batch: Batch) -> list[int]:
        tried.append(batch.example.tolist())
        if len(batch.target) > limit:
            raise error or MemoryError
        return batch.example.tolist()

    return run, tried


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
def test_a_batch_that_does_not_fit_is_run_in_halves_in_its_order(error):
    run, tried = short_of_memory(2, error)
    batch = collate([prompt_of(row, 8) for row in range(7)])
    assert list(halving(run, [batch])) == [[0, 1], [2, 3], [4, 5], [6]]
    assert tried[0] == list(range(7))


def test_later_batches_are_no_larger_than_what_then_fits():
    run, tried = short_of_memory(2)
    made = [collate([prompt_of(row, 8) for row in range(first, first + 4)]) for first in (0, 4, 8)]
    assert list(halving(run, made)) == [[row, row + 1] for row in range(0, 12, 2)]
    assert [len(each) for each in tried] == [4, 2, 2, 2, 2, 2, 2], "only the first was too large"


@mock.patch.object(gc, "collect", mock.Mock())  # which takes 0.2 s a batch, over all that tests have imported
@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 9), max_size=5), limit=st.integers(1, 9))
def test_every_prompt_is_run_to_its_end_exactly_once(sizes, limit):
    run, _ = short_of_memory(limit)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    made = [
        collate([prompt_of(row, 4 + row % 5) for row in range(start, start + size)])
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert [row for each in halving(run, made) for row in each] == list(range(sum(sizes)))


def test_a_result_is_given_before_the_next_batch_is_run():
    run, tried = short_of_memory(9)
    results = halving(run, [collate([prompt_of(0, 4)]), collate([prompt_of(1, 4)])])
    assert (next(results), tried) == ([0], [[0]])


def test_other_errors_are_not_taken_for_want_of_memory():
    run, tried = short_of_memory(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(halving(run, [collate([prompt_of(0, 4), prompt_of(1, 4)])]))
    assert len(tried) == 1


def test_a_single_prompt_that_does_not_fit_is_named_with_what_was_asked_and_is_free(monkeypatch):
    monkeypatch.setattr(fitting.room, "free_bytes", lambda device: 12345)
    run, _ = short_of_memory(0, RuntimeError(f"{CPU} 4000 bytes."))
    said = (
        r"single prompt \(example 3, 9 tokens\).*tried to allocate 4000 bytes\. On cpu, 12,345 bytes are free.*bfloat16"
    )
    with pytest.raises(NoRoomError, match=said):
        list(halving(run, [collate([prompt_of(3, 9)])]))


def test_what_cannot_be_halved_says_so(group):
    def run(_: Group) -> None:
        raise MemoryError

    with pytest.raises(NoRoomError, match=r"only run whole does not fit into memory: MemoryError\. On cpu"):
        list(halving(run, [group]))


def test_what_a_failed_run_held_is_let_go_before_its_halves_are_run():
    held: list[int] = []

    class Large:
        def __init__(self) -> None:
            held.append(1)
            self.me = self  # so that it takes a collection of garbage

        def __del__(self) -> None:
            held.pop()

    def run(batch: Batch) -> int:
        mine, alive = Large(), len(held)
        if len(batch.target) > 1:
            raise MemoryError
        assert mine
        return alive

    assert next(halving(run, [collate([prompt_of(0, 4), prompt_of(1, 4)])])) == 1


def test_halves_are_padded_no_wider_than_they_need():
    batch = collate([prompt_of(0, 9), prompt_of(1, 7), prompt_of(2, 5)])
    first, second = batch.halves()
    assert (first.tokens.shape, second.tokens.tolist()) == ((2, 9), [[1002] * 5])
    assert (second.example.tolist(), second.target.tolist()) == ([2], [4])
    assert collate([prompt_of(0, 9)]).halves() == ()


def test_halves_of_queries_keep_their_last_tokens_and_their_mask(group):
    (whole,) = group.queries(lambda _: 99)
    first, second = whole.halves()
    n = len(first.gold)
    assert first.example.tolist() + second.example.tolist() == whole.example.tolist()
    for half, rows in ((first, slice(0, n)), (second, slice(n, None))):
        width = half.tokens.shape[1]
        assert width == int(whole.mask[rows].sum(1).max())
        assert torch.equal(half.tokens, whole.tokens[rows, -width:])
        assert torch.equal(half.mask, whole.mask[rows, -width:])
        assert torch.equal(half.gold, whole.gold[rows])


class Narrow:
    """A model that has no memory for more than ``most`` prompts at a time."""

    def __init__(self, model: Any, most: int) -> None:
        self.model, self.most, self.refused = model, most, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.model, name)
        if name not in ("at_target", "read", "remember"):
            return value

        def limited(*args: Any, **kwargs: Any) -> Any:
            (tokens,) = [each for each in args if isinstance(each, Tensor)][:1]
            if len(tokens) > self.most:
                self.refused += 1
                raise MemoryError
            return value(*args, **kwargs)

        return limited


def with_gold(group: Group) -> list[Prompt]:
    return [prompt for prompt in group.prompts if prompt.gold is not None]


def read(model: Any, group: Group) -> pd.DataFrame:
    found = readings.read(model, group, batch_tokens=4096, vectors=[1])
    both = torch.cat([found.answers.label_logits, found.attention.flatten(1), found.queries.flatten(1)], dim=1)
    return pd.DataFrame(both.numpy()).assign(example=found.answers.example.numpy())


def reweigh(model: Any, group: Group) -> pd.DataFrame:
    beta = torch.linspace(-1, 1, 6 * len(group.anchors), dtype=torch.float64).reshape(3, 2, -1)
    ready = prepared(model, group, batch_tokens=4096)
    order = [each.example.item() for each in ready]
    return pd.DataFrame(torch.cat(compare(model, group, beta, batch_tokens=4096)).numpy()).assign(
        example=order + order, last=[each.last.item() for each in ready] * 2
    )


ANALYSES = {
    "readings": read,
    "isolation": lambda model, group: isolation(model, group, depths(3, [1, 2]), batch_tokens=4096),
    "isolation, whole prompts": lambda model, group: isolation(
        model, group, depths(3, [1]), control="published", batch_tokens=4096
    ),
    "compression": lambda model, group: compression(model, group, draws=2, batch_tokens=4096),
    "re-weighting": reweigh,
    "saliency": lambda model, group: pd.concat(
        passes.each(lambda batch: information_flow(model, batch), batches(with_gold(group), lambda _: 99))
    ).sort_values(["seed", "example", "layer"], kind="stable", ignore_index=True),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_analyses_short_of_memory_give_what_they_give_otherwise(model, group, name):
    narrow = Narrow(model, 3)
    found, want = ANALYSES[name](narrow, group), ANALYSES[name](model, group)
    assert narrow.refused > 0, "memory was never short"
    # float64: batches of other widths are summed in another order
    pd.testing.assert_frame_equal(found, want, rtol=0, atol=1e-10)


def test_compression_is_refused_only_until_it_knows_what_fits(model, group):
    narrow = Narrow(model, 3)
    compression(cast(Any, narrow), group, draws=2, batch_tokens=4096)
    assert narrow.refused == 3, "16 queries, 8, 4, and from then on never more than 2"


def test_no_prompt_is_run_twice_in_saliency(model, group):
    narrow, ran = Narrow(model, 3), []
    with watching(model, Site.RESID_PRE, [0], lambda layer, resid: ran.append(len(resid))):
        ANALYSES["saliency"](narrow, group)
    assert sum(ran) == len(with_gold(group))


def test_prompts_that_are_not_numbers_are_left_out_of_halves_too():
    def analysis(batch: Batch) -> list[int]:
        examples = batch.example.tolist()
        if len(examples) > 3:
            raise MemoryError
        if 1 in examples:
            raise passes.NotFiniteError("example 1 is not finite", [1])
        return examples

    found = passes.each(analysis, [collate([prompt_of(row, 4) for row in range(6)])])
    assert next(found) == [0, 2]
    with pytest.raises(passes.NotFiniteError, match="example 1"):
        next(found)
