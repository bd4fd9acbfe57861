"""The largest cells of one prompt's attention maps: what a picture of them can show, and how much of all that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

MEASURES = ("saliency", "attention")
MOST = 17_500  # edges of a prompt: six bytes each, so that a page of them stays below 200 KB
TOGETHER = 0.3  # the share of them that goes to all heads together, the rest to each head alone
COVERED = 0.995  # of a map's sum: what is smaller than the edges that make this up cannot be seen


@dataclass(frozen=True, eq=False)
class Edges:
    """What flows in one prompt, in lists: of each measure, layer and head the largest edges, the largest first.

    Attributes:
        query, key: positions of each edge; key < query.
        weight: its saliency or attention, rounded to float32 and to nothing else.
        counts: how long each list is, in the order in which they follow each other. List 0 of a layer is all heads
            together (I_l; the mean attention), list 1 + h is head h.
        totals: the sum over all cells of the map that the list was taken from.
        means: S_wp, S_pq and S_ww of every layer, over all cells.
        anchors: positions of all tokens that stand for a demonstration's label word.
        n_tokens: tokens of the prompt; the last of them is the target.
    """

    query: Int[np.ndarray, " edge"]
    key: Int[np.ndarray, " edge"]
    weight: Float32[np.ndarray, " edge"]
    counts: Int[np.ndarray, "measure layer list"]
    totals: Float[np.ndarray, "measure layer list"]
    means: Float[np.ndarray, "layer flow"]
    anchors: tuple[int, ...]
    n_tokens: int


def most(n_layers: int, n_heads: int) -> tuple[int, int]:
    """How many edges a list may hold: of all heads together, and of one head."""
    lists = len(MEASURES) * n_layers
    return max(1, int(MOST * TOGETHER / lists)), max(1, int(MOST * (1 - TOGETHER) / lists / n_heads))


def largest(weights: Float[np.ndarray, " cell"], n: int) -> Int[np.ndarray, " edge"]:
    """Indices of the largest weights, the largest first: at most ``n``, and no more than make up ``COVERED`` of all."""
    narrow = weights.astype(np.float32)
    n = min(n, len(weights))
    found = np.argpartition(-narrow, n - 1)[:n] if n else np.arange(0)
    found = found[np.lexsort((found, -narrow[found]))]
    before = np.cumsum(weights[found], dtype=np.float64) - weights[found]
    return found[(narrow[found] > 0) & (before < COVERED * weights.sum(dtype=np.float64))]


@dataclass(frozen=True, eq=False)
class Layer:
    """One measure of one layer, reduced: the lists of all heads together and of each head, one after the other."""

    query: Int[np.ndarray, " edge"]
    key: Int[np.ndarray, " edge"]
    weight: Float32[np.ndarray, " edge"]
    counts: Int[np.ndarray, " list"]
    totals: Float[np.ndarray, " list"]

    @classmethod
    def of(
        cls, weights: Float[np.ndarray, "list cell"], cells: Int[np.ndarray, "cell 2"], limits: tuple[int, int]
    ) -> "Layer":
        """From whole maps; ``cells`` are their (query, key), ``limits`` what ``most`` gives."""
        found = [largest(row, limits[min(n, 1)]) for n, row in enumerate(weights)]
        each = np.concatenate(found)
        weight = np.concatenate([row[kept] for row, kept in zip(weights, found, strict=True)])
        return cls(
            query=cells[each, 0],
            key=cells[each, 1],
            weight=weight.astype(np.float32),
            counts=np.array([len(kept) for kept in found]),
            totals=weights.sum(1, dtype=np.float64),
        )


def joined(
    measures: Sequence[Sequence[Layer]], means: Float[np.ndarray, "layer flow"], anchors: Sequence[int], n_tokens: int
) -> Edges:
    """All layers of all ``MEASURES``, in order."""
    layers = [layer for measure in measures for layer in measure]
    shape = (len(measures), len(measures[0]), -1)
    return Edges(
        query=np.concatenate([layer.query for layer in layers]),
        key=np.concatenate([layer.key for layer in layers]),
        weight=np.concatenate([layer.weight for layer in layers]),
        counts=np.stack([layer.counts for layer in layers]).reshape(shape),
        totals=np.stack([layer.totals for layer in layers]).reshape(shape),
        means=means,
        anchors=tuple(anchors),
        n_tokens=n_tokens,
    )
