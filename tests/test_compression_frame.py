"""Section 3.2: the rows of the frame, what the paper states, and what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from compression_helpers import DRAFTS, KINDS, after, encoded, undecided, whole
from conftest import random_model

from anchorlens import metrics, passes
from anchorlens.analyses import compression
from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, groups
from anchorlens.drafts import without_texts
from anchorlens.hooks import Site, watching
from anchorlens.passes import NotFiniteError
from anchorlens.prompts import Prompt


@pytest.fixture(scope="module")
def group(tokenizer) -> Group:
    (one,) = groups(encoded(tokenizer))
    return one


@pytest.fixture(scope="module")
def texts(tokenizer) -> list[Prompt]:
    return encoded(tokenizer, [without_texts(draft) for draft in DRAFTS])


@pytest.fixture(scope="module", params=KINDS)
def lens(request, group):
    return undecided(request.param, group)


def test_every_arm_has_one_row_for_each_prompt_rule_and_draw(lens, group, texts):
    frame = compression.compression(lens, group, texts, draws=3, batch_tokens=50)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == compression.COLUMNS
    counts = frame.groupby(["arm", "positions"])["draw"].agg([len, "nunique"])
    ruled = {(arm, rule): (16, 1) for arm in (*kept.ROLES, "hidden_random_top") for rule in compression.POSITIONS}
    random = {("hidden_random", rule): (48, 3) for rule in compression.POSITIONS}
    want = {("icl", "none"): (16, 1), ("text_anchor", "none"): (16, 1), **ruled, **random}
    assert {key: tuple(row) for key, row in zip(counts.index, counts.to_numpy().tolist(), strict=True)} == want
    assert not frame.duplicated(["example", "arm", "positions", "draw"]).any()
    assert (frame["seed"] == 7).all()
    drawn = frame["arm"].str.startswith("hidden_random")
    assert ((frame["draw"] >= 0) == drawn).all()


def test_each_row_is_what_its_memory_answers_against_the_whole_prompt(lens, group, texts):
    frame = compression.compression(lens, group, texts, draws=2, batch_tokens=50)
    memory, clean = passes.demonstrate(lens, group).memory, whole(lens, group)
    (as_text,) = groups(texts)
    sets = {"hidden_random": [kept.with_random(group, kept.draw(group, n)) for n in range(2)]}
    for (arm, rule, draw), rows in frame.groupby(["arm", "positions", "draw"]):
        if arm == "icl":
            logits, left = clean, group.length
        elif arm == "text_anchor":
            logits, left = whole(lens, as_text), as_text.length
        else:
            which = sets["hidden_random"][draw] if draw >= 0 else kept.by_role(group, arm)
            first = group.length if rule == "continue" else 0
            logits, left = after(lens, group, lens.keep(memory, which, first, longest=group.longest), 4), len(which)
        predicted = logits[:, group.labels].argmax(-1)
        same = predicted == clean[:, group.labels].argmax(-1)
        top, clean_top = (each.topk(5).indices.tolist() for each in (logits, clean))
        overlap = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in zip(top, clean_top, strict=True)]
        assert rows["example"].tolist() == list(range(16))
        assert rows["predicted"].tolist() == predicted.tolist()
        assert rows["label_loyal"].tolist() == same.tolist()
        np.testing.assert_allclose(rows["word_loyalty"], overlap, rtol=0, atol=1e-15)
        gold = [-1 if prompt.gold is None else prompt.gold for prompt in group.prompts]
        assert rows["gold"].tolist() == gold
        assert rows["correct"].tolist() == [a == b for a, b in zip(predicted.tolist(), gold, strict=True)]
        assert set(rows["tokens_kept"]) == {left}


def test_whole_prompts_are_loyal_to_themselves(lens, group):
    icl = compression.compression(lens, group, draws=0).query("arm == 'icl'")
    assert icl["label_loyal"].all()
    assert (icl["word_loyalty"] == 1).all()
    assert not icl[icl["gold"] == -1]["correct"].any(), "an unknown class is never met"


def test_the_top_arm_is_the_first_of_the_most_loyal_draws(lens, group):
    frame = compression.compression(lens, group, draws=8, positions="restart")
    loyalty = frame[frame["arm"] == "hidden_random"].groupby("draw")["label_loyal"].mean()
    assert len(set(loyalty)) > 1, "all draws alike test nothing"
    best = int(loyalty[loyalty == loyalty.max()].index.min())
    top = frame[frame["arm"] == "hidden_random_top"].assign(arm="hidden_random").reset_index(drop=True)
    same = frame[(frame["arm"] == "hidden_random") & (frame["draw"] == best)].reset_index(drop=True)
    pd.testing.assert_frame_equal(top, same.astype(compression.COLUMNS), check_dtype=False)


def test_demonstrations_are_run_once_and_queries_once_for_each_arm(lens, group, texts):
    seen = [0, 0, 0]

    def count(layer: int, resid: torch.Tensor) -> None:
        seen[layer] += resid.shape[0] * resid.shape[1]

    with watching(lens, Site.RESID_PRE, range(3), count):
        compression.compression(lens, group, texts, draws=3, batch_tokens=1)  # one query a batch: no padding
    asked = sum(len(prompt.ids) - group.length for prompt in group.prompts)
    (as_text,) = groups(texts)
    passes_of_queries = 1 + 2 * (1 + 3 + 2) + 1  # whole; under each rule anchors, draws, our own two; as text
    assert seen == [group.length + as_text.length + passes_of_queries * asked] * 3


def test_as_published_positions_restart_for_learned_and_continue_for_rotary_but_always_continue_for_the_best(group):
    for kind, rule in (("learned", "restart"), ("rotary", "continue")):
        frame = compression.compression(random_model(**KINDS[kind]), group, draws=2, as_published=True)
        assert set(frame.query("arm in ('hidden_anchor', 'hidden_random', 'label_only')")["positions"]) == {rule}
        assert set(frame.query("arm == 'hidden_random_top'")["positions"]) == {"continue"}
    frame = compression.compression(random_model(), group, draws=2, positions="restart", as_published=True)
    assert set(frame.query("arm == 'hidden_random_top'")["positions"]) == {"restart"}


def test_as_published_the_sets_that_the_best_is_picked_from_grow_from_draw_to_draw(lens, group):
    frame = compression.compression(lens, group, draws=6, positions="continue", as_published=True)
    memory, clean = passes.demonstrate(lens, group).memory, whole(lens, group)[:, group.labels].argmax(-1)
    loyalty, sizes, chosen = [], [], set()
    for number in range(6):
        chosen |= set(kept.draw(group, number))
        left = kept.with_random(group, chosen)
        logits = after(lens, group, lens.keep(memory, left, group.length, longest=group.longest), 4)[:, group.labels]
        loyalty.append((logits.argmax(-1) == clean).double().mean().item())
        sizes.append(len(left))
    top = frame[frame["arm"] == "hidden_random_top"]
    best = loyalty.index(max(loyalty))
    assert sizes[-1] > sizes[0]
    assert (set(top["draw"]), set(top["tokens_kept"])) == ({best}, {sizes[best]})
    assert top["label_loyal"].mean() == pytest.approx(loyalty[best])
    assert set(frame[frame["arm"] == "hidden_random"]["tokens_kept"]) == {sizes[0]}


def test_without_texts_and_draws_there_are_no_such_arms(lens, group):
    frame = compression.compression(lens, group, draws=0)
    assert set(frame["arm"]) == {"icl", *kept.ROLES}


def test_a_group_without_some_prompts_gives_the_same_rows_for_the_others(lens, group, texts):
    rest = group.without([0, 3])
    assert rest is not None
    every = compression.compression(lens, group, texts, draws=2).query("arm != 'hidden_random_top'")
    fewer = compression.compression(lens, rest, texts, draws=2).query("arm != 'hidden_random_top'")
    same = every[~every["example"].isin([0, 3])]
    pd.testing.assert_frame_equal(fewer.reset_index(drop=True), same.reset_index(drop=True))


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"positions": "zero"}, "positions='zero': it may be 'both', 'restart' or 'continue'"),
        ({"draws": -1}, "draws=-1: give the number of random sets, or 0"),
        ({"chosen": [[1]]}, r"chosen\[0\] is \[1\]: expected one text position for each of 2 anchors"),
    ],
)
def test_parameters_out_of_range_are_refused(model, group, given, message):
    with pytest.raises(ValueError, match=message):
        compression.compression(model, group, **given)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"positional_embedding_type": "alibi"}, "kind 'alibi'"),
        ({"use_local_attn": True, "attn_types": ["global", "local", "local"], "window_size": 24}, "local attention"),
    ],
)
def test_a_model_whose_tokens_cannot_be_kept_exactly_is_refused(group, changes, kind):
    with pytest.raises(ValueError, match=f"{kind}.*: keeping some tokens alone is exact"):
        compression.compression(random_model(**changes), group)


def test_texts_must_hold_every_prompt_with_one_set_of_demonstrations(model, group, texts):
    with pytest.raises(
        ValueError, match=r"texts has no prompt for examples \[0, 15\] of seed 7: give the same prompts"
    ):
        compression.compression(model, group, texts[1:-1], draws=0)
    other = [dataclasses.replace(texts[0], labels=texts[0].labels[::-1]), *texts[1:]]
    with pytest.raises(ValueError, match="texts has 2 sets of demonstrations for the prompts of seed 7"):
        compression.compression(model, group, other, draws=0)


def test_logits_that_are_not_finite_name_their_prompts_and_the_others_are_kept(group):
    broken = random_model()
    spoiled = group.prompts[15].ids[group.length + 2]
    with torch.no_grad():
        broken.model.embed.W_E[spoiled] = torch.nan
    wrong = [prompt.example for prompt in group.prompts if spoiled in prompt.ids[group.length :]]
    frames = passes.each(lambda part: compression.compression(broken, part, draws=1), [group])
    frame = next(frames)
    assert sorted(set(frame["example"])) == [n for n in range(16) if n not in wrong]
    with pytest.raises(NotFiniteError, match=r"not finite in torch\.float64, seed 7, from the embedding") as raised:
        next(frames)
    assert sorted(raised.value.examples) == wrong


def test_settings_have_a_name_of_their_own_so_that_each_can_be_scored(lens, group, texts):
    frame = compression.compression(lens, group, texts, draws=2)
    named = compression.settings(frame)
    ruled = [f"{arm} {rule}" for rule in ("restart", "continue") for arm in (*kept.ROLES, "hidden_random_top")]
    random = [f"hidden_random {rule} {draw}" for rule in ("restart", "continue") for draw in range(2)]
    assert set(named["arm"]) == {"icl", "text_anchor", *ruled, *random}
    scores = metrics.score_table(named, 2)
    assert len(scores) == 2 + 8 + 4
    assert set(scores["n"]) == {13}, "3 of 16 are of unknown class"
    pd.testing.assert_frame_equal(named.drop(columns="arm"), frame.drop(columns="arm"))


# --- what the paper states ---


def rows_of(arm: str, values: list[float], rule: str = "continue", draws: int = 1, words: float = 0.0) -> pd.DataFrame:
    """One prompt for each value of label loyalty; every draw the same."""
    drawn = range(draws) if draws > 1 else [-1]
    one = {"seed": 1, "gold": 0, "predicted": 0, "arm": arm, "positions": rule, "correct": True, "tokens_kept": 1}
    frame = [
        {**one, "example": n, "draw": draw, "label_loyal": bool(value), "word_loyalty": words}
        for draw in drawn
        for n, value in enumerate(values)
    ]
    return pd.DataFrame(frame)[list(compression.COLUMNS)].astype(compression.COLUMNS)


def test_a_claim_holds_where_the_difference_is_above_twice_its_standard_error():
    anchor = rows_of("hidden_anchor", [1, 1, 1, 1], words=0.5)
    # 1 - (0, 0, 0, 1): mean 0.75, standard deviation 0.5, so twice the error is 0.5; 1 - (0, 1, 1, 1): 0.25 against 0.5
    clear, unclear = rows_of("text_anchor", [0, 0, 0, 1], "none"), rows_of("hidden_random", [0, 1, 1, 1], draws=2)
    said = compression.stated(pd.concat([anchor, clear, unclear])).set_index("claim")
    assert said["found"].tolist()[:2] == [
        "1.00 to 0.25; difference +0.75 ± 0.50",
        "1.00 to 0.75; difference +0.25 ± 0.50",
    ]
    assert said["holds"].tolist() == [True, False, True, True], "0.5 to 0 of every prompt in word loyalty"
    assert said.index[0] == (
        "label loyalty: hidden_anchor above text_anchor, positions continue (table 2: 79 to 51 and 89 to 53 %)"
    )
    assert said.index[3] == (
        "word loyalty: hidden_anchor above hidden_random, positions continue (table 2: 62 to 6 and 75 to 2 %)"
    )


def test_draws_are_averaged_within_each_prompt():
    anchor, random = rows_of("hidden_anchor", [1, 1]), rows_of("hidden_random", [0, 0], draws=2)
    half = pd.concat([random.query("draw == 0"), random.query("draw == 1").assign(label_loyal=True)])
    found = compression.stated(pd.concat([anchor, half]))["found"].iloc[0]
    assert found == "1.00 to 0.50; difference +0.50 ± 0.00"


def test_our_own_arms_are_named_as_such_and_rules_are_compared_one_by_one():
    both = [rows_of(arm, [1, 0], rule) for arm in kept.ROLES for rule in compression.POSITIONS]
    said = compression.stated(pd.concat(both))
    assert said["claim"].tolist() == [
        f"label loyalty: hidden_anchor above {what}, positions {rule} ({source})"
        for rule in ("restart", "continue")
        for what, source in (
            ("the template alone", "our own arm, not in the paper"),
            ("label words alone", "section 3.2, no numbers"),
        )
    ]
    assert not said["holds"].any(), "equals are not above each other"


def test_a_single_prompt_shows_nothing_and_a_best_draw_with_positions_of_its_own_is_compared_all_the_same():
    frame = pd.concat([rows_of("hidden_anchor", [1], "restart"), rows_of("hidden_random_top", [0], "continue")])
    said = compression.stated(frame)
    assert said["found"].iloc[0] == "1.00 to 0.00; difference +1.00 from one prompt, which shows nothing"
    assert not said["holds"].any()


def test_stated_takes_what_the_analysis_gives(lens, group, texts):
    said = compression.stated(compression.compression(lens, group, texts, draws=2))
    assert len(said) == 2 * (5 + 3)
    assert {name: str(kind) for name, kind in said.dtypes.items()} == {"claim": "str", "found": "str", "holds": "bool"}
