"""One temperature for class probabilities: the one that was put in, and never another class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from hemomil.novelty import apply_temperature, fit_temperature

CLASSES = ("control", "hs", "scd")


def overconfident(temperature, n=4000, seed=0):
    """Probabilities that are right, and the same as a model tells them that is too sure of itself."""
    rng = np.random.default_rng(seed)
    right = softmax(rng.normal(scale=1.5, size=(n, 3)), axis=1)
    labels = [CLASSES[rng.choice(3, p=p)] for p in right]
    told = softmax(np.log(right) * temperature, axis=1)
    return right, told, labels, [f"p{i}" for i in range(n)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    right, told, labels, patients = overconfident(temperature)
    found = fit_temperature(told, labels, patients, classes=CLASSES)
    assert found == pytest.approx(temperature, rel=0.1)
    assert np.abs(apply_temperature(told, found) - right).max() < 0.04


def test_no_other_temperature_is_likelier():
    """On a grid, with one patient who has half of the samples: every patient counts once."""
    _, told, labels, patients = overconfident(2.0, n=60)
    patients = ["p0"] * 30 + patients[30:]
    found = fit_temperature(told, labels, patients, classes=CLASSES)
    truth = np.array([CLASSES.index(label) for label in labels])
    weights = np.where(np.arange(60) < 30, 1 / 30, 1)

    def likelihood(temperature):
        return weights @ log_softmax(np.log(told) / temperature, axis=1)[np.arange(60), truth]

    grid = np.geomspace(0.1, 10, 2000)
    assert likelihood(found) >= max(map(likelihood, grid)) - 1e-6


def test_copies_of_a_patients_sample_change_nothing():
    _, told, labels, patients = overconfident(2.0, n=40)
    once = fit_temperature(told, labels, patients, classes=CLASSES)
    rows = [*range(40), 0, 0, 0, 7]
    again = fit_temperature(
        told[rows], [labels[i] for i in rows], [patients[i] for i in rows], classes=CLASSES
    )
    assert again == pytest.approx(once)


def test_where_nothing_can_be_learned_nothing_is_changed():
    _, told, labels, patients = overconfident(3.0, n=4)
    assert fit_temperature(told, labels, patients, classes=CLASSES) == 1
    assert fit_temperature(np.zeros((0, 3)), [], [], classes=CLASSES) == 1
    sure = np.eye(3)[[0, 1, 2] * 4] * 0.9 + 0.1 / 3
    assert fit_temperature(sure, [*CLASSES] * 4, [f"p{i}" for i in range(12)], classes=CLASSES) == 1
    assert apply_temperature(sure, 1.0) is sure


def test_a_model_that_knows_nothing_is_made_to_say_so():
    rng = np.random.default_rng(0)
    told = softmax(2 * rng.normal(size=(300, 3)), axis=1)
    labels = [CLASSES[k] for k in rng.integers(3, size=300)]
    found = fit_temperature(told, labels, [f"p{i}" for i in range(300)], classes=CLASSES)
    assert told.max(axis=1).mean() > 0.6
    assert apply_temperature(told, found).max(axis=1).mean() < 0.45


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.1),
    st.floats(0.1, 10),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_classes_stays_and_probabilities_sum_to_one(p, temperature):
    told = np.array(p) / sum(p)
    scaled = apply_temperature(told, temperature)
    assert scaled.sum() == pytest.approx(1)
    assert (np.diff(scaled[np.argsort(told)]) >= -1e-12).all()


def test_a_label_that_is_no_class_is_refused():
    _, told, labels, patients = overconfident(1.0, n=10)
    with pytest.raises(AssertionError, match="none of the classes"):
        fit_temperature(told, ["malaria", *labels[1:]], patients, classes=CLASSES)
    with pytest.raises(AssertionError, match="not aligned"):
        fit_temperature(told, labels[1:], patients, classes=CLASSES)
