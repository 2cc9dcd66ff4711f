"""Check an explanation by acting on it: without the cells that are said to count, does the diagnosis fall?

Axes: S bags, K classes, N cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from hemomil.streams import stream
from hemomil.types import Bag

Predict = Callable[[list[Bag]], Float[np.ndarray, "S K"]]
"""Class probabilities of bags; for example the predict_proba of a fitted model."""


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

    All bags go to `predict` in one list. k is cut to N − 1: at least one cell stays. The cells left out
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
    probabilities = predict([bag, *(_without(bag, cells) for cells in [top, *randoms, *singles[:, None]])])
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


def _without(bag: Bag, cells: Int[np.ndarray, "_"]) -> Bag:
    keep = np.setdiff1d(np.arange(len(bag)), cells)
    return Bag(
        sample=bag.sample,
        patient=bag.patient,
        label=bag.label,
        features=bag.features[keep],
        cell_ids=_at(bag.cell_ids, keep),
    )


def _at(names: Sequence[str], rows: Int[np.ndarray, "_"]) -> tuple[str, ...]:
    return tuple(names[row] for row in rows)


def _log_odds(probability: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    # a probability of exactly 1 has no log-odds: stay within double precision of it
    clipped = np.clip(probability, 1e-12, 1 - 1e-12)
    odds: np.ndarray = np.log(clipped) - np.log1p(-clipped)
    return odds


def _rank_agreement(claimed: Float[np.ndarray, "_"], true: Float[np.ndarray, "_"]) -> float | None:
    if len(claimed) < 3 or np.ptp(claimed) == 0 or np.ptp(true) == 0:
        return None
    return float(spearmanr(claimed, true).statistic)
