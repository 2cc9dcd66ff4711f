"""Sets of classes: every class keeps its promise, patients count and not samples, and few promise nothing."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from hemomil.novelty import ConformalSets

CLASSES = ("control", "hs", "scd")


def patients_of(counts, samples=1, donor_sd=1.0, seed=0):
    """Class probabilities of so many patients per class, with samples that resemble each other."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(3), counts)
    logits = 1.5 * np.eye(3)[truth] + donor_sd * rng.normal(size=(len(truth), 3))
    logits = np.repeat(logits, samples, axis=0) + 0.5 * rng.normal(size=(len(truth) * samples, 3))
    labels = [CLASSES[k] for k in np.repeat(truth, samples)]
    return softmax(logits, axis=1), labels, [f"p{i // samples}" for i in range(len(labels))]


def fitted(*arguments, **more):
    return ConformalSets.fit(*patients_of(*arguments, **more), classes=CLASSES)


def by_hand(probability, k, probabilities, labels, patients):
    """Each patient of the class votes with the share of their samples that are no more probable."""
    own = {}
    for row, label, patient in zip(probabilities, labels, patients, strict=True):
        if label == CLASSES[k]:
            own.setdefault(patient, []).append(row[k] <= probability)
    return (1 + sum(np.mean(votes) for votes in own.values())) / (1 + len(own))


def test_p_values_are_the_patients_vote():
    known = patients_of((12, 7, 4), samples=3)
    sets = ConformalSets.fit(*known, classes=CLASSES)
    for row in patients_of((5, 5, 5), seed=1)[0]:
        expected = [by_hand(p, k, *known) for k, p in enumerate(row)]
        assert sets.p_values(row) == pytest.approx(expected)
    assert sets.n_patients.tolist() == [12, 7, 4]


@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_every_class_is_missed_no_more_often_than_promised(alpha):
    """Classes with 30, 12 and 9 patients; a new patient of each, in every trial."""
    trials, missed = 400, np.zeros(3)
    for trial in range(trials):
        probabilities, labels, patients = patients_of((31, 13, 10), seed=trial)
        new = [0, 31, 44]  # the first of each class
        known = np.setdiff1d(np.arange(54), new)
        sets = ConformalSets.fit(
            probabilities[known],
            [labels[i] for i in known],
            [patients[i] for i in known],
            classes=CLASSES,
        )
        missed += [CLASSES[k] not in sets.classes_of(probabilities[row], alpha) for k, row in enumerate(new)]
    assert (missed <= binom.ppf(0.999, trials, alpha)).all(), missed / trials
    assert (missed >= binom.ppf(0.001, trials, alpha - 1 / 10)).all(), missed / trials
    assert missed.sum() > 0


def test_one_threshold_for_all_classes_would_break_the_promise():
    """The control of the test above: pooled, the class that is hard to see pays for the others."""
    trials, alpha, missed = 300, 0.1, 0
    for trial in range(trials):
        probabilities, labels, _ = patients_of((40, 40, 11), seed=trial)
        probabilities[:, 2] *= 0.3  # the model is shy of the rare class
        own = probabilities[np.arange(91), [CLASSES.index(label) for label in labels]]
        missed += own[-1] < np.quantile(own[:-1], alpha)
    assert missed > binom.ppf(0.999, trials, alpha)


def test_samples_do_not_pass_for_patients():
    few = fitted((30, 30, 3), samples=10)
    assert "scd" in few.classes_of(np.array([0.5, 0.5, 0.0]), alpha=0.1)
    assert [notice.subject for notice in few.notices(0.1)] == ["scd"]


@pytest.mark.parametrize(("n", "excluded"), [(0, False), (8, False), (9, True)])
def test_a_class_of_few_patients_is_in_every_set_and_it_says_so(n, excluded):
    sets = fitted((20, 20, n))
    assert ("scd" not in sets.classes_of(np.array([0.9, 0.1, 0.0]), alpha=0.1)) == excluded
    texts = [notice.text for notice in sets.notices(0.1)]
    assert bool(texts) != excluded
    for text in texts:
        assert f"cannot be had with {n} patients" in text
        assert "needs 9" in text


def test_a_patient_like_none_of_the_known_classes_gets_an_empty_set():
    sets = fitted((40, 40, 40), donor_sd=0.3)
    unlike = np.array([1 / 3, 1 / 3, 1 / 3])
    assert sets.classes_of(unlike, alpha=0.1) == ()


def test_a_smaller_error_never_makes_a_set_smaller():
    sets = fitted((40, 25, 15))
    for row in patients_of((10, 10, 10), seed=3)[0]:
        assert (
            set(sets.classes_of(row, 0.3))
            <= set(sets.classes_of(row, 0.1))
            <= set(sets.classes_of(row, 0.01))
        )


def test_sets_are_rebuilt_from_their_state_and_name_no_patient():
    sets = fitted((20, 15, 12), samples=2)
    state = sets.to_state()
    again = ConformalSets.from_state(state, classes=CLASSES)
    for row in patients_of((5, 5, 5), seed=1)[0]:
        assert (again.p_values(row) == sets.p_values(row)).all()
    assert all(array.dtype in (np.float64, np.int64) for array in state.values())


def test_what_does_not_fit_together_is_refused():
    probabilities, labels, patients = patients_of((3, 3, 3))
    with pytest.raises(AssertionError, match="none of the classes"):
        ConformalSets.fit(probabilities, ["malaria", *labels[1:]], patients, classes=CLASSES)
    with pytest.raises(AssertionError, match="samples by classes"):
        ConformalSets.fit(probabilities, labels, patients, classes=CLASSES[:2])
    with pytest.raises(AssertionError, match="not aligned"):
        ConformalSets.fit(probabilities, labels, patients[1:], classes=CLASSES)
