"""Densities of healthy cells: a Gaussian, the difference of two, and mixtures. Larger scores are stranger.

Axes: M healthy cells, B background cells, N cells to be scored, F features, K components.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import LinAlgError, solve_triangular
from sklearn.covariance import empirical_covariance, oas
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.preprocessing import normalize

Covariance = Literal["plain", "shrunk", "halved"]

REG_COVAR = 1e-6
"""Added to the diagonal of a covariance, as scikit-learn's mixtures do."""
COMPONENTS = 5
"""Of a mixture. BIC would ask for one or two where cells are few and features many."""
MIXTURE_REG = 0.1
"""Added to the variances of a component, in units of the variance of all healthy cells."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mahalanobis distance to the mean of healthy cells, in standard deviations."""

    mean: Float64[np.ndarray, "F"]
    factor: Float64[np.ndarray, "F F"]
    """Lower Cholesky factor of the covariance."""
    unit_length: Float64[np.ndarray, ""]
    """1: cells are scaled to length one before they are looked at; 0: they are not."""

    @classmethod
    def fit(
        cls, cells: Float[np.ndarray, "M F"], covariance: Covariance = "shrunk", *, unit_length: bool = False
    ) -> "Gaussian":
        """Learn mean and covariance.

        The covariance is `plain` (maximum likelihood), `shrunk` towards a sphere (OAS, Chen et al. 2010), or
        shrunk and then `halved`: every correlation counts half, so that what hardly varies among healthy
        cells, and may be noise, does not outweigh the rest.
        """
        rows = _rows(cells, unit_length)
        found = _covariance(rows, covariance)
        if covariance == "halved":
            found = (found + np.diag(found.diagonal())) / 2
        found = found + REG_COVAR * np.eye(rows.shape[1])
        return cls(mean=rows.mean(axis=0), factor=_cholesky(found), unit_length=np.array(float(unit_length)))

    @cached_property
    def _whitener(self) -> Float64[np.ndarray, "F F"]:
        """The factor's inverse, transposed: a product is three times as fast as solving (64 features)."""
        return _inverse_transposed(self.factor)

    def whiten(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N F"]:
        """Cells in coordinates in which healthy ones have mean zero and unit covariance."""
        white: np.ndarray = (_rows(cells, bool(self.unit_length)) - self.mean) @ self._whitener
        return white

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Distance of each cell, in standard deviations; larger is stranger."""
        distances: np.ndarray = np.linalg.norm(self.whiten(cells), axis=1)
        return distances


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeGaussian:
    """Squared distance to healthy cells minus that to all cells (Ren et al. 2021, arXiv 2106.09022).

    What makes a cell unlike any cell is no sign of disease; only what makes it unlike healthy ones counts.
    """

    healthy: Gaussian
    background: Gaussian

    @classmethod
    def fit(cls, cells: Float[np.ndarray, "M F"], background: Float[np.ndarray, "B F"]) -> "RelativeGaussian":
        """Two shrunk Gaussians: `background` are the unlabelled cells of all training samples."""
        return cls(healthy=Gaussian.fit(cells), background=Gaussian.fit(background))

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Difference of squared distances; larger is stranger, negative is more like health than like all."""
        return self.of(cells, self.healthy.score_samples(cells))

    def of(
        self, cells: Float[np.ndarray, "N F"], distances: Float64[np.ndarray, "N"]
    ) -> Float64[np.ndarray, "N"]:
        """The same, where the distances to healthy cells are known."""
        scores: np.ndarray = distances**2 - self.background.score_samples(cells) ** 2
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Minus the log density of a Gaussian mixture, fitted to whitened healthy cells."""

    space: Gaussian
    """Whitens, so that every feature and data set is measured alike."""
    weights: Float64[np.ndarray, "K"]
    means: Float64[np.ndarray, "K F"]
    covariances: Float64[np.ndarray, "K F F"]

    @classmethod
    def fit(
        cls,
        cells: Float[np.ndarray, "M F"],
        *,
        bayesian: bool = False,
        components: int = COMPONENTS,
        seed: int,
    ) -> "Mixture":
        """EM on at most `components`; the Bayesian one keeps the means of its posterior."""
        space = Gaussian.fit(cells)
        kind = BayesianGaussianMixture if bayesian else GaussianMixture
        mixture = kind(
            n_components=min(components, len(cells)),
            reg_covar=MIXTURE_REG,
            max_iter=100,
            tol=1e-2,
            random_state=seed % 2**32,
        )
        with warnings.catch_warnings():  # EM cut short is a density all the same
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(space.whiten(cells))
        return cls(
            space=space, weights=mixture.weights_, means=mixture.means_, covariances=mixture.covariances_
        )

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Minus the log density of each cell, up to a constant; larger is stranger."""
        mixture = GaussianMixture(len(self.weights))
        mixture.weights_, mixture.means_, mixture.covariances_ = self.weights, self.means, self.covariances
        factors = [_inverse_transposed(_cholesky(covariance)) for covariance in self.covariances]
        mixture.precisions_cholesky_ = np.stack(factors)
        scores: np.ndarray = -mixture.score_samples(self.space.whiten(cells))
        return scores


def _covariance(rows: Float64[np.ndarray, "M F"], covariance: Covariance) -> Float64[np.ndarray, "F F"]:
    if len(rows) == 1:  # nothing is known of how much cells vary, of which scikit-learn warns
        return np.zeros((rows.shape[1], rows.shape[1]))
    found: np.ndarray = empirical_covariance(rows) if covariance == "plain" else oas(rows)[0]
    return found


def _rows(cells: Float[np.ndarray, "N F"], unit_length: bool) -> Float64[np.ndarray, "N F"]:
    rows = np.asarray(cells, dtype=np.float64)
    unit: np.ndarray = normalize(rows) if unit_length else rows
    return unit


def _inverse_transposed(factor: Float64[np.ndarray, "F F"]) -> Float64[np.ndarray, "F F"]:
    """Of a lower factor; upper triangular, as scikit-learn's mixtures keep it."""
    inverse: np.ndarray = solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False)
    return inverse.T


def _cholesky(covariance: Float64[np.ndarray, "F F"]) -> Float64[np.ndarray, "F F"]:
    """Lower factor; a covariance that rounding made indefinite gets the smallest diagonal that mends it."""
    extra = np.finfo(np.float64).eps * max(float(covariance.diagonal().mean()), 1e-12)
    added = 0.0
    while True:
        try:
            return np.linalg.cholesky(covariance + added * np.eye(len(covariance)))
        except LinAlgError:
            added = extra = 10 * extra
