"""In-context prompts in which the role of every token is known by construction, not by search.

A prompt is written piece by piece (template, text, label word); each piece notes the characters it covers, and the
tokenizer's own offsets turn characters into tokens. Label words that occur inside a text are text. A start token, where
the model was trained with one, is a token for the model and nothing to the paper: neither template nor word. Nothing
here runs a model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from typing import Any, Literal

from anchorlens.drafts import Draft
from anchorlens.pieces import Piece, write
from anchorlens.pieces import Role as Role  # what every other module takes from here
from anchorlens.tasks import Task
from anchorlens.tokenizing import PromptError as PromptError
from anchorlens.tokenizing import Start, check_apart, check_fast, start_of, tokenise
from anchorlens.tokenizing import tokens_in as tokens_in


class TooLongError(PromptError):
    """A prompt with more tokens than the model can read."""


def check_left(made: Sized, skipped: Sequence[str]) -> None:
    """Refuse to go on without any prompt."""
    if not len(made):
        raise PromptError(f"no prompt is left: {skipped[0] if skipped else 'there were no queries'}")


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt; positions count tokens from 0, demonstrations in prompt order, classes from 0.

    Attributes:
        text: all of it, as the model reads it after the start token.
        ids: token ids.
        roles: what each token is.
        parts: to which demonstration each token belongs, its closing separator included; the query has the last number.
        anchors: first token of each demonstration's label word.
        anchor_classes: its class.
        target: the last token, where the answer is predicted.
        labels: first token id of each class's label word.
        gold: the query's class, None where it is not known.
        example, seed: row of the query in its source, and the draw of demonstrations (-1: fixed by a file).
        longer: of each demonstration, how many tokens after its anchor stand for its label word, too; empty: none, as
            always with ``label_token`` "only" or "first".
        endings: of each class, the token ids of its label word after the first, likewise.
    """

    text: str
    ids: tuple[int, ...]
    roles: tuple[Role, ...]
    parts: tuple[int, ...]
    anchors: tuple[int, ...]
    anchor_classes: tuple[int, ...]
    target: int
    labels: tuple[int, ...]
    gold: int | None
    example: int
    seed: int
    longer: tuple[int, ...] = ()
    endings: tuple[tuple[int, ...], ...] = ()

    @property
    def spans(self) -> tuple[range, ...]:
        """Of each demonstration, all positions that stand for its label word: the anchor, and what ``longer`` adds."""
        longer = self.longer or (0,) * len(self.anchors)
        return tuple(range(first, first + 1 + more) for first, more in zip(self.anchors, longer, strict=True))

    @property
    def words(self) -> tuple[tuple[int, ...], ...]:
        """Of each class, the ids of all tokens that stand for its label word."""
        endings = self.endings or ((),) * len(self.labels)
        return tuple((first, *ending) for first, ending in zip(self.labels, endings, strict=True))

    def pieces(self, tokenizer: Any) -> list[str]:
        """The text of each token; of a character that is several tokens, all of it with the last of them."""
        pieces, held = [], []
        for token in self.ids:
            held.append(token)
            text = tokenizer.decode(held)
            whole = not text.endswith("\ufffd")  # the mark of a character that is not complete
            pieces.append(text if whole else "")
            held = [] if whole else held
        if held:  # never completed
            pieces[-1] = tokenizer.decode(held)
        return pieces


@dataclass
class Encoder:
    """Turns drafts into prompts with one tokenizer; remembers the tokens of each label word.

    Args:
        tokenizer: a fast Hugging Face tokenizer (offsets are needed).
        n_ctx: the longest prompt that the model can read, start token included.
        bos: whether prompts begin with a start token: "auto" (where the tokenizer adds one), "yes" or "no"; what came
            of it is ``start``, and ``start.said`` tells it.
    """

    tokenizer: Any
    n_ctx: int
    bos: str = "auto"
    start: Start = field(init=False)
    _words: dict[tuple[str, str, str, str], tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fast(self.tokenizer)
        self.start = start_of(self.tokenizer, self.bos)

    def __call__(self, draft: Draft) -> Prompt:
        """Tokenise one draft.

        Raises:
            PromptError: for a label word of several tokens where the task takes only one, label words that cannot be
                told apart by the tokens that stand for them, words that the tokenizer does not know, or a prompt that
                is, with a label word behind it, longer than ``n_ctx``.
        """
        text, pieces = write(draft)
        ids, offsets = tokenise(self.tokenizer, text, draft.name)
        unknown = [text[a:b].strip() for token, (a, b) in zip(ids, offsets, strict=True) if self._is_unknown(token)]
        if unknown:
            raise PromptError(
                f"{draft.name}: the tokenizer does not know {', '.join(map(repr, dict.fromkeys(unknown)))}. "
                "The toy knows only the words of its own language; take other texts or another model."
            )
        ends = iter(pieces)
        piece, roles, parts = next(ends), [], []
        for _, b in offsets:  # where a token ends is right even where its blanks are not counted
            while b > piece.end and piece.end < len(text):
                piece = next(ends)
            roles.append(piece.role)
            parts.append(piece.part)
        if not parts or parts[-1] < len(draft.demonstrations):
            raise PromptError(
                f"{draft.name}: no token of {text!r} belongs to the query, so there is nowhere to predict an answer. "
                "Give it a text, or the template words that the tokenizer does not drop."
            )
        spans = []
        for piece in pieces:
            if piece.role is Role.ANCHOR:
                where = f"{draft.name}, demonstration {piece.part}"
                run = self._label_run(draft.task, text, piece, ids, offsets, where)
                spans.append(run if draft.task.label_token == "all" else run[:1])
                for position in run[1:]:
                    roles[position] = Role.LABEL
        roles[-1] = Role.TARGET
        n = len(self.start.ids)
        ids, roles = [*self.start.ids, *ids], [*[Role.START] * n, *roles]
        parts, spans = [*[0] * n, *parts], [tuple(n + position for position in span) for span in spans]
        words = self._labels(draft.task)
        classes = tuple(example.label for example in draft.demonstrations if example.label is not None)
        for span, label in zip(spans, classes, strict=True):
            if (found := tuple(ids[position] for position in span)) != words[label]:
                raise PromptError(
                    f"{draft.name}: label word {draft.task.label_words[label]!r} is token {_named(found)} at "
                    f"{span[0]} and token {_named(words[label])} elsewhere. Choose label words that the tokenizer "
                    "always splits alike."
                )
        several = any(len(word) > 1 for word in words)
        more = max(map(len, words)) - 1  # of a label word's tokens the last alone is never read
        if len(ids) + more > self.n_ctx:
            with_word = f" and {more} of a label word" if more else ""
            raise TooLongError(
                f"{draft.name}: {len(ids)} tokens{with_word} where the model reads at most {self.n_ctx}; "
                f"{self._fitting(parts, more)}. "
                "Take fewer shots or shorter texts, or leave such prompts out with too_long=skip."
            )
        return Prompt(
            text=text,
            ids=tuple(ids),
            roles=tuple(roles),
            parts=tuple(parts),
            anchors=tuple(span[0] for span in spans),
            anchor_classes=classes,
            target=len(ids) - 1,
            labels=tuple(word[0] for word in words),
            gold=draft.query.label,
            example=draft.query.row,
            seed=draft.seed,
            longer=tuple(len(span) - 1 for span in spans) if several else (),
            endings=tuple(word[1:] for word in words) if several else (),
        )

    def one(self, draft: Draft, too_long: Literal["error", "skip"] = "error") -> Prompt | TooLongError:
        """Tokenise one draft; with ``too_long="skip"``, a prompt that is too long is told and not raised."""
        if too_long not in ("error", "skip"):
            raise PromptError(f"too_long={too_long!r}: it may be 'error' or 'skip'.")
        try:
            return self(draft)
        except TooLongError as error:
            if too_long == "error":
                raise
            return error

    def all(
        self, drafts: Iterable[Draft], too_long: Literal["error", "skip"] = "error"
    ) -> tuple[list[Prompt], list[str]]:
        """Tokenise drafts; the second value says which were left out as too long (with ``too_long="skip"``)."""
        found = [self.one(draft, too_long) for draft in drafts]
        skipped = [str(each) for each in found if isinstance(each, TooLongError)]
        made = [each for each in found if isinstance(each, Prompt)]
        check_left(made, skipped)
        return made, skipped

    def _fitting(self, parts: Sequence[int], more: int) -> str:
        """How much of a prompt that is too long would fit, by the part of each of its tokens."""
        lengths = Counter(parts)
        query, demonstrations = lengths.pop(parts[-1]), [lengths[part] for part in sorted(lengths)]
        room = self.n_ctx - query - more
        if room < 0:
            return f"its query alone is {query} tokens"
        fitting = sum(total <= room for total in accumulate(demonstrations))
        return f"the first {fitting} of its {len(demonstrations)} demonstrations would fit with its query"

    def _is_unknown(self, token: int) -> bool:
        return token == self.tokenizer.unk_token_id

    def _label_run(self, task: Task, text: str, piece: Piece, ids, offsets, where: str) -> range:
        try:
            run = tokens_in(piece.start, piece.end, offsets)
        except PromptError as error:
            raise PromptError(f"{where}: label word {text[piece.start : piece.end]!r}: {error}") from None
        if len(run) > 1 and task.label_token == "only":
            words = [text[a:b] for a, b in offsets[run.start : run.stop]]
            raise PromptError(
                f"{where}: label word {text[piece.start : piece.end]!r} is {len(run)} tokens {words} at "
                f"{run.start}..{run.stop - 1}. Choose label words of one token (label_words=...), or set "
                "label_token=first, as the paper does for TREC's Abbreviation, or label_token=all."
            )
        return run

    def _labels(self, task: Task) -> tuple[tuple[int, ...], ...]:
        found = tuple(self._word(task, word) for word in task.label_words)
        names = [word.strip() for word in task.label_words]
        for a, b in combinations(range(len(found)), 2):
            shared = min(len(found[a]), len(found[b]))
            if found[a][:shared] != found[b][:shared]:
                continue
            if task.label_token != "all":
                raise PromptError(
                    f"task {task.name!r}: label words {names[a]!r} and {names[b]!r} begin with the same token "
                    f"{found[a][0]}, so that token cannot tell them apart. Choose label words that differ in their "
                    "first token, or set label_token=all."
                )
            how = "are the same" if found[a] == found[b] else "begin with the same"
            raise PromptError(
                f"task {task.name!r}: label words {names[a]!r} and {names[b]!r} {how} tokens "
                f"{list(found[a][:shared])}, so that one can never be the less probable. Choose label words of which "
                "none begins another."
            )
        return found

    def _word(self, task: Task, word: str) -> tuple[int, ...]:
        """All tokens that stand for a label word."""
        key = (task.template, task.separator, task.label_token, word)
        if key not in self._words:
            context = task.context("")
            text = context + word + task.separator
            where = f"task {task.name!r}, label word {word!r}"
            ids, offsets = tokenise(self.tokenizer, text, where)
            piece = Piece(len(context), len(context) + len(word), Role.ANCHOR, 0)
            run = self._label_run(task, text, piece, ids, offsets, f"task {task.name!r}")
            check_apart(ids[: run.start], tokenise(self.tokenizer, context, where)[0], where)
            found = tuple(ids[run.start : run.stop]) if task.label_token == "all" else (ids[run.start],)
            if any(map(self._is_unknown, found)):
                raise PromptError(
                    f"task {task.name!r}: label word {word!r} is unknown to the tokenizer; choose another."
                )
            self._words[key] = found
        return self._words[key]


def _named(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))
