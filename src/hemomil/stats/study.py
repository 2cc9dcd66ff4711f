"""A study's table of samples turned into numbers: every method, on the same draws of the same patients.

Axes: S samples, K classes, P patients, B bootstrap draws.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from hemomil.errors import SettingsError
from hemomil.stats.classification import resampled_metrics
from hemomil.stats.draws import Resampled, estimate, mean_of_runs, over_runs, patient_draws
from hemomil.stats.scored import Scored, groups, scored_runs
from hemomil.types import Estimate


def study_metrics(
    samples: pd.DataFrame, classes: Sequence[str], *, control: str, seed: int, n_boot: int = 1000
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per method and metric: value, low, high, n, unit, sd_runs (see `over_runs`), JSON-ready.

    `samples` is samples.csv: sample, patient, label, run, method, predicted, prob_<class> …; the metrics are
    those of `classification_metrics`. The folds of a run are scored together, so that a class with few
    patients in a fold still counts once per sample; scores of different folds must then be comparable.
    Raises SettingsError for a label or prediction that is not among `classes`.
    """
    patients = sorted(set(samples["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    return {
        method: over_runs(_metrics(scored_runs(rows, classes, patients).values(), classes, control, draws))
        for method, rows in groups(samples, "method").items()
    }


def paired_difference(
    samples: pd.DataFrame,
    method: str,
    reference: str,
    metric: str,
    classes: Sequence[str],
    *,
    control: str,
    seed: int,
    n_boot: int = 1000,
) -> Estimate:
    """Metric of `method` minus that of `reference`, averaged over runs, on the same draws of patients.

    The interval is that of the difference: far narrower than the two intervals suggest, since both methods
    meet the same easy and hard patients. Raises SettingsError where the two did not score the same samples.
    `compare_methods` does this for all methods and metrics, and tests each difference.
    """
    rows = {name: samples[samples["method"] == name] for name in (method, reference)}
    check_paired(method, rows[method], reference, rows[reference])
    patients = sorted(set(rows[method]["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    first, second = (
        mean_metrics(scored_runs(rows[name], classes, patients).values(), classes, control, draws)[metric]
        for name in (method, reference)
    )
    return estimate(minus(first, second))


def check_paired(method: str, table: pd.DataFrame, reference: str, other: pd.DataFrame) -> None:
    """SettingsError unless both methods scored the same samples in the same runs."""
    first, second = (set(zip(rows["run"], rows["sample"], strict=True)) for rows in (table, other))
    if first != second or not first:
        raise SettingsError(
            f"{method!r} and {reference!r} cannot be paired: of {len(first)} and {len(second)} samples "
            f"scored (all runs), {len(first & second)} are the same",
            hint="compare methods of one study, and let both finish every run",
        )


def mean_metrics(
    runs: Collection[Scored], classes: Sequence[str], control: str, draws: Int[np.ndarray, "B P"]
) -> dict[str, Resampled]:
    """Every metric of `classification_metrics`, averaged over the runs of a method draw by draw."""
    found = _metrics(runs, classes, control, draws)
    return {name: mean_of_runs([run[name] for run in found]) for name in found[0]}


def minus(first: Resampled, second: Resampled) -> Resampled:
    """The difference of two metrics on the same patients and draws."""
    return Resampled(value=first.value - second.value, draws=first.draws - second.draws, n=first.n)


def _metrics(
    runs: Collection[Scored], classes: Sequence[str], control: str, draws: Int[np.ndarray, "B P"]
) -> list[dict[str, Resampled]]:
    return [resampled_metrics(run, classes, control=control, draws=draws) for run in runs]
