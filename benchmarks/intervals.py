"""How well cells are ranked, with its interval: every draw of the patients, against scikit-learn's metrics.

Run `OMP_NUM_THREADS=1 python benchmarks/intervals.py [--json FILE]` (1 minute). Scores are random, a third of
the cells abnormal; cells are drawn patient by patient.
"""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.stats import patient_draws, rank_draws
from timing import agree, main, versus

METRICS = (roc_auc_score, average_precision_score)
PATIENTS = 100
SIZES = ((3_000, 500), (100_000, 40))
"""Cells, and draws of the patients: of a study `study.bootstrap // 2`, 500 as it comes."""


def rankings():
    """Area under the ROC curve and average precision of the cells of each draw."""
    for n_cells, n_draws in SIZES:
        rng = np.random.default_rng(0)
        patients = rng.integers(0, PATIENTS, n_cells)
        abnormal = rng.random(n_cells) < 1 / 3
        scores = rng.normal(size=n_cells) + abnormal
        draws = patient_draws(PATIENTS, n_draws, seed=0)
        yield ranking_row(abnormal, scores, patients, draws)


def ranking_row(abnormal, scores, patients, draws):
    def plain():
        found = []
        for weights in draws[:, patients].astype(float):
            found.append([metric(abnormal, scores, sample_weight=weights) for metric in METRICS])
        return np.transpose(found)

    def ours():
        return rank_draws(abnormal, scores, patients, draws)

    return versus(
        f"AUROC and average precision of {len(scores):,} cells, {len(draws)} draws of {draws.shape[1]} "
        "patients: scikit-learn, draw by draw",
        plain,
        ours,
        **agree(np.stack(ours()), plain(), 1e-9),
    )


if __name__ == "__main__":
    main("intervals", __doc__, [rankings])
