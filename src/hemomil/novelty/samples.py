"""How strange is a sample as a whole? By its few strangest cells or by its many: by what stands out more.

Axes: M cells of control donors, N cells of a sample, T shares of its cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

SHARES = (0.05, 0.5)
"""Few cells show a parasite, many may show an inherited disease of red cells: no one share suits both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScale:
    """What is usual, in samples of healthy donors, of the mean score of the strangest cells."""

    mean: Float64[np.ndarray, "T"]
    sd: Float64[np.ndarray, "T"]

    @classmethod
    def fit(
        cls, scores: Float[np.ndarray, "M"], patients: Sequence[str], samples: Sequence[str]
    ) -> "SampleScale":
        """Learn from scores of control cells; every donor counts the same."""
        cells = pd.DataFrame({"score": scores.astype(np.float64), "donor": patients, "sample": samples})
        found = [
            (donor, strangest_means(of_sample.to_numpy()))
            for (donor, _), of_sample in cells.groupby(["donor", "sample"])["score"]
        ]
        if not found:
            return cls(mean=np.zeros(len(SHARES)), sd=np.ones(len(SHARES)))
        donors, means = pd.Series([donor for donor, _ in found]), np.stack([of for _, of in found])
        weights = 1 / donors.map(donors.value_counts())
        mean = np.average(means, axis=0, weights=weights)
        sd = np.sqrt(np.average((means - mean) ** 2, axis=0, weights=weights))
        return cls(mean=mean, sd=np.where(sd > 0, sd, 1.0))  # of a single sample there is no SD

    def of(self, scores: Float[np.ndarray, "N"]) -> float:
        """By how many SD of healthy samples its strangest cells are stranger, at the share that says most."""
        return float(((strangest_means(scores) - self.mean) / self.sd).max())


def strangest_means(scores: Float[np.ndarray, "N"]) -> Float64[np.ndarray, "T"]:
    """Mean of each share of a sample's strangest cells (at least one cell)."""
    ranked = np.sort(scores.astype(np.float64))[::-1]
    counts = [max(1, int(np.ceil(share * len(ranked)))) for share in SHARES]
    return np.array([ranked[:count].mean() for count in counts])
