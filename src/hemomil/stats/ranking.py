"""How well a score ranks the positive above the negative, on every draw of the patients at once.

The scores are sorted once; a draw only changes how often each row counts.

Axes: B bootstrap draws, P patients, N rows (samples or cells), G distinct scores, C draws in a chunk.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

CHUNK_VALUES = 2_000_000
"""Weights held at once (rows × draws): 16 MB, about the size of a cache."""


def rank_draws(
    truth: Bool[np.ndarray, "N"],
    scores: Float[np.ndarray, "N"],
    patients: Int[np.ndarray, "N"],
    draws: Int[np.ndarray, "B P"],
) -> tuple[Float[np.ndarray, "B"], Float[np.ndarray, "B"]]:
    """Area under the ROC curve and average precision of each draw; NaN where a draw has one kind only.

    The same numbers as scikit-learn's `roc_auc_score` and `average_precision_score` with `sample_weight`.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    step = max(1, CHUNK_VALUES // max(1, len(scores)))
    parts = [
        _rank_chunk(truth[order], ends, draws[start : start + step, patients[order]].astype(np.float64))
        for start in range(0, len(draws), step)
    ]
    auroc, precision = np.concatenate(parts, axis=1)
    return auroc, precision


def _rank_chunk(
    truth: Bool[np.ndarray, "N"], ends: Int[np.ndarray, "G"], weights: Float[np.ndarray, "C N"]
) -> Float[np.ndarray, "2 C"]:
    every = np.cumsum(weights, axis=1)[:, ends]
    hits = np.cumsum(weights * truth, axis=1)[:, ends]
    misses = every - hits
    hit_steps = np.diff(hits, axis=1, prepend=0.0)
    miss_steps = np.diff(misses, axis=1, prepend=0.0)
    positives, negatives = hits[:, -1], misses[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (miss_steps * (hits - hit_steps / 2)).sum(axis=1) / (positives * negatives)
        precision = np.where(every > 0, hits / every, 0.0)
        average = (hit_steps * precision).sum(axis=1) / positives
    return np.stack([area, np.where(negatives > 0, average, np.nan)])
