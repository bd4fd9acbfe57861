"""Section 3.3: which classes the model confuses, predicted from the keys at their label words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from anchorlens import metrics
from anchorlens.analyses.diagnosis.components import check, directions, distances
from anchorlens.hooks import SettingError
from anchorlens.prompts import Prompt, PromptError
from anchorlens.readings import Readings

COLUMNS = {
    "seed": "int64",
    "layer": "int64",
    "n_components": "int64",
    "label_a": "int64",
    "label_b": "int64",
    "distance": "float64",
    "confusion_predicted": "float64",
    "confusion_observed": "float64",
}
AGREEMENT = {"seed": "int64", "layer": "int64", "n_components": "int64", "spearman": "float64", "why": "str"}
PREDICTIONS = {"example": "int64", "seed": "int64", "gold": "int64", "predicted": "int64"}
STUDIED = (5, 10, 20, 50, 100, 200)  # numbers of principal components in figure 14
_STEADY = 0.1  # a tenth of the scale of predicted confusion, hardly a shade in figure 14
Table: TypeAlias = Any  # what selecting from a DataFrame gives, of which type checkers lose track


def layer_of(n_layers: int, layer: int = -1) -> int:
    """The layer to look at, from 0; -1: two thirds of the way through the model, as 32 of GPT2-XL's 48.

    Raises:
        ValueError: for a layer that the model does not have.
    """
    if not -1 <= layer < n_layers:
        raise SettingError(
            f"layer={layer}: this model has {n_layers} layers, so it may be 0 to {n_layers - 1}, or -1 for two thirds "
            "of the way through."
        )
    return min(round(2 * n_layers / 3), n_layers - 1) if layer == -1 else layer


def sweep(n_components: int, width: int, prompts: Iterable[Prompt]) -> tuple[int, ...]:
    """``n_components``, and those of ``STUDIED`` that the number of queries of each seed and their width allow.

    Args:
        n_components: what must be allowed; at most the width.
        width: of query vectors, heads side by side.
        prompts: whose queries the principal components will be taken from.

    Raises:
        SettingError: if ``n_components`` itself is not allowed.
    """
    check(n_components, width)
    most = min(width, *Counter(prompt.seed for prompt in prompts).values())
    return tuple(sorted({n_components, *(n for n in STUDIED if n <= most)}))


def predictions(reading: Readings) -> pd.DataFrame:
    """What the model answers, one row per prompt, columns as in ``PREDICTIONS``; ``gold`` is -1 where not known."""
    answers = reading.answers
    columns = {"example": answers.example, "gold": answers.gold, "predicted": answers.predicted}
    frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    frame.insert(1, "seed", reading.group.seed)
    return frame.astype(PREDICTIONS)


def class_keys(reading: Readings) -> Float[np.ndarray, "kept label width"]:
    """Key vectors at the label words, averaged over the demonstrations of a class, in class order and float64.

    Raises:
        PromptError: for a class without demonstrations.
    """
    classes, n_labels = reading.group.anchor_classes, len(reading.group.labels)
    if missing := sorted(set(range(n_labels)) - set(classes.tolist())):
        lacking = ", ".join(map(str, missing))
        raise PromptError(
            f"example {reading.group.prompts[0].example}: no demonstration is of class {lacking} (from 0), so there is "
            "no key to measure a distance from. Demonstrate every class."
        )
    keys = reading.keys.double()
    return torch.stack([keys[:, classes == label].mean(1) for label in range(n_labels)], dim=1).numpy()


def diagnosis(
    readings: Sequence[Readings],
    pca: Sequence[Readings] = (),
    *,
    n_components: Sequence[int] = (10,),
    as_published: bool = False,
) -> pd.DataFrame:
    """Confusion of each pair of classes: predicted from distances between label words' keys, and observed.

    Args:
        readings: one group for each seed, read with vectors at the layers to look at. Keys are those of the seed's
            first group in which every class is demonstrated (prompts fixed by a file are one seed, -1), observed
            confusion is that of all prompts of the seed in ``readings``.
        pca: the queries whose principal components are taken, as groups of the same seeds; the paper spreads them over
            64 sets of demonstrations. Empty: ``readings``.
        n_components: how many principal components, as many times as wanted.
        as_published: confusions rounded to two decimals, as the released code shows them.

    Returns:
        One row per seed, layer, n_components and pair of classes in both directions, a class with itself included;
        columns as in ``COLUMNS``. ``distance`` is that of the scaled keys, in units that differ from model to model.
        ``confusion_predicted`` is the distance over the largest one (equation 11), ``confusion_observed`` the AUC at
        which the model's answers tell the two classes apart (appendix K): 1 = told apart, low = confused, diagonal 1;
        NaN where no query is of one of the classes.

    Raises:
        ValueError: without readings, with readings at no or at different layers, for more components than queries are
            wide, or a seed that ``pca`` lacks.
        PromptError: if no query of a seed has a gold class, or in none of its groups every class is demonstrated.
        UndefinedError: if the keys at all label words coincide.

    Source:
        Section 3.3, appendices J and K, figures 6 and 14. As in the released code, keys are not centred (which changes
        no distance), heads are side by side, rotary positions are applied, and singular values stand for standard
        deviations (see ``components.directions``). Its layer is 32 of 48, counted from 0. It leaves the decomposition
        to a default that is approximate, and by chance, where queries are many; here it is exact.
    """
    layers = _layers([*readings, *pca])
    queries = _queries(pca or readings)
    tables = []
    for seed, own in _by_seed(readings).items():
        if seed not in queries:
            raise ValueError(
                f"seed {seed} has keys and no queries in pca, which holds seeds {sorted(queries)}: read both."
            )
        if len(queries[seed]) < 2:
            raise PromptError(
                f"there is one query{_of(seed)} only, and one alone varies in no direction; diagnosis needs 2."
            )
        for components in n_components:
            check(components, queries[seed].shape[2])
        observed = _observed(own, seed)
        keys = class_keys(_demonstrated(own))
        for at, layer in enumerate(layers):
            along = directions(queries[seed][:, at], max(n_components))
            for components in n_components:
                distance = distances(along.scaled(keys[at], components))
                try:
                    predicted = metrics.predicted_confusion(distance)
                except metrics.UndefinedError as error:
                    raise metrics.UndefinedError(
                        f"layer {layer}{_of(seed)}, {components} components: {error}. The model gives every label "
                        "word the same key there, where distances are needed; look at other layers."
                    ) from error
                tables.append(_table(seed, layer, components, distance, predicted, observed))
    frame = pd.concat(tables, ignore_index=True)
    return frame.round({"confusion_predicted": 2, "confusion_observed": 2}) if as_published else frame


def agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation between predicted and observed confusion, over the pairs of classes.

    Args:
        frame: what ``diagnosis`` gives.

    Returns:
        One row per seed, layer and n_components, columns as in ``AGREEMENT``. ``spearman``: 1 = the pairs come in the
        same order; NaN where it is undefined, as with two classes, and then ``why`` tells the reason.
    """
    rows = []
    grouped: Table = frame.groupby(["seed", "layer", "n_components"])
    for where, cells in grouped:
        predicted, observed = (_matrix(cells, f"confusion_{which}") for which in ("predicted", "observed"))
        try:
            rows.append((*where, metrics.rank_correlation(predicted, observed), ""))
        except metrics.UndefinedError as error:
            alone = len(observed) > 1 and np.isnan(observed[np.triu_indices(len(observed), k=1)]).all()
            rows.append((*where, np.nan, "all queries are of one class" if alone else str(error)))
    return pd.DataFrame(rows, columns=pd.Index(AGREEMENT)).astype(AGREEMENT)


def stated(frame: pd.DataFrame, layer: int, n_components: int, words: Sequence[str] = ()) -> pd.DataFrame:
    """What the paper states of figures 6 and 14, and what is seen here; confusions are means over seeds.

    Args:
        frame: what ``diagnosis`` gives.
        layer, n_components: where to look; layers from 0.
        words: what the classes are called, in class order.

    Returns:
        Columns claim, found (with numbers) and holds. A rank correlation counts from the value on that one in twenty
        random orders of so many pairs exceeds, 1.645 / sqrt(pairs - 1), as if pairs were independent; several seeds are
        no more evidence than one, since the same classes recur in them. Predicted confusion does not depend on
        n_components where it moves by less than a tenth of its scale on average. What is undefined does not hold.
    """
    here: Table = frame[(frame["layer"] == layer) & (frame["label_a"] < frame["label_b"])]
    values = ["confusion_predicted", "confusion_observed"]
    pairs: Table = here.groupby(["n_components", "label_a", "label_b"])[values].mean()
    main = pairs.loc[n_components]
    others = {n: pairs.loc[n] for n in sorted(set(here["n_components"]) - {n_components})}
    ranked: Table = agreement(pd.DataFrame(frame[frame["n_components"] == n_components]))
    defined = int(main["confusion_observed"].count())
    claims = [
        ("The pair predicted to be confused most is the one confused most", *_worst(main, words)),
        ("Pairs are confused in the order predicted", *_order(ranked, layer, defined)),
        ("Prediction hardly depends on the number of components", *_steady(main, others, n_components)),
    ]
    return pd.DataFrame(claims, columns=pd.Index(["claim", "found", "holds"]))


def _worst(pairs: Table, words: Sequence[str]) -> tuple[str, bool]:
    pairs = pairs.dropna()
    if len(pairs) < 2:
        return f"undefined: {len(pairs)} pair{'' if len(pairs) == 1 else 's'} of classes to choose from", False

    def named(pair: Table) -> str:
        return "–".join(str(words[label]).strip() if words else f"class {label}" for label in pair)

    predicted, observed = pairs["confusion_predicted"], pairs["confusion_observed"]
    mine, real = predicted.idxmin(), observed.idxmin()
    rank, alike = int((observed < observed[mine]).sum()) + 1, int((observed == observed[mine]).sum())
    shared = f", as {alike - 1} other{'s are' if alike > 2 else ' is'}" if alike > 1 else ""
    return (
        f"predicted {named(mine)} ({predicted[mine]:.2f} of the largest distance), which is confused number {rank} of "
        f"{len(pairs)}{shared} (AUC {observed[mine]:.3f}); confused most is {named(real)} (AUC {observed[real]:.3f})",
        rank == alike == int((predicted == predicted[mine]).sum()) == 1,
    )


def _order(ranked: Table, layer: int, pairs: int) -> tuple[str, bool]:
    mean, here = ranked.groupby("layer")["spearman"].mean(), ranked[ranked["layer"] == layer]
    if np.isnan(mean[layer]):
        return f"undefined: {here['why'].iloc[0]}", False
    seeds = here["spearman"].dropna()
    needed = 1.645 / np.sqrt(pairs - 1)
    over = f", mean of {len(seeds)} seeds from {seeds.min():.2f} to {seeds.max():.2f}" if len(seeds) > 1 else ""
    return (
        f"rank correlation {mean[layer]:.2f} in layer {layer + 1} (1 = first{over}), where one in 20 random orders of "
        f"{pairs} pairs exceeds {needed:.2f}; best of all layers {mean.max():.2f} in layer {mean.idxmax() + 1}",
        bool(mean[layer] > needed),
    )


def _steady(main: Table, others: dict[int, Table], n_components: int) -> tuple[str, bool]:
    if not others or len(main) < 2:
        return f"undefined: other numbers of components {sorted(others)}, pairs of classes {len(main)}", False
    moved = {n: (each - main)["confusion_predicted"].abs().mean() for n, each in others.items()}
    return (
        f"mean distance to the prediction from {n_components}: "
        + ", ".join(f"{each:.2f} with {n}" for n, each in moved.items()),
        bool(max(moved.values()) < _STEADY),
    )


def _matrix(cells: Table, value: str) -> Float[np.ndarray, "label label"]:
    (rows, a), (columns, b) = (np.unique(cells[name], return_inverse=True) for name in ("label_a", "label_b"))
    matrix = np.full((len(rows), len(columns)), np.nan)
    matrix[a, b] = cells[value]  # a pivot table takes a hundred times as long
    return matrix


def _demonstrated(readings: Sequence[Readings]) -> Readings:
    """The first in which every class is demonstrated; where there is none, one that will be refused by name."""
    return max(readings, key=lambda one: len(one.group.anchor_classes.unique()) - len(one.group.labels))


def _by_seed(readings: Iterable[Readings]) -> dict[int, list[Readings]]:
    found: dict[int, list[Readings]] = {}
    for reading in readings:
        found.setdefault(reading.group.seed, []).append(reading)
    return found


def _queries(readings: Iterable[Readings]) -> dict[int, Float[np.ndarray, "query kept width"]]:
    """The queries of each seed, of all its sets of demonstrations together."""
    found = _by_seed(readings).items()
    return {seed: torch.cat([one.queries.double() for one in own]).numpy() for seed, own in found}


def _of(seed: int) -> str:
    return f" of seed {seed}" if seed >= 0 else ""


def _layers(readings: Sequence[Readings]) -> tuple[int, ...]:
    found = {reading.layers for reading in readings}
    if len(found) != 1 or found == {()}:
        raise ValueError(
            f"diagnosis was given {len(readings)} readings with vectors of layers {sorted(map(list, found))}; it needs "
            "some, all with vectors of the same layers: readings.read(..., vectors=layers)."
        )
    return found.pop()


def _observed(readings: Sequence[Readings], seed: int) -> Float[np.ndarray, "label label"]:
    gold = torch.cat([each.answers.gold for each in readings]).numpy()
    logits = torch.cat([each.answers.label_logits.double() for each in readings]).numpy()
    if (gold < 0).all():
        raise PromptError(
            f"none of the {len(gold)} queries{_of(seed)} has a gold class, so no confusion of the model can be "
            "observed. Give queries a label."
        )
    return metrics.observed_confusion(logits, gold)


def _table(seed: int, layer: int, n_components: int, *matrices: Float[np.ndarray, "label label"]) -> pd.DataFrame:
    """The cells of distance, predicted and observed confusion, one row each."""
    a, b = np.indices(matrices[0].shape)
    values = dict(zip(("distance", "confusion_predicted", "confusion_observed"), map(np.ravel, matrices), strict=True))
    where = {"seed": seed, "layer": layer, "n_components": n_components, "label_a": a.ravel(), "label_b": b.ravel()}
    return pd.DataFrame({**where, **values}).astype(COLUMNS)
