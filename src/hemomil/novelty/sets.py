"""Which of the known classes can a patient have? Sets of classes that miss the true one at a stated rate.

Axes: S samples of patients whose class is known, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from hemomil.novelty.calibration import donors_needed, hierarchical_p
from hemomil.types import Notice

ALPHA = 0.1
"""A set misses the true class in no more than this share of the patients of any class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalSets:
    """How probable known patients were found to have the class that they have, class by class.

    Notes
    -----
    Class-conditional (Mondrian) conformal prediction (Sadinle, Lei & Wasserman 2019, arXiv 1609.00451): a new
    patient of a class who is exchangeable with the known ones of that class is denied it with probability
    alpha at most, whatever the model. Patients are what is exchangeable; one with several samples votes with
    each of them in part (Lee, Barber & Willett, arXiv 2306.06342). What that does not say:

    * Nothing of the other classes in a set: a useless model gives large sets, not wrong ones.
    * Nothing of a patient with none of the known classes, of whom the set may be empty or not.
    * The known probabilities come from models that saw fewer patients than the one that is used in the end;
      exchangeable they are as far as that makes no difference.
    """

    classes: tuple[str, ...]
    scores: Float[np.ndarray, "S"]
    """Minus the probability of the class that the sample has, ascending."""
    truth: Int[np.ndarray, "S"]
    shares: Float[np.ndarray, "S"]
    """One over the number of samples of the same patient and class."""
    n_patients: Int[np.ndarray, "K"]

    @classmethod
    def fit(
        cls,
        probabilities: Float[np.ndarray, "S K"],
        labels: Sequence[str],
        patients: Sequence[str],
        *,
        classes: Sequence[str],
    ) -> "ConformalSets":
        """Keep what out-of-fold models said of each sample's own class; names of patients are not kept.

        `classes` names the columns of `probabilities`.
        """
        assert probabilities.shape == (len(labels), len(classes)), "probabilities are not samples by classes"
        assert len(labels) == len(patients), "labels and patients are not aligned"
        truth = pd.Index(classes).get_indexer(pd.Index(labels)).astype(np.int64)
        assert (truth >= 0).all(), "a label is none of the classes"
        own = probabilities[np.arange(len(truth)), truth].astype(np.float64)
        samples = pd.DataFrame({"score": -own, "truth": truth, "patient": patients})
        samples["share"] = 1 / samples.groupby(["truth", "patient"])["score"].transform("size")
        samples = samples.sort_values("score", kind="stable")
        found = samples.groupby("truth")["patient"].nunique().reindex(range(len(classes)), fill_value=0)
        return cls(
            classes=tuple(classes),
            scores=samples["score"].to_numpy(dtype=np.float64),
            truth=samples["truth"].to_numpy(dtype=np.int64),
            shares=samples["share"].to_numpy(dtype=np.float64),
            n_patients=found.to_numpy(dtype=np.int64),
        )

    def p_values(self, probabilities: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
        """Per class, the share of its patients (with the new one) who were no more probable to have it."""
        return np.array([self._p(k, probability) for k, probability in enumerate(probabilities.tolist())])

    def _p(self, k: int, probability: float) -> float:
        of, score = self.truth == k, np.array([-probability])
        return float(hierarchical_p(score, self.scores[of], self.shares[of], int(self.n_patients[k]))[0])

    def classes_of(self, probabilities: Float[np.ndarray, "K"], alpha: float = ALPHA) -> tuple[str, ...]:
        """The classes that cannot be excluded; empty: the patient is unlike those of every known class."""
        kept = self.p_values(probabilities) > alpha
        return tuple(name for name, keep in zip(self.classes, kept.tolist(), strict=True) if keep)

    def notices(self, alpha: float = ALPHA) -> tuple[Notice, ...]:
        """A warning for each class with too few patients to be ever excluded."""
        needed = donors_needed(alpha)
        return tuple(
            _too_few(name, n, needed, alpha)
            for name, n in zip(self.classes, self.n_patients.tolist(), strict=True)
            if n < needed
        )

    def to_state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` rebuilds this from, with the names of the classes."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "classes"}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], *, classes: Sequence[str]) -> "ConformalSets":
        """What `to_state` wrote."""
        arrays = {name: state[name] for name in cls.__slots__ if name != "classes"}
        return cls(**arrays, classes=tuple(classes))


def _too_few(name: str, n: int, needed: int, alpha: float) -> Notice:
    text = (
        f"class {name}: its exclusion at {100 * alpha:g} % error cannot be had with {n} patients, "
        f"so it is in every set; that needs {needed}"
    )
    return Notice(kind="few-patients", subject=name, text=text)
