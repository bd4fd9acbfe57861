"""Section 3.1, appendices G and H: learn how much the target attends to each label word, and compare answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from anchorlens import passes
from anchorlens.analyses.reweighting.lessons import Lesson, shots
from anchorlens.analyses.reweighting.training import DivergedError, prepared, scaled, train
from anchorlens.batching import Group, Queries
from anchorlens.hooks import SettingError
from anchorlens.models import Lens

COLUMNS = {
    "example": "int64",
    "seed": "int64",
    "group": "int64",
    "gold": "int64",
    "predicted": "int64",
    "arm": "str",
    "shots": "int64",
    "correct": "bool",
}
BETA = {
    "seed": "int64",
    "group": "int64",
    "layer": "int64",
    "head": "int64",
    "demo": "int64",
    "label": "int64",
    "beta": "float64",
}
LOSSES = {"seed": "int64", "group": "int64", "epoch": "int64", "step": "int64", "loss": "float64"}
TABLES = {"results": COLUMNS, "beta": BETA, "losses": LOSSES}


def reweighting(
    model: Lens,
    lesson: Lesson,
    *,
    learning_rate: float = 0.01,
    epochs: int = 10,
    full_batch: bool = False,
    heads: Literal["all", "shared"] = "all",
    batch_tokens: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> dict[str, pd.DataFrame]:
    """Learn beta from a lesson's training prompts, and compare the model's answers to its queries with and without.

    Args:
        model: any model of ``anchorlens.models``, weights frozen; left as it was.
        lesson: queries and training prompts behind the same demonstrations, from ``lessons``.
        learning_rate, epochs, full_batch, heads, progress: as in ``train``; the order of training prompts is drawn by
            seed.
        batch_tokens: tokens of queries per batch; 0: from free memory.

    Returns:
        Tables by name, columns as in ``TABLES``. results: one row per query and arm (vanilla: as it is; beta: label
        words re-weighted; kshot: more demonstrations); ``shots`` are the arm's demonstrations per class, ``correct``
        is false where ``gold`` is not known (-1). beta: one row per layer, head and demonstration (in prompt order,
        ``label`` is its class). losses: one row per training step. ``group`` counts sets of demonstrations.

    Raises:
        ValueError: as ``train``.
        DivergedError: if training does; ``kept`` are the tables up to there, without the arm beta.
        NotFiniteError: if a query's label logit is not finite; names the prompts.

    Source:
        Section 3.1, equations 9 and 12, table 1. The vanilla prompt with k demonstrations per class shows the training
        examples as further demonstrations.
    """
    group, training = lesson.group, lesson.training
    chance = group.chance("training order")
    how = {"learning_rate": learning_rate, "epochs": epochs, "full_batch": full_batch, "heads": heads}
    try:
        ready = prepared(model, training, batch_tokens=batch_tokens, full_batch=full_batch)
        trained, diverged = train(model, ready, order=chance, progress=progress, **how), None
    except DivergedError as error:
        trained, diverged = error.trained, error
    if diverged:
        found = [_rows(lesson, group, "vanilla", _answered(model, group, batch_tokens))]
    else:
        answers = compare(model, group, trained.beta, batch_tokens=batch_tokens)
        found = [_rows(lesson, group, arm, logits) for arm, logits in zip(("vanilla", "beta"), answers, strict=True)]
    found += [_rows(lesson, more, "kshot", _answered(model, more, batch_tokens)) for more in lesson.kshot]
    tables = {
        "results": pd.concat(found).sort_values("example", kind="stable", ignore_index=True),
        "beta": _betas(lesson, trained.beta),
        "losses": trained.losses.assign(seed=group.seed, group=lesson.number).filter(items=list(LOSSES)).astype(LOSSES),
    }
    if diverged:
        diverged.kept = tables
        raise diverged
    return tables


@torch.no_grad()
def compare(
    model: Lens, group: Group, beta: Float[Tensor, "layer head demo"], *, batch_tokens: int = 0
) -> tuple[Float[Tensor, "query label"], Float[Tensor, "query label"]]:
    """Label logits of a group's queries, as they are and with label words re-weighted, in the order of its prompts.

    Each query is run once up to its last token, and that token once for either.

    Raises:
        NotFiniteError: if a label logit is not finite; names the prompts.
    """
    memory = passes.demonstrate(model, group).memory
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def ask(asked: Queries) -> dict[int, tuple[Tensor, Tensor]]:
        part = passes.prepare(model, group, memory, asked)
        answers = passes.step(model, part).cpu(), scaled(model, part, beta).cpu()
        return dict(zip(asked.example.tolist(), zip(*answers, strict=True), strict=True))

    for each in passes.halving(ask, passes.queries(model, group, batch_tokens, remembered=True)):
        found |= each
    both = [found[prompt.example] for prompt in group.prompts]
    return torch.stack([plain for plain, _ in both]), torch.stack([changed for _, changed in both])


def mean_losses(losses: pd.DataFrame, *, as_published: bool = False) -> pd.DataFrame:
    """Mean training loss of each epoch, from the table of losses: columns seed, epoch, loss; groups are averaged.

    Raises:
        ValueError: as published, if an epoch has one step only.

    Source:
        The released code divides the sum over N training prompts by N - 1, a slip without effect on training: its
        printed losses are N / (N - 1) times the mean. ``as_published`` does the same.
    """
    each = losses.groupby(["seed", "group", "epoch"], as_index=False).agg(total=("loss", _sum), steps=("loss", "size"))
    if as_published and 1 in set(each["steps"]):
        raise SettingError(
            "as_published divides the loss of an epoch by one less than its steps, and there is one step only. "
            "Set as_published=False, or full_batch=False."
        )
    mean = each.assign(loss=each["total"] / (each["steps"] - int(as_published)))
    return mean.groupby(["seed", "epoch"], as_index=False).agg(loss=("loss", "mean"))


def _sum(losses: pd.Series) -> float:
    """NaN where one is: training that left the numbers has no mean loss."""
    return losses.sum(skipna=False)


def stated(scores: pd.DataFrame) -> pd.DataFrame:
    """What the paper states of table 1, and what is seen here: columns claim, found (with numbers), holds.

    Args:
        scores: from ``metrics.score_table``; means over seeds are compared.

    A claim holds if the difference is more than twice the standard error that accuracies on so many queries have (as if
    the arms had been asked different ones, which is cautious), and above 0 in most seeds, so that neither a few queries
    nor one lucky seed counts. The paper compares accuracy; macro-F1 is beside it, since on unbalanced classes accuracy
    can be had by answering the commonest one.
    """
    told = []
    majority = scores.groupby("seed").agg(mean=("majority", "mean")).agg("mean")["mean"]
    accuracy, f1, asked = (
        scores.pivot_table(index="seed", columns="arm", values=v) for v in ("accuracy", "macro_f1", "n")
    )
    for other, name in (("vanilla", "the prompt as it is"), ("kshot", "more demonstrations")):
        if not {"beta", other} <= set(accuracy):
            continue
        shares = np.array([accuracy["beta"].mean(), accuracy[other].mean()])
        margin = 2 * np.sqrt((shares * (1 - shares)).sum() / asked["beta"].sum())
        for table, words in ((accuracy, "accuracy"), (f1, "macro-F1")):
            beta, without = table["beta"].to_numpy(), table[other].to_numpy()
            higher = int((beta > without).sum())
            beside = f"; always the commonest class: {majority:.3f}" if table is accuracy else ""
            told.append(
                (
                    f"re-weighting beats {name} in {words}",
                    f"{beta.mean():.3f} against {without.mean():.3f}, where up to {margin:.3f} may be chance; higher "
                    f"in {higher} of {len(beta)} seeds{beside}",
                    bool(beta.mean() > without.mean() + margin and higher > len(beta) / 2),
                )
            )
    return pd.DataFrame(told, columns=["claim", "found", "holds"]).astype({"holds": "bool"})


@torch.no_grad()
def _answered(model: Lens, group: Group, batch_tokens: int) -> Float[Tensor, "query label"]:
    """Label logits of a group's queries, in the order of its prompts."""
    memory = passes.demonstrate(model, group).memory
    found: dict[int, Tensor] = {}
    for said in passes.halving(
        lambda asked: passes.respond(model, group, memory, asked), passes.queries(model, group, batch_tokens)
    ):
        found |= dict(zip(said.example.tolist(), said.label_logits.cpu(), strict=True))
    return torch.stack([found[prompt.example] for prompt in group.prompts])


def _rows(lesson: Lesson, group: Group, arm: str, logits: Float[Tensor, "query label"]) -> pd.DataFrame:
    gold = np.array([-1 if prompt.gold is None else prompt.gold for prompt in group.prompts])
    predicted = logits.argmax(-1).numpy()
    values = {
        "example": [prompt.example for prompt in group.prompts],
        "seed": group.seed,
        "group": lesson.number,
        "gold": gold,
        "predicted": predicted,
        "arm": arm,
        "shots": shots(group),
        "correct": predicted == gold,
    }
    return pd.DataFrame(values).astype(COLUMNS)


def _betas(lesson: Lesson, beta: Float[Tensor, "layer head demo"]) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(n) for n in beta.shape], names=["layer", "head", "demo"])
    frame = pd.DataFrame({"beta": beta.cpu().double().flatten().numpy()}, index=index).reset_index()
    frame = frame.assign(seed=lesson.group.seed, group=lesson.number)
    frame["label"] = lesson.group.anchor_classes.numpy()[frame["demo"].to_numpy()]
    return frame.filter(items=list(BETA)).astype(BETA)
