"""Which tokens of a group's demonstrations are kept when the rest is dropped (section 3.2), by their roles."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens.batching import Group
from anchorlens.prompts import PromptError, Role

ROLES = {
    "hidden_anchor": {Role.START, Role.TEMPLATE, Role.ANCHOR, Role.LABEL},
    "format_only": {Role.START, Role.TEMPLATE},
    "label_only": {Role.START, Role.ANCHOR, Role.LABEL},
}


def by_role(group: Group, arm: str, *, as_published: bool = False) -> Int[Tensor, " kept"]:
    """Positions of the demonstrations' tokens that an arm of ``ROLES`` keeps, the newline before the query included.

    hidden_anchor: template and label words with all their tokens, as in the paper. format_only: the template alone.
    label_only: label words alone. A start token stays with all of them: a model that was trained with one leaves there
    the attention that has nowhere else to go.

    Source:
        The released code looks for token patterns (the template's words, alone and with label words) instead, so it
        also keeps a text that spells them. With ``as_published``, hidden_anchor does so too.
    """
    kept = {position for position, role in enumerate(group.roles) if role in ROLES[arm]}
    if as_published and arm == "hidden_anchor":
        kept |= _spelled(group)
    return torch.tensor(sorted(kept), dtype=torch.int64)


def candidates(group: Group) -> list[list[int]]:
    """For each demonstration the positions of its text between the previous anchor and its own [demo candidate].

    Raises:
        PromptError: for a demonstration without any.
    """
    anchors, found = group.anchors.tolist(), []
    for demo, (previous, anchor) in enumerate(zip([-1, *anchors[:-1]], anchors, strict=True)):
        text = [position for position in range(previous + 1, anchor) if group.roles[position] is Role.TEXT]
        if not text:
            raise PromptError(
                f"demonstration {demo} (seed {group.seed}, before example {group.prompts[0].example}) has no text "
                "token before its label word, and the random arm replaces each label word by one. Give every "
                "demonstration a text."
            )
        found.append(text)
    return found


def draw(group: Group, number: int) -> list[int]:
    """Draw ``number`` of one text token for each anchor [demo]; seed, demonstrations and number alone decide.

    For a label word of several tokens as many different ones as stand for it; an error where its text has fewer.
    """
    chance, drawn = group.chance("random", number), []
    for demo, (each, span) in enumerate(zip(candidates(group), group.prompts[0].spans, strict=True)):
        if len(span) == 1:
            drawn.append(each[int(torch.randint(len(each), (), generator=chance))])
            continue
        if len(each) < len(span):
            raise PromptError(
                f"demonstration {demo} (seed {group.seed}, before example {group.prompts[0].example}) has {len(each)} "
                f"text tokens before its label word of {len(span)}, and the random arm replaces each by one. Give "
                "longer texts, or set label_token=first, or draws=0."
            )
        drawn += [each[i] for i in torch.randperm(len(each), generator=chance)[: len(span)].tolist()]
    return drawn


def with_random(
    group: Group, chosen: Collection[int], anchored: Int[Tensor, " anchored"] | None = None
) -> Int[Tensor, " kept"]:
    """What hidden_anchor (or ``anchored``) keeps, with the ``chosen`` positions in place of the anchors.

    Further tokens of a label word stay, as in the released code, unless they stand for it too (``label_token`` "all").
    """
    kept = by_role(group, "hidden_anchor") if anchored is None else anchored
    anchors = set(group.rows.tolist())
    return torch.tensor(sorted({*kept.tolist()} - anchors | {*chosen}), dtype=torch.int64)


def check_chosen(group: Group, chosen: Sequence[Sequence[int]]) -> None:
    """Refuse draws that are not one candidate for each anchor.

    Raises:
        ValueError: names the draw.
    """
    allowed = [each for each, span in zip(candidates(group), group.prompts[0].spans, strict=True) for _ in span]
    for number, one in enumerate(chosen):
        if len(one) != len(allowed) or any(each not in among for each, among in zip(one, allowed, strict=True)):
            raise ValueError(
                f"chosen[{number}] is {list(one)}: expected one text position for each of {len(allowed)} anchors, "
                f"in prompt order, out of {allowed}."
            )


def _spelled(group: Group) -> set[int]:
    """Positions where the demonstrations spell the template, with or without a label word, wherever that is."""
    ids, kept = group.tokens[0].tolist(), set()
    for pattern in _patterns(group):
        for start in range(len(ids) - len(pattern) + 1):
            if ids[start : start + len(pattern)] == pattern:
                kept |= set(range(start, start + len(pattern)))
    return kept


def _patterns(group: Group) -> list[list[int]]:
    """What the released code looks for: before a text, and after it up to the label word's last token.

    Each of them with its newline, too.
    """
    ids, found = group.tokens[0].tolist(), []
    for part in sorted(set(group.parts)):
        own = [p for p, each in enumerate(group.parts) if each == part and group.roles[p] is not Role.START]
        text = [position for position in own if group.roles[position] is Role.TEXT]
        label = [position for position in own if group.roles[position] in ROLES["label_only"]]
        if text:
            end, newline = label[-1] + 1, ids[label[-1] + 1 : own[-1] + 1]
            before, after = ids[own[0] : text[0]], ids[text[-1] + 1 : end]
            found += [before, newline + before, after, after + newline]
    return [pattern for pattern in found if pattern]
