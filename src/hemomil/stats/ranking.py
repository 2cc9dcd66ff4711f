"""How well a score ranks the positive above the negative, on every draw of the patients at once.

The scores are sorted once; a draw only changes how often each row counts.

Axes: B bootstrap draws, P patients, N rows (samples or cells), G distinct scores that a positive row has,
C draws in a chunk.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

CHUNK_VALUES = 300_000
"""Weights held at once (rows × draws): 2.4 MB, about the size of a cache."""
CHUNK_DRAWS = 8
"""Draws in a chunk, at least: with fewer, memory is not read in whole lines."""


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
    truth, patients = truth[order], patients[order]
    stops = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0) + 1
    starts = np.concatenate([[0], stops[:-1]])
    step = max(CHUNK_DRAWS, CHUNK_VALUES // max(1, len(scores)))
    parts = [
        _rank_chunk(truth, patients, starts, stops, draws[first : first + step].T.astype(np.float64))
        for first in range(0, len(draws), step)
    ]
    auroc, precision = np.concatenate(parts, axis=1)
    return auroc, precision


def _rank_chunk(
    truth: Bool[np.ndarray, "N"],
    patients: Int[np.ndarray, "N"],
    starts: Int[np.ndarray, "_"],
    stops: Int[np.ndarray, "_"],
    weights: Float[np.ndarray, "P C"],
) -> Float[np.ndarray, "2 C"]:
    """Of rows by falling score. `starts`, `stops`: each distinct score's first row, and one past its last."""
    found = np.concatenate([[0], np.cumsum(truth)])
    some = found[stops] > found[starts]  # what no positive row has adds nothing to either
    starts, stops = starts[some], stops[some]
    above, hits_above = _cumulated(weights[patients]), _cumulated(weights[patients[truth]])
    before, hits = hits_above[found[starts]], hits_above[found[stops]]
    every = above[stops]
    misses = (above[starts] - before + every - hits) / 2  # of those that tie, half
    positives, negatives = hits_above[-1], above[-1] - hits_above[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = ((hits - before) * (negatives - misses)).sum(axis=0) / (positives * negatives)
        precision = np.where(every > 0, hits / every, 0.0)
        average = ((hits - before) * precision).sum(axis=0) / positives
    return np.stack([area, np.where(negatives > 0, average, np.nan)])


def _cumulated(weights: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "M C"]:
    """Sum of the first n rows, for each n from 0 to all."""
    total = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=total[1:])
    return total
