"""Which other tokens a control isolates: as many as there are label words, and none of these (section 2.2)."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens.batching import Group
from anchorlens.hooks import SettingError
from anchorlens.prompts import Role

_NEVER = (Role.START, Role.ANCHOR, Role.LABEL)


def seeded(group: Group) -> Int[Tensor, " row"]:
    """As many tokens of the demonstrations as stand for label words, none of them of a label word; ascending.

    The same in all settings and for all prompts of the group, drawn by its seed. The first token of the prompt, which
    has nothing to be cut off from, is never drawn, nor is a start token.

    Raises:
        ValueError: if there are too few tokens.
    """
    free = [p for p, role in enumerate(group.roles) if p > 0 and role not in _NEVER]
    return _drawn(free, len(group.rows), group.chance("control"), "the demonstrations have")


def published(group: Group, n_layers: int, setting: Hashable) -> dict[int, Int[Tensor, "layer row"]]:
    """The released code's control, by example: new positions for every setting, prompt and layer.

    Drawn from all positions before the last token but one, the query included, the anchors and a start token excluded;
    the further tokens of label words, and the first word, whose isolation changes nothing, may be among them. The
    released code draws without a seed; here ``setting`` and the group's seed fix the draw.

    Raises:
        ValueError: if a prompt has too few tokens.
    """
    rows = {}
    for prompt in group.prompts:
        chance = group.chance("published control", prompt.example, setting)
        first = prompt.roles.count(Role.START)
        isolated = {p for span in prompt.spans for p in span}
        free = [p for p in range(first, prompt.target - 1) if p not in isolated]
        where = f"example {prompt.example} has"
        rows[prompt.example] = torch.stack(
            [_drawn(free, len(isolated), chance, where) for _ in range(n_layers)]  # [layer row]
        )
    return rows


def _drawn(free: Sequence[int], count: int, chance: torch.Generator, where: str) -> Int[Tensor, " row"]:
    if len(free) < count:
        raise SettingError(
            f"{where} {len(free)} tokens that the control may isolate, and it takes {count}, one for each token of a "
            "label word: give longer demonstrations."
        )
    return torch.tensor(free)[torch.randperm(len(free), generator=chance)[:count]].sort().values
