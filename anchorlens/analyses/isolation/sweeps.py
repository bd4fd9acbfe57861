"""Tokens cut off in several sets of layers, fast: demonstrations once for each set, queries from where they change."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens import passes
from anchorlens.batching import Batch, Group, Queries
from anchorlens.hooks import Isolate, SettingError, Silence, Site, capturing, editing
from anchorlens.models import Lens, Memory, device_of
from anchorlens.passes import TOP, Answers

MASKS = {"before": Isolate, "after": Silence}  # the softmax


@dataclass(frozen=True)
class Setting:
    """The layers, from 0, in which rows are isolated; results name them by ``end`` and ``depth``, free to choose."""

    end: str
    depth: int
    layers: tuple[int, ...]


@torch.no_grad()
def sweep(
    model: Lens,
    group: Group,
    settings: Sequence[Setting],
    arms: Mapping[str, Int[Tensor, " row"]],
    before: Mapping[str, Int[Tensor, " row"]] | None = None,
    *,
    mask: str = "before",
    top: int = TOP,
    batch_tokens: int = 0,
) -> tuple[Answers, dict[tuple[str, Setting], Answers]]:
    """Clean answers, and those for each arm and setting, in the order of ``group.prompts``, on the CPU.

    What is isolated lies in the demonstrations, which are run once for each arm and setting, from the first isolated
    layer on. Up to and including that layer a query meets what it met before, so it is run from the next one on.
    The keys and values of all arms and settings are held at once; they are of the demonstrations alone.

    Args:
        arms: which rows each arm isolates, by its name; positions in the demonstrations.
        before: from where on the rows of an arm may still look; from themselves on, for an arm that is not there.
    """
    n_layers, edit = model.cfg.n_layers, _edit(mask)
    check(settings, n_layers)
    if not 1 <= top <= model.cfg.d_vocab:
        raise SettingError(f"top={top}: word loyalty compares 1 to {model.cfg.d_vocab} next tokens with this model.")
    firsts = {setting: min(setting.layers, default=n_layers) for setting in settings}
    reaching = [setting for setting in settings if firsts[setting] < n_layers - 1]  # the last layer's rows are not read
    demonstrated = passes.demonstrate(model, group, resume={firsts[setting] for setting in reaching})
    memories: dict[tuple[str, Setting], Memory] = {}
    for arm, rows in arms.items():
        for setting in reaching:
            limit = (before or {}).get(arm, rows)
            cut = edit(rows[None].to(device_of(model)), limit[None].to(device_of(model)))
            with editing(model, cut, setting.layers):
                memories[arm, setting] = passes.demonstrate_from(model, demonstrated, firsts[setting])

    def ask(asked: Queries) -> tuple[Answers, dict[tuple[str, Setting], Answers]]:
        edited = {}
        with capturing(model, Site.RESID_PRE, {firsts[setting] + 1 for setting in reaching}) as resid:
            clean = passes.respond(model, group, demonstrated.memory, asked, top=top)
        for (arm, setting), memory in memories.items():
            start = firsts[setting] + 1
            said = passes.respond(model, group, memory, asked, top=top, start=start, resid=resid[start])
            edited[arm, setting] = said
        return clean, edited

    plain: list[Answers] = []
    edited: dict[tuple[str, Setting], list[Answers]] = defaultdict(list)
    for clean, changed in passes.halving(ask, passes.queries(model, group, batch_tokens)):
        plain.append(clean)
        for key, said in changed.items():
            edited[key].append(said)
    clean = _ordered(group, plain)
    found = {key: _ordered(group, said) for key, said in edited.items()}
    return clean, {(arm, setting): found.get((arm, setting), clean) for arm in arms for setting in settings}


@torch.no_grad()
def whole(
    model: Lens,
    group: Group,
    setting: Setting,
    rows: Mapping[int, Int[Tensor, "layer row"]],
    *,
    mask: str = "before",
    top: int = TOP,
    batch_tokens: int = 0,
) -> Answers:
    """Answers when each prompt and layer has rows of its own, in the order of ``group.prompts``: whole prompts."""
    edit = _edit(mask)

    def ask(batch: Batch) -> Answers:
        isolated = torch.stack([rows[example] for example in batch.example.tolist()]).to(batch.tokens.device)
        isolated = isolated.repeat_interleave(batch.scoring.rows, 0)
        with ExitStack() as edits:
            for layer in setting.layers:
                edits.enter_context(editing(model, edit(isolated[:, layer]), [layer]))
            return passes.answers(model, batch, top)

    return _ordered(group, passes.halving(ask, passes.plan(model, group.prompts, batch_tokens)))


def check(settings: Sequence[Setting], n_layers: int) -> None:
    """Refuse layers that the model lacks, and names that results could not tell apart."""
    if not settings:
        raise ValueError("no settings: say in which layers to isolate, as isolation.settings(n_layers) does.")
    for setting in settings:
        for layer in setting.layers:
            if not 0 <= layer < n_layers:
                raise SettingError(f"layer {layer} in {setting}: this model has layers 0 to {n_layers - 1}")
    names = [(setting.end, setting.depth) for setting in settings]
    if len(set(names)) < len(names):
        raise ValueError(f"settings {names} name an end and depth twice; results could not tell them apart.")


def _edit(mask: str) -> type[Isolate] | type[Silence]:
    if mask not in MASKS:
        raise SettingError(f"mask={mask!r}: it may be {' or '.join(map(repr, MASKS))} (the softmax).")
    return MASKS[mask]


def _ordered(group: Group, parts: Iterable[Answers]) -> Answers:
    """Answers of all batches as one, in the order of the group's prompts."""
    parts = list(parts)
    example, gold, logits, top = (
        torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("example", "gold", "label_logits", "top")
    )
    place = {each: n for n, each in enumerate(example.tolist())}
    order = torch.tensor([place[prompt.example] for prompt in group.prompts])
    return Answers(example[order], gold[order], logits[order], top[order])
