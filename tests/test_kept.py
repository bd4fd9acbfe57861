"""Which tokens are kept: by role, by hand, and never by what a text spells."""

import pytest
from test_batching import prompt_of

from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, groups
from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder, PromptError, Role
from anchorlens.rows import Example
from anchorlens.tasks import SST2, TREC


def group_of(tokenizer, *demonstrations: tuple[str, int], task=SST2, queries=("i laughed",), seed: int = -1) -> Group:
    shown = tuple(Example(*each) for each in demonstrations)
    drafts = [Draft(task, shown, Example(text, 0, row), seed) for row, text in enumerate(queries)]
    (group,) = groups([Encoder(tokenizer, 256)(draft) for draft in drafts])
    return group


@pytest.fixture
def group(tokenizer) -> Group:
    return group_of(tokenizer, ("a joy", 1), ("a slow drama", 0))


def said(tokenizer, group: Group, positions) -> str:
    return "".join(group.prompts[0].pieces(tokenizer)[position] for position in positions)


def test_each_arm_keeps_the_tokens_of_its_roles_with_the_newline_before_the_query(tokenizer, group):
    assert said(tokenizer, group, kept.by_role(group, "hidden_anchor").tolist()) == (
        "Review:\nSentiment: Positive\nReview:\nSentiment: Negative\n"
    )
    assert said(tokenizer, group, kept.by_role(group, "format_only").tolist()) == (
        "Review:\nSentiment:\nReview:\nSentiment:\n"
    )
    assert said(tokenizer, group, kept.by_role(group, "label_only").tolist()) == " Positive Negative"
    assert kept.by_role(group, "label_only").tolist() == group.anchors.tolist()
    assert group.roles[group.length - 1] is Role.TEMPLATE


def test_all_tokens_of_a_label_word_are_kept_and_the_random_arm_replaces_the_first_alone(tokenizer):
    group = group_of(tokenizer, ("what is nasa ?", 0), ("the name", 3), task=TREC)
    assert said(tokenizer, group, kept.by_role(group, "label_only").tolist()) == " Abbreviation Person"
    first = group.prompts[0].pieces(tokenizer)[int(group.anchors[0])]
    chosen = [among[0] for among in kept.candidates(group)]
    left = kept.with_random(group, chosen).tolist()
    assert len(left) == len(kept.by_role(group, "hidden_anchor"))
    assert said(tokenizer, group, left) == (
        f"Question: what\nAnswer Type:{' Abbreviation'.removeprefix(first)}\nQuestion: the\nAnswer Type:\n"
    )


def test_candidates_are_the_text_before_each_label_word_and_after_the_one_before(tokenizer, group):
    first, second = kept.candidates(group)
    assert said(tokenizer, group, first) == " a joy"
    assert said(tokenizer, group, second) == " a slow drama"


def test_a_text_that_spells_the_template_is_text(tokenizer):
    # "Review:" right after a newline is the template's own tokens; so is the label line
    spelling = "dull\nReview: a\nSentiment: Negative\nyes"
    group = group_of(tokenizer, (spelling, 0), ("fine", 1))
    own = "Review:\nSentiment: Negative\nReview:\nSentiment: Positive\n"
    assert said(tokenizer, group, kept.by_role(group, "hidden_anchor").tolist()) == own
    spelled = "Review:\nReview:\nSentiment: Negative\n\nSentiment: Negative\nReview:\nSentiment: Positive\n"
    published = kept.by_role(group, "hidden_anchor", as_published=True)
    assert said(tokenizer, group, published.tolist()) == spelled
    template = kept.by_role(group, "format_only", as_published=True)
    assert said(tokenizer, group, template.tolist()) == "Review:\nSentiment:\nReview:\nSentiment:\n", "our own arm"


def test_a_draw_takes_one_text_token_of_each_demonstration(group):
    for number in range(30):
        for position, among in zip(kept.draw(group, number), kept.candidates(group), strict=True):
            assert position in among
    assert len({tuple(kept.draw(group, number)) for number in range(30)}) > 3, "of 6 possible draws"


def test_a_draw_depends_on_seed_demonstrations_and_number_alone(tokenizer):
    shown = [("warm and funny from the first scene to the last", 1), ("a slow drama that never finds its feet", 0)]
    three = group_of(tokenizer, *shown, queries=("dull", "fine", "i laughed"), seed=3)
    fewer = three.without([0])
    assert fewer is not None
    draws = [kept.draw(three, number) for number in range(10)]
    assert [kept.draw(fewer, number) for number in range(10)] == draws
    other = group_of(tokenizer, *shown, queries=("dull",), seed=4)
    assert [kept.draw(other, number) for number in range(10)] != draws


def test_a_demonstration_without_text_cannot_give_a_random_token(tokenizer):
    group = group_of(tokenizer, ("a joy", 1), ("", 0))
    with pytest.raises(PromptError, match=r"demonstration 1 \(seed -1, before example 0\) has no text token"):
        kept.candidates(group)
    assert said(tokenizer, group, kept.by_role(group, "hidden_anchor").tolist()).endswith("Sentiment: Negative\n")


@pytest.mark.parametrize("chosen", [[[2]], [[2, 13], [2, 3]], [[0, 13]]], ids=["too few", "not its text", "template"])
def test_given_draws_must_be_one_text_token_for_each_anchor(group, chosen):
    with pytest.raises(ValueError, match=rf"chosen\[{len(chosen) - 1}\] is .*expected one text position for each of 2"):
        kept.check_chosen(group, chosen)
    kept.check_chosen(group, [[among[-1] for among in kept.candidates(group)]])


def test_positions_of_a_prompt_written_by_hand():
    made = prompt_of(0, 8)
    roles = (Role.TEXT, Role.TEMPLATE, Role.ANCHOR, Role.LABEL, Role.TEMPLATE, Role.TEXT, Role.TEMPLATE, Role.TARGET)
    prompt = type(made)(**{**vars(made), "roles": roles, "parts": (0, 0, 0, 0, 0, 1, 1, 1), "anchors": (2,)})
    group = Group((prompt,))
    assert kept.by_role(group, "hidden_anchor").tolist() == [1, 2, 3, 4]
    assert kept.by_role(group, "format_only").tolist() == [1, 4]
    assert kept.by_role(group, "label_only").tolist() == [2, 3]
    assert kept.candidates(group) == [[0]]
    assert kept.with_random(group, [0]).tolist() == [0, 1, 3, 4]
