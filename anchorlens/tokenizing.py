"""Texts as tokens that know their characters, with any fast tokenizer: byte-level BPE, SentencePiece, WordPiece.

What differs between them is told apart here: blanks that a token holds, leaves out of its characters or has dropped;
characters that are several tokens; start tokens. Nothing here imports a model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTS = ("auto", "yes", "no")
SHOWN = 5  # of words that are not known
_SEPARATE = (
    "Change the template so that the tokenizer separates the label word from its neighbours, or choose another label "
    "word (label_words=...)."
)


class PromptError(ValueError):
    """A prompt that cannot be analysed as asked."""


@dataclass(frozen=True)
class Start:
    """What stands before every prompt: token ids, none to a few, and in words what they are and why."""

    ids: tuple[int, ...]
    said: str


def check_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot tell which characters a token covers."""
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets; "
            "load the fast one (it needs tokenizer.json in the model's folder)."
        )


def check_known(folder: Path, texts: Mapping[str, Iterable[str]]) -> None:
    """Refuse texts, by where they are from, with words that the tokenizer of a model's folder does not have.

    Without loading the model, for one of few words of its own.

    Raises:
        PromptError: for the first place with such words; names it and some of them.
    """
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = tokenizer.token_to_id(tokenizer.model.unk_token)
    for where, each in texts.items():
        given = list(each)
        found = [
            text[a:b].strip()
            for text, encoded in zip(given, tokenizer.encode_batch(given, add_special_tokens=False), strict=True)
            for id_, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
            if id_ == token
        ]
        if words := list(dict.fromkeys(found)):
            more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
            raise PromptError(
                f"{where}: the tokenizer does not know {', '.join(map(repr, words[:SHOWN]))}{more}. The toy knows only "
                "the words of its own language; take its own rows (data=clean or data=hard) or another model."
            )


def start_of(tokenizer: Any, bos: str = "auto") -> Start:
    """The start token of a prompt.

    Args:
        bos: "auto": what the tokenizer itself puts in front of a text (Llama's, Mistral's, Gemma's and OPT's do, so
            that their models never saw a text without; GPT-2's, GPT-NeoX's and Qwen's do not, and have a bos_token all
            the same). "yes": that or else the bos_token. "no": none.

    Raises:
        PromptError: for another ``bos``, or "yes" where there is no start token.

    Source:
        The paper's prompts, for GPT-2 and GPT-J, have none.
    """
    if bos not in STARTS:
        raise PromptError(f"bos={bos!r}: it may be 'auto', 'yes' or 'no'.")
    encoded = tokenizer("a", add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
    special = encoded.get("special_tokens_mask", ())
    added = tuple(encoded["input_ids"][: list(special).index(0)]) if 0 in special else ()
    shown = " ".join(repr(tokenizer.decode([token])) for token in added)
    if bos == "no":
        return Start((), f"start token: none (bos=no{f', though the tokenizer adds {shown}' if added else ''})")
    if added:
        return Start(added, f"start token: {shown} (the tokenizer adds it)")
    if bos == "auto":
        return Start((), "start token: none (the tokenizer adds none)")
    token = getattr(tokenizer, "bos_token_id", None)
    if token is None:
        raise PromptError(
            f"bos=yes: tokenizer {type(tokenizer).__name__} adds no start token and has no bos_token to take for one. "
            "Set bos=no, or bos=auto."
        )
    return Start((token,), f"start token: {tokenizer.decode([token])!r} (bos=yes, though the tokenizer adds none)")


def tokenise(tokenizer: Any, text: str, where: str = "a prompt") -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text without start token, and the characters [start, end) that each covers.

    Characters may be covered by several tokens (an emoji's bytes) or by none (blanks that a tokenizer drops, or leaves
    out of what a token covers: then a token of blanks alone covers none and ends behind them).

    Raises:
        PromptError: naming ``where``, if the text spells a special token that this tokenizer cannot read as text.
    """
    encoded = tokenizer(
        text,
        return_offsets_mapping=True,
        add_special_tokens=False,
        split_special_tokens=True,  # a text that spells a special token is still text
        verbose=False,
    )
    ids, offsets = list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    special = set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "unk_token_id", None)}
    if spelled := [token for token in ids if token in special]:
        raise PromptError(
            f"{where}: a text spells the special token {tokenizer.decode(spelled[:1])!r}, which this tokenizer cannot "
            "read as text. Take it out of the text."
        )
    return ids, offsets


def tokens_in(start: int, end: int, offsets: Sequence[tuple[int, int]]) -> range:
    """The run of tokens that covers characters [start, end).

    Raises:
        PromptError: if no token does, or if a token reaches beyond them.
    """
    hit = [i for i, (a, b) in enumerate(offsets) if a < end and start < b]
    if not hit or offsets[hit[0]][0] < start or offsets[hit[-1]][1] > end:
        found = f"tokens {hit[0]}..{hit[-1]} with offsets {[offsets[i] for i in hit]}" if hit else "no token"
        raise PromptError(f"characters {start}..{end} are not whole tokens: they fall in {found}. {_SEPARATE}")
    return range(hit[0], hit[-1] + 1)


def check_apart(before: Sequence[int], alone: Sequence[int], where: str) -> None:
    """Refuse a template that is ``before`` a label word of other tokens than ``alone``, where the answer is predicted.

    A token that holds the template's last blank with the label word, and leaves it out of its characters, is seen here.
    """
    if list(before) != list(alone):
        raise PromptError(
            f"{where}: the template is tokens {list(alone)[-3:]} (the last of {len(alone)}) where an answer is to "
            f"follow, and {list(before)[-3:]} (of {len(before)}) before the label word itself, so the model is asked "
            "for another token than it is shown. End the template without a blank; the label word brings its own."
        )
