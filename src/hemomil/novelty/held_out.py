"""Scores of healthy cells as a new donor's would be: by a scorer that did not see the donor.

Axes: M healthy cells.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float64, Int64

from hemomil.streams import stream

GROUPS = 5
"""Groups of donors that are left out in turn."""


class Scores(Protocol):
    """Anything that scores cells."""

    def score_samples(self, cells: Float[np.ndarray, "N F"]) -> Float64[np.ndarray, "N"]:
        """How strange each cell is; larger is stranger."""


def donor_groups(donors: Sequence[str], groups: int, *, seed: int) -> Int64[np.ndarray, "M"]:
    """The group of each cell's donor, at most `groups` of about equal numbers of donors."""
    names, owner = np.unique(np.asarray(donors), return_inverse=True)
    place = stream(seed, "donor-groups").permutation(len(names)) % min(groups, len(names))
    return place[owner].astype(np.int64)


def scores_without_donor(
    fit: "Callable[[np.ndarray, Sequence[str]], Scores]",
    cells: Float[np.ndarray, "M F"],
    donors: Sequence[str],
    *,
    groups: int = GROUPS,
    seed: int,
) -> Float64[np.ndarray, "M"]:
    """Each cell scored by what `fit` learned from the other groups of donors.

    With a single donor there is no other way than to score what was seen.
    """
    group, names = donor_groups(donors, groups, seed=seed), np.asarray(donors)
    if group.max() == 0:
        return fit(cells, donors).score_samples(cells)
    scores = np.empty(len(cells))
    for number in range(group.max() + 1):
        seen, asked = group != number, group == number
        scores[asked] = fit(cells[seen], names[seen].tolist()).score_samples(cells[asked])
    return scores
