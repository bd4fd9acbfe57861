"""Section 2.1: which flow is the larger, in shallow and in deep layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from anchorlens.paper.measures import Tasks, arrays, known
from anchorlens.paper.shapes.seen import UNDECIDED, Seen, of_means
from anchorlens.paper.stored import Cell, cached

_FLOWS = ("S_wp", "S_pq", "S_ww")


@cached
def _flows(cell: Cell, table: str = "results") -> Float[np.ndarray, "example measure"]:
    """Values by example, layer and flow."""
    frame = known(cell.table(table), "value")
    wide = frame.pivot_table(index="example", columns=["layer", "flow"], values="value", sort=True)
    layers = sorted(set(wide.columns.get_level_values("layer")))
    return wide[[(layer, flow) for layer in layers for flow in _FLOWS]].to_numpy()


def _shares(mean: Any) -> Any:
    """Each flow over the sum of the three, layer by layer, as figure 3 shows them."""
    flows = mean.reshape(len(mean), -1, 3)
    total = flows.sum(-1, keepdims=True)
    return (flows / np.where(total == 0, 1, total)).reshape(len(mean), -1)


def shallow(cells: Tasks) -> int:
    """How many layers are the shallow ones."""
    (n, *_) = (values.shape[1] // len(_FLOWS) for seeds in arrays(cells, _flows) for values in seeds)
    return _shallow(n)


def _shallow(n_layers: int) -> int:
    """A third of them; not the last one, where S_wp is 0 by construction."""
    return min(max(1, n_layers // 3), max(1, n_layers - 1))


def flow(spec: Mapping[str, Any], cells: Tasks) -> Seen:
    """Of the table that ``spec`` names: results, or twin, those of the untrained model."""

    def of_mean(mean: Any) -> Any:
        share = mean.reshape(len(mean), -1, 3)
        n = share.shape[1]
        third, inner = max(1, n // 3), max(1, n - 1)
        wp, pq, ww = (share[:, :, flow] for flow in range(3))
        first = slice(_shallow(n))
        if spec["id"] == "gathering":
            return (wp / np.maximum(ww, np.finfo(float).tiny))[:, first].mean(1)
        if spec["id"] == "shallow_order":
            return (wp - pq)[:, first].mean(1)
        if spec["id"] == "rising":
            return pq[:, -third:].mean(1) - pq[:, :third].mean(1)
        if spec["id"] == "reading":
            return (pq - np.maximum(wp, ww))[:, -third:].mean(1)
        if spec["id"] == "crossing":
            return (wp > pq)[:, :inner].mean(1)
        return np.concatenate([(wp > ww)[:, :inner], pq > ww], axis=1).mean(1)

    shown = of_means(arrays(cells, lambda cell: _flows(cell, spec.get("table", "results"))), of_mean, _shares)
    if spec["id"] == "crossing":
        return Seen(shown, 0 < shown.value < 1)
    if not np.isfinite(shown.low) and spec["id"] != "above_rest":
        return Seen(shown, None, UNDECIDED)
    sure = spec["id"] == "above_rest" or shown.low > spec["tolerance"]
    return Seen(shown, shown.value > spec["tolerance"] and sure)
