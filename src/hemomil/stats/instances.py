"""How well the cells are explained: are the abnormal ones of a diseased sample ranked first?

Axes: N cells, S samples, P patients, B bootstrap draws.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.stats.draws import MIN_PATIENTS, Resampled, mean_over_samples, over_runs, patient_draws
from hemomil.stats.ranking import rank_draws

SCORES = ("anomaly", "attention", "contribution", "abnormal_probability", "class_probability")
"""Columns of cells.parquet; `abnormal_probability` is 1 − prob_<control>, `class_probability` is prob_<label>
of the label that the cell's sample has (the SIC class score)."""

TOP = 10
"""Cells of a sample that `precision_at_k` looks at: as many as a reader would."""


def instance_metrics(
    cells: pd.DataFrame, *, control: str, seed: int = 0, n_boot: int = 500, k: int = TOP
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Per method and score: `auroc`, `ap`, `auroc_within` and `precision_at_k`, each as in `over_runs`.

    `cells` is a study's cells.parquet (method, run, sample, patient, label, cell_label, anomaly, attention,
    contribution, prob_<control>). Only cells of known class in samples that are not `control` count; a cell
    is abnormal when its class is not `control`. `auroc` and `ap` pool the cells of all those samples;
    `auroc_within` is the mean over samples of the AUROC inside one, where both kinds are present;
    `precision_at_k` the mean over all those samples of the share of abnormal cells among the `k` with the
    highest scores (all of them in a smaller sample). A score that a method does not have (NaN) has null
    values, as has everything with fewer than 5 patients; so has `class_probability` where a sample's label
    is none of the classes learned. A method whose cells are all unknown does not appear.

    Notes
    -----
    The mean AUROC within samples is what a reader of one smear sees. The pooled one also asks that scores of
    different samples can be compared, which attention (it sums to 1 in each bag) does not promise. A
    contribution speaks for the class that was predicted: in a sample called healthy, it ranks the healthy.
    `class_probability` is told the label, which no other score is: it explains a diagnosis that is known.
    The precision of a score that says nothing is the share of abnormal cells, not 0; that of the best is
    below 1 where a sample has fewer than `k`. Of cells that tie for the last places each counts in part.
    """
    known = cells[(cells["label"] != control) & cells["cell_label"].notna()]
    patients = sorted(set(known["patient"]))
    if not patients:
        return {}
    draws = patient_draws(len(patients), n_boot, seed=seed)
    column = pd.Series(range(len(patients)), index=patients, dtype=np.int64)
    return {
        method: _method_metrics(known[known["method"] == method], control, column, draws, k)
        for method in known["method"].unique()
    }


def _method_metrics(
    cells: pd.DataFrame, control: str, column: pd.Series, draws: Int[np.ndarray, "B P"], k: int
) -> dict[str, dict[str, dict[str, Any]]]:
    runs = [_Cells(cells[cells["run"] == run], control, column) for run in cells["run"].unique()]
    return {name: over_runs([_score_metrics(run, name, draws, k) for run in runs]) for name in SCORES}


class _Cells:
    """The cells of one method and run: abnormal or not, whose, and how they were scored."""

    def __init__(self, cells: pd.DataFrame, control: str, column: pd.Series) -> None:
        self.abnormal = (cells["cell_label"] != control).to_numpy(dtype=bool)
        self.patients = cells["patient"].map(column).to_numpy(dtype=np.int64)
        self.samples = pd.factorize(cells["sample"], sort=True)[0].astype(np.int64)
        scores = cells.assign(
            abnormal_probability=1 - cells[f"prob_{control}"], class_probability=_of_own_label(cells)
        )
        self.scores = {name: scores[name].to_numpy(dtype=np.float64) for name in SCORES}


def _of_own_label(cells: pd.DataFrame) -> pd.Series:
    """Probability, for each cell alone, of the label of its sample; NaN for a label that has no column."""
    found = pd.Series(np.nan, index=cells.index)
    for label in cells["label"].unique():
        if f"prob_{label}" in cells:
            found = found.where(cells["label"] != label, cells[f"prob_{label}"])
    return found


def _score_metrics(cells: _Cells, name: str, draws: Int[np.ndarray, "B P"], k: int) -> dict[str, Resampled]:
    scores, abnormal = cells.scores[name], cells.abnormal
    n = len(np.unique(cells.patients))
    if np.isnan(scores).any() or n < MIN_PATIENTS or abnormal.all() or not abnormal.any():
        nothing = Resampled(value=np.nan, draws=np.full(len(draws), np.nan), n=n)
        return dict.fromkeys(("auroc", "ap", "auroc_within", "precision_at_k"), nothing)
    auroc, precision = rank_draws(abnormal, scores, cells.patients, draws)
    return {
        "auroc": Resampled(value=float(roc_auc_score(abnormal, scores)), draws=auroc, n=n),
        "ap": Resampled(value=float(average_precision_score(abnormal, scores)), draws=precision, n=n),
        "auroc_within": _over_samples(cells, within_aurocs(cells.abnormal, scores, cells.samples), draws),
        "precision_at_k": _over_samples(cells, top_shares(cells.abnormal, scores, cells.samples, k), draws),
    }


def _over_samples(cells: _Cells, values: Float[np.ndarray, "S"], draws: Int[np.ndarray, "B P"]) -> Resampled:
    """Mean over the samples that have a value."""
    _, first = np.unique(cells.samples, return_index=True)
    known = np.isfinite(values)
    return mean_over_samples(values[known], cells.patients[first][known], draws)


def within_aurocs(
    abnormal: Bool[np.ndarray, "N"], scores: Float[np.ndarray, "N"], samples: Int[np.ndarray, "N"]
) -> Float[np.ndarray, "S"]:
    """AUROC inside each sample (0 … S−1), from rank sums; NaN where all its cells are of one kind."""
    ranks = pd.Series(scores).groupby(samples).rank().to_numpy()
    positives = np.bincount(samples, weights=abnormal)
    negatives = np.bincount(samples) - positives
    rank_sums = np.bincount(samples, weights=ranks * abnormal)
    with np.errstate(invalid="ignore"):
        areas: np.ndarray = (rank_sums - positives * (positives + 1) / 2) / (positives * negatives)
    return areas


def top_shares(
    abnormal: Bool[np.ndarray, "N"], scores: Float[np.ndarray, "N"], samples: Int[np.ndarray, "N"], k: int
) -> Float[np.ndarray, "S"]:
    """Share of abnormal cells among the `k` highest scores of each sample (0 … S−1).

    Ties across the k-th place share the places left, which is the mean over all orders of the tied cells.
    """
    within = pd.Series(scores).groupby(samples)
    above = within.rank(method="min", ascending=False).to_numpy() - 1
    tied = within.rank(method="max", ascending=False).to_numpy() - above
    counted = np.clip((k - above) / tied, 0, 1)
    hits = np.bincount(samples, weights=counted * abnormal)
    shares: np.ndarray = hits / np.minimum(np.bincount(samples), k)
    return shares
