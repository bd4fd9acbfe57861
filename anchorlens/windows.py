"""Prompts a window at a time: however many there are, only those of one window are in memory."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder, Prompt, PromptError, TooLongError, check_left

WINDOW = 512  # prompts; the same on every machine, since a run goes on window by window where an earlier try ended


@runtime_checkable
class Window(Protocol):
    """Prompts that can be counted before they are there."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Prompt]: ...


@dataclass(frozen=True, eq=False)
class _Lazy:
    """Tokenised whenever it is gone through, and not kept."""

    encode: Encoder
    drafts: Sequence[Draft]

    def __len__(self) -> int:
        return len(self.drafts)

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.encode, self.drafts)


def windows(
    encode: Encoder, drafts: Iterable[Draft], too_long: Literal["error", "skip"] = "error", *, size: int = WINDOW
) -> tuple[list[Window], list[str]]:
    """Drafts as windows of prompts, and which were left out as too long (with ``too_long="skip"``).

    Those that share their demonstrations are brought together first, in the order in which these first appear, and stay
    together where a window can hold them. Every draft is tokenised once to begin with, so that a mistake in the last is
    found before the model runs; a single window keeps what was made of it.

    Args:
        size: prompts in a window at most.

    Raises:
        PromptError: as ``Encoder`` does, or if no prompt is left.
    """
    if size < 1:
        raise PromptError(f"size={size}: a window holds at least 1 prompt.")
    alike: dict[tuple, list[Draft]] = defaultdict(list)
    made: dict[int, Prompt] = {}
    skipped = []
    for draft in drafts:
        prompt = encode.one(draft, too_long)
        if isinstance(prompt, TooLongError):
            skipped.append(str(prompt))
            continue
        alike[draft.seed, draft.task.label_words, draft.demonstrations].append(draft)
        if len(made) < size:
            made[id(draft)] = prompt
    check_left(alike, skipped)
    for together in alike.values():
        example, count = Counter(draft.query.row for draft in together).most_common(1)[0]
        if count > 1:
            raise PromptError(
                f"example {example} of seed {together[0].seed} is there {count} times behind the same demonstrations; "
                "give each query a number of its own (Example.row), by which results are told apart."
            )
    cut = _cut(alike.values(), size)
    if len(cut) == 1:
        return [[made[id(draft)] for draft in cut[0]]], skipped
    return [_Lazy(encode, each) for each in cut], skipped


def _cut(alike: Iterable[Sequence[Draft]], size: int) -> list[list[Draft]]:
    cut: list[list[Draft]] = [[]]
    for together in alike:
        if len(cut[-1]) + len(together) > size and cut[-1]:
            cut.append([])
        for draft in together:
            if len(cut[-1]) == size:
                cut.append([])
            cut[-1].append(draft)
    return cut


def counterparts(
    encode: Encoder, drafts: Iterable[Draft], change: Callable[[Draft], Draft]
) -> Callable[[Iterable[Prompt]], list[Prompt]]:
    """Another prompt for each of some, made when it is asked for: of the same seed and example, the draft changed."""
    found = {(draft.seed, draft.query.row): draft for draft in drafts}

    def of(prompts: Iterable[Prompt]) -> list[Prompt]:
        return [encode(change(found[prompt.seed, prompt.example])) for prompt in prompts]

    return of
