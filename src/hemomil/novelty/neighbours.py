"""How far is the nearest healthy cell? Distances to a memory that holds as many cells of every donor.

Axes: M healthy cells, R cells remembered, N cells to be scored, F features, D donors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from sklearn.metrics import pairwise_distances_chunked

from hemomil.novelty.densities import Gaussian
from hemomil.streams import stream

MEMORY = 5000
"""Healthy cells that are remembered at most; more gain nothing and cost time for every cell scored."""
NEAREST = 10
"""Nearest healthy cells whose distances are averaged."""
NEAREST_DONOR = 3
"""Which donor's nearest cell counts, by distance: one odd donor, or a mislabelled cell, excuses nothing."""


def balanced_rows(donors: Sequence[str], limit: int, *, seed: int) -> Int64[np.ndarray, "R"]:
    """Rows of at most `limit` cells, as many of every donor as far as each has them, donors together."""
    names, owner = np.unique(np.asarray(donors), return_inverse=True)
    each = max(1, limit // len(names))
    order = stream(seed, "memory").permutation(len(owner))
    kept = [order[owner[order] == donor][:each] for donor in range(len(names))]
    return np.concatenate(kept).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Mean distance to the nearest healthy cells, whitened."""

    space: Gaussian
    memory: Float32[np.ndarray, "R F"]
    """Whitened cells."""

    @classmethod
    def fit(cls, cells: Float[np.ndarray, "M F"], donors: Sequence[str], *, seed: int) -> "Neighbours":
        """Remember as many cells of every donor."""
        space = Gaussian.fit(cells)
        rows = balanced_rows(donors, MEMORY, seed=seed)
        return cls(space=space, memory=space.whiten(cells[rows]).astype(np.float32))

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N"]:
        """Mean distance to the `NEAREST` nearest; larger is stranger."""
        k = min(NEAREST, len(self.memory))
        parts = [np.partition(block, k - 1, axis=1)[:, :k].mean(axis=1) for block in _blocks(self, cells)]
        return np.concatenate(parts).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorNeighbours:
    """Distance to the nearest cell of a healthy donor; of all donors, the third nearest counts."""

    space: Gaussian
    memory: Float32[np.ndarray, "R F"]
    """Whitened cells, those of a donor together."""
    first: Int64[np.ndarray, "D"]
    """Row at which each donor's cells begin."""

    @classmethod
    def fit(cls, cells: Float[np.ndarray, "M F"], donors: Sequence[str], *, seed: int) -> "DonorNeighbours":
        """Remember as many cells of every donor."""
        space = Gaussian.fit(cells)
        rows = balanced_rows(donors, MEMORY, seed=seed)
        _, first = np.unique(np.asarray(donors)[rows], return_index=True)
        memory = space.whiten(cells[rows]).astype(np.float32)
        return cls(space=space, memory=memory, first=first.astype(np.int64))

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N"]:
        """Distance to the donor who comes `NEAREST_DONOR`th; larger is stranger."""
        k = min(NEAREST_DONOR, len(self.first))
        to_donors = (np.minimum.reduceat(block, self.first, axis=1) for block in _blocks(self, cells))
        return np.concatenate([np.partition(near, k - 1, axis=1)[:, k - 1] for near in to_donors]).astype(
            np.float64
        )


def _blocks(
    of: Neighbours | DonorNeighbours, cells: Float[np.ndarray, "N F"]
) -> Iterator[Float32[np.ndarray, "_ R"]]:
    """Distances to all of the memory, some cells at a time."""
    white = of.space.whiten(cells).astype(np.float32)
    return pairwise_distances_chunked(white, of.memory, working_memory=64)  # type: ignore[no-any-return]
