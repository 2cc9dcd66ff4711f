"""The healthy cells most like each cell: of other people, so that none is explained by itself.

Axes: N cells, F features, K neighbours.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

NEIGHBOURS = 3
MOST_HEALTHY = 10_000
"""Control cells that are searched; of more, evenly spaced ones, as the time grows with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest healthy cells of each cell, the nearest first."""

    rows: Int[np.ndarray, "N K"]
    """Which rows they are; −1 where there are fewer healthy cells of others."""
    distances: Float[np.ndarray, "N K"]
    """Euclidean, in standard deviations of the healthy cells; NaN where there is none."""
    n_healthy: int
    """Healthy cells that were searched."""


def nearest_healthy(
    features: Float[np.ndarray, "N F"],
    patients: Shaped[np.ndarray, "N"],
    healthy: Bool[np.ndarray, "N"],
    *,
    k: int = NEIGHBOURS,
) -> Neighbours:
    """For each cell, the `k` nearest of the `healthy` cells of other patients."""
    owner = pd.factorize(patients)[0]
    found = np.flatnonzero(healthy)
    searched = found[:: max(1, -(-len(found) // MOST_HEALTHY))]
    rows = np.full((len(features), k), -1, np.int64)
    distances = np.full((len(features), k), np.nan)
    if len(searched):
        scaled = StandardScaler().fit(features[searched]).transform(features)
        donors = np.unique(owner[searched])
        for asking in (~np.isin(owner, donors), *(owner == donor for donor in donors)):
            others = searched[~np.isin(owner[searched], owner[asking])]
            count = min(k, len(others))
            if asking.any() and count:
                nearest = NearestNeighbors(n_neighbors=count).fit(scaled[others])
                distances[asking, :count], places = nearest.kneighbors(scaled[asking])
                rows[asking, :count] = others[places]
    return Neighbours(rows=rows, distances=distances, n_healthy=len(searched))
