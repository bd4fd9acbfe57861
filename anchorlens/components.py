"""Principal components of queries, and keys measured along them: numbers in, numbers out (section 3.3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


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
    predicted confusion. Decomposed in full and in float64, so that nothing depends on chance.

    Raises:
        ValueError: if there are fewer queries than components, or their width is smaller.
    """
    from sklearn.decomposition import PCA

    at_most(n_components, *queries.shape)
    fitted = PCA(n_components, svd_solver="full").fit(queries.astype(np.float64))
    return Directions(np.asarray(fitted.components_), np.asarray(fitted.singular_values_))


def distances(keys: Float[np.ndarray, "label component"]) -> Float[np.ndarray, "label label"]:
    """Euclidean distance between the keys of each pair of classes."""
    return np.linalg.norm(keys[:, None] - keys[None], axis=-1)


def at_most(n_components: int, queries: int, width: int, of: str = "") -> int:
    """How many principal components there are at most; ``n_components`` may not be more.

    Raises:
        ValueError: if it is, or below 1; ``of`` tells whose queries they are.
    """
    most = min(queries, width)
    if not 1 <= n_components <= most:
        raise ValueError(
            f"n_components={n_components}: there are {queries} queries{of}, {width} wide, so it may be 1 to {most}. "
            f"Take fewer components{' or more queries' if queries < width else ''}."
        )
    return most
