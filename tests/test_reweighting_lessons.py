"""Section 3.1: which prompts belong together, the tables that come of it, and what is kept when something fails."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import random_model

from anchorlens import batch, passes, store
from anchorlens.analyses import reweighting
from anchorlens.analyses.reweighting import lessons
from anchorlens.analyses.reweighting.training import DivergedError, prepared, train
from anchorlens.batching import collate
from anchorlens.drafts import Draft
from anchorlens.hooks import Scale, editing
from anchorlens.prompts import Encoder, PromptError
from anchorlens.rows import Example
from anchorlens.tasks import SST2

SHOWN = (Example("a joy from start to end", 1), Example("a slow drama", 0))
OTHERS = (Example("i laughed", 1), Example("nothing to say", 0))
TAUGHT = (Example("a joy", 1, 7), Example("dull", 0, 8))
ASKED = (Example("i laughed", 1, 0), Example("slow and dull", 0, 1), Example("a slow joy", None, 2))


def prompts_of(tokenizer, shown, queries, seed=3, n_ctx=96):
    encode = Encoder(tokenizer, n_ctx)
    return [encode(Draft(SST2, shown, query, seed)) for query in queries]


@pytest.fixture(scope="module")
def asked(tokenizer):
    return prompts_of(tokenizer, SHOWN, ASKED)


@pytest.fixture(scope="module")
def taught(tokenizer):
    return prompts_of(tokenizer, SHOWN, TAUGHT)


@pytest.fixture(scope="module")
def deeper(tokenizer):
    return prompts_of(tokenizer, SHOWN + TAUGHT, ASKED)


@pytest.fixture(scope="module")
def lesson(asked, taught, deeper) -> lessons.Lesson:
    (found,) = lessons.lessons(asked, taught, deeper)
    return found


def test_prompts_meet_by_their_demonstrations(tokenizer, asked, taught):
    others = prompts_of(tokenizer, OTHERS, ASKED), prompts_of(tokenizer, OTHERS, TAUGHT[::-1])
    found = lessons.lessons(asked + others[0], others[1] + taught)
    assert [each.number for each in found] == [0, 1]
    assert [[prompt.example for prompt in each.training.prompts] for each in found] == [[7, 8], [8, 7]]
    for each in found:
        assert torch.equal(each.group.tokens, each.training.tokens)
        assert each.kshot == ()


def test_the_same_demonstrations_under_another_seed_are_another_lesson(tokenizer, asked, taught):
    again = prompts_of(tokenizer, SHOWN, ASKED, seed=4)
    with pytest.raises(PromptError, match=r"examples \[0, 1, 2\], seed 4: no training prompt stands behind"):
        lessons.lessons(asked + again, taught)


def test_training_prompts_that_no_query_shares_are_refused(tokenizer, asked, taught):
    stray = prompts_of(tokenizer, SHOWN[::-1], TAUGHT)
    with pytest.raises(PromptError, match=r"training examples \[7, 8\] stand behind demonstrations that no query has"):
        lessons.lessons(asked, taught + stray)


def test_training_prompts_without_gold_are_refused(asked, taught):
    with pytest.raises(PromptError, match=r"training examples \[8\] have no gold class"):
        lessons.lessons(asked, [taught[0], replace(taught[1], gold=None)])


def test_training_prompts_of_one_class_are_refused(asked, taught):
    with pytest.raises(PromptError, match=r"training examples \[7, 8\] are all of class 1: .* at least two classes"):
        lessons.lessons(asked, [taught[0], replace(taught[1], gold=1)])


def test_prompts_without_demonstrations_are_refused(tokenizer, taught):
    with pytest.raises(PromptError, match="example 0 has no demonstrations"):
        lessons.lessons(prompts_of(tokenizer, (), ASKED), taught)


def test_a_query_without_k_shot_prompt_where_others_have_one_is_refused(asked, taught, deeper):
    with pytest.raises(PromptError, match=r"2 of the 3 examples \[0, 1, 2\], seed 3, have a k-shot prompt"):
        lessons.lessons(asked, taught, deeper[:2])


def test_k_shot_prompts_can_show_what_every_class_has(asked, taught, lesson):
    assert lessons.k_shots([lesson]) == [2]
    (more,) = lessons.lessons(asked, [replace(taught[n % 2], example=n) for n in range(5)])
    assert lessons.k_shots([more]) == [3, 2], "class 0 has one shown and two taught, class 1 one more"
    assert lessons.k_shots([more, lesson]) == [2], "what all lessons have"


def test_shots_are_demonstrations_per_class(lesson):
    assert [lessons.shots(lesson.group), lessons.shots(lesson.kshot[0])] == [1, 2]


def test_the_largest_number_that_fits_every_query_is_taken(tokenizer):
    choices = [(k, [Draft(SST2, SHOWN * k, query, 3) for query in ASKED]) for k in (3, 2)]
    lengths = [max(len(prompt.ids) for prompt in prompts_of(tokenizer, SHOWN * k, ASKED)) for k in (3, 2)]
    found, said = lessons.fitting(Encoder(tokenizer, lengths[0]), choices)
    assert len(found[0].anchors) == 6
    room = f"the longest prompt has {lengths[0]} of at most {lengths[0]} tokens."
    assert said == f"k-shot arm: 3 demonstrations per class; {room}"
    found, said = lessons.fitting(Encoder(tokenizer, lengths[0] - 1), choices)
    assert [len(prompt.anchors) for prompt in found] == [4] * 3
    assert f"3 demonstrations per class do not fit: task 'sst2', example 2, seed 3: {lengths[0]} tokens" in said
    found, said = lessons.fitting(Encoder(tokenizer, lengths[1] - 1), choices)
    assert found == []
    assert f"{lengths[1]} tokens" in said
    assert "There is no k-shot arm" in said


# --- tables ---


def test_the_tables_hold_every_query_and_arm_every_factor_and_every_step(model, lesson, deeper):
    found = reweighting.reweighting(model, lesson, epochs=2, learning_rate=0.1)
    assert list(found) == list(reweighting.TABLES)
    for name, frame in found.items():
        assert {column: str(kind) for column, kind in frame.dtypes.items()} == reweighting.TABLES[name]
    results, beta, losses = found.values()
    ready = prepared(model, lesson.training)
    trained = train(model, ready, order=lesson.group.chance("training order"), epochs=2, learning_rate=0.1)
    whole = collate(lesson.group.prompts)
    with editing(model, Scale(whole.target, whole.anchors, trained.beta), range(3)):
        changed = passes.answer(model, whole).argmax(-1)
    want = {
        "vanilla": (passes.answer(model, whole).argmax(-1), 1),
        "beta": (changed, 1),
        "kshot": (passes.answer(model, collate(deeper)).argmax(-1), 2),
    }
    for arm, (predicted, shots) in want.items():
        rows = results[results["arm"] == arm]
        assert rows["example"].tolist() == [0, 1, 2]
        assert rows["predicted"].tolist() == predicted.tolist()
        assert rows["gold"].tolist() == [1, 0, -1]
        assert rows["correct"].tolist() == (predicted == torch.tensor([1, 0, -1])).tolist()
        assert set(rows["shots"]) == {shots}
    assert set(results["seed"]) == set(beta["seed"]) == set(losses["seed"]) == {3}
    assert beta["beta"].tolist() == trained.beta.flatten().tolist()
    last = beta.iloc[-1]
    assert (last["layer"], last["head"], last["demo"], last["label"]) == (2, 1, 1, 0)
    assert losses["loss"].tolist() == trained.losses["loss"].tolist()
    assert losses["step"].tolist() == [0, 1, 0, 1]


def test_a_lesson_without_k_shot_prompts_has_two_arms(model, lesson):
    found = reweighting.reweighting(model, replace(lesson, kshot=()), epochs=1)
    assert found["results"]["arm"].tolist() == ["vanilla", "beta"] * 3


def test_small_batches_of_queries_change_nothing(model, lesson):
    one, many = (reweighting.reweighting(model, lesson, epochs=1, batch_tokens=n) for n in (1, 4096))
    pd.testing.assert_frame_equal(one["results"], many["results"])


def test_a_query_that_is_not_finite_costs_only_itself(tokenizer, lesson):
    broken = random_model()
    only, *_ = (
        set(lesson.group.prompts[0].ids)
        - {i for prompt in lesson.group.prompts[1:] for i in prompt.ids}
        - {i for prompt in lesson.training.prompts for i in prompt.ids}
    )
    broken.model.embed.W_E[only] = torch.nan
    parts = passes.each(partial(reweighting.reweighting, broken, epochs=1), [lesson])
    kept = next(parts)["results"]
    assert set(kept["example"]) == {1, 2}
    assert set(kept["arm"]) == {"vanilla", "beta", "kshot"}
    with pytest.raises(passes.NotFiniteError, match=r"label logits of examples \[0\] are not finite"):
        next(parts)


def test_training_that_diverges_leaves_its_tables_in_the_folder(model, lesson, tmp_path):
    session = batch.Session(store.Run(tmp_path / "3_1_reweighting" / "key"))
    session.folder.mkdir(parents=True)
    again = replace(lesson, number=1)
    calls = iter([0.01, 1000.0])

    def analysis(each: lessons.Lesson) -> dict[str, pd.DataFrame]:
        return reweighting.reweighting(model, each, epochs=2, learning_rate=next(calls))

    with pytest.raises(DivergedError, match=r"learning_rate=1000\.0"):
        session.gather_tables(passes.over(analysis), [lesson, again], reweighting.TABLES)
    written = {path.stem.removesuffix(".incomplete"): pd.read_parquet(path) for path in session.folder.iterdir()}
    assert sorted(written) == [f"{name}-0000{n}" for name in ("beta", "losses", "results") for n in (0, 1)]
    assert all(session.target.parts(name, 2) == {0} for name in reweighting.TABLES), "the second does not count as done"
    assert set(written["results-00000"]["arm"]) == {"vanilla", "beta", "kshot"}
    assert set(written["results-00001"]["arm"]) == {"vanilla", "kshot"}
    assert len(written["losses-00001"]) == 1
    assert (written["beta-00001"]["beta"] == 0).all()


def test_tables_of_all_lessons_are_gathered_into_one_each(model, lesson, tmp_path):
    session = batch.Session(store.Run(tmp_path / "3_1_reweighting" / "key"))
    session.folder.mkdir(parents=True)
    learn = partial(reweighting.reweighting, model, epochs=1)
    whole = session.gather_tables(passes.over(learn), [replace(lesson, number=n) for n in (0, 1)], reweighting.TABLES)
    alone = learn(lesson)
    for name, frame in whole.items():
        assert len(frame) == 2 * len(alone[name])
        pd.testing.assert_frame_equal(pd.read_parquet(session.folder / f"{name}.parquet"), frame)
    assert whole["results"]["example"].is_monotonic_increasing
    with pytest.raises(store.StoreError, match="table 'results' has no rows"):
        session.gather_tables(passes.over(learn), [], reweighting.TABLES)


# --- what is said of them ---


def scores(*rows: tuple[int, str, float, float], n: int = 100) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["seed", "arm", "accuracy", "macro_f1"])
    return found.assign(majority=0.25, n=n, class_counts="")


def test_the_paper_holds_where_reweighting_is_clearly_higher_and_in_most_seeds():
    first = [(1, "vanilla", 0.5, 0.4), (1, "beta", 0.8, 0.5), (1, "kshot", 0.9, 0.5)]
    second = [(2, "vanilla", 0.5, 0.4), (2, "beta", 0.7, 0.5), (2, "kshot", 0.1, 0.5)]
    told = reweighting.stated(scores(*first, *second))
    # 200 queries: twice the square root of (0.75 * 0.25 + 0.5 * 0.5) / 200
    baseline = "always the commonest class: 0.250"
    assert (
        told["found"][0] == f"0.750 against 0.500, where up to 0.094 may be chance; higher in 2 of 2 seeds; {baseline}"
    )
    assert told["found"][1] == "0.500 against 0.400, where up to 0.094 may be chance; higher in 2 of 2 seeds"
    assert told["found"][2].startswith("0.750 against 0.500, where up to 0.094 may be chance; higher in 1 of 2 seeds")
    assert told["holds"].tolist() == [True, True, False, False], "one lucky seed does not count, nor a tie"
    few = reweighting.stated(scores(*first, *second, n=20))
    assert few["holds"].tolist() == [True, False, False, False], "with 40 queries 0.1 may be chance"


def test_the_papers_own_table_holds():
    means = {"vanilla": 0.5756, "kshot": 0.604, "beta": 0.6092}  # TREC, 500 queries, the closest of its tasks
    rows = [(seed, arm, share, share) for seed in range(5) for arm, share in means.items()]
    told = reweighting.stated(scores(*rows, n=500))
    assert told["holds"].tolist() == [True, True, False, False], "0.5 points above 5-shot may be chance"


def test_arms_that_are_not_there_are_not_spoken_of():
    told = reweighting.stated(scores((1, "vanilla", 0.5, 0.4), (1, "beta", 0.8, 0.4)))
    assert told["claim"].tolist() == [
        "re-weighting beats the prompt as it is in accuracy",
        "re-weighting beats the prompt as it is in macro-F1",
    ]
    assert reweighting.stated(scores()).empty


def test_mean_losses_are_per_epoch_and_average_lessons():
    losses = pd.DataFrame(
        {"seed": 1, "group": [0, 0, 1, 1], "epoch": 0, "step": [0, 1, 0, 1], "loss": [1.0, 2.0, 3.0, 6.0]}
    )
    assert reweighting.mean_losses(losses)["loss"].tolist() == [3.0]  # of 1.5 and 4.5
    assert reweighting.mean_losses(losses, as_published=True)["loss"].tolist() == [6.0]  # of 3 and 9
    with pytest.raises(ValueError, match="one step only"):
        reweighting.mean_losses(losses[losses["step"] == 0], as_published=True)
