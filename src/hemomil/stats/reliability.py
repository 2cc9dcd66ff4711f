"""Whether a probability means what it says: Brier score, calibration error, the reliability diagram.

Axes: S samples, K classes, P patients, B bootstrap draws, G bins of confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from hemomil.stats.draws import LEVELS, MIN_PATIENTS, Resampled, patient_draws
from hemomil.stats.scored import Scored, scored_runs

BINS = 10
"""Bins of equal width over confidences from 0 to 1, each closed on the right, as in scikit-learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """The points of a reliability diagram, one per bin; NaN where fewer than 5 patients are in it."""

    confidence: Float[np.ndarray, "G"]
    """Mean probability of the most probable class."""
    accuracy: Float[np.ndarray, "G"]
    """How often that class was the true one."""
    low: Float[np.ndarray, "G"]
    high: Float[np.ndarray, "G"]
    share: Float[np.ndarray, "G"]
    """Share of the samples (of all runs) in the bin; sums to 1."""
    patients: Int[np.ndarray, "G"]


def calibration_metrics(scored: Scored, draws: Int[np.ndarray, "B P"]) -> dict[str, Resampled]:
    """Brier score (`brier`) and expected calibration error (`ece`); NaN with fewer than 5 patients.

    Notes
    -----
    The Brier score is scikit-learn's: squared distance of the probabilities to the true class, summed over
    classes, and halved for two (so 0 to 1 for two classes, 0 to 2 for more). The calibration error is that of
    the most probable class (Guo et al. 2017, arXiv 1706.04599): |accuracy − mean confidence| over bins of
    equal width, weighted by the samples in them. Chance alone makes it positive: in simulated cohorts whose
    true error was .03 to .04, it was .09 with 80 samples and .13 with 30. Every draw adds that bias again, so
    that a percentile interval covered the truth in 0 to 83 % of cohorts (`benchmarks/coverage.py`). Its draws
    are therefore reflected at the value (the basic bootstrap) and cut at 0: this covered it in 82 to 93 %,
    from 30 samples on.
    """
    n = len(np.unique(scored.patients))
    everyone = np.concatenate([np.ones_like(draws[:1]), draws]).astype(np.float64)
    samples = everyone @ _per_patient(np.ones((len(scored.truth), 1)), scored, draws)[:, 0]
    gaps = _hits(scored) - _confidences(scored)
    with np.errstate(invalid="ignore"):
        brier = (everyone @ _per_patient(_squared_errors(scored), scored, draws))[:, 0] / samples
        error = np.abs(everyone @ _per_patient(gaps, scored, draws)).sum(axis=1) / samples
    reflected = np.maximum(2 * error[0] - error[1:], 0)
    values = (brier[0], error[0]) if n >= MIN_PATIENTS else (np.nan, np.nan)
    return {
        "brier": Resampled(value=float(values[0]), draws=brier[1:], n=n),
        "ece": Resampled(value=float(values[1]), draws=reflected, n=n),
    }


def reliability_diagram(
    samples: pd.DataFrame, method: str, classes: Sequence[str], *, seed: int, n_boot: int = 1000
) -> Reliability:
    """The reliability diagram of a method: accuracy against confidence, with a 95 % interval per bin.

    `samples` is samples.csv. A sample counts once in each run, and is drawn with its patient, in all runs at
    once: the points are those of all runs taken together, their intervals those that the patients allow.
    """
    rows = samples[samples["method"] == method]
    patients = sorted(set(rows["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    sums = np.zeros((3, len(patients), BINS))
    for run in scored_runs(rows, classes, patients).values():
        sums += [_per_patient(part, run, draws) for part in (_bins(run), _confidences(run), _hits(run))]
    counts, confidences, hits = sums
    with np.errstate(invalid="ignore"):
        drawn = (draws @ hits) / (draws @ counts)
        points = np.stack([confidences.sum(axis=0), hits.sum(axis=0)]) / counts.sum(axis=0)
    known = (counts > 0).sum(axis=0) >= MIN_PATIENTS
    low, high = np.full((2, BINS), np.nan)
    if known.any():
        low[known], high[known] = np.nanpercentile(drawn[:, known], LEVELS, axis=0)
    confidence, accuracy = np.where(known, points, np.nan)
    return Reliability(
        confidence=confidence,
        accuracy=accuracy,
        low=low,
        high=high,
        share=counts.sum(axis=0) / counts.sum(),
        patients=(counts > 0).sum(axis=0),
    )


def _per_patient(
    values: Float[np.ndarray, "S G"], scored: Scored, draws: Int[np.ndarray, "B P"]
) -> Float[np.ndarray, "P G"]:
    """Sums over the samples of each patient."""
    sums = np.zeros((draws.shape[1], values.shape[1]))
    np.add.at(sums, scored.patients, values)
    return sums


def _squared_errors(scored: Scored) -> Float[np.ndarray, "S 1"]:
    n_classes = scored.probabilities.shape[1]
    # brier_score_loss warns of probabilities that single precision has rounded, and takes no draws
    misses = scored.probabilities - np.eye(n_classes)[scored.truth]
    errors: np.ndarray = (misses**2).sum(axis=1, keepdims=True)
    return errors / 2 if n_classes == 2 else errors


def _bins(scored: Scored) -> Float[np.ndarray, "S G"]:
    """1 in the bin of each sample's highest probability."""
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    bins: np.ndarray = np.eye(BINS)[np.searchsorted(inner, scored.probabilities.max(axis=1))]
    return bins


def _confidences(scored: Scored) -> Float[np.ndarray, "S G"]:
    placed: np.ndarray = _bins(scored) * scored.probabilities.max(axis=1, keepdims=True)
    return placed


def _hits(scored: Scored) -> Float[np.ndarray, "S G"]:
    right = scored.probabilities.argmax(axis=1) == scored.truth
    placed: np.ndarray = _bins(scored) * right[:, None]
    return placed
