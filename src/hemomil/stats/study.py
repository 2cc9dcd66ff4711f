"""A study's table of samples turned into numbers: every method, on the same draws of the same patients.

Axes: S samples, K classes, P patients, B bootstrap draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from hemomil.errors import SettingsError
from hemomil.stats.classification import Scored, indices, resampled_metrics
from hemomil.stats.draws import Resampled, estimate, mean_of_runs, over_runs, patient_draws
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
        method: over_runs(list(_by_run(rows, classes, patients, control, draws).values()))
        for method, rows in _groups(samples, "method").items()
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
    """
    rows = {name: samples[samples["method"] == name] for name in (method, reference)}
    _same_samples(method, rows[method], reference, rows[reference])
    patients = sorted(set(rows[method]["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    first, second = (
        mean_of_runs([run[metric] for run in _by_run(rows[name], classes, patients, control, draws).values()])
        for name in (method, reference)
    )
    return estimate(Resampled(value=first.value - second.value, draws=first.draws - second.draws, n=first.n))


def _same_samples(method: str, table: pd.DataFrame, reference: str, other: pd.DataFrame) -> None:
    first, second = (set(zip(rows["run"], rows["sample"], strict=True)) for rows in (table, other))
    if first != second or not first:
        raise SettingsError(
            f"{method!r} and {reference!r} cannot be paired: of {len(first)} and {len(second)} samples "
            f"scored (all runs), {len(first & second)} are the same",
            hint="compare methods of one study, and let both finish every run",
        )


def _groups(table: pd.DataFrame, column: str) -> dict[Any, pd.DataFrame]:
    """The rows of each value, in the order in which the values first appear."""
    return {value: table[table[column] == value] for value in table[column].unique()}


def _by_run(
    rows: pd.DataFrame,
    classes: Sequence[str],
    patients: Sequence[str],
    control: str,
    draws: Int[np.ndarray, "B P"],
) -> dict[Any, dict[str, Resampled]]:
    return {
        run: resampled_metrics(_scored(table, classes, patients), classes, control=control, draws=draws)
        for run, table in _groups(rows, "run").items()
    }


def _scored(table: pd.DataFrame, classes: Sequence[str], patients: Sequence[str]) -> Scored:
    # sorted, so that sums run in one order whatever the order of the rows
    table = table.sort_values("sample", kind="stable")
    return Scored(
        truth=indices(table["label"].tolist(), classes),
        called=indices(table["predicted"].tolist(), classes),
        probabilities=table[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64),
        patients=indices(table["patient"].tolist(), patients),
    )
