"""At least how many of a sample's cells are abnormal? A lower confidence bound on their share.

The strange cells of a sample are counted, and those are taken off that a healthy donor would have among as
many cells, at most. How many that may be is learned from the differences between the control donors.

Axes: N cells to be judged, M cells of the control donors, J thresholds, S control samples, Z sizes of a
sample, R margins (of random subsets of the control samples).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from hemomil.novelty.calibration import LEVEL, donors_needed
from hemomil.streams import stream
from hemomil.types import Notice

TAILS = (0.03, 0.01, 0.003, 0.001, 0.0003)
"""Thresholds lie where these shares of healthy cells are above."""
SMALLEST = 10
"""Of fewer cells nothing is said."""
GROWTH = 1.5
"""Sizes of a sample for which the margin is known grow by this factor."""
EXPECTED = 0.2
"""Thresholds are used above which a healthy sample has so many cells on average; the first always is."""
SUBSETS = 8
"""Random subsets of each control sample, per size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyTails:
    """How many strange cells healthy donors have, and by how much donors differ in that.

    The margin of a sample is the largest excess of its shares of cells above the thresholds over `TAILS`, in
    units of how much such a share varies: by the count of its cells, and as much again as it is large.
    """

    thresholds: Float[np.ndarray, "J"]
    """Scores that the shares `TAILS` of the control donors' cells exceed, every donor counting the same."""
    sizes: Int[np.ndarray, "Z"]
    margins: Float[np.ndarray, "Z R"]
    """Margins of subsets of this size of the control samples; descending."""
    shares: Float[np.ndarray, "Z R"]
    """What each margin counts; those of a donor sum to one."""
    n_donors: int

    @classmethod
    def fit(
        cls,
        scores: Float[np.ndarray, "M"],
        patients: Sequence[str],
        samples: Sequence[str],
        *,
        seed: int = 0,
    ) -> "HealthyTails":
        """Learn from the out-of-donor anomaly scores of the control cells, as `Calibration.fit` does.

        `patients` and `samples` name the donor and the sample of each cell; no names are kept.
        """
        assert len(scores) == len(patients) == len(samples), "scores, patients and samples are not aligned"
        assert not np.isnan(scores).any(), "a control cell has no anomaly score"
        donor, names = pd.factorize(np.array(patients, dtype=object))
        cells = pd.DataFrame({"score": scores.astype(np.float64), "donor": donor, "sample": samples})
        cells = cells.sort_values("score", ignore_index=True)
        cells["weight"] = 1 / cells.groupby("donor")["score"].transform("size")
        n_samples, counts, owner_shares = _counts_above(cells)
        sizes = _sizes(int(n_samples.max(initial=0)))
        margins = np.stack([_margins(n_samples, counts, size, seed) for size in sizes.tolist()])
        order = np.argsort(-margins, axis=1, kind="stable")
        shares = np.repeat(owner_shares / SUBSETS, SUBSETS)
        return cls(
            thresholds=_thresholds(cells["score"].to_numpy(), cells["weight"].to_numpy()),
            sizes=sizes,
            margins=np.take_along_axis(margins, order, axis=1),
            shares=shares[order],
            n_donors=len(names),
        )

    def notices(self, level: float = LEVEL) -> tuple[Notice, ...]:
        """A warning where the donors are too few for any bound but 0."""
        needed = donors_needed(level)
        if self.n_donors >= needed:
            return ()
        text = (
            f"{self.n_donors} control donors: no share of abnormal cells can be claimed "
            f"with {100 * (1 - level):g} % confidence, so its lower bound is 0; that needs {needed} donors"
        )
        return (Notice(kind="few-control-donors", subject="control", text=text),)

    def most(self, n_cells: int, level: float = LEVEL) -> Float[np.ndarray, "J"]:
        """Shares above the thresholds that a new healthy donor's sample stays below, with 1 − `level`."""
        row = np.searchsorted(self.sizes, n_cells, side="right") - 1
        if row < 0 or self.n_donors < donors_needed(level):
            return np.ones(len(TAILS))
        p = (1 + np.cumsum(self.shares[row])) / (self.n_donors + 1)
        # the first whose p-value is above the level; rounding of the sum must not make it an earlier one
        margin = self.margins[row][np.argmax(p > level + 1e-9)]
        size = int(self.sizes[row])
        most: np.ndarray = np.where(_used(size), np.minimum(np.array(TAILS) + margin * _unit(size), 1), 1)
        return most

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds this from."""
        arrays = {name: getattr(self, name) for name in self.__slots__ if name != "n_donors"}
        return {**arrays, "n_donors": np.array([self.n_donors], dtype=np.int64)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "HealthyTails":
        """What `to_state` wrote."""
        arrays = {name: state[name] for name in cls.__slots__ if name != "n_donors"}
        return cls(**arrays, n_donors=int(state["n_donors"][0]))


def abnormal_share_low(scores: Float[np.ndarray, "N"], tails: HealthyTails, level: float = LEVEL) -> float:
    """Lower confidence bound on the share of abnormal cells of one sample of a new donor.

    "At least this share of these cells is abnormal" is wrong for at most `level` of new donors. It is 0
    where the control donors are too few to say more (`HealthyTails.notices`), and for fewer than 10 cells.

    Notes
    -----
    Had the sample only healthy cells, its margin would be exchangeable with those of the control donors'
    samples cut to as many cells: their conformal quantile bounds the shares above all thresholds at once
    (hierarchical conformal prediction, Lee, Barber & Willett, arXiv 2306.06342; the bound of Magnani et al.,
    arXiv 2308.05534, counts cells as exchangeable, which they are not across donors). Abnormal cells in the
    place of healthy ones only lower the number of healthy ones above a threshold; so what exceeds the bound
    is abnormal. What that does not say:

    * The thresholds are learned from the same donors, each donor's margin from the others. Exact would be a
      split of the donors, who are few; coverage is measured in `benchmarks/novelty_rates.py`.
    * It speaks of one sample: of many, the one with the highest bound is bounded less surely.
    * Healthy cells of another stain, scanner or hospital count as abnormal if they look it.
    """
    assert not np.isnan(scores).any(), "a cell has no anomaly score"
    if len(scores) == 0:
        return 0.0
    above = (scores.astype(np.float64)[:, None] > tails.thresholds).mean(axis=0)
    return float(max(0.0, (above - tails.most(len(scores), level)).max()))


def _sizes(largest: int) -> Int[np.ndarray, "Z"]:
    """Sizes from the smallest on, up to the largest control sample; always one."""
    steps = int(np.log(max(largest, SMALLEST) / SMALLEST) / np.log(GROWTH)) + 1
    return np.unique((SMALLEST * GROWTH ** np.arange(steps)).astype(np.int64))


def _thresholds(scores: Float[np.ndarray, "M"], weights: Float[np.ndarray, "M"]) -> Float[np.ndarray, "J"]:
    """The lowest of the ascending scores above which no more than the shares `TAILS` of the weight lie."""
    if len(scores) == 0:
        return np.full(len(TAILS), np.inf)
    upto = np.cumsum(weights)
    # rounding of the sum must not cost a cell
    rows = np.searchsorted(upto, (1 - np.array(TAILS)) * upto[-1] * (1 - 1e-12))
    thresholds: np.ndarray = scores[np.minimum(rows, len(scores) - 1)]
    return thresholds


def _counts_above(
    cells: pd.DataFrame,
) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S J"], Float[np.ndarray, "S"]]:
    """Per sample: its cells, those above the thresholds that the other donors set, its share of its donor."""
    numbers, counts, shares = [], [], []
    scores, weights = cells["score"].to_numpy(), cells["weight"].to_numpy()
    for donor, own in cells.groupby("donor"):
        others = np.where(cells["donor"].to_numpy() == donor, 0.0, weights)
        thresholds = _thresholds(scores, others)
        bags = [bag["score"].to_numpy() for _, bag in own.groupby("sample")]
        numbers += [len(bag) for bag in bags]
        counts += [len(bag) - np.searchsorted(bag, thresholds, side="right") for bag in bags]
        shares += [1 / len(bags)] * len(bags)
    above = np.array(counts, dtype=np.int64).reshape(-1, len(TAILS))
    return np.array(numbers, dtype=np.int64), above, np.array(shares, dtype=np.float64)


def _margins(
    n_samples: Int[np.ndarray, "S"], counts: Int[np.ndarray, "S J"], size: int, seed: int
) -> Float[np.ndarray, "R"]:
    """Margins of random subsets of the samples, of `size` cells or of all where there are fewer."""
    rng = stream(seed, "novelty", "tails", size)
    whole = np.repeat(n_samples, SUBSETS)
    drawn = n_drawn = np.minimum(whole, size)
    margins = np.full(len(whole), -np.inf)
    for j in np.flatnonzero(_used(size)).tolist():
        above = np.repeat(counts[:, j], SUBSETS)
        # of the cells drawn above the last threshold, those above this one as well
        drawn = rng.hypergeometric(above, whole - above, drawn)
        whole = above
        margins = np.maximum(margins, (drawn / n_drawn - TAILS[j]) / _unit(size)[j])
    return margins


def _unit(size: int) -> Float[np.ndarray, "J"]:
    """How much the share of cells above a threshold varies between samples of this size, roughly."""
    tails = np.array(TAILS)
    unit: np.ndarray = np.sqrt(tails / size + tails**2)
    return unit


def _used(size: int) -> Bool[np.ndarray, "J"]:
    """Thresholds above which enough cells of a sample of this size are expected."""
    used: np.ndarray = np.array(TAILS) * size >= EXPECTED
    return used
