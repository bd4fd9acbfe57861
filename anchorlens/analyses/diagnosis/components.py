"""Principal components of queries, and keys measured along them: numbers in, numbers out (section 3.3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from anchorlens.hooks import SettingError

_SMALL = 2**18  # cells; below, threads of numpy's library only wait for one another: 20 times as long on a busy machine


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions in which queries vary most, the foremost first: unit vectors, and how much along each."""

    axes: Float[np.ndarray, "component width"]
    scale: Float[np.ndarray, " component"]

    def scaled(self, keys: Float[np.ndarray, "label width"], n_components: int) -> Float[np.ndarray, "label component"]:
        """Keys along the first components, each coordinate times the queries' variation along it."""
        return keys @ self.axes[:n_components].T * self.scale[:n_components]


def directions(queries: Float[np.ndarray, "query width"], n_components: int) -> Directions:
    """Principal components of the queries, their mean removed.

    ``scale`` holds singular values; the paper's standard deviations are these over a constant, which cancels in a
    predicted confusion. Decomposed in full and in float64, so that nothing depends on chance. Fewer queries than
    components have no variation along the rest, which then adds nothing to any distance and is left out.

    Raises:
        SettingError: for more components than the queries are wide.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    check(n_components, queries.shape[1])
    with threadpool_limits(1 if queries.size < _SMALL else None, "blas"):
        fitted = PCA(min(n_components, len(queries)), svd_solver="full").fit(queries.astype(np.float64))
    return Directions(np.asarray(fitted.components_), np.asarray(fitted.singular_values_))


def distances(keys: Float[np.ndarray, "label component"]) -> Float[np.ndarray, "label label"]:
    """Euclidean distance between the keys of each pair of classes."""
    return np.linalg.norm(keys[:, None] - keys[None], axis=-1)


def check(n_components: int, width: int) -> None:
    """Refuse numbers of principal components that queries of this width cannot have.

    Raises:
        SettingError: names the number and what it may be.
    """
    if not 1 <= n_components <= width:
        raise SettingError(f"n_components={n_components}: queries are {width} wide, so it may be 1 to {width}.")
