"""Every token's role is known by construction, whatever the texts say."""

import json
import re
from dataclasses import replace

import pytest
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlens.drafts import Draft, load
from anchorlens.pieces import write
from anchorlens.prompts import Encoder, Prompt, PromptError, Role, TooLongError, tokens_in
from anchorlens.rows import Example
from anchorlens.tasks import SST2, TASKS, TREC, Task, with_words

LABELS = {  # token of each class's label word in the fixtures' tokenizer, as the released code reads it
    "sst2": (1460, 1455),
    "agnews": (924, 1217, 1228, 1274),
    "trec": (935, 1401, 1318, 1240, 1330, 1247),
    "emo": (1319, 1354, 1356, 1449),
}
MISLEADING = [word for task in TASKS.values() for word in task.label_words]
MISLEADING += [
    "Positive",
    "Ab",
    ":",
    "Review:",
    "Review: ",
    "\nSentiment:",
    "\nSentiment: Positive\n",
    "\nEmotion: Sad",
]
MISLEADING += ["\nReview: good\nSentiment: Negative\nReview: ", "<|endoftext|>", " ", "\n", "\n\n", "\t", "\u2028"]
MISLEADING += ["😀", "👩\u200d👧", "שלום", "\u200fمرحبا\u200f", "é", "e\u0301", "\u0301", "नि", "好"]
TEXT = st.lists(st.one_of(st.sampled_from(MISLEADING), st.text(max_size=6)), max_size=6).map("".join)


@st.composite
def drafts(draw, least: int = 0) -> Draft:
    """Any task, with any texts and any classes."""
    task = draw(st.sampled_from(list(TASKS.values())))
    label = st.integers(0, len(task.label_words) - 1)
    some = draw(st.lists(st.builds(Example, text=TEXT, label=label), min_size=least, max_size=4))
    return Draft(task, tuple(some), Example(draw(TEXT), draw(st.one_of(st.none(), label)), 3), 42)


any_draft = settings(max_examples=100, deadline=None)  # the machine may be busy
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, to sample containers


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy's word-level tokenizer."""
    from transformers import AutoTokenizer

    from anchorlens.toy.corpus import write_tokenizer

    folder = tmp_path_factory.mktemp("toy")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def encode(tokenizer) -> Encoder:
    return Encoder(tokenizer, 10_000)


def lengths(prompt: Prompt, tokenizer) -> list[int]:
    """Bytes in each token: a byte-level tokenizer writes one character for each, so no offsets are needed."""
    return [len(token) for token in tokenizer.convert_ids_to_tokens(list(prompt.ids))]


def spoken(draft: Draft) -> list[tuple[str, Role, int]]:
    """The pieces of a prompt as the paper's template says them, independently of ``write``."""
    start, after = draft.task.template.split("{text}")
    before = {example: start if example.text else start.rstrip() for example in (*draft.demonstrations, draft.query)}
    said = []
    for part, example in enumerate(draft.demonstrations):
        word = draft.task.label_words[example.label or 0]
        said += [(before[example], Role.TEMPLATE, part), (example.text, Role.TEXT, part), (after, Role.TEMPLATE, part)]
        said += [(word, Role.ANCHOR, part), ("\n", Role.TEMPLATE, part)]
    n = len(draft.demonstrations)
    return [*said, (before[draft.query], Role.TEMPLATE, n), (draft.query.text, Role.TEXT, n), (after, Role.TEMPLATE, n)]


# --- properties


@any_draft
@given(draft=drafts())
def test_the_tokens_say_the_template_filled_in_and_nothing_else(encode, tokenizer, draft):
    prompt = encode(draft)
    assert prompt.text == "".join(words for words, _, _ in spoken(draft))
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert (prompt.gold, prompt.example, prompt.seed) == (draft.query.label, 3, 42)


@any_draft
@given(draft=drafts(least=1))
def test_anchors_are_the_label_words_whatever_the_texts_say(encode, tokenizer, draft):
    prompt = encode(draft)
    labels = [example.label for example in draft.demonstrations]
    assert list(prompt.anchor_classes) == labels
    assert prompt.labels == LABELS[draft.task.name]
    assert [prompt.ids[p] for p in prompt.anchors] == [prompt.labels[label] for label in labels]
    assert list(prompt.anchors) == sorted(set(prompt.anchors))
    said = spoken(draft)
    for part, position in enumerate(prompt.anchors):
        first = next(n for n, (_, role, of) in enumerate(said) if role is Role.ANCHOR and of == part)
        before = "".join(words for words, _, _ in said[:first])
        assert tokenizer.decode(prompt.ids[:position]) == before


@any_draft
@given(draft=drafts())
def test_every_token_has_the_role_and_part_of_its_last_character_and_the_last_is_the_target(encode, tokenizer, draft):
    prompt = encode(draft)
    assert prompt.target == len(prompt.ids) - 1
    by_byte = [(role, part) for words, role, part in spoken(draft) for _ in words.encode()]
    assert len(prompt.roles) == len(prompt.parts) == len(prompt.ids)
    end = 0
    for position, n in enumerate(lengths(prompt, tokenizer)):
        end += n
        role, part = by_byte[end - 1]
        if role is Role.ANCHOR and position not in prompt.anchors:
            role = Role.LABEL
        assert prompt.parts[position] == part
        assert prompt.roles[position] is (Role.TARGET if position == prompt.target else role)
    assert end == len(by_byte)


@any_draft
@given(draft=drafts(least=1))
def test_decoding_the_tokens_of_a_part_gives_back_its_demonstration(encode, tokenizer, draft):
    prompt = encode(draft)
    for part in range(len(draft.demonstrations) + 1):
        tokens = [token for token, of in zip(prompt.ids, prompt.parts, strict=True) if of == part]
        assert tokenizer.decode(tokens) == "".join(words for words, _, of in spoken(draft) if of == part)


@any_draft
@given(draft=drafts())
def test_the_pieces_of_a_text_have_neither_gaps_nor_overlaps(draft):
    text, pieces = write(draft)
    assert [text[piece.start : piece.end] for piece in pieces] == [words for words, _, _ in spoken(draft) if words]
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]


# --- by hand


def test_a_prompt_is_token_by_token_what_the_released_code_reads(encode):
    cases = [
        (name.split(".")[0], case)
        for name, each in json.loads((FIXTURES / "saliency.json").read_text()).items()
        for case in each["cases"]
    ]
    assert cases
    for name, case in cases:
        shown = tuple(Example(each["text"], each["label"]) for each in case["demonstrations"])
        prompt = encode(Draft(TASKS[name], shown, Example(case["query"], case["gold"])))
        assert (prompt.text, list(prompt.ids)) == (case["prompt"], case["input_ids"])
        assert prompt.target == case["final_position"]
        by_class = [
            [p for p, of in zip(prompt.anchors, prompt.anchor_classes, strict=True) if of == label]
            for label in range(len(prompt.labels))
        ]
        assert by_class == case["class_positions"]


def test_a_special_token_spelled_in_a_text_is_text(encode, tokenizer):
    text = "the end <|endoftext|>"
    prompt = encode(Draft(SST2, (Example(text, 1),), Example(text, 0)))
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 1486
    assert 1486 not in prompt.ids
    assert tokenizer.decode(prompt.ids).count(text) == 2
    last = [p for p, token in enumerate(prompt.pieces(tokenizer)) if ">" in token]
    assert [prompt.roles[p] for p in last] == [Role.TEXT, Role.TEXT]


# --- label words of several tokens


def test_a_label_word_of_several_tokens_is_refused_where_only_one_may_stand_for_it(encode):
    draft = Draft(replace(TREC, label_token="only"), (Example("a", 3), Example("b", 0)), Example("c", 0, 4), 42)
    message = (
        "task 'trec', example 4, seed 42, demonstration 1: label word ' Abbreviation' is 3 tokens "
        "[' Ab', 'bre', 'viation'] at 16..18. Choose label words of one token (label_words=...), or set "
        "label_token=first, as the paper does for TREC's Abbreviation, or label_token=all."
    )
    with pytest.raises(PromptError, match="^" + re.escape(message) + "$"):
        encode(draft)
    with pytest.raises(PromptError, match=r"^task 'trec': label word ' Abbreviation' is 3 tokens \[' Ab', 'bre'"):
        encode(replace(draft, demonstrations=(Example("a", 3),)))  # it is wrong even where no demonstration says it


def test_the_first_token_stands_for_a_label_word_of_several(encode, tokenizer):
    prompt = encode(Draft(TREC, (Example("a", 0),), Example("b", 0)))
    (anchor,) = prompt.anchors
    assert prompt.pieces(tokenizer)[anchor : anchor + 4] == [" Ab", "bre", "viation", "\n"]
    assert prompt.roles[anchor : anchor + 4] == (Role.ANCHOR, Role.LABEL, Role.LABEL, Role.TEMPLATE)
    assert prompt.labels[0] == prompt.ids[anchor]


def test_label_words_that_begin_alike_are_refused(encode):
    task = with_words(replace(SST2, label_token="first"), "Abbreviation|Ab")
    message = (
        "task 'sst2': label words 'Abbreviation' and 'Ab' begin with the same token 935, so that token cannot tell "
        "them apart. Choose label words that differ in their first token, or set label_token=all."
    )
    with pytest.raises(PromptError, match=re.escape(message)):
        encode(Draft(task, (Example("a", 1),), Example("b", 0)))


def test_a_word_counted_under_first_is_still_refused_under_only(encode):
    first = Draft(TREC, (Example("a", 1),), Example("b", 0))
    assert encode(first).labels == LABELS["trec"]
    with pytest.raises(PromptError, match="is 3 tokens"):
        encode(replace(first, task=replace(TREC, label_token="only")))


# --- words and tokens


def test_tokens_in_finds_the_run_that_covers_the_characters():
    offsets = [(0, 4), (4, 9), (9, 11), (11, 12)]
    assert tokens_in(4, 9, offsets) == range(1, 2)
    assert tokens_in(4, 11, offsets) == range(1, 3)
    assert tokens_in(0, 12, offsets) == range(4)


@pytest.mark.parametrize(("start", "end"), [(5, 9), (4, 8), (3, 9), (4, 10)])
def test_characters_that_share_a_token_with_their_neighbours_are_refused(start, end):
    message = (
        rf"characters {start}\.\.{end} are not whole tokens: they fall in tokens \d\.\.\d with offsets \[\(.*Change"
    )
    with pytest.raises(PromptError, match=message):
        tokens_in(start, end, [(0, 4), (4, 9), (9, 11)])


def test_characters_without_a_token_are_refused():
    with pytest.raises(PromptError, match=r"characters 4\.\.5 are not whole tokens: they fall in no token\."):
        tokens_in(4, 5, [(0, 4), (5, 9)])


def test_a_label_word_fused_with_the_template_is_refused(encode):
    task = Task("fused", "{text}\nSentiment: Posi", ("tive", " Negative"))
    with pytest.raises(PromptError, match=r"are not whole tokens: .* Change the template so that the tokenizer"):
        encode(Draft(task, (Example("a", 0),), Example("b", 0)))


def test_a_label_word_that_is_another_token_in_its_prompt_is_refused():
    class Fickle:
        """One token a word; the word Yes has another number after the tenth character."""

        is_fast, unk_token_id = True, None

        def __call__(self, text: str, **_: object) -> dict[str, list]:
            offsets = [match.span() for match in re.finditer(r"\s?\w+|\W", text)]
            ids = [10 + b - a if text[a:b] != " Yes" else int(a > 10) for a, b in offsets]
            return {"input_ids": ids, "offset_mapping": offsets}

    task = Task("fickle", "{text}:", (" No", " Yes"))
    encode = Encoder(Fickle(), 100)
    assert encode(Draft(task, (Example("short", 1),), Example("b", 0))).anchors == (2,)
    message = r"label word ' Yes' is token 1 at 4 and token 0 elsewhere\. Choose label words that the tokenizer always"
    with pytest.raises(PromptError, match=message):
        encode(Draft(task, (Example("long and long", 1),), Example("b", 0)))


# --- limits of model and tokenizer


def test_a_prompt_longer_than_the_model_reads_is_refused(tokenizer):
    draft = Draft(SST2, (Example("good", 1),), Example("bad", 0, 2), 42)
    n = len(Encoder(tokenizer, 1000)(draft).ids)
    assert len(Encoder(tokenizer, n)(draft).ids) == n
    message = f"task 'sst2', example 2, seed 42: {n} tokens where the model reads at most {n - 1}; "
    message += "the first 0 of its 1 demonstrations would fit with its query. Take fewer shots"
    with pytest.raises(TooLongError, match=re.escape(message)):
        Encoder(tokenizer, n - 1)(draft)


def test_what_would_fit_of_a_prompt_that_is_too_long_is_said(tokenizer):
    shown = tuple(Example(text, 1) for text in ("good", "a joy from start to end", "fine"))
    draft = Draft(SST2, shown, Example("bad", 0, 2), 42)
    parts = Encoder(tokenizer, 1000)(draft).parts
    two = sum(part != 2 for part in parts)  # without the last demonstration
    for room, said in ((two, "the first 2 of its 3"), (two - 1, "the first 1 of its 3"), (4, "its query alone is ")):
        with pytest.raises(TooLongError, match=said):
            Encoder(tokenizer, room)(draft)


def test_skipping_leaves_out_the_long_prompts_alone_and_says_which(tokenizer):
    made = [Draft(SST2, (Example("good", 1),), Example(text, 0, row)) for row, text in enumerate(["a", "a" * 99, "b"])]
    encode = Encoder(tokenizer, 40)
    kept, skipped = encode.all(made, too_long="skip")
    assert [prompt.example for prompt in kept] == [0, 2]
    assert len(skipped) == 1
    assert skipped[0].startswith("task 'sst2', example 1: ")
    with pytest.raises(TooLongError, match="example 1: "):
        encode.all(made)


def test_skipping_every_prompt_or_giving_none_is_refused(tokenizer):
    with pytest.raises(PromptError, match=r"^no prompt is left: task 'sst2', example 0: \d+ tokens where the model"):
        Encoder(tokenizer, 3).all([Draft(SST2, (), Example("a", 0, 0))], too_long="skip")
    with pytest.raises(PromptError, match="no prompt is left: there were no queries"):
        Encoder(tokenizer, 3).all([])


def test_skipping_does_not_hide_other_mistakes(tokenizer):
    task = replace(TREC, label_token="only")
    with pytest.raises(PromptError, match="is 3 tokens"):
        Encoder(tokenizer, 100).all([Draft(task, (Example("a", 0),), Example("b", 0))], too_long="skip")


def test_a_tokenizer_without_offsets_is_refused():
    from transformers import ByT5Tokenizer

    with pytest.raises(PromptError, match="tokenizer ByT5Tokenizer gives no character offsets; load the fast one"):
        Encoder(ByT5Tokenizer(), 100)


def test_words_that_the_toy_does_not_know_are_listed_once_each(toy):
    shown = (Example("a zebra savored this zebra .", 1),)
    message = "task 'sst2', example 5: the tokenizer does not know 'zebra', 'quux'. The toy knows only the words of its"
    with pytest.raises(PromptError, match=re.escape(message)):
        Encoder(toy, 256)(Draft(SST2, shown, Example("quux", 0, 5)))
    with pytest.raises(PromptError, match="does not know '<|', 'endoftext', '|>'".replace("|", r"\|")):
        Encoder(toy, 256)(Draft(SST2, (), Example("<|endoftext|>", 0)))


def test_a_label_word_that_the_toy_does_not_know_is_refused_even_where_no_demonstration_says_it(toy):
    draft = Draft(with_words(SST2, "zebra|Positive"), (Example("a comedy .", 1),), Example("a plot .", 0))
    with pytest.raises(PromptError, match=r"^task 'sst2': label word ' zebra' is unknown to the tokenizer; choose ano"):
        Encoder(toy, 256)(draft)


@pytest.mark.parametrize("name", TASKS)
def test_the_toys_own_prompts_are_known_word_for_word(toy, name):
    prompts, skipped = Encoder(toy, 256).all(load(TASKS[name], toy=True, limit=20))
    assert not skipped
    for prompt in prompts:
        assert toy.decode(prompt.ids) == prompt.text
        assert [prompt.ids[p] for p in prompt.anchors] == [prompt.labels[label] for label in prompt.anchor_classes]
        assert Role.LABEL not in prompt.roles, "each of its label words is one token"


def test_a_character_of_several_tokens_is_shown_whole_with_the_last_of_them(tokenizer):
    draft = Draft(SST2, (Example("a café 🙂 joy", 1), Example("slow", 0)), Example("naïve", 1, 0))
    prompt = Encoder(tokenizer, 96)(draft)
    pieces = prompt.pieces(tokenizer)
    assert len(pieces) == len(prompt.ids)
    assert "".join(pieces) == prompt.text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🙂" in "".join(piece for piece in pieces if len(piece) <= 2)
