"""Three scorers that fail differently, added up on a common scale. Larger is stranger.

Axes: M healthy cells, B background cells, N cells to be scored, F features, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from hemomil.novelty.densities import Gaussian, RelativeGaussian
from hemomil.novelty.forest import Forest
from hemomil.novelty.held_out import scores_without_donor

SHARES = np.linspace(0, 0.95, 191)
"""Shares of healthy cells at whose quantiles scores are remembered; beyond, the tail is exponential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surprise:
    """Minus the log of how often a healthy cell scores as high: scores of all kinds on one scale."""

    scores: Float64[np.ndarray, "Q"]
    """At `SHARES` of healthy cells, ascending."""
    excess: Float64[np.ndarray, ""]
    """How far the rest lies beyond the last of these, on average."""

    @classmethod
    def fit(cls, healthy: Float[np.ndarray, "M"]) -> "Surprise":
        """Learn from scores of healthy cells of donors that the scorer did not see."""
        scores = np.quantile(healthy.astype(np.float64), SHARES)
        beyond = healthy[healthy >= scores[-1]].mean() - scores[-1]
        # where many healthy scores tie at the top, as clipped features can, the tail has no length of its own
        least = 1e-6 * max(1.0, abs(scores[-1]))
        return cls(scores=scores, excess=np.array(max(beyond, least), dtype=np.float64))

    def of(self, scores: Float[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """0 for a score below all healthy ones, 3 for the highest twentieth's lowest, then linear."""
        common = np.interp(scores, self.scores, -np.log1p(-SHARES))
        told: np.ndarray = common + np.maximum(scores - self.scores[-1], 0) / self.excess
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Sum of three surprises: of a distance, of a forest, and of what speaks for disease rather than health.

    The distance sees correlations, the forest is not led by a single feature, the relative distance knows
    the diseases of the training samples, but alone fails on others. Summing logs of improbabilities is
    Fisher's method; as the three depend on each other, the sum is a score and no p-value.
    """

    forest: Forest
    relative: RelativeGaussian
    """Holds the Gaussian of healthy cells, which the distance is to."""
    of_distance: Surprise
    of_forest: Surprise
    of_relative: Surprise

    @classmethod
    def fit(
        cls,
        cells: Float[np.ndarray, "M F"],
        donors: Sequence[str],
        background: Float[np.ndarray, "B F"] | Gaussian,
        *,
        seed: int,
    ) -> "Combined":
        """Fit the three; their scales come from donors left out in turn. `background`: cells, or fitted."""
        everyone = background if isinstance(background, Gaussian) else Gaussian.fit(background)
        relative = RelativeGaussian(healthy=Gaussian.fit(cells), background=everyone)

        def distance(some: np.ndarray, _: Sequence[str]) -> Gaussian:
            return Gaussian.fit(some)

        def forest(some: np.ndarray, owners: Sequence[str]) -> Forest:
            return Forest.fit(some, owners, seed=seed)

        distances, depths = (
            scores_without_donor(fit, cells, donors, seed=seed) for fit in (distance, forest)
        )
        return cls(
            forest=forest(cells, donors),
            relative=relative,
            of_distance=Surprise.fit(distances),
            of_forest=Surprise.fit(depths),
            of_relative=Surprise.fit(relative.of(cells, distances)),
        )

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """Sum of the surprises; larger is stranger."""
        distances = self.relative.healthy.score_samples(cells)
        total = self.of_distance.of(distances)
        total += self.of_relative.of(self.relative.of(cells, distances))
        total += self.of_forest.of(self.forest.score_samples(cells))
        return total
