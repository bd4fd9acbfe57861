"""Queries, training prompts and k-shot prompts that belong together (section 3.1)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from anchorlens.batching import Group, groups
from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder, Prompt, PromptError, TooLongError


@dataclass(frozen=True, eq=False)
class Lesson:
    """One set of demonstrations: the queries asked after it, and what is trained on.

    Attributes:
        group: the queries.
        training: training prompts, in the order in which they were drawn; they begin with the same demonstrations.
        kshot: the queries after more demonstrations; empty: that arm is left out.
        number: which set of demonstrations it is, counted from 0.
    """

    group: Group
    training: Group
    kshot: tuple[Group, ...] = ()
    number: int = 0

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.group.prompts)

    def without(self, examples: Iterable[int]) -> "Lesson | None":
        """The lesson without some queries; None if none is left."""
        left_out = set(examples)
        left = self.group.without(left_out)
        more = [each.without(left_out) for each in self.kshot]
        return replace(self, group=left, kshot=tuple(each for each in more if each)) if left else None


def lessons(prompts: Iterable[Prompt], training: Iterable[Prompt], kshot: Sequence[Prompt] = ()) -> list[Lesson]:
    """Queries, training prompts and k-shot prompts brought together by the demonstrations that they share.

    Args:
        prompts: what is asked.
        training: what is trained on; each begins with the demonstrations of some of ``prompts``, token for token.
        kshot: ``prompts`` again with more demonstrations, told by seed and example; none: no such arm.

    Raises:
        PromptError: for training prompts whose demonstrations no query has, without gold class, or all of one class;
            for queries without training prompts, or without k-shot prompts where others have them.
    """
    asked, taught = groups(prompts), {_shown(group): group for group in groups(training)}
    if unused := [p.example for key in set(taught) - {_shown(g) for g in asked} for p in taught[key].prompts]:
        raise PromptError(
            f"training examples {sorted(unused)} stand behind demonstrations that no query has. Begin each training "
            "prompt with the demonstrations of the prompts it is for, the same texts in the same order."
        )
    for group in taught.values():
        _check_training(group)
    deeper: dict[tuple[int, int], Prompt] = {(prompt.seed, prompt.example): prompt for prompt in kshot}
    made = []
    for number, group in enumerate(asked):
        examples = [prompt.example for prompt in group.prompts]
        if _shown(group) not in taught:
            raise PromptError(
                f"examples {examples}, seed {group.seed}: no training prompt stands behind their demonstrations, so "
                "nothing can be learned for them. Give training prompts that begin with the same demonstrations."
            )
        more = [deeper[group.seed, example] for example in examples if (group.seed, example) in deeper]
        if kshot and len(more) < len(examples):
            raise PromptError(
                f"{len(more)} of the {len(examples)} examples {examples}, seed {group.seed}, have a k-shot prompt. "
                "Give one for every query, or none at all."
            )
        made.append(Lesson(group, taught[_shown(group)], tuple(groups(more)), number))
    return made


def k_shots(taught: Iterable[Lesson]) -> list[int]:
    """Numbers of demonstrations per class that k-shot prompts can have, the largest first; none: training adds nothing.

    More than any lesson shows now, and at most what it shows and trains on, in every class.
    """
    shown, most = [], []
    for each in taught:
        held = Counter([*each.group.anchor_classes.tolist(), *(prompt.gold for prompt in each.training.prompts)])
        most.append(min(held[label] for label in range(len(each.group.labels))))
        shown.append(shots(each.group))
    return list(range(min(most), max(shown), -1))


def shots(group: Group) -> int:
    """Demonstrations per class; where classes have different numbers, the largest."""
    return max(Counter(group.anchor_classes.tolist()).values())


def fitting(encode: Encoder, choices: Iterable[tuple[int, Sequence[Draft]]]) -> tuple[list[Prompt], str]:
    """The first choice whose prompts are all short enough for the model, and in words what was found.

    Args:
        choices: demonstrations per class, and the prompts that have them; the largest number first.

    Returns:
        No prompts where no choice fits.
    """
    said = []
    for per_class, drafts in choices:
        try:
            prompts, _ = encode.all(drafts)
        except TooLongError as error:
            said.append(f"{per_class} demonstrations per class do not fit: {error}")
            continue
        longest = max(len(prompt.ids) for prompt in prompts)
        said.append(
            f"k-shot arm: {per_class} demonstrations per class; the longest prompt has {longest} of at most "
            f"{encode.n_ctx} tokens."
        )
        return prompts, "\n".join(said)
    return [], "\n".join([*said, "There is no k-shot arm: no larger number of demonstrations is there or fits."])


def _shown(group: Group) -> tuple:
    """What the demonstrations of a group are told by: seed, label words, tokens, and where its anchors are."""
    first = group.prompts[0]
    n = group.length
    return (first.seed, first.words, first.ids[:n], first.parts[:n], first.spans, first.anchor_classes)


def _check_training(training: Group) -> None:
    """Refuse training prompts that teach nothing, or only what to answer always."""
    unknown = [prompt.example for prompt in training.prompts if prompt.gold is None]
    if unknown:
        raise PromptError(
            f"training examples {unknown} have no gold class, and the loss is taken against it. Give every training "
            "query a label."
        )
    found = sorted({prompt.gold for prompt in training.prompts if prompt.gold is not None})
    if len(found) == 1:
        raise PromptError(
            f"training examples {[prompt.example for prompt in training.prompts]} are all of class {found[0]}: "
            "re-weighting would learn to answer it always. Give training prompts of at least two classes behind the "
            "same demonstrations."
        )
