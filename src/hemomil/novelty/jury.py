"""Is this cell, or this sample, strange, and how surely? Judges, and the error rates that donors give them.

Axes: M cells of the control donors, N cells of a sample to be judged, F features, J judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from hemomil.novelty.calibration import Calibration, benjamini_hochberg, donor_notices, flag_threshold
from hemomil.novelty.intervals import DonorBootstrap, ensemble_interval, verdicts
from hemomil.novelty.samples import SampleScale
from hemomil.novelty.scorers import Scorer, from_state, to_state
from hemomil.novelty.sets import ConformalSets
from hemomil.novelty.share import HealthyTails, abnormal_share_low
from hemomil.novelty.temperature import apply_temperature
from hemomil.types import Notice

FLAGGED = 0.01
"""A judge calls a cell abnormal above the score that so many of a new healthy donor's cells exceed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFlags:
    """What is said of the cells of one sample."""

    anomaly: Float[np.ndarray, "N"]
    """By what was made with all control donors."""
    scores: Float[np.ndarray, "N J"]
    """By each judge."""
    p: Float[np.ndarray, "N"]
    q: Float[np.ndarray, "N"]
    verdict: Shaped[np.ndarray, "N"]
    """abnormal, normal, or undecided: judges disagree, the interval holds the threshold, or too few healthy
    cells are known to have one."""

    interval: tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]
    """Between which `anomaly` may lie: lowest and highest score, the judges' and its own, or the 95 %
    interval over a bootstrap of the donors; NaN where there is neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What is said of some cells, before they are held against those of healthy donors."""

    anomaly: Float[np.ndarray, "N"]
    scores: Float[np.ndarray, "N J"]
    low: Float[np.ndarray, "N"]
    high: Float[np.ndarray, "N"]
    """Lowest and highest score, or the ends of the bootstrap's interval."""

    @classmethod
    def join(cls, parts: "Sequence[Heard]") -> "Heard":
        """What is said of all of them."""
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Jury:
    """Judges of strangeness, each of whom lacks a group of control donors, and what these donors' cells get.

    A judge is a scorer that was made without the group, and looks in the embedding of a network that was made
    without it. What ranks the cells, `chief`, was made with all donors and has no vote. Without scorers there
    is one judge, the model's own anomaly, which ranks as well.

    Notes
    -----
    A new cell is held, by each judge, against the donors whom that judge does not know, and the votes of all
    donors are added (cross-conformal prediction, Vovk 2015, arXiv 1208.0806; over donors, see `Calibration`):
    p = (1 + sum over donors of the share of their cells that their judge finds as strange) / (D + 1). Both
    sides of each comparison come from the same judge, so none is favoured for being better known. What can be
    proved is an error rate of 2 α at p ≤ α; in practice it is near α.
    """

    calibrations: tuple[Calibration, ...]
    """Of each judge: scores of the donors it lacks; of the model's own anomaly: those of all donors."""
    tails: HealthyTails
    threshold: float
    """Score above which a judge calls a cell abnormal."""
    chief: Scorer | None = None
    """Made with all donors; looks in the embedding of the network of all donors."""
    bootstrap: DonorBootstrap | None = None
    """Without scorers: how far the model's own anomaly would move with other donors."""
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
        judges: Int[np.ndarray, "M"],
        *,
        chief: Scorer | None = None,
        bootstrap: DonorBootstrap | None = None,
        scorers: Sequence[Scorer] = (),
        networks: Sequence[int] = (),
        scales: Sequence[SampleScale] = (),
        seed: int = 0,
    ) -> "Jury":
        """Learn error rates from control cells, each scored by the judge (0 to J - 1) without its donor.

        `scales`: what each judge finds usual in samples of the donors whom it knows; left out, of those whom
        it does not.
        """
        owners, bags = np.asarray(patients, dtype=object), np.asarray(samples, dtype=object)
        of_judge = [judges == number for number in range(int(judges.max(initial=0)) + 1)]
        known = scales or (None,) * len(of_judge)
        return cls(
            calibrations=tuple(
                Calibration.fit(scores[own], owners[own].tolist(), bags[own].tolist(), scale)
                for own, scale in zip(of_judge, known, strict=True)
            ),
            tails=HealthyTails.fit(scores, patients, samples, seed=seed),
            threshold=flag_threshold(Calibration.fit(scores, patients, samples), FLAGGED),
            chief=chief,
            bootstrap=bootstrap,
            scorers=tuple(scorers),
            networks=tuple(networks),
        )

    @property
    def n_donors(self) -> int:
        """Control donors who have a vote."""
        return sum(calibration.n_donors for calibration in self.calibrations)

    @property
    def floor(self) -> float:
        """The smallest p-value that these donors can give."""
        return 1 / (self.n_donors + 1)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Warnings where donors or patients are too few for what one would like to say."""
        of_sets = self.sets.notices() if self.sets is not None else ()
        return (*donor_notices(self.n_donors), *self.tails.notices(), *of_sets)

    def flags(
        self, own: Float[np.ndarray, "N"], embedded: Sequence[Float[np.ndarray, "N F"]] = ()
    ) -> CellFlags:
        """Judge the cells of a sample, given as to `hear`."""
        return self.verdict(self.hear(own, embedded))

    def hear(self, own: Float[np.ndarray, "N"], embedded: Sequence[Float[np.ndarray, "N F"]] = ()) -> Heard:
        """What the judges say of some cells of a sample.

        `own` is the model's anomaly, which holds where there are no scorers; `embedded` says where the cells
        lie, for each network, or for the model's own distance where there are no scorers.
        """
        pairs = zip(self.scorers, self.networks, strict=True)
        told = [scorer.score_samples(embedded[network]) for scorer, network in pairs]
        scores = np.stack(told, axis=1) if told else own[:, None]
        anomaly = self.chief.score_samples(embedded[0]) if self.chief is not None else own
        if self.bootstrap is not None:
            low, high = self.bootstrap.around(own, embedded[0])
        else:
            low, high = ensemble_interval(scores)
        return Heard(anomaly=anomaly, scores=scores, low=low, high=high)

    def verdict(self, heard: Heard) -> CellFlags:
        """What follows, all cells of a sample having been heard."""
        p = self._p([c.cell_votes(of) for c, of in zip(self.calibrations, heard.scores.T, strict=True)])
        if self.bootstrap is not None or len(self.scorers) > 1:
            interval = np.minimum(heard.low, heard.anomaly), np.maximum(heard.high, heard.anomaly)
        else:
            interval = (np.full(len(p), np.nan),) * 2
        return CellFlags(
            anomaly=heard.anomaly,
            scores=heard.scores,
            p=p,
            q=benjamini_hochberg(p),
            verdict=self._verdicts(heard.low, heard.high),
            interval=interval,
        )

    def _verdicts(self, low: Float[np.ndarray, "N"], high: Float[np.ndarray, "N"]) -> Shaped[np.ndarray, "N"]:
        if not np.isfinite(self.threshold):  # too few control cells to say what is rare among them
            return np.full(len(low), "undecided")
        return verdicts(low, high, self.threshold)

    def sample_p(self, flags: CellFlags) -> float:
        """p-value of a sample: how often would a healthy donor's look this strange? 1 without cells."""
        if len(flags.scores) == 0:
            return 1.0
        votes = [c.sample_votes(of) for c, of in zip(self.calibrations, flags.scores.T, strict=True)]
        return float(self._p(votes)[0])

    def _p(self, votes: Sequence[Float[np.ndarray, "_"]]) -> Float[np.ndarray, "_"]:
        # rounding of the sum must not push a p-value over 1
        p: np.ndarray = np.minimum((1 + np.sum(votes, axis=0)) / (self.n_donors + 1), 1.0)
        return p

    def abnormal_low(self, flags: CellFlags) -> float:
        """At least this share of the sample's cells is abnormal (95 %)."""
        return abnormal_share_low(flags.scores.mean(axis=1), self.tails)

    def scaled(self, probabilities: Float[np.ndarray, "*S K"]) -> Float[np.ndarray, "*S K"]:
        """Class probabilities at the learned temperature."""
        return apply_temperature(probabilities, self.temperature)

    def conformal_set(self, probabilities: Float[np.ndarray, "K"]) -> str | None:
        """The classes that cannot be excluded, joined by |; empty: none of those known. None: not learned."""
        return None if self.sets is None else "|".join(self.sets.classes_of(probabilities))

    def healthy_like(self, probabilities: Float[np.ndarray, "K"]) -> float | None:
        """Share of the control patients that look as little like one, this patient among them. None: not
        learned.
        """
        return None if self.sets is None else float(self.sets.p_values(probabilities)[0])

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds the jury from."""
        state: dict[str, np.ndarray] = {
            "threshold": np.array([self.threshold]),
            "networks": np.array(self.networks, dtype=np.int64),
            "temperature": np.array([self.temperature]),
        }
        for number, calibration in enumerate(self.calibrations):
            state |= _named(f"calibration.{number}", calibration.to_state())
        if self.chief is not None:
            state |= _named("chief", to_state(self.chief))
        if self.bootstrap is not None:
            state |= _named("bootstrap", self.bootstrap.to_state())
        for number, scorer in enumerate(self.scorers):
            state |= _named(f"scorer.{number}", to_state(scorer))
        if self.sets is not None:
            state["sets.classes"] = np.frombuffer("\n".join(self.sets.classes).encode(), dtype=np.uint8)
            state |= _named("sets", self.sets.to_state())
        return state | _named("tails", self.tails.to_state())

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "Jury":
        """The jury that `to_state` wrote."""
        sets, chief, bootstrap = (_below(state, name) for name in ("sets", "chief", "bootstrap"))
        return cls(
            calibrations=tuple(Calibration.from_state(part) for part in _numbered(state, "calibration")),
            tails=HealthyTails.from_state(_below(state, "tails")),
            threshold=float(state["threshold"][0]),
            chief=from_state("combined", chief) if chief else None,
            bootstrap=DonorBootstrap.from_state(bootstrap) if bootstrap else None,
            scorers=tuple(from_state("combined", part) for part in _numbered(state, "scorer")),
            networks=tuple(state["networks"].tolist()),
            temperature=float(state["temperature"][0]),
            sets=_sets(sets) if sets else None,
        )


def _sets(state: Mapping[str, np.ndarray]) -> ConformalSets:
    return ConformalSets.from_state(state, classes=state["classes"].tobytes().decode().split("\n"))


def _named(name: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}.{key}": value for key, value in state.items()}


def _below(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without that."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _numbered(state: Mapping[str, np.ndarray], name: str) -> list[dict[str, np.ndarray]]:
    """The parts `name.0`, `name.1`, ..."""
    numbers = {int(key.split(".")[1]) for key in state if key.startswith(f"{name}.")}
    return [_below(state, f"{name}.{number}") for number in sorted(numbers)]
