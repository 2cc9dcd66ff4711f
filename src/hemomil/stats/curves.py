"""ROC and precision-recall curves of one class against the rest, with the band that the patients allow.

Axes: N samples of a run, P patients, B bootstrap draws, G points of the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from hemomil.stats.draws import LEVELS, MIN_PATIENTS, patient_draws
from hemomil.stats.scored import groups, indices

FALSE_POSITIVE_RATES = np.arange(101) / 100
RECALLS = np.arange(1, 101) / 100
"""Without 0, where precision is not defined."""

Reader = Callable[[Float[np.ndarray, "_"], Float[np.ndarray, "_"]], Float[np.ndarray, "_"]]
"""Reads a curve off at the grid, given the hits and false alarms at each threshold, strictest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A curve on a grid with its pointwise 95 % interval; NaN where it is not estimable."""

    x: Float[np.ndarray, "G"]
    value: Float[np.ndarray, "G"]
    low: Float[np.ndarray, "G"]
    high: Float[np.ndarray, "G"]
    n: int
    """Patients: the fewer of those with a sample of the class and those with any other."""


def roc_band(samples: pd.DataFrame, method: str, label: str, *, seed: int, n_boot: int = 1000) -> Band:
    """True positive rate at each false positive rate of `FALSE_POSITIVE_RATES`.

    `samples` is samples.csv; `prob_<label>` scores its samples of `method`, those of `label` against all
    others. NaN with fewer than 5 patients on either side.

    Notes
    -----
    Between thresholds the curve is a straight line, as in scikit-learn; at a false positive rate where it
    rises straight up, the upper end counts. It is averaged over runs at equal false positive rate, on the
    patients as they are and on each draw. The band is pointwise: a whole curve leaves it more often than 5 %.
    """
    return _band(samples, method, label, FALSE_POSITIVE_RATES, _true_positive_rates, seed, n_boot)


def precision_recall_band(
    samples: pd.DataFrame, method: str, label: str, *, seed: int, n_boot: int = 1000
) -> Band:
    """Precision at each recall of `RECALLS`; otherwise as `roc_band`.

    Notes
    -----
    The precision at a recall is that of the strictest threshold which reaches it: the steps of which
    scikit-learn's `average_precision_score` is the area. A straight line between thresholds would flatter.
    """
    return _band(samples, method, label, RECALLS, _precisions, seed, n_boot)


def _true_positive_rates(
    hits: Float[np.ndarray, "_"], misses: Float[np.ndarray, "_"]
) -> Float[np.ndarray, "_"]:
    false, true = (np.append(0, counts / counts[-1]) for counts in (misses, hits))
    rates: np.ndarray = np.interp(FALSE_POSITIVE_RATES, false, true)
    return rates


def _precisions(hits: Float[np.ndarray, "_"], misses: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_"]:
    reached = np.searchsorted(hits / hits[-1], RECALLS)
    precisions: np.ndarray = hits[reached] / (hits + misses)[reached]
    return precisions


def _band(
    samples: pd.DataFrame,
    method: str,
    label: str,
    grid: Float[np.ndarray, "G"],
    read: Reader,
    seed: int,
    n_boot: int,
) -> Band:
    rows = samples[samples["method"] == method]
    patients = sorted(set(rows["patient"]))
    everyone = np.ones((1, len(patients)), dtype=np.int64)
    weights = np.concatenate([everyone, patient_draws(len(patients), n_boot, seed=seed)])
    positive = rows["label"] == label
    n = min(rows.loc[where, "patient"].nunique() for where in (positive, ~positive))
    if n < MIN_PATIENTS:
        return Band(x=grid, **dict.fromkeys(("value", "low", "high"), np.full(len(grid), np.nan)), n=n)
    curves = np.mean(
        [_curves(run, label, patients, weights, read) for run in groups(rows, "run").values()], axis=0
    )
    low, high = np.nanpercentile(curves[1:], LEVELS, axis=0)
    return Band(x=grid, value=curves[0], low=low, high=high, n=n)


def _curves(
    run: pd.DataFrame, label: str, patients: list[str], draws: Int[np.ndarray, "B P"], read: Reader
) -> Float[np.ndarray, "B G"]:
    """The curve of one run on each draw; NaN where a draw has one kind of sample only."""
    run = run.sort_values([f"prob_{label}", "sample"], ascending=[False, True])
    truth = (run["label"] == label).to_numpy(dtype=bool)
    ends = np.flatnonzero(np.diff(run[f"prob_{label}"].to_numpy(), append=np.nan) != 0)
    weights = draws[:, indices(run["patient"].tolist(), patients)].astype(np.float64)
    return np.stack([_curve(truth, ends, row, read) for row in weights])


def _curve(
    truth: Bool[np.ndarray, "N"], ends: Int[np.ndarray, "_"], weights: Float[np.ndarray, "N"], read: Reader
) -> Float[np.ndarray, "_"]:
    hits, misses = (np.cumsum(weights * kind)[ends] for kind in (truth, ~truth))
    if not hits[-1] or not misses[-1]:
        return np.full_like(read(np.ones(1), np.ones(1)), np.nan)
    return read(hits, misses)
