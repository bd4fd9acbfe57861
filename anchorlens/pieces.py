"""The text of a prompt, written piece by piece, so that what each character is need not be searched for."""

from dataclasses import dataclass
from enum import IntEnum

from anchorlens.drafts import Draft


class Role(IntEnum):
    """What a token is in its prompt; a token has the role of its last character."""

    TEXT = 0
    TEMPLATE = 1
    LABEL = 2  # further tokens of a label word, after its first
    ANCHOR = 3
    TARGET = 4
    START = 5  # put before the text, not part of it


@dataclass(frozen=True)
class Piece:
    """Characters [start, end) of a prompt's text, with their role and part."""

    start: int
    end: int
    role: Role
    part: int


def write(draft: Draft) -> tuple[str, list[Piece]]:
    """The prompt's text, and the pieces it is made of, without gaps."""
    before, after = draft.task.template.split("{text}")
    text, pieces = "", []

    def say(words: str, role: Role, part: int) -> None:
        nonlocal text
        if words:
            pieces.append(Piece(len(text), len(text) + len(words), role, part))
            text += words

    examples = [*draft.demonstrations, draft.query]
    for part, example in enumerate(examples):
        say(before if example.text else before.rstrip(" "), Role.TEMPLATE, part)  # no blank where no text follows
        say(example.text, Role.TEXT, part)
        say(after, Role.TEMPLATE, part)
        if part < len(draft.demonstrations):
            assert example.label is not None, "a demonstration has a class"
            say(draft.task.label_words[example.label], Role.ANCHOR, part)
            say(draft.task.separator, Role.TEMPLATE, part)
    return text, pieces
