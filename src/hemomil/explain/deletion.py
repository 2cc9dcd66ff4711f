"""Check an explanation by acting on it: without the cells that are said to count, does the diagnosis fall?

Axes: S sets of cells, K classes, N cells, D sizes of sets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from hemomil.streams import stream
from hemomil.types import Bag, Prediction

Predict = Callable[[Bag, Sequence[Int[np.ndarray, "_"]]], Float[np.ndarray, "S K"]]
"""Class probabilities of a bag without each set of its cells; the predict_without of a fitted model."""

DELETED = (1, 2, 4, 8)
"""Cells taken out of a sample, point by point of its curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionCheck:
    """What happened to the probability of the predicted class when cells were taken out of one sample."""

    sample: str
    k: int
    """Cells taken out; 0 in a bag of one, of which nothing can be taken."""
    fall: float
    """Fall of the probability without the k cells of highest contribution; negative: it rose."""
    random_fall: float
    """Mean fall without k random cells."""
    random_share: float
    """(1 + number of random sets whose removal costs at least `fall`) / (1 + number of random sets)."""
    n_random: int
    rank_agreement: float | None
    """Spearman correlation of contribution and true drop in log-odds; None: all equal, or under 3 cells."""
    n_left_out: int
    """Cells that were really left out, one at a time, for the agreement."""


def deletion_check(
    predict: Predict,
    bag: Bag,
    contribution: Float[np.ndarray, "N"],
    *,
    k: int,
    seed: int,
    n_random: int = 20,
    n_left_out: int = 12,
) -> DeletionCheck:
    """Take out the k cells of highest contribution, k random ones (n_random times), and single ones.

    All sets go to `predict` in one list. k is cut to N − 1: at least one cell stays. The cells left out
    singly are a random choice of n_left_out.

    Notes
    -----
    A good explanation has a fall far above the random one. A diagnosis that rests on many alike cells falls
    little whichever few are removed, and bags without their cells may be unlike any the model was trained on.
    """
    assert len(contribution) == len(bag), "contributions and cells are not aligned"
    k = min(k, len(bag) - 1)
    rng = stream(seed, "explain", "deletion", bag.sample)
    singles = np.sort(rng.choice(len(bag), size=min(n_left_out, len(bag)) if k else 0, replace=False))
    top = np.argsort(-contribution, kind="stable")[:k]
    randoms = [rng.choice(len(bag), size=k, replace=False) for _ in range(n_random)]
    nothing = np.empty(0, dtype=np.int64)
    probabilities = predict(bag, [nothing, top, *randoms, *singles[:, None]])
    chosen = probabilities[:, int(np.argmax(probabilities[0]))].astype(np.float64)
    falls, odds = chosen[0] - chosen[1 : 2 + n_random], _log_odds(chosen)
    return DeletionCheck(
        sample=bag.sample,
        k=k,
        fall=float(falls[0]),
        random_fall=float(falls[1:].mean()),
        random_share=float((1 + (falls[1:] >= falls[0]).sum()) / (1 + n_random)),
        n_random=n_random,
        rank_agreement=_rank_agreement(contribution[singles], odds[0] - odds[2 + n_random :]),
        n_left_out=len(singles),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionCurve:
    """The probability of the predicted class as more and more cells are taken out of one sample."""

    sample: str
    probability: float
    """With all cells."""
    k: tuple[int, ...]
    """Cells taken out: those of `DELETED` that leave at least one; none in a bag of one."""
    without_top: Float[np.ndarray, "D"]
    """Without the k cells of highest contribution."""
    without_random: Float[np.ndarray, "D"]
    """Mean over random sets of k cells."""


def deletion_curve(
    predict: Predict, bag: Bag, said: Prediction, *, seed: int, n_random: int = 10
) -> DeletionCurve:
    """Follow the class that `said` calls while cells are taken out, by contribution and at random.

    Each k has `n_random` sets of its own. They depend on the seed and the sample only: models that are
    compared lose the same cells.
    """
    assert said.cell_ids == bag.cell_ids, "prediction and cells are not aligned"
    sizes = tuple(k for k in DELETED if k < len(bag))
    rng = stream(seed, "explain", "deletion-curve", bag.sample)
    order = np.argsort(-said.contribution, kind="stable")
    tops = [order[:k] for k in sizes]
    randoms = [rng.choice(len(bag), size=k, replace=False) for k in sizes for _ in range(n_random)]
    called = int(np.argmax(said.probabilities))
    chosen = predict(bag, [*tops, *randoms])[:, called].astype(np.float64)
    return DeletionCurve(
        sample=bag.sample,
        probability=float(said.probabilities[called]),
        k=sizes,
        without_top=chosen[: len(sizes)],
        without_random=chosen[len(sizes) :].reshape(len(sizes), n_random).mean(axis=1),
    )


def _log_odds(probability: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    # a probability of exactly 1 has no log-odds: stay within double precision of it
    clipped = np.clip(probability, 1e-12, 1 - 1e-12)
    odds: np.ndarray = np.log(clipped) - np.log1p(-clipped)
    return odds


def _rank_agreement(claimed: Float[np.ndarray, "_"], true: Float[np.ndarray, "_"]) -> float | None:
    if len(claimed) < 3 or np.ptp(claimed) == 0 or np.ptp(true) == 0:
        return None
    return float(spearmanr(claimed, true).statistic)
