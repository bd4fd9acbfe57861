"""Section 3.2: how loyal the model stays when little is kept of the demonstrations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from anchorlens import metrics, passes
from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, Queries, groups
from anchorlens.hooks import SettingError
from anchorlens.models import Lens, Memory, device_of
from anchorlens.passes import Answers
from anchorlens.prompts import Prompt

COLUMNS = {
    "example": "int64",
    "seed": "int64",
    "gold": "int64",
    "predicted": "int64",
    "arm": "str",
    "positions": "str",
    "draw": "int64",
    "label_loyal": "bool",
    "word_loyalty": "float64",
    "correct": "bool",
    "tokens_kept": "int64",
}
POSITIONS = ("restart", "continue")
PAPER = {  # table 2: label loyalty and word loyalty in per cent, GPT2-XL and GPT-J, means of four tasks
    "hidden_anchor": ((79.47, 62.17), (89.06, 75.04)),
    "text_anchor": ((51.05, 36.65), (53.45, 43.85)),
    "hidden_random": ((48.96, 5.59), (49.03, 2.16)),
    "hidden_random_top": ((57.52, 4.49), (71.10, 11.36)),
}
Rows = dict[str, np.ndarray]  # columns of ``COLUMNS``; there are many arms, and a frame of each would take as long
_OWN = {"format_only": "the template alone", "label_only": "label words alone"}


class _Kept(NamedTuple):
    """A set of kept tokens [kept], and the row's arm and draw."""

    arm: str
    draw: int
    positions: Int[Tensor, " kept"]


@dataclass(frozen=True, eq=False)
class _Asked:
    """One group's demonstrations, its queries, and what the whole prompts answer."""

    model: Lens
    group: Group
    memory: Memory
    queries: list[Queries]
    icl: Answers

    def rows(self, said: Answers, arm: str, positions: str, draw: int, tokens: int) -> Rows:
        """``said`` against the whole prompts' answers, one row per prompt."""
        predicted, gold = said.predicted.numpy(), said.gold.numpy()
        return {
            "example": said.example.numpy(),
            "seed": np.full(len(gold), self.group.seed),
            "gold": gold,
            "predicted": predicted,
            "arm": np.full(len(gold), arm, dtype=object),
            "positions": np.full(len(gold), positions, dtype=object),
            "draw": np.full(len(gold), draw),
            "label_loyal": predicted == self.icl.predicted.numpy(),
            "word_loyalty": metrics.jaccard(self.icl.top.numpy(), said.top.numpy()),
            "correct": predicted == gold,  # never so where gold is unknown (-1)
            "tokens_kept": np.full(len(gold), tokens),
        }

    def keeping(self, of: _Kept, rule: str) -> Rows:
        """Rows when the queries see the kept tokens alone."""
        first = self.group.length if rule == "continue" else 0
        positions, longest = of.positions.to(device_of(self.model)), self.group.longest
        memory = self.model.keep(self.memory, positions, first, longest=longest)
        said = _answers(self.model, self.group, memory, self.queries)
        return self.rows(said, of.arm, rule, of.draw, len(of.positions))


@torch.no_grad()
def compression(
    model: Lens,
    group: Group,
    texts: Iterable[Prompt] | Callable[[Iterable[Prompt]], Iterable[Prompt]] = (),
    *,
    positions: str = "both",
    draws: int = 20,
    chosen: Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 0,
    as_published: bool = False,
) -> pd.DataFrame:
    """Answer a group's queries with parts of its demonstrations in memory, and compare with the whole prompts' answers.

    The demonstrations are run once. Each arm keeps keys and values of some of their tokens, at the positions that these
    had, and runs the queries after them.

    Args:
        model: any model of ``anchorlens.models`` with learned or rotary positions.
        texts: the same prompts with empty demonstration texts, found by seed and example (``drafts.without_texts``);
            without any, there is no arm text_anchor. Or what makes them of the group's prompts
            (``windows.counterparts``).
        positions: where the query's positions start. "restart": at 0; "continue": where they are in the whole prompt;
            "both": one after the other.
        draws: random sets to draw; 0 leaves hidden_random and hidden_random_top out.
        chosen: the random positions instead of drawing them [draw demo]; then ``draws`` is not used.
        batch_tokens: tokens of queries per batch; 0: from free memory.

    Returns:
        Columns as in ``COLUMNS``, one row per prompt and

        - icl: the whole prompt
        - hidden_anchor: template and label words
        - hidden_random: template and, for each token of a label word, a token of its text (one row for each ``draw``)
        - hidden_random_top: the draw with the highest label loyalty in this group, the first of equals
        - text_anchor: template and label words as a prompt of their own
        - format_only, label_only: the template alone, label words alone

        ``positions`` is restart, continue or, for icl and text_anchor, none; ``draw`` is -1 where nothing is drawn.
        ``label_loyal``: the predicted class is that of icl. ``word_loyalty``: overlap of the 5 likeliest next tokens
        with those of icl, 0 to 1. ``correct`` is False where gold is unknown (-1): leave those out. ``tokens_kept``
        counts tokens of the demonstrations; a start token is among them, and kept in every set.

    Raises:
        ValueError: for a parameter out of range, a model whose positions cannot be kept exactly, prompts that ``texts``
            lacks, or demonstrations without text when random tokens are to be drawn.
        NotFiniteError: if a label logit is not finite; names the prompts.

    Source:
        Section 3.2, table 2, appendix I. Kept keys and values are what the paper calls hidden states: equivalent.
        format_only and label_only are our own. The best draw is picked on the prompts that it is judged by, as
        published: a group of one query has a best draw that is almost always loyal. Where a group comes in several
        windows, each window has a best draw of its own.
        The released scripts restart positions for GPT-2 and continue them for GPT-J in the main table, and always
        continue them for the best of 20. With ``as_published``, "both" means that rule (restart for learned, continue
        for rotary positions); hidden_random_top looks at sets that grow from draw to draw, since the released script
        forgets to reset its mask (so it keeps more than the other arms: see ``tokens_kept``); and template words that a
        text spells are kept (``kept.by_role``).
    """
    rules = _rules(model, positions, as_published)
    anchored = kept.by_role(group, "hidden_anchor", as_published=as_published)
    drawn = _drawn(group, draws, chosen)
    asked = _ask(model, group, batch_tokens)
    found = [asked.rows(asked.icl, "icl", "none", -1, group.length)]
    for rule in rules:
        found.append(asked.keeping(_Kept("hidden_anchor", -1, anchored), rule))
        random = [_Kept("hidden_random", n, kept.with_random(group, each, anchored)) for n, each in enumerate(drawn)]
        of_each = [asked.keeping(each, rule) for each in random]
        found += of_each
        if drawn and not as_published:
            found.append(_best(of_each))
        found += [asked.keeping(_Kept(arm, -1, kept.by_role(group, arm)), rule) for arm in _OWN]
    if drawn and as_published:
        grown = [{position for one in drawn[: n + 1] for position in one} for n in range(len(drawn))]
        growing = [_Kept("hidden_random", n, kept.with_random(group, each, anchored)) for n, each in enumerate(grown)]
        for rule in ("continue",) if positions == "both" else rules:
            found.append(_best([asked.keeping(each, rule) for each in growing]))
    if texts := list(texts(group.prompts) if callable(texts) else texts):
        found.append(_as_text(asked, texts, batch_tokens))
    return pd.DataFrame({name: np.concatenate([rows[name] for rows in found]) for name in COLUMNS}).astype(COLUMNS)


def _rules(model: Lens, positions: str, as_published: bool) -> tuple[str, ...]:
    if positions in POSITIONS:
        return (positions,)
    if positions != "both":
        raise SettingError(f"positions={positions!r}: it may be 'both', 'restart' or 'continue'.")
    if as_published:
        return ("continue",) if model.cfg.positional_embedding_type == "rotary" else ("restart",)
    return POSITIONS


def _drawn(group: Group, draws: int, chosen: Sequence[Sequence[int]] | None) -> list[Sequence[int]]:
    if chosen is not None:
        kept.check_chosen(group, chosen)
        return list(chosen)
    if draws < 0:
        raise SettingError(f"draws={draws}: give the number of random sets, or 0 to leave them out.")
    return [kept.draw(group, number) for number in range(draws)]


def _ask(model: Lens, group: Group, batch_tokens: int) -> _Asked:
    memory, planned = passes.demonstrate(model, group).memory, passes.queries(model, group, batch_tokens)
    fitted = list(passes.halving(lambda each: (each, passes.respond(model, group, memory, each)), planned))
    queries, said = [each for each, _ in fitted], [each for _, each in fitted]
    return _Asked(model, group, memory, queries, _joined(said))


def _answers(model: Lens, group: Group, memory: Memory, queries: Iterable[Queries]) -> Answers:
    """Answers to all queries, on the CPU, by example."""
    return _joined(list(passes.halving(lambda each: passes.respond(model, group, memory, each), queries)))


def _joined(said: Sequence[Answers]) -> Answers:
    order = torch.cat([each.example for each in said]).argsort()
    names = ("example", "gold", "label_logits", "top")
    return Answers(*(torch.cat([getattr(each, name) for each in said])[order].cpu() for name in names))


def _best(of_each: Sequence[Rows]) -> Rows:
    """The most loyal draw, the first of equals."""
    loyalty = [rows["label_loyal"].mean() for rows in of_each]
    best = of_each[int(np.argmax(loyalty))]
    return {**best, "arm": np.full_like(best["arm"], "hidden_random_top")}


def _as_text(asked: _Asked, texts: Iterable[Prompt], batch_tokens: int) -> Rows:
    wanted = {prompt.example for prompt in asked.group.prompts}
    own = [prompt for prompt in texts if prompt.seed == asked.group.seed and prompt.example in wanted]
    if missing := sorted(wanted - {prompt.example for prompt in own}):
        raise ValueError(
            f"texts has no prompt for examples {missing} of seed {asked.group.seed}: give the same prompts without "
            "demonstration texts (drafts.without_texts), or none at all."
        )
    found = groups(own)
    if len(found) > 1:
        raise ValueError(
            f"texts has {len(found)} sets of demonstrations for the prompts of seed {asked.group.seed} that share one: "
            "write them from the same drafts."
        )
    said = _ask(asked.model, found[0], batch_tokens)
    return asked.rows(said.icl, "text_anchor", "none", -1, found[0].length)


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with rule of positions and draw as part of the arm's name, so that each arm answers a prompt once.

    For tables that tell settings apart by ``arm`` alone (``metrics.score_table``): "icl", "hidden_anchor restart",
    "hidden_random continue 3".
    """
    rule = (" " + frame["positions"]).where(frame["positions"] != "none", "")
    drawn = (" " + frame["draw"].astype("str")).where(frame["arm"] == "hidden_random", "")
    return frame.assign(arm=(frame["arm"] + rule + drawn).astype("str"))


def stated(frame: pd.DataFrame) -> pd.DataFrame:
    """What section 3.2 states about table 2, beside what ``frame`` (of ``COLUMNS``) shows.

    Returns:
        Columns claim, found, holds; one row per arm that hidden_anchor is compared with, loyalty and rule of positions.
        A claim holds if the difference is above twice its standard error over prompts (pairs of the same prompt, draws
        averaged): a smaller one would often come about by the choice of prompts.

    Source:
        Label and word loyalty of Hidden_anchor are above all others in table 2, for both models; label words alone
        were not enough (section 3.2; no numbers). format_only is our own.
    """
    held, used = set(frame["arm"]), set(frame["positions"])
    rules = [rule for rule in POSITIONS if rule in used]
    arms = [arm for arm in (*list(PAPER)[1:], *_OWN) if arm in held]
    published = [arm for arm in arms if arm in PAPER]
    pairs = [("label_loyal", arm) for arm in arms] + [("word_loyalty", arm) for arm in published]
    means = _by_prompt(frame)
    rows = [_compared(means, rule, arm, measure) for rule in rules for measure, arm in pairs]
    return pd.DataFrame(rows, columns=["claim", "found", "holds"]).astype({"claim": "str", "found": "str"})


def _compared(means: pd.DataFrame, rule: str, arm: str, measure: str) -> tuple[str, str, bool]:
    anchored, other = (_under(means, one, rule)[measure] for one in ("hidden_anchor", arm))
    gap = (anchored - other).dropna()
    error = 2 * gap.std() / len(gap) ** 0.5 if len(gap) > 1 else np.inf
    n, what = (0, "label loyalty") if measure == "label_loyal" else (1, "word loyalty")
    if arm in PAPER:
        paper = " and ".join(f"{PAPER['hidden_anchor'][m][n]:.0f} to {PAPER[arm][m][n]:.0f}" for m in range(2))
        source = f"table 2: {paper} %"
    else:
        source = "section 3.2, no numbers" if arm == "label_only" else "our own arm, not in the paper"
    spread = f"± {error:.2f}" if np.isfinite(error) else "from one prompt, which shows nothing"
    return (
        f"{what}: hidden_anchor above {_OWN.get(arm, arm)}, positions {rule} ({source})",
        f"{anchored.mean():.2f} to {other.mean():.2f}; difference {gap.mean():+.2f} {spread}",
        bool(gap.mean() > error),
    )


def _by_prompt(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean loyalties over draws, by arm, positions, seed and example."""
    values = frame.astype({"label_loyal": "float64", "word_loyalty": "float64"})
    by = ["arm", "positions", "seed", "example"]
    return pd.DataFrame(values.groupby(by)[["label_loyal", "word_loyalty"]].mean())


def _under(means: pd.DataFrame, arm: str, rule: str) -> pd.DataFrame:
    """Those of an arm by seed and example, under one rule of positions or, where it has none of it, under its own."""
    own = means.loc[arm]
    return own.loc[rule if rule in own.index.unique("positions") else own.index.unique("positions")[0]]
