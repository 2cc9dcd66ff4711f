"""Make class probabilities mean what they say: one temperature for all of them, learned out of fold.

Axes: S samples, K classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

RANGE = (0.1, 10.0)
"""Temperatures that are tried."""
MIN_PATIENTS = 5
"""A temperature is not learned from fewer patients."""
TINY = 1e-12
"""Probabilities are not taken to be smaller."""


def fit_temperature(
    probabilities: Float[np.ndarray, "S K"],
    labels: Sequence[str],
    patients: Sequence[str],
    *,
    classes: Sequence[str],
) -> float:
    """The temperature at which out-of-fold probabilities give the true classes the highest likelihood.

    Above 1: the model was too sure. Every patient counts the same, whatever the number of their samples.
    It is 1, which changes nothing, where there is nothing to learn it from: fewer than 5 patients, or every
    class called right so surely that the likelihood only grows as probabilities go to 0 and 1.

    Notes
    -----
    Guo et al. 2017 (arXiv 1706.04599). The predicted class never changes. One number mends one fault, being
    too sure or not sure enough of every class alike; it is learned from few patients and as uncertain as they
    are few.
    """
    assert len(probabilities) == len(labels) == len(patients), "the samples are not aligned"
    if len(set(patients)) < MIN_PATIENTS:
        return 1.0
    logs = _log(probabilities)
    truth = pd.Index(classes).get_indexer(pd.Index(labels))
    assert (truth >= 0).all(), "a label is none of the classes"
    rows, owner = np.arange(len(truth)), pd.Series(patients)
    weights = 1 / owner.groupby(owner).transform("size").to_numpy()

    def surprise(log_temperature: float) -> float:
        scaled = log_softmax(logs / np.exp(log_temperature), axis=1)
        return float(-weights @ scaled[rows, truth])

    low, high = np.log(RANGE)
    found = float(minimize_scalar(surprise, bounds=(low, high), method="bounded").x)
    return 1.0 if found - low < 0.01 else float(np.exp(found))


def apply_temperature(
    probabilities: Float[np.ndarray, "*S K"], temperature: float
) -> Float[np.ndarray, "*S K"]:
    """Probabilities made less sure by a temperature above 1, and surer by one below; 1 leaves them alone."""
    if temperature == 1:
        return probabilities
    scaled: np.ndarray = softmax(_log(probabilities) / temperature, axis=-1)
    return scaled


def _log(probabilities: Float[np.ndarray, "*S K"]) -> Float[np.ndarray, "*S K"]:
    logs: np.ndarray = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return logs
