"""Is a disease that no model was trained on told from health? Samples, patients and cells of unseen classes.

Axes: S samples, P patients, B bootstrap draws.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.stats.draws import MIN_PATIENTS, Resampled, over_runs, patient_draws
from hemomil.stats.instances import instance_metrics
from hemomil.stats.ranking import rank_draws

SAMPLE_SCORES = ("novelty", "abnormal_probability")
"""How strange a sample is: 1 − novelty_p, or 1 − prob_<control> of a model that knows other diseases."""


def unseen_metrics(
    samples: pd.DataFrame, cells: pd.DataFrame, *, control: str, seed: int, n_boot: int = 1000
) -> dict[str, dict[str, Any]]:
    """Per unseen class and method: `auroc` and `auprc` against the controls, of samples and of patients.

    `samples` is unseen.csv: samples of the unseen classes and of `control`, tested by models that were
    trained without the classes in `left_out` (and without these patients). For every score of `SAMPLE_SCORES`
    there are `auroc_<score>`, `auprc_<score>`, and the same with `_patient` (scores averaged over a patient's
    samples); `instances` is what `instance_metrics` says of the cells of the class. With fewer than 5
    patients of the class, or of the controls, nothing is estimable (value None).

    Notes
    -----
    Every number compares one unseen class with the controls of the test folds; what the model would call the
    unseen samples is in `predicted`, and can only be wrong.
    """
    told = samples[samples["predicted"].notna()]
    result: dict[str, dict[str, Any]] = {}
    for (left_out, label), rows in told[told["label"] != control].groupby(["left_out", "label"], sort=False):
        controls = told[(told["left_out"] == left_out) & (told["label"] == control)]
        own = cells[(cells["left_out"] == left_out) & (cells["label"] == label)]
        both = pd.concat([rows, controls])
        result[str(label)] = _by_method(both, own, control=control, seed=seed, n_boot=n_boot)
    return result


def _by_method(
    samples: pd.DataFrame, cells: pd.DataFrame, *, control: str, seed: int, n_boot: int
) -> dict[str, Any]:
    patients = sorted(set(samples["patient"]))
    column = pd.Series(range(len(patients)), index=patients, dtype=np.int64)
    draws = patient_draws(len(patients), n_boot, seed=seed)
    known = "cell_label" in cells and cells["cell_label"].notna().any()
    instances = (
        instance_metrics(cells, control=control, seed=seed, n_boot=max(n_boot // 2, 1)) if known else {}
    )
    result: dict[str, Any] = {}
    for method in samples["method"].unique().tolist():
        by_run = samples[samples["method"] == method].groupby("run")
        result[method] = over_runs([_scores(rows, control, column, draws) for _, rows in by_run])
        if method in instances:
            result[method]["instances"] = instances[method]
    return result


def _scores(
    samples: pd.DataFrame, control: str, column: pd.Series, draws: Int[np.ndarray, "B P"]
) -> dict[str, Resampled]:
    table = pd.DataFrame(
        {
            "patient": samples["patient"],
            "unseen": samples["label"] != control,
            "novelty": 1 - samples["novelty_p"],
            "abnormal_probability": 1 - samples[f"prob_{control}"],
        }
    )
    of_patients = table.groupby(["patient", "unseen"], as_index=False).mean()
    return {
        f"{metric}_{score}{suffix}": value
        for suffix, rows in (("", table), ("_patient", of_patients))
        for score in SAMPLE_SCORES
        for metric, value in zip(("auroc", "auprc"), _ranked(rows, score, column, draws), strict=True)
    }


def _ranked(
    table: pd.DataFrame, score: str, column: pd.Series, draws: Int[np.ndarray, "B P"]
) -> tuple[Resampled, Resampled]:
    """AUROC and AUPRC of unseen against control; `n` is the smaller number of patients of the two."""
    truth, values = table["unseen"].to_numpy(bool), table[score].to_numpy(np.float64)
    n = min(table.loc[truth, "patient"].nunique(), table.loc[~truth, "patient"].nunique())
    if n < MIN_PATIENTS:
        nothing = Resampled(value=np.nan, draws=np.full(len(draws), np.nan), n=n)
        return nothing, nothing
    auroc, auprc = rank_draws(truth, values, table["patient"].map(column).to_numpy(np.int64), draws)
    return (
        Resampled(value=float(roc_auc_score(truth, values)), draws=auroc, n=n),
        Resampled(value=float(average_precision_score(truth, values)), draws=auprc, n=n),
    )
