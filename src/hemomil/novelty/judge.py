"""Is this cell, or this sample, strange, and how surely? Scorers, and the error rates that donors give them.

Axes: M cells of the control donors, N cells of a sample to be judged, F features, J judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from hemomil.novelty.calibration import Calibration, benjamini_hochberg, flag_threshold
from hemomil.novelty.intervals import ensemble_interval, verdicts
from hemomil.novelty.scorers import Scorer, from_state, to_state
from hemomil.novelty.sets import ConformalSets
from hemomil.novelty.share import HealthyTails, abnormal_share_low
from hemomil.novelty.temperature import apply_temperature
from hemomil.types import Notice

FLAGGED = 0.01
"""A cell is called abnormal above the score that so many of a new healthy donor's cells exceed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFlags:
    """What is said of the cells of one sample."""

    anomaly: Float[np.ndarray, "N"]
    low: Float[np.ndarray, "N"]
    """Lowest score by any of the judges; NaN where there is one only."""
    high: Float[np.ndarray, "N"]
    p: Float[np.ndarray, "N"]
    q: Float[np.ndarray, "N"]
    verdict: Shaped[np.ndarray, "N"]
    """abnormal, normal, or undecided: judges made without some of the donors disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Scorers of strangeness and the error rates that control donors give them.

    The first scorer knows all control donors, each other one lacks a group of them (and so does the network
    in whose embedding it looks). Without scorers the anomaly is what the model itself says.
    """

    calibration: Calibration
    tails: HealthyTails
    scorers: tuple[Scorer, ...] = ()
    networks: tuple[int, ...] = ()
    """In whose embedding each scorer looks: the network of all donors is 0, then come the witnesses."""
    temperature: float = 1.0
    """Of the class probabilities, learned on inner folds; 1 leaves them alone."""
    sets: ConformalSets | None = None
    """Sets of classes with a stated error, learned on inner folds."""

    @classmethod
    def fit(
        cls,
        scores: Float[np.ndarray, "M"],
        patients: Sequence[str],
        samples: Sequence[str],
        *,
        scorers: Sequence[Scorer] = (),
        networks: Sequence[int] = (),
        seed: int = 0,
    ) -> "Judge":
        """Learn error rates from out-of-donor scores of the control cells; `patients`: the donor of each."""
        return cls(
            calibration=Calibration.fit(scores, patients, samples),
            tails=HealthyTails.fit(scores, patients, samples, seed=seed),
            scorers=tuple(scorers),
            networks=tuple(networks),
        )

    @property
    def threshold(self) -> float:
        """Score above which a cell is called abnormal."""
        return flag_threshold(self.calibration, FLAGGED)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Warnings where the donors are too few for what one would like to say."""
        of_sets = self.sets.notices() if self.sets is not None else ()
        return (*self.calibration.notices, *self.tails.notices(), *of_sets)

    def flags(
        self, own: Float[np.ndarray, "N"], embedded: Sequence[Float[np.ndarray, "N F"]] = ()
    ) -> CellFlags:
        """Judge the cells of a sample.

        `own` is the model's anomaly, which holds where there are no scorers; `embedded` says where the cells
        lie, for each scorer.
        """
        by_judge = [scorer.score_samples(cells) for scorer, cells in zip(self.scorers, embedded, strict=True)]
        anomaly = by_judge[0] if by_judge else own
        if len(by_judge) > 1:
            low, high = ensemble_interval(np.stack(by_judge, axis=1))
        else:
            low = high = np.full(len(anomaly), np.nan)
        sure = (low, high) if len(by_judge) > 1 else (anomaly, anomaly)
        p = self.calibration.cell_p(anomaly)
        return CellFlags(
            anomaly=anomaly,
            low=low,
            high=high,
            p=p,
            q=benjamini_hochberg(p),
            verdict=verdicts(*sure, self.threshold),
        )

    def sample_p(self, anomaly: Float[np.ndarray, "N"]) -> float:
        """p-value of a sample: how often would a healthy donor's look this strange?"""
        return self.calibration.sample_p(anomaly)

    def abnormal_low(self, anomaly: Float[np.ndarray, "N"]) -> float:
        """At least this share of the sample's cells is abnormal (95 %)."""
        return abnormal_share_low(anomaly, self.tails)

    def scaled(self, probabilities: Float[np.ndarray, "*S K"]) -> Float[np.ndarray, "*S K"]:
        """Class probabilities at the learned temperature."""
        return apply_temperature(probabilities, self.temperature)

    def conformal_set(self, probabilities: Float[np.ndarray, "K"]) -> str | None:
        """The classes that cannot be excluded, joined by |; empty: none of those known. None: not learned."""
        return None if self.sets is None else "|".join(self.sets.classes_of(probabilities))

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds the judge from."""
        state = dict(self.calibration.to_state())
        state["networks"] = np.array(self.networks, dtype=np.int64)
        state["temperature"] = np.array([self.temperature])
        if self.sets is not None:
            state["sets.classes"] = np.frombuffer("\n".join(self.sets.classes).encode(), dtype=np.uint8)
            state |= {f"sets.{name}": array for name, array in self.sets.to_state().items()}
        state |= {f"tails.{name}": array for name, array in self.tails.to_state().items()}
        for number, scorer in enumerate(self.scorers):
            state |= {f"scorer.{number}.{name}": array for name, array in to_state(scorer).items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "Judge":
        """The judge that `to_state` wrote."""
        numbers = {int(name.split(".")[1]) for name in state if name.startswith("scorer.")}
        return cls(
            calibration=Calibration.from_state(state),
            tails=HealthyTails.from_state(_below(state, "tails")),
            scorers=tuple(
                from_state("combined", _below(state, f"scorer.{number}")) for number in sorted(numbers)
            ),
            networks=tuple(state["networks"].tolist()),
            temperature=float(state["temperature"][0]),
            sets=_sets(_below(state, "sets")),
        )


def _sets(state: Mapping[str, np.ndarray]) -> ConformalSets | None:
    if not state:
        return None
    return ConformalSets.from_state(state, classes=state["classes"].tobytes().decode().split("\n"))


def _below(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without that."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
