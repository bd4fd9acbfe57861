"""Roles are known by construction with every kind of tokenizer, and start tokens stand where models expect them."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from anchorlens import passes, readings
from anchorlens.analyses import compression, isolation
from anchorlens.analyses.compression import kept
from anchorlens.analyses.information_flow import information_flow
from anchorlens.analyses.isolation import controls
from anchorlens.batching import collate, groups
from anchorlens.drafts import Draft
from anchorlens.pieces import write
from anchorlens.prompts import Encoder, PromptError, Role
from anchorlens.rows import Example
from anchorlens.tasks import AGNEWS, SST2, Task
from anchorlens.tokenizing import start_of

STRANGE = [
    "😀",
    "👩\u200d👧",
    "שלום",
    "\u200fمرحبا\u200f",
    "é",
    "e\u0301",
    "\u0301",
    "नि",
    "好",
    "\u200b",
    "ﬁ",
    "ß",
    "İ",
]
CORPUS = [task.context("a joy from start to end") + word + "\n" for task in (SST2, AGNEWS) for word in task.label_words]
CORPUS = CORPUS * 9 + ["abcdefghijklmnopqrstuvwxyz <|>./:-é 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ", *STRANGE] * 3
TASKS = (SST2, AGNEWS)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def _bytes() -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = trainer(trainers.BpeTrainer, 1500, initial_alphabet=letters, special_tokens=["<|end|>"])
    made.train_from_iterator(CORPUS, how)
    return made.to_str()


def byte_level(trim: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's; ``trim``: as RoBERTa's, whose tokens leave blanks out of their characters."""
    made = Tokenizer.from_str(_bytes())
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    special = {f"{name}_token": "<|end|>" for name in ("bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def unigram() -> PreTrainedTokenizerFast:
    """As T5's and XLM-R's: SentencePiece's unigrams, compatibility characters and newlines replaced beforehand."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Replace("\n", " "), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    words = [f"▁{word.strip()}" for task in TASKS for word in task.label_words]
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(CORPUS, trainer(trainers.UnigramTrainer, 300, special_tokens=special, unk_token="<unk>"))
    state = json.loads(made.to_str())
    had = {piece for piece, _ in state["model"]["vocab"]}
    state["model"]["vocab"] += [[word, -1.0] for word in words if word not in had]
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama() -> PreTrainedTokenizerFast:
    """As Llama's: merges over words with a blank in front, unknown characters as bytes, a start token of its own."""
    special = ["<unk>", "<s>", "</s>"]
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    plain = [text.replace("\n", " ").encode("ascii", "ignore").decode() for text in CORPUS]
    learnt.train_from_iterator(plain, trainer(trainers.BpeTrainer, 1500, special_tokens=special + BYTES))
    state = json.loads(learnt.to_str())["model"]
    merges = [tuple(each) for each in state["merges"]]
    made = Tokenizer(models.BPE(state["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: blanks dropped, accents stripped, all in lower case."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(CORPUS, trainer(trainers.WordPieceTrainer, 1500, special_tokens=special))
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def opt() -> PreTrainedTokenizerFast:
    """As OPT's, which puts its end token in front."""
    made = byte_level()
    special = [("<|end|>", 0)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=special)
    return made


def trainer(kind, size: int, **how):
    return kind(vocab_size=size, show_progress=False, **how)


MAKES = {
    "byte-level": byte_level,
    "byte-level, trimmed": lambda: byte_level(trim=True),
    "unigram": unigram,
    "llama": llama,
    "wordpiece": wordpiece,
}
FAITHFUL = ("byte-level", "byte-level, trimmed", "llama")  # decoding gives back every text


@cache
def _encoder(kind: str, bos: str) -> Encoder:
    return Encoder(MAKES[kind](), 10_000, bos)


def encoder(kind: str, bos: str = "auto") -> Encoder:
    return _encoder(kind, bos)


SPELLED = ["<s>", "</s>", "<unk>", "[CLS]", "<|end|>", "<0x0A>", "##s", "▁", "Ġ"]
MISLEADING = [
    " Positive",
    "Positive",
    " positive",
    "Negative\n",
    ":",
    "Review: ",
    "\nSentiment:",
    " Sports",
    "  ",
    "\t",
]
MISLEADING += ["\nSentiment: Positive\nReview: ", "\n", "\n\n", " ", "\u2028", "\xa0", *STRANGE, *SPELLED]
TEXT = st.lists(st.one_of(st.sampled_from(MISLEADING), st.text(max_size=5)), max_size=6).map("".join)


@st.composite
def drafts(draw) -> Draft:
    task = draw(st.sampled_from(TASKS))
    label = st.integers(0, len(task.label_words) - 1)
    shown = draw(st.lists(st.builds(Example, text=TEXT, label=label), min_size=1, max_size=3))
    return Draft(task, tuple(shown), Example(draw(TEXT), draw(label), 3), 42)


any_draft = settings(max_examples=60, deadline=None)
each_kind = pytest.mark.parametrize("kind", MAKES)
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, to sample containers


def encoded(kind: str, draft: Draft, bos: str = "auto"):
    """The prompt, or None where this tokenizer cannot read the texts and says so."""
    try:
        return encoder(kind, bos)(draft)
    except PromptError as error:
        if kind in FAITHFUL or not re.search("does not know|spells the special token", str(error)):
            raise
        return None


@each_kind
@any_draft
@given(draft=drafts())
def test_anchors_are_the_label_words_and_roles_share_out_the_tokens(kind, draft):
    prompt = encoded(kind, draft)
    if prompt is None:
        return
    tokenizer, words = encoder(kind).tokenizer, draft.task.label_words
    labels = [example.label for example in draft.demonstrations]
    assert len(prompt.ids) == len(prompt.roles) == len(prompt.parts)
    assert prompt.text == write(draft)[0]
    assert [prompt.ids[p] for p in prompt.anchors] == [prompt.labels[label] for label in labels]
    said = [tokenizer.decode([prompt.ids[p]]).strip().casefold() for p in prompt.anchors]
    assert said == [words[label].strip().casefold() for label in labels]
    assert list(prompt.parts) == sorted(prompt.parts)
    assert set(prompt.parts) == set(range(len(labels) + 1))
    assert [prompt.parts[p] for p in prompt.anchors] == list(range(len(labels)))
    n = len(encoder(kind).start.ids)
    assert prompt.ids[:n] == encoder(kind).start.ids
    assert [role is Role.START for role in prompt.roles] == [p < n for p in range(len(prompt.ids))]
    assert prompt.roles[-1] is Role.TARGET
    assert prompt.roles.count(Role.ANCHOR) == len(labels)


@pytest.mark.parametrize("kind", FAITHFUL)
@any_draft
@given(draft=drafts())
def test_what_stands_before_an_anchor_is_all_that_was_written_before_the_label_word(kind, draft):
    prompt, tokenizer = encoder(kind)(draft), encoder(kind).tokenizer
    n, (text, pieces) = len(encoder(kind).start.ids), write(draft)
    wanted = text.replace("▁", " ") if kind == "llama" else text  # which is how SentencePiece writes a blank
    spans = [piece for piece in pieces if piece.role is Role.ANCHOR]
    for position, span in zip(prompt.anchors, spans, strict=True):
        assert tokenizer.decode(prompt.ids[n:position], clean_up_tokenization_spaces=False) == wanted[: span.start]


@any_draft
@given(draft=drafts())
def test_blanks_left_out_of_a_tokens_characters_change_no_role(draft):
    assert encoder("byte-level, trimmed")(draft) == encoder("byte-level")(draft)


@any_draft
@given(draft=drafts())
def test_the_bytes_of_an_unknown_character_have_its_role(draft):
    assume("▁" not in write(draft)[0])
    prompt = encoder("llama")(draft)
    by_byte = [
        (piece.role, piece.part) for piece in write(draft)[1] for _ in prompt.text[piece.start : piece.end].encode()
    ]
    end = -1  # the blank that the tokenizer puts in front
    for position, token in enumerate(encoder("llama").tokenizer.convert_ids_to_tokens(list(prompt.ids))[1:-1], start=1):
        end += 1 if token in BYTES else len(token.replace("▁", " ").encode())
        role, part = by_byte[max(end, 1) - 1]
        assert (prompt.roles[position], prompt.parts[position]) == (role, part)
    assert prompt.roles[0] is Role.START


# --- start tokens


@pytest.mark.parametrize(
    ("tokenizer", "bos", "ids", "said"),
    [
        (byte_level, "auto", [], "start token: none (the tokenizer adds none)"),
        (byte_level, "no", [], "start token: none (bos=no)"),
        (byte_level, "yes", [0], "start token: '<|end|>' (bos=yes, though the tokenizer adds none)"),
        (opt, "auto", [0], "start token: '<|end|>' (the tokenizer adds it)"),
        (llama, "auto", [1], "start token: '<s>' (the tokenizer adds it)"),
        (llama, "yes", [1], "start token: '<s>' (the tokenizer adds it)"),
        (llama, "no", [], "start token: none (bos=no, though the tokenizer adds '<s>')"),
        (unigram, "auto", [], "start token: none (the tokenizer adds none)"),
        (wordpiece, "auto", [1], "start token: '[CLS]' (the tokenizer adds it)"),
    ],
)
def test_a_start_token_is_there_where_the_tokenizer_adds_one_and_not_because_there_is_one(tokenizer, bos, ids, said):
    found = start_of(tokenizer(), bos)
    assert (list(found.ids), found.said) == (ids, said)


def test_a_start_token_that_does_not_exist_is_refused():
    with pytest.raises(PromptError, match=r"^bos=yes: tokenizer .* has no bos_token to take for one. Set bos=no"):
        start_of(FewTokens(["a"]), "yes")
    with pytest.raises(PromptError, match=r"^bos='always': it may be 'auto', 'yes' or 'no'"):
        start_of(llama(), "always")


def test_a_start_token_moves_every_position_by_one_and_changes_nothing_else():
    draft = Draft(SST2, (Example("fine", 1), Example("slow", 0)), Example("dull", 0, 3), 42)
    plain, started = encoder("byte-level")(draft), encoder("byte-level", "yes")(draft)
    assert started.ids == (0, *plain.ids)
    assert started.roles == (Role.START, *plain.roles)
    assert started.parts == (0, *plain.parts)
    assert started.anchors == tuple(p + 1 for p in plain.anchors)
    assert (started.target, started.text, started.labels) == (plain.target + 1, plain.text, plain.labels)
    n = len(started.ids)
    assert Encoder(encoder("byte-level").tokenizer, n, "yes")(draft) == started
    with pytest.raises(PromptError, match=f"{n} tokens where the model reads at most {n - 1}"):
        Encoder(encoder("byte-level").tokenizer, n - 1, "yes")(draft)


def test_a_start_token_is_kept_with_every_arm_and_isolated_by_no_control():
    shown = (Example("fine and good", 1), Example("slow", 0))
    made = [encoder("llama")(Draft(SST2, shown, Example(text, 0, row))) for row, text in enumerate(["a", "b"])]
    (group,) = groups(made)
    for arm in kept.ROLES:
        assert kept.by_role(group, arm)[0] == 0
    assert kept.by_role(group, "label_only").tolist() == [0, *group.anchors.tolist()]
    for seed in range(20):
        (other,) = groups([replace(prompt, seed=seed) for prompt in made])
        assert 0 not in controls.seeded(other)
        drawn = controls.published(other, 3, "a setting")
        assert all(0 not in rows for rows in drawn.values())


def test_what_the_released_code_looks_for_has_no_start_token_in_it():
    shown = (Example("fine Review: ", 1), Example("slow", 0))
    both = [encoder("byte-level", bos)(Draft(SST2, shown, Example("a", 0))) for bos in ("no", "yes")]
    plain, started = (kept.by_role(group, "hidden_anchor", as_published=True).tolist() for group in groups(both))
    assert started == [0, *(p + 1 for p in plain)]


def test_every_analysis_takes_prompts_with_a_start_token(model, tokenizer):
    encode, shown = Encoder(tokenizer, 96, "yes"), (Example("a joy from start to end", 1), Example("a slow drama", 0))
    made = [encode(Draft(SST2, shown, Example(text, n, n))) for n, text in enumerate(["i laughed", "slow and dull"])]
    (group,), batch = groups(made), collate(made)
    assert made[0].ids[0] == tokenizer.bos_token_id
    want = passes.answer(model, batch)
    seen = readings.read(model, group, vectors=[1])
    torch.testing.assert_close(seen.answers.label_logits, want, rtol=0, atol=1e-10)
    flows = information_flow(model, batch)
    assert (flows["value"] >= 0).all()
    loyalty = isolation.isolation(model, group, isolation.settings(3))
    assert loyalty["predicted_clean"].tolist() == [int(want[n].argmax()) for n in loyalty["example"]]
    table = compression.compression(model, group, draws=1, positions="continue").groupby("arm")["tokens_kept"].first()
    assert table["label_only"] == 3, "two label words and the start token"


# --- what cannot be read is refused


def test_a_text_that_spells_a_special_token_is_refused_where_the_tokenizer_takes_it_for_one():
    message = "task 'sst2', example 3, seed 42: a text spells the special token '<s>', which this tokenizer cannot read"
    with pytest.raises(PromptError, match=re.escape(message)):
        encoder("unigram")(Draft(SST2, (), Example("a <s> b", 0, 3), 42))
    assert 1 not in encoder("llama")(Draft(SST2, (), Example("a <s> b", 0))).ids[1:]


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, trimmed"])
def test_a_template_that_ends_in_the_label_words_blank_is_refused(kind):
    task = Task("blank", "Review: {text}\nSentiment: ", ("Negative", "Positive"))
    with pytest.raises(PromptError, match=r"not whole tokens|End the template without a blank; the label word brings"):
        encoder(kind)(Draft(task, (), Example("fine", 1)))


def test_a_blank_that_the_tokenizer_drops_may_end_the_template():
    task = Task("blank", "Review: {text}\nSentiment: ", ("Negative", "Positive"))
    made, usual = (encoder("wordpiece")(Draft(t, (Example("fine", 1),), Example("slow", 1))) for t in (task, SST2))
    assert (made.ids, made.anchors) == (usual.ids, usual.anchors)


def test_a_label_word_fused_with_what_follows_names_itself_and_the_remedy():
    tokenizer = FewTokens([" Negative", " Positive\n", "Review: ", "\nSentiment:", "\n", "a"])
    message = (
        "task 'sst2', demonstration 0: label word ' Positive': characters 20..29 are not whole tokens: they fall in "
        "tokens 3..3 with offsets [(20, 30)]. Change the template so that the tokenizer separates the label word from "
        "its neighbours, or choose another label word (label_words=...)."
    )
    with pytest.raises(PromptError, match=re.escape(message.partition(", demonstration")[2])):
        Encoder(tokenizer, 99)(Draft(SST2, (Example("a", 1),), Example("a", 0)))


def test_a_query_without_a_token_is_refused():
    task = Task("bare", "{text} ", ("Negative", "Positive"))
    with pytest.raises(PromptError, match=r"no token of .* belongs to the query, so there is nowhere to predict"):
        encoder("wordpiece")(Draft(task, (Example("fine", 1),), Example("", 0)))


class FewTokens:
    """A tokenizer that knows a handful of strings, the first that fits; anything else is one token."""

    is_fast, unk_token_id, bos_token_id = True, None, None

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def __call__(self, text: str, **_: object) -> dict[str, list]:
        offsets = [found.span() for found in re.finditer("|".join(map(re.escape, self.known)) + "|(?s:.)", text)]
        ids = [self.known.index(text[a:b]) if text[a:b] in self.known else 999 for a, b in offsets]
        return {"input_ids": ids, "offset_mapping": offsets}
