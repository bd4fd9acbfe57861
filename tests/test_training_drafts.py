"""Training prompts, k-shot prompts, several sets of demonstrations, and prompts without texts."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from conftest import FIXTURES

from anchorlens import drafts, tasks
from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder
from anchorlens.rows import Example
from anchorlens.tasks import TaskError

TREC = tasks.get("trec")
GIVEN = {"toy": True, "seeds": [3, 4], "train_shots": 2}


@pytest.fixture(scope="module")
def tested() -> list[Draft]:
    return drafts.load(TREC, fresh=False, **GIVEN)


@pytest.fixture(scope="module")
def trained() -> list[Draft]:
    return drafts.training(TREC, **GIVEN)


def test_training_examples_stand_behind_the_demonstrations_that_queries_have(tested, trained):
    shown = {(draft.seed, draft.demonstrations, draft.task.label_words) for draft in tested}
    assert {(draft.seed, draft.demonstrations, draft.task.label_words) for draft in trained} == shown
    assert len(shown) == 2


def test_there_are_as_many_training_examples_of_each_class_as_asked_for(trained):
    for seed in (3, 4):
        counts = Counter(draft.query.label for draft in trained if draft.seed == seed)
        assert counts == dict.fromkeys(range(6), 2)


def test_no_text_is_in_two_places(tested, trained):
    for seed in (3, 4):
        mine = [draft for draft in tested if draft.seed == seed]
        shown = {example.text for example in mine[0].demonstrations}
        training = {draft.query.text for draft in trained if draft.seed == seed}
        queries = {draft.query.text for draft in mine}
        assert len(training) == 12
        assert not shown & training
        assert not (shown | training) & queries
        assert len(queries) == 200 - 6 - 12


def test_a_text_that_the_pool_holds_twice_is_trained_on_once(tmp_path):
    rows = [(f"text {label} {n}", label) for label in (0, 1) for n in range(3)]
    pool = tmp_path / "pool.csv"
    pool.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows * 2))
    made = drafts.training(tasks.get("sst2"), data=str(pool), pool=str(pool), seeds=[3, 4, 5], train_shots=2)
    for seed in (3, 4, 5):
        mine = [draft for draft in made if draft.seed == seed]
        texts = [draft.query.text for draft in mine] + [shown.text for shown in mine[0].demonstrations]
        assert sorted(texts) == sorted(text for text, _ in rows)


def test_training_examples_do_not_come_class_by_class(trained):
    labels = [draft.query.label for draft in trained if draft.seed == 3]
    assert labels != sorted(labels)


def test_the_same_demonstrations_are_drawn_with_and_without_training():
    plain = drafts.load(TREC, toy=True, seeds=[3], fresh=False)
    trained = drafts.load(TREC, toy=True, seeds=[3], fresh=False, train_shots=2)
    assert plain[0].demonstrations == trained[0].demonstrations


def test_a_class_with_too_few_rows_left_is_refused():
    with pytest.raises(TaskError, match=r"class 0 \(Abbreviation\) of 'trec': 3[0-9] rows are left .* train_shots=99"):
        drafts.training(TREC, toy=True, train_shots=99)


def test_training_without_examples_is_refused():
    with pytest.raises(TaskError, match="train_shots=0: re-weighting needs at least 1"):
        drafts.training(TREC, toy=True, train_shots=0)


def test_training_prompts_without_prompts_are_refused():
    with pytest.raises(TaskError, match=r"train_prompts='b\.jsonl' goes with prompts=FILE"):
        drafts.training(TREC, train_prompts="b.jsonl")


def write(path, queries: list[tuple[str, int | None]]) -> str:
    shown = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    lines = [{"demonstrations": shown, "query": {"text": text, "label": label}} for text, label in queries]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_training_prompts_are_held_out_of_prompts_and_never_more_than_half(tmp_path):
    queries = [("c", 0), ("d", 0), ("e", 1), ("f", 0), ("g", 1), ("h", None), ("i", 0), ("j", 0)]
    given = {"prompts": write(tmp_path / "p.jsonl", queries), "train_shots": 4}
    trained = drafts.training(tasks.get("sst2"), **given)
    tested = drafts.load(tasks.get("sst2"), **given)
    assert [draft.query.text for draft in trained] == ["c", "d", "e"], "two of five, one of two"
    assert [draft.query.text for draft in tested] == ["f", "g", "h", "i", "j"]
    assert len(drafts.load(tasks.get("sst2"), prompts=given["prompts"])) == 8, "without training nothing is held out"
    assert [d.query.text for d in drafts.training(tasks.get("sst2"), **{**given, "train_shots": 1})] == ["c", "e"]


def test_a_file_of_training_prompts_is_used_as_it_is(tmp_path):
    tested = write(tmp_path / "p.jsonl", [("c", 0), ("d", 0)])
    trained = write(tmp_path / "t.jsonl", [("x", 0), ("y", 1), ("z", 1)])
    made = drafts.training(tasks.get("sst2"), prompts=tested, train_prompts=trained, train_shots=1)
    assert [draft.query.text for draft in made] == ["x", "y", "z"]


def test_a_query_that_is_trained_on_is_not_asked_again(tmp_path):
    given = {"prompts": write(tmp_path / "p.jsonl", [("c", 0), ("d", 0), ("c", 0)]), "train_shots": 1}
    assert [draft.query.text for draft in drafts.load(tasks.get("sst2"), **given)] == ["d"]


def test_seeds_that_draw_the_same_demonstrations_keep_their_training_examples_apart():
    shown = (Example("a", 0, 0), Example("b", 1, 1))
    trained = [
        Draft(tasks.get("sst2"), shown, Example(f"{text}{seed}", label), seed)
        for seed in (1, 2)
        for text, label in (("x", 0), ("y", 1))
    ]
    (made,) = drafts.k_shot([Draft(tasks.get("sst2"), shown, Example("q", 0), 2)], trained, 2)
    assert [example.text for example in made.demonstrations] == ["a", "b", "x2", "y2"]


def test_prompts_of_which_none_can_be_held_out_are_refused(tmp_path):
    with pytest.raises(TaskError, match="no class has two queries with a label behind the same demonstrations"):
        drafts.training(tasks.get("sst2"), prompts=write(tmp_path / "p.jsonl", [("c", 0), ("d", 1), ("e", None)]))


def test_k_shot_prompts_show_the_training_examples_too(tested, trained):
    made = drafts.k_shot(tested, trained, 3)
    assert [draft.query for draft in made] == [draft.query for draft in tested]
    for before, after in zip(tested, made, strict=True):
        assert after.demonstrations[:6] == before.demonstrations
        assert Counter(example.label for example in after.demonstrations) == dict.fromkeys(range(6), 3)
    training = [draft.query for draft in trained if draft.seed == 3]
    assert list(made[0].demonstrations[6:]) == training, "in the order in which they are trained on"


def test_k_shot_takes_the_first_of_each_class_where_fewer_are_wanted(tested, trained):
    (made, *_) = drafts.k_shot(tested, trained, 2)
    first = {}
    for draft in trained:
        if draft.seed == 3:
            first.setdefault(draft.query.label, draft.query)
    assert set(made.demonstrations[6:]) == set(first.values())


def test_more_shots_than_there_are_examples_are_refused(tested, trained):
    with pytest.raises(TaskError, match="4 demonstrations of class 0 where 1 are shown and 2 are for training"):
        drafts.k_shot(tested, trained, 4)


def test_queries_are_spread_over_several_sets_of_demonstrations():
    made = drafts.load(TREC, toy=True, seeds=[3], fresh=False, sets=8)
    alone = drafts.load(TREC, toy=True, seeds=[3], fresh=False)
    assert len(made) == 200
    uses = Counter((draft.demonstrations, draft.task.label_words) for draft in made)
    assert len(uses) == 8
    assert min(uses.values()) >= 20
    assert all(draft.query.text not in {shown.text for shown in draft.demonstrations} for draft in made)
    assert (alone[0].demonstrations, alone[0].task.label_words) in uses


def test_a_text_that_every_set_shows_is_refused():
    pool = [Example("only one", 0, 0), Example("and the other", 1, 1)]
    with pytest.raises(TaskError, match="its text is shown in each of 3 sets"):
        drafts.draw(tasks.get("sst2"), pool, pool, fresh=False, sets=3)


@pytest.mark.parametrize("given", [{"sets": 0, "fresh": False}, {"sets": 2}, {"train_shots": 1}])
def test_sets_and_training_need_shared_demonstrations(given):
    with pytest.raises(TaskError, match=r"sets=\d, train_shots=\d, fresh="):
        drafts.load(TREC, toy=True, **given)


def test_prompts_without_texts_are_those_of_the_released_code(tokenizer):
    stored = json.loads((FIXTURES / "released" / "gpt2" / "compression.json").read_text())
    for key, case in stored.items():
        task = tasks.get(key.split(".")[0])
        shown = tuple(Example(**example) for example in case["demonstrations"])
        encode = Encoder(tokenizer, 512)
        for query, text in zip(case["queries"], case["text_anchor_prompts"], strict=True):
            draft = drafts.without_texts(Draft(task, shown, Example(**query)))
            assert encode(draft).text == text


def test_without_texts_keeps_query_and_order(tested):
    bare = drafts.without_texts(tested[0])
    assert replace(bare, demonstrations=()) == replace(tested[0], demonstrations=())
    assert [example.label for example in bare.demonstrations] == [e.label for e in tested[0].demonstrations]


def test_rows_that_are_all_shown_leave_none_to_ask():
    pool = [Example("only one", 0, 0), Example("and the other", 1, 1)]
    with pytest.raises(TaskError, match="seed 42: every text is a demonstration or trained on, so none is left"):
        drafts.draw(tasks.get("sst2"), pool, pool, fresh=False)
