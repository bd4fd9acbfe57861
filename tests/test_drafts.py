"""Draws of demonstrations: by seed alone, balanced, and never the query itself."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from anchorlens import drafts, rows
from anchorlens.drafts import Draft
from anchorlens.rows import Example, MissingRowsError
from anchorlens.tasks import SST2, TASKS, TREC, TaskError, word_pool

POOL = [Example(f"text {row}", row % 2, row) for row in range(20)]  # 10 of each class
QUERIES = [Example(f"question {row}", row % 2, row) for row in range(12)]
POOL_OF_SIXTEEN = word_pool(SST2, toy=True)


def demonstrations(made: list[Draft]) -> list[tuple[Example, ...]]:
    return [draft.demonstrations for draft in made]


def words(made: list[Draft]) -> list[tuple[str, ...]]:
    return [draft.task.label_words for draft in made]


def csv_of(folder: Path, examples: list[Example], name: str = "rows.csv") -> str:
    path = folder / name
    path.write_text("text,label\n" + "".join(f"{example.text},{example.label}\n" for example in examples))
    return str(path)


# --- seeds


@pytest.mark.parametrize("fresh", [True, False])
def test_the_same_seed_gives_the_same_drafts_and_another_seed_gives_others(fresh):
    first = drafts.draw(SST2, QUERIES, POOL, seed=42, shots=2, fresh=fresh)
    assert drafts.draw(SST2, QUERIES, POOL, seed=42, shots=2, fresh=fresh) == first
    assert demonstrations(drafts.draw(SST2, QUERIES, POOL, seed=43, shots=2, fresh=fresh)) != demonstrations(first)


def test_a_draw_does_not_depend_on_torchs_global_generator_nor_moves_it():
    torch.manual_seed(1)
    first = drafts.draw(SST2, QUERIES, POOL)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert drafts.draw(SST2, QUERIES, POOL) == first
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


def test_seeds_that_agree_in_their_low_or_high_bits_still_draw_apart():
    seeds = (0, 1, 2**16, 2**31, 2**32 - 1)
    orders = {tuple(torch.randperm(50, generator=drafts.generator(seed)).tolist()) for seed in seeds}
    assert len(orders) == len(seeds)


def test_every_seed_of_a_load_is_the_draw_of_that_seed_alone():
    both = drafts.load(SST2, toy=True, seeds=(7, 3), limit=5)
    alone = [drafts.load(SST2, toy=True, seeds=(seed,), limit=5) for seed in (7, 3)]
    assert both == alone[0] + alone[1]
    assert [draft.seed for draft in both] == [7] * 5 + [3] * 5


# --- demonstrations


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("name", TASKS)
def test_every_class_has_as_many_demonstrations_as_shots(name, shots, fresh):
    task = TASKS[name]
    for draft in drafts.load(task, toy=True, shots=shots, fresh=fresh, limit=20):
        assert Counter(example.label for example in draft.demonstrations) == dict.fromkeys(
            range(len(task.label_words)), shots
        )


def test_demonstrations_are_not_in_the_order_of_their_classes():
    orders = {tuple(example.label for example in each) for each in demonstrations(drafts.draw(SST2, QUERIES, POOL))}
    assert orders == {(0, 1), (1, 0)}


def test_fresh_demonstrations_differ_between_queries_and_one_set_does_not():
    assert len(set(demonstrations(drafts.draw(SST2, QUERIES, POOL, fresh=True)))) > 6
    assert len(set(demonstrations(drafts.draw(SST2, QUERIES, POOL, fresh=False)))) == 1


def test_every_row_of_the_pool_is_drawn_sooner_or_later():
    made = drafts.draw(SST2, [Example("q", 0, row) for row in range(200)], POOL)
    drawn = {example.row for each in demonstrations(made) for example in each}
    assert drawn == set(range(20))  # each is missed by all 200 with a chance of 0.9 ** 200 < 1e-9


@pytest.mark.parametrize("replacement", [True, False])
def test_a_query_never_meets_its_own_text_as_a_fresh_demonstration(replacement):
    twice = [Example("seen", label, row) for row, label in enumerate([0, 1, 0])]
    pool = [*twice, *(Example(f"other {row}", row % 2, row) for row in range(3, 7))]
    for query in (Example("seen", 0, row) for row in range(100)):
        (draft,) = drafts.draw(SST2, [query], pool, shots=2, replacement=replacement)
        assert "seen" not in [example.text for example in draft.demonstrations]


def test_one_set_for_all_queries_costs_its_rows_as_queries_where_both_are_the_same_file(tmp_path):
    path = csv_of(tmp_path, POOL)
    made = drafts.load(SST2, data=path, pool=path, shots=2, fresh=False)
    used = {example.row for example in made[0].demonstrations}
    assert len(used) == 4
    assert [draft.query.row for draft in made] == [row for row in range(20) if row not in used]
    again = drafts.load(SST2, data=path, pool=f"{tmp_path}/../{tmp_path.name}/rows.csv", shots=2, fresh=False)
    assert again == made, "the same file under another name"


def test_rows_of_another_file_cost_no_queries(tmp_path):
    path, pool = csv_of(tmp_path, QUERIES), csv_of(tmp_path, POOL, "pool.csv")
    made = drafts.load(SST2, data=path, pool=pool, fresh=False)
    assert [draft.query for draft in made] == QUERIES
    assert {example.text.split()[0] for each in demonstrations(made) for example in each} == {"text"}


def test_without_a_pool_demonstrations_come_from_the_tasks_own_source(tmp_path):
    with pytest.raises(MissingRowsError, match=r"Give files with data=FILE and pool=FILE \(the same file will do\)"):
        drafts.load(SST2, data=csv_of(tmp_path, POOL))
    clean = set(rows.load(SST2, toy=True))
    assert {example for each in demonstrations(drafts.load(SST2, toy=True, data="hard")) for example in each} <= clean


def test_draws_with_replacement_repeat_a_row_and_draws_without_do_not():
    made = drafts.draw(SST2, QUERIES, POOL, shots=4, replacement=True)
    assert any(len(set(each)) < 8 for each in demonstrations(made)), "12 prompts of 4 from 10 without one repetition"
    for each in demonstrations(drafts.draw(SST2, QUERIES, POOL, shots=10)):
        assert sorted(each, key=lambda example: example.row) == POOL


def test_with_replacement_a_single_row_of_a_class_is_enough():
    pool = [Example("only bad", 0, 0), Example("only good", 1, 1)]
    (draft,) = drafts.draw(SST2, QUERIES[:1], pool, shots=3, replacement=True)
    assert Counter(draft.demonstrations) == {pool[0]: 3, pool[1]: 3}


# --- queries


@pytest.mark.parametrize("fresh", [True, False])
def test_leaving_queries_out_changes_no_other_prompt(fresh):
    every = {
        draft.query.row: draft
        for draft in drafts.draw(SST2, QUERIES, POOL, label_words="random", words=POOL_OF_SIXTEEN, fresh=fresh)
    }
    for limit in (1, 5, 11):
        some = drafts.draw(SST2, QUERIES, POOL, label_words="random", words=POOL_OF_SIXTEEN, fresh=fresh, limit=limit)
        assert len(some) == limit
        assert all(draft == every[draft.query.row] for draft in some)


def test_a_larger_limit_keeps_the_queries_of_a_smaller_one_in_source_order():
    three, eight = ([d.query.row for d in drafts.draw(SST2, QUERIES, POOL, limit=limit)] for limit in (3, 8))
    assert set(three) < set(eight)
    assert eight == sorted(eight)


def test_limited_queries_are_a_draw_of_the_seed_and_not_the_first_ones():
    picked = {tuple(d.query.row for d in drafts.draw(SST2, QUERIES, POOL, limit=3, seed=seed)) for seed in range(5)}
    assert len(picked) > 1


@pytest.mark.parametrize("limit", [0, 12, 1000])
def test_no_limit_or_a_large_one_takes_every_query(limit):
    assert [draft.query for draft in drafts.draw(SST2, QUERIES, POOL, limit=limit)] == QUERIES


# --- label words


def test_random_label_words_come_from_the_pool_and_differ_between_fresh_prompts():
    made = drafts.draw(
        TREC, QUERIES, [Example(f"t{n}", n % 6, n) for n in range(12)], label_words="random", words=POOL_OF_SIXTEEN
    )
    assert all(len(set(each)) == 6 and set(each) <= set(POOL_OF_SIXTEEN) for each in words(made))
    assert len(set(words(made))) == len(made)  # two alike among 12 have a chance of 1e-5


def test_random_label_words_are_the_same_for_all_queries_of_one_set_but_not_of_all_seeds():
    made = [
        drafts.draw(SST2, QUERIES, POOL, label_words="random", words=POOL_OF_SIXTEEN, fresh=False, seed=seed)
        for seed in range(6)
    ]
    assert all(len(set(words(each))) == 1 for each in made)
    assert len({words(each)[0] for each in made}) > 1


def test_random_without_a_pool_shuffles_the_tasks_own_words():
    made = drafts.draw(SST2, QUERIES, POOL, label_words="random")
    assert set(words(made)) == {(" Negative", " Positive"), (" Positive", " Negative")}


def test_auto_is_random_on_the_toy_and_natural_elsewhere(tmp_path):
    assert {word for each in words(drafts.load(SST2, toy=True)) for word in each} == set(POOL_OF_SIXTEEN)
    assert set(words(drafts.load(SST2, data=csv_of(tmp_path, POOL), pool=csv_of(tmp_path, POOL)))) == {SST2.label_words}
    assert set(words(drafts.load(SST2, toy=True, label_words="natural"))) == {SST2.label_words}


@pytest.mark.parametrize("given", ["flipped", "Positive|Negative"])
def test_other_label_words_change_the_words_and_neither_demonstrations_nor_gold(given):
    natural = drafts.draw(SST2, QUERIES, POOL)
    changed = drafts.draw(SST2, QUERIES, POOL, label_words=given)
    assert set(words(changed)) == {(" Positive", " Negative")}
    assert [(d.demonstrations, d.query) for d in changed] == [(d.demonstrations, d.query) for d in natural]


# --- prompts fixed by a file


@pytest.fixture
def prompts_file(tmp_path):
    fixed = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    lines = [{"demonstrations": fixed, "query": {"text": f"q{n}", "label": None if n else 1}} for n in range(4)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_a_prompts_file_fixes_demonstrations_order_and_query(prompts_file):
    made = drafts.load(SST2, prompts=prompts_file, seeds=(1, 2), shots=9)
    assert [draft.query for draft in made] == [Example(f"q{n}", None if n else 1, n) for n in range(4)]
    assert all([example.text for example in draft.demonstrations] == ["good", "bad"] for draft in made)
    assert [(draft.seed, draft.name) for draft in made[:1]] == [(-1, "task 'sst2', example 0")]


def test_a_limit_takes_the_first_prompts_of_a_file(prompts_file):
    assert [draft.query.text for draft in drafts.load(SST2, prompts=prompts_file, limit=2)] == ["q0", "q1"]


@pytest.mark.parametrize("toy", [True, False])
def test_the_prompts_of_a_file_are_natural_unless_told_otherwise(prompts_file, toy):
    assert set(words(drafts.load(SST2, prompts=prompts_file, toy=toy))) == {SST2.label_words}
    assert set(words(drafts.load(SST2, prompts=prompts_file, toy=toy, label_words="a|b"))) == {(" a", " b")}


def test_a_drawn_draft_is_named_by_task_row_and_seed():
    assert drafts.draw(SST2, QUERIES[3:4], POOL, seed=5)[0].name == "task 'sst2', example 3, seed 5"


# --- refused


def test_no_shots_are_refused():
    with pytest.raises(TaskError, match=r"shots=0: in-context learning needs at least 1 demonstration per class\."):
        drafts.draw(SST2, QUERIES, POOL, shots=0)
    with pytest.raises(TaskError, match="shots=0"):
        drafts.load(SST2, toy=True, shots=0)


def test_too_few_rows_that_differ_from_the_query_are_refused():
    pool = [Example("same", 0), Example("bad", 0), Example("good", 1), Example("fine", 1)]
    drafts.draw(SST2, [Example("new", 0)], pool, shots=2)
    message = (
        "class 0 of 'sst2' has 1 rows that differ from the query where shots=2. "
        "Lower shots, or give a pool with more rows."
    )
    with pytest.raises(TaskError, match=re.escape(message)):
        drafts.draw(SST2, [Example("same", 0)], pool, shots=2)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_class_with_nothing_but_the_query_is_refused(replacement):
    pool = [Example("same", 0), Example("good", 1)]
    with pytest.raises(TaskError, match="class 0 of 'sst2' has 0 rows that differ from the query"):
        drafts.draw(SST2, [Example("same", 0)], pool, replacement=replacement)


def test_a_pool_with_too_few_rows_of_a_class_is_refused_by_its_file(tmp_path):
    path = csv_of(tmp_path, POOL)
    with pytest.raises(TaskError, match=re.escape(f"{path}: 10 rows of class 0 (Negative) where shots=11 needs 11.")):
        drafts.load(SST2, data=path, pool=path, shots=11)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(TaskError, match=rf"seeds=\[1, {seed}\]: give at least one whole number from 0 to 4294967295"):
        drafts.load(SST2, toy=True, seeds=(1, seed))


def test_a_negative_limit_is_refused():
    with pytest.raises(TaskError, match=r"limit=-1: give how many queries to take at most, or 0 for all\."):
        drafts.load(SST2, toy=True, limit=-1)


@pytest.mark.parametrize("also", [{"data": "rows.csv"}, {"pool": "rows.csv"}])
def test_prompts_together_with_rows_are_refused(prompts_file, also):
    with pytest.raises(TaskError, match=r"prompts='.*' fixes every prompt; leave data='.*' and pool='.*' empty\."):
        drafts.load(SST2, prompts=prompts_file, **also)


def test_a_missing_prompts_file_is_refused(tmp_path):
    with pytest.raises(MissingRowsError, match="no such file"):
        drafts.load(SST2, prompts=str(tmp_path / "none.jsonl"))


def test_listed_words_for_another_number_of_classes_are_refused():
    with pytest.raises(TaskError, match=r"or 2 words joined by \|"):
        drafts.load(SST2, toy=True, label_words="a|b|c")


def test_a_file_path_may_start_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    csv_of(tmp_path, POOL)
    assert rows.load(SST2, "~/rows.csv") == POOL


def test_other_label_words_come_with_the_same_demonstrations():
    natural, random, flipped = (
        drafts.load(SST2, toy=True, limit=5, label_words=how) for how in ("natural", "random", "flipped")
    )
    assert (
        [d.demonstrations for d in natural] == [d.demonstrations for d in random] == [d.demonstrations for d in flipped]
    )
    assert [d.task.label_words for d in natural] != [d.task.label_words for d in random]


def test_one_row_per_class_is_enough_where_rows_may_repeat(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nbad,0\ngood,1\n")
    (tmp_path / "queries.csv").write_text("text,label\nfine,1\n")
    given = {"data": str(tmp_path / "queries.csv"), "pool": str(path), "shots": 3}
    with pytest.raises(TaskError, match="1 row of class 0"):
        drafts.load(SST2, **given)
    assert len(drafts.load(SST2, **given, replacement=True)[0].demonstrations) == 6


def test_with_one_set_for_all_queries_its_texts_are_no_queries_in_any_file(tmp_path):
    (tmp_path / "pool.csv").write_text("text,label\nbad,0\ngood,1\n")
    (tmp_path / "data.csv").write_text("text,label\nbad,0\nfine,1\n")
    drawn = drafts.load(SST2, data=str(tmp_path / "data.csv"), pool=str(tmp_path / "pool.csv"), fresh=False)
    assert [d.query.text for d in drawn] == ["fine"]


def test_a_data_frame_gives_the_same_drafts_as_its_file(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"text": [f"t{n}" for n in range(8)], "label": [0, 1] * 4}, index=list("abcdefgh"))
    path = tmp_path / "rows.csv"
    frame.to_csv(path)
    given = {"shots": 2, "seeds": [1, 2]}
    assert drafts.load(SST2, data=frame, pool=frame, **given) == drafts.load(SST2, data=str(path), pool=path, **given)
    with pytest.raises(TaskError, match=r"the DataFrame: 1 row of class 1 .* where shots=2 needs 2"):
        drafts.load(SST2, data=frame, pool=frame.iloc[:3], shots=2)
    with pytest.raises(TaskError, match="fixes every prompt"):
        drafts.load(SST2, data=frame, prompts="prompts.jsonl")
