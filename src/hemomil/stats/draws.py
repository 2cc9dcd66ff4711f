"""Resample patients, and turn a metric and its draws into a number with an interval.

A patient is drawn with everything that is theirs, because samples and cells of one patient resemble each
other: 40 samples of 4 patients are worth little more than 4 samples.

Axes: B bootstrap draws, P patients, S samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hemomil.streams import stream
from hemomil.types import Estimate

MIN_PATIENTS = 5
"""A number that rests on fewer patients is not estimable (a class, or all that is not of the class)."""

LEVELS = (2.5, 97.5)
"""Percentiles of the draws that bound the 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """A metric on the patients as they are, and on each bootstrap draw of them."""

    value: float
    """NaN: not estimable."""
    draws: Float[np.ndarray, "B"]
    """NaN where the metric is undefined, for example a class that no drawn patient has."""
    n: int
    """Patients that the value rests on."""


def patient_draws(n_patients: int, n_boot: int, *, seed: int) -> Int[np.ndarray, "B P"]:
    """How often each patient is drawn: rows of P draws with replacement.

    Depends on nothing but the arguments, so methods and runs given the same patients share their draws.
    """
    rng = stream(seed, "stats", "patients")
    return rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_boot)


def estimate(metric: Resampled) -> Estimate:
    """Value and 95 % percentile interval; draws in which the metric is undefined are left out of it."""
    if np.isnan(metric.value) or np.isnan(metric.draws).all():
        return Estimate(value=None, low=None, high=None, n=metric.n)
    low, high = np.nanpercentile(metric.draws, LEVELS)
    return Estimate(value=float(metric.value), low=float(low), high=float(high), n=metric.n)


def mean_over_samples(
    values: Float[np.ndarray, "S"], owners: Int[np.ndarray, "S"], draws: Int[np.ndarray, "B P"]
) -> Resampled:
    """Mean of a number of each sample, and on each draw of the patients who own them (columns of `draws`)."""
    n = len(np.unique(owners))
    weights = draws[:, owners].astype(np.float64)
    with np.errstate(invalid="ignore"):
        drawn = (weights @ values) / weights.sum(axis=1)
    return Resampled(value=float(values.mean()) if n >= MIN_PATIENTS else np.nan, draws=drawn, n=n)


def mean_of_runs(runs: Sequence[Resampled]) -> Resampled:
    """The metric averaged over runs, on the patients as they are and draw by draw."""
    return Resampled(
        value=float(np.mean([run.value for run in runs])),
        draws=np.mean([run.draws for run in runs], axis=0),
        n=max(run.n for run in runs),
    )


def over_runs(runs: Sequence[Mapping[str, Resampled]]) -> dict[str, dict[str, Any]]:
    """Per metric, JSON-ready: mean over runs, its interval over patients, and the spread over runs.

    `low` and `high` say how the number would move with other patients; `sd_runs` (standard deviation with
    n − 1, null for one run) how it moves with other seeds and folds on the same patients. They are kept
    apart, because more runs shrink the second and never the first.
    """
    return {name: _run_dict([run[name] for run in runs]) for name in runs[0]}


def _run_dict(runs: Sequence[Resampled]) -> dict[str, Any]:
    result = estimate(mean_of_runs(runs))
    known = result.value is not None and len(runs) > 1
    spread = float(np.std([run.value for run in runs], ddof=1)) if known else None
    return estimate_dict(result, sd_runs=spread)


def estimate_dict(result: Estimate, *, sd_runs: float | None = None) -> dict[str, Any]:
    """An estimate as metrics.json has it: value, low, high, n, unit, sd_runs."""
    return {**asdict(result), "sd_runs": sd_runs}
