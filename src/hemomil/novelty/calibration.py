"""Turn anomaly scores into p-values: how often would a healthy donor's cell, or sample, score this high?

Cells of one donor resemble each other, so the donors are what is exchangeable, not the cells. A p-value
therefore counts donors: each donor of the reference votes with the share of its cells that score as high.

Axes: M cells of the control donors, N cells to be judged, D donors, S control samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from hemomil.novelty.samples import SampleScale
from hemomil.types import Notice

LEVEL = 0.05
"""Error rate that the floor of the p-values is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Anomaly scores of control donors, against which new cells and samples are judged.

    Scores must be out of donor: each donor's cells scored by a reference that was fitted without that donor.

    Notes
    -----
    Hierarchical conformal p-values (Lee, Barber & Willett, arXiv 2306.06342): if a new donor is exchangeable
    with the D control donors, P(p ≤ α) ≤ α for a cell (or sample) of it, whatever the donors' differences.
    What that does not say:

    * No p-value is below 1 / (D + 1). With 33 control donors it is .03, and no number of cells lowers it.
    * The error rate is over donors. One unusual healthy donor may have many cells flagged, most have none.
    * p-values of one sample's cells depend on each other through the reference and the donor they share, so
      Benjamini–Hochberg q-values bound the share of false flags only approximately.
    * A control donor of another stain, scanner or hospital is not exchangeable with these.
    """

    cell_scores: Float[np.ndarray, "M"]
    """Ascending."""
    cell_shares: Float[np.ndarray, "M"]
    """One over the number of cells of the same donor."""
    sample_scores: Float[np.ndarray, "S"]
    """How strange each control sample is by `scale`, ascending."""
    sample_shares: Float[np.ndarray, "S"]
    """One over the number of samples of the same donor."""
    scale: SampleScale
    """What makes a sample strange."""
    n_donors: int

    @classmethod
    def fit(
        cls,
        scores: Float[np.ndarray, "M"],
        patients: Sequence[str],
        samples: Sequence[str],
        scale: SampleScale | None = None,
    ) -> "Calibration":
        """Keep the out-of-donor anomaly scores of the control cells; names of donors are not kept.

        `patients` and `samples` name the donor and the sample of each cell. `scale` should come from donors
        other than these; if it is not given, these have to do.
        """
        assert len(scores) == len(patients) == len(samples), "scores, patients and samples are not aligned"
        assert not np.isnan(scores).any(), "a control cell has no anomaly score"
        cells = pd.DataFrame({"score": scores.astype(np.float64), "donor": patients, "sample": samples})
        scale = SampleScale.fit(scores, patients, samples) if scale is None else scale
        of_samples = cells.groupby(["donor", "sample"])["score"]
        bags = of_samples.agg(lambda own: scale.of(own.to_numpy())).reset_index()
        cell_scores, cell_shares = _ascending(cells)
        sample_scores, sample_shares = _ascending(bags)
        return cls(
            cell_scores=cell_scores,
            cell_shares=cell_shares,
            sample_scores=sample_scores,
            sample_shares=sample_shares,
            scale=scale,
            n_donors=len(set(patients)),
        )

    @property
    def floor(self) -> float:
        """The smallest p-value that these donors can give."""
        return 1 / (self.n_donors + 1)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """A warning where the donors are too few for any p-value to reach 0.05."""
        return donor_notices(self.n_donors)

    def cell_p(self, scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """p-value of each cell of a new donor: (1 + Σ over donors of the share ≥ score) / (D + 1)."""
        return hierarchical_p(scores, self.cell_scores, self.cell_shares, self.n_donors)

    def cell_votes(self, scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """Σ over donors of the share of their cells that score as high, for each cell of a new donor."""
        return votes(scores, self.cell_scores, self.cell_shares)

    def sample_votes(self, scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "1"]:
        """Σ over donors of the share of their samples that are as strange as this sample of a new donor."""
        return votes(np.array([self.scale.of(scores)]), self.sample_scores, self.sample_shares)

    def sample_p(self, scores: Float[np.ndarray, "N"]) -> float:
        """p-value of a sample of a new donor, from the scores of its cells; 1 for a sample without cells.

        Its statistic is that of `scale`; each control donor votes with the share of its samples as strange.
        (A donor's average over samples would spread less than one sample does, and p would be too small.)
        """
        if len(scores) == 0:
            return 1.0
        statistic = np.array([self.scale.of(scores)])
        return float(hierarchical_p(statistic, self.sample_scores, self.sample_shares, self.n_donors)[0])

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds the calibration from."""
        return {
            "cell_scores": self.cell_scores,
            "cell_shares": self.cell_shares,
            "sample_scores": self.sample_scores,
            "sample_shares": self.sample_shares,
            "scale": np.stack([self.scale.mean, self.scale.sd]),
            "n_donors": np.array([self.n_donors], dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "Calibration":
        """The calibration that `to_state` wrote."""
        arrays = {name: state[name] for name in cls.__slots__ if name not in ("scale", "n_donors")}
        mean, sd = state["scale"]
        return cls(**arrays, scale=SampleScale(mean=mean, sd=sd), n_donors=int(state["n_donors"][0]))


def hierarchical_p(
    scores: Float[np.ndarray, "N"],
    reference: Float[np.ndarray, "M"],
    shares: Float[np.ndarray, "M"],
    n_donors: int,
) -> Float[np.ndarray, "N"]:
    """(1 + Σ of the shares of reference scores ≥ score) / (D + 1), for all scores by one search.

    `reference` ascends; the `shares` of what is of one donor (or patient) sum to one.
    """
    # rounding of the sum must not push a p-value over 1
    p: np.ndarray = np.minimum((1 + votes(scores, reference, shares)) / (n_donors + 1), 1.0)
    return p


def votes(
    scores: Float[np.ndarray, "N"], reference: Float[np.ndarray, "M"], shares: Float[np.ndarray, "M"]
) -> Float[np.ndarray, "N"]:
    """Σ of the shares of reference scores ≥ score, for all scores by one search; `reference` ascends."""
    assert not np.isnan(scores).any(), "a cell has no anomaly score"
    first = np.searchsorted(reference, scores.astype(np.float64), side="left")
    above: np.ndarray = np.append(np.cumsum(shares[::-1])[::-1], 0.0)[first]
    return above


def donor_notices(n_donors: int) -> tuple[Notice, ...]:
    """A warning where so many control donors are too few for any p-value to reach 0.05."""
    floor = 1 / (n_donors + 1)
    if floor <= LEVEL:
        return ()
    text = (
        f"{n_donors} control donors: no novelty p-value can be below {floor:.2g}; "
        f"{LEVEL:g} needs {donors_needed(LEVEL)} donors"
    )
    return (Notice(kind="few-control-donors", subject="control", text=text),)


def donors_needed(alpha: float) -> int:
    """Control donors without whom no p-value can be `alpha` or less: 1 / alpha − 1, rounded up."""
    assert 0 < alpha <= 1, "an error rate lies between 0 and 1"
    return math.ceil(1 / alpha * (1 - 1e-12)) - 1  # 1 / (1 / 49) is a little more than 49


def flag_threshold(calibration: Calibration, rate: float) -> float:
    """The score that a share `rate` of a new healthy donor's cells exceeds, on average over donors.

    The lowest control score with no more than this share above it, every donor counting the same and the new
    cell counting as one more above; infinite where the cells are too few. Flag what is above, not what
    equals it.

    Notes
    -----
    A p-value cannot be below 1 / (D + 1), so with few donors none is .01. This threshold can be had all the
    same, since it makes no claim on any one donor: some have many cells above it, most have few. The mean
    rate of new donors is the nominal one if donors are alike, and a little higher if they differ: simulated,
    with .3 of the variance between donors, 1.16 % for 1 % with 20 donors, 1.08 % with 100. That the control
    donors' references were fitted with fewer donors works against it (`benchmarks/novelty_rates.py`).
    """
    assert 0 < rate < 1, "a rate of flags lies between 0 and 1"
    n_cells = len(calibration.cell_scores)
    allowed = rate - (1 - rate) / n_cells if n_cells else -1.0
    if allowed < 0:
        return math.inf
    above = 1 - np.cumsum(calibration.cell_shares) / calibration.n_donors
    # rounding of the sum must not cost a cell
    return float(calibration.cell_scores[np.argmax(above <= allowed + 1e-9)])


def benjamini_hochberg(p: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """q-values (Benjamini–Hochberg): the false discovery rate at which each of these would be flagged."""
    q: np.ndarray = false_discovery_control(p, method="bh") if len(p) else p
    return q


def _ascending(rows: pd.DataFrame) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """Scores from low to high, and the share that each has in its donor."""
    shares = (1 / rows.groupby("donor")["score"].transform("size")).to_numpy(dtype=np.float64)
    scores = rows["score"].to_numpy(dtype=np.float64)
    order = np.lexsort((shares, scores))
    return scores[order], shares[order]
