"""How sure is the anomaly of a cell? Had other healthy donors been the reference, it would be another.

The donors are drawn again, with replacement, and the Gaussian is fitted anew to each draw. What a donor
adds to it are its moments, so a draw costs a sum and a factorisation, not a pass over the cells.

Axes: M control cells, N cells to be judged, F features, D donors, B draws, R Gaussians, E members of an
ensemble, Q = F (F + 1) / 2 + F + 1 products of features that a squared distance is a weighted sum of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from sklearn.covariance import shrunk_covariance

from hemomil.streams import stream

LEVELS = (2.5, 97.5)
"""Percentiles of the draws that bound the 95 % interval."""
BLOCK_BYTES = 2**22
"""Products of features that are held at a time."""
WEIGHT_BYTES = 2**25
"""What the draws may take in memory and in a saved model: beyond 230 features they get fewer."""
RIDGE = 1e-6
"""Added to the variances, as scikit-learn's mixtures do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorBootstrap:
    """Gaussians of healthy cells (mean, shrunk covariance), each fitted to another draw of the donors.

    Notes
    -----
    The spread over draws says how the score would move with other donors of the same kind. Each draw has
    some donors twice and a third of them not at all, so its Gaussian is narrower and all its distances
    larger; a threshold is learned from scores without that bias. The interval is therefore the score times
    the draws' distances in units of their median. With few donors it is too narrow, as any bootstrap:
    coverage is measured in `benchmarks/novelty_rates.py`. It knows nothing of errors of the image or of the
    outline of the cell, and takes the threshold as given.
    """

    centre: Float[np.ndarray, "F"]
    """Mean of the control cells: taken off all cells first, so that nothing large cancels."""
    weights: Float[np.ndarray, "R Q"]
    """Turn products of features into squared distances: to the Gaussian of all donors, then of each draw."""

    @classmethod
    def fit(
        cls, cells: Float[np.ndarray, "M F"], donors: Sequence[str], n_draws: int = 100, seed: int = 0
    ) -> "DonorBootstrap":
        """Learn from control cells and the donor of each, in the feature space in which they are scored."""
        assert len(cells) == len(donors) > 0, "control cells and donors are not aligned"
        assert not np.isnan(cells).any(), "a control cell has a missing feature"
        centre = cells.mean(axis=0, dtype=np.float64)
        counts, sums, products = _moments(cells - centre, donors)
        n_donors, size = sums.shape
        n_draws = max(1, min(n_draws, WEIGHT_BYTES // (8 * _n_products(size))))
        rng = stream(seed, "novelty", "donor-bootstrap")
        times = rng.multinomial(n_donors, np.full(n_donors, 1 / n_donors), size=n_draws)
        times = np.vstack([np.ones(n_donors), times])
        weights = [
            _weights(drawn @ counts, drawn @ sums, np.tensordot(drawn, products, 1)) for drawn in times
        ]
        return cls(centre=centre, weights=np.stack(weights))

    def interval(
        self, cells: Float[np.ndarray, "N F"]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """The 95 % interval (low, high) of the score of each cell, its Mahalanobis distance."""
        scores, spread = self._read(cells)
        return scores * spread[0], scores * spread[1]

    def around(
        self, scores: Float[np.ndarray, "N"], cells: Float[np.ndarray, "N F"]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """As `interval`, of distances to a Gaussian of the same control cells that was shrunk otherwise."""
        _, spread = self._read(cells)
        return scores * spread[0], scores * spread[1]

    def _read(
        self, cells: Float[np.ndarray, "N F"]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "2 N"]]:
        """Distance to the Gaussian of all donors, and the ends of the interval in units of it."""
        scores, spread = np.empty(len(cells)), np.ones((2, len(cells)))
        step = max(1, BLOCK_BYTES // self.weights[0].nbytes)
        for start in range(0, len(cells), step):
            rows = slice(start, start + step)
            scores[rows], *drawn = _distances((cells[rows] - self.centre).T, self.weights)
            usual = np.median(drawn, axis=0)
            np.divide(np.percentile(drawn, LEVELS, axis=0), usual, out=spread[:, rows], where=usual > 0)
        return scores, spread

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds this from."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "DonorBootstrap":
        """What `to_state` wrote."""
        return cls(**{name: state[name] for name in cls.__slots__})


def ensemble_interval(
    members: Float[np.ndarray, "N E"],
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Lowest and highest score that the members of an ensemble give each cell; on one scale, say p-values."""
    return members.min(axis=1), members.max(axis=1)


def verdicts(
    low: Float[np.ndarray, "N"], high: Float[np.ndarray, "N"], threshold: float
) -> Shaped[np.ndarray, "N"]:
    """What can be said of each cell: "abnormal" or "normal" if its interval is on one side, or "undecided".

    Abnormal is above the threshold, for example `flag_threshold(calibration, rate)`.
    """
    found: np.ndarray = np.select([low > threshold, high <= threshold], ["abnormal", "normal"], "undecided")
    return found


def _n_products(size: int) -> int:
    """Products of so many features that a squared distance is a weighted sum of."""
    return size * (size + 1) // 2 + size + 1


def _moments(
    cells: Float[np.ndarray, "M F"], donors: Sequence[str]
) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D F"], Float[np.ndarray, "D F F"]]:
    """Of each donor: number of cells, their sum, the sum of their outer products."""
    owner, names = pd.factorize(np.array(donors, dtype=object))
    parts = [cells[owner == d] for d in range(len(names))]
    sums = np.stack([part.sum(axis=0) for part in parts])
    return np.bincount(owner).astype(np.float64), sums, np.stack([part.T @ part for part in parts])


def _weights(
    n: float, total: Float[np.ndarray, "F"], products: Float[np.ndarray, "F F"]
) -> Float[np.ndarray, "Q"]:
    """(x − m)ᵀ P (x − m) as weights of the products of the features x, with 1 and x themselves."""
    mean = total / n
    precision = np.linalg.inv(_shrunk(products / n - np.outer(mean, mean), n))
    doubled = 2 * precision - np.diag(precision.diagonal())
    linear = -2 * precision @ mean
    return np.concatenate([doubled[np.triu_indices(len(mean))], linear, [mean @ precision @ mean]])


def _shrunk(covariance: Float[np.ndarray, "F F"], n: float) -> Float[np.ndarray, "F F"]:
    """Oracle approximating shrinkage (Chen et al. 2010, eq. 23); scikit-learn's wants the cells."""
    size = len(covariance)
    mu = np.trace(covariance) / size
    alpha = np.mean(covariance**2)
    excess = (n + 1) * (alpha - mu**2 / size)
    share = 1.0 if excess == 0 else min((alpha + mu**2) / excess, 1.0)
    shrunk: np.ndarray = shrunk_covariance(covariance, share) + RIDGE * np.eye(size)
    return shrunk


def _distances(
    cells: Float[np.ndarray, "F N"], weights: Float[np.ndarray, "R Q"]
) -> Float[np.ndarray, "R N"]:
    """Distance of each centred cell to each Gaussian."""
    first, second = np.triu_indices(len(cells))
    products = np.concatenate([cells[first] * cells[second], cells, np.ones_like(cells[:1])])
    # rounding must not make a squared distance negative
    distances: np.ndarray = np.sqrt(np.maximum(weights @ products, 0))
    return distances
