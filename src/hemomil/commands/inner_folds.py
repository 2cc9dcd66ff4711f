"""How sure are the probabilities of a model? Learned from samples of its training that it was fitted without.

Axes: S samples, K classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64

from hemomil.cohort import make_folds
from hemomil.commands.settings import Settings
from hemomil.novelty import ConformalSets, apply_temperature, fit_temperature
from hemomil.streams import stream_seed
from hemomil.types import Bag, Notice

FOLDS = 5
"""Inner folds where the settings leave it open."""


def inner_folds(bags: Sequence[Bag], settings: Settings) -> int:
    """How many inner folds there are: none where a class has a single patient, or cells are maps."""
    asked = settings.inner_folds
    wanted = (FOLDS if bags[0].features.ndim == 2 else 0) if asked is None else asked
    possible = min(wanted, int(_patients(bags).min()))
    return possible if possible > 1 else 0


def sureness(
    bags: Sequence[Bag], method: str, settings: Settings, classes: Sequence[str], *, n_folds: int, seed: int
) -> tuple[float, ConformalSets]:
    """Temperature of the class probabilities, and conformal sets of classes, from inner folds by patient."""
    found = _out_of_fold(bags, method, settings, classes, n_folds=n_folds, seed=seed)
    labels, patients = [str(bag.label) for bag in bags], [bag.patient for bag in bags]
    temperature = fit_temperature(found, labels, patients, classes=classes)
    told = apply_temperature(found, temperature)
    return temperature, ConformalSets.fit(told, labels, patients, classes=classes)


def few_patients(bags: Sequence[Bag]) -> Notice:
    """Why nothing is said of how sure the probabilities are."""
    text = "a single patient: no temperature, no conformal sets, as no inner fold can do without the class"
    return Notice(kind="few-patients", subject=str(_patients(bags).idxmin()), text=text)


def _patients(bags: Sequence[Bag]) -> "pd.Series[int]":
    """How many patients each class has."""
    return pd.Series([bag.patient for bag in bags]).groupby([bag.label for bag in bags]).nunique()


def _out_of_fold(
    bags: Sequence[Bag], method: str, settings: Settings, classes: Sequence[str], *, n_folds: int, seed: int
) -> Float64[np.ndarray, "S K"]:
    from hemomil.mil import AnomalyMIL

    units = [(bag.sample, bag.patient, str(bag.label)) for bag in bags]
    fold = make_folds(units, n_folds, seed=stream_seed(seed, "inner-folds")).fold
    found = np.zeros((len(bags), len(classes)))
    mil = settings.mil.model_copy(update={"witnesses": False})
    for number in range(n_folds):
        seen = [bag for bag, of in zip(bags, fold, strict=True) if of != number]
        rows = np.flatnonzero(fold == number)
        model = AnomalyMIL(method, mil, settings.control, stream_seed(seed, "inner-fold", number)).fit(seen)
        columns = pd.Index(classes).get_indexer(pd.Index(model.classes_))
        found[np.ix_(rows, columns)] = model.predict_proba([bags[row] for row in rows.tolist()])
    return found
