"""Laws of the division into folds: patients whole, classes everywhere, seeds obeyed."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemomil.cohort import fold_units, make_folds
from hemomil.errors import SettingsError
from hemomil.types import Cohort, Sample


@st.composite
def cohorts(draw):
    """Samples of patients, some with several classes, and a number of folds that the classes allow."""
    n_folds = draw(st.integers(2, 4))
    n_classes = draw(st.integers(1, 4))
    samples = []
    for k in range(n_classes):
        for patient in range(draw(st.integers(n_folds, 7))):
            name = f"p{patient}" if draw(st.booleans()) else f"p{k}-{patient}"
            for _ in range(draw(st.integers(1, 6))):
                samples.append((f"s{len(samples)}", name, f"class {k}"))
    patients = defaultdict(set)
    for _, patient, label in samples:
        patients[label].add(patient)
    return samples, min(n_folds, min(map(len, patients.values())))


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.integers(0, 2**40), st.integers(0, 5))
def test_no_patient_is_in_two_folds_and_every_class_is_in_every_training_part(cohort, seed, run):
    samples, n_folds = cohort
    if n_folds < 2:
        return
    fold = make_folds(samples, n_folds, seed=seed, run=run).fold
    folds_of = defaultdict(set)
    for (_, patient, _), number in zip(samples, fold, strict=True):
        folds_of[patient].add(int(number))
    assert all(len(numbers) == 1 for numbers in folds_of.values())
    assert set(fold.tolist()) <= set(range(n_folds))
    labels = np.array([label for *_, label in samples])
    for number in range(n_folds):
        assert set(labels[fold != number]) == set(labels)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_patients_of_a_class_are_spread_evenly(n_folds, seed):
    samples = [(f"{label}{k}", f"{label}{k}", label) for label in "abc" for k in range(3 * n_folds)]
    fold = make_folds(samples, n_folds, seed=seed).fold
    labels = np.array([label for *_, label in samples])
    for label in "abc":
        assert np.bincount(fold[labels == label], minlength=n_folds).tolist() == [3] * n_folds


def infected(n: int = 30) -> list[tuple[str, str, str]]:
    """Infected patients with one infected and one control sample, and healthy ones with two."""
    both = [(f"{kind}{k}", f"i{k}", kind) for k in range(n) for kind in ("infected", "control")]
    return both + [(f"h{k}{side}", f"h{k}", "control") for k in range(n // 3) for side in "ab"]


def test_patients_with_samples_of_two_classes_are_kept_whole_and_balanced():
    samples = infected()
    folds = make_folds(samples, 3, seed=0)
    labels = np.array([label for *_, label in samples])
    assert np.bincount(folds.fold[labels == "infected"]).tolist() == [10, 10, 10]
    assert np.ptp(np.bincount(folds.fold[labels == "control"])) <= 2
    assert folds.notices == ()


def test_the_same_seed_and_run_give_the_same_folds_and_others_other_ones():
    samples = infected()
    fold = make_folds(samples, 3, seed=1, run=0).fold
    assert np.array_equal(fold, make_folds(samples, 3, seed=1, run=0).fold)
    others = [make_folds(samples, 3, seed=seed, run=run).fold for seed, run in ((1, 1), (1, 2), (2, 0))]
    assert all(not np.array_equal(fold, other) for other in others)


def test_the_order_of_samples_changes_nothing_but_the_order():
    samples = infected()
    shuffled = [samples[k] for k in np.random.default_rng(0).permutation(len(samples))]
    by_name = dict(zip([s for s, *_ in samples], make_folds(samples, 3, seed=0).fold, strict=True))
    assert [by_name[s] for s, *_ in shuffled] == make_folds(shuffled, 3, seed=0).fold.tolist()


def test_a_class_with_fewer_patients_than_folds_is_named_with_the_remedy():
    samples = [*infected(9), ("r1", "rare1", "rare"), ("r2", "rare2", "rare"), ("r3", "rare2", "rare")]
    with pytest.raises(SettingsError) as caught:
        make_folds(samples, 3, seed=0)
    assert "class 'rare' has 2 patients for 3 folds" in str(caught.value)
    assert "use at most 2 folds, or leave a class out by --exclude" in str(caught.value)


def test_samples_that_cannot_be_divided_evenly_are_noticed():
    samples = [(f"a{k}", "a1", "a") for k in range(50)] + [("x", "a2", "a"), ("y", "a3", "a")]
    samples += [(f"b{k}", f"b{k}", "b") for k in range(6)]
    folds = make_folds(samples, 3, seed=0)
    assert [(n.kind, n.subject) for n in folds.notices] == [("uneven-folds", "a")]
    assert "50" in folds.notices[0].text


@pytest.mark.parametrize(("samples", "n_folds"), [([], 3), (infected(), 1)])
def test_folds_of_nothing_and_one_fold_are_refused(samples, n_folds):
    with pytest.raises(SettingsError):
        make_folds(samples, n_folds, seed=0)


# Which samples, grouped by what


def sample(name: str, patient: str, label: str | None, **metadata: str) -> Sample:
    return Sample(sample=name, patient=patient, label=label, images=(), metadata=metadata)


def test_units_are_the_labelled_samples():
    cohort = Cohort(samples=(sample("s1", "p1", "a", site="A"), sample("s2", "p2", None, site="B")))
    assert fold_units(cohort) == [("s1", "p1", "a")]
    assert fold_units(cohort, "SITE") == [("s1", "A", "a")]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("stie", "did you mean 'site'"),
        ("scanner", "s2"),
        ("site", "patient 'p1' has several values of site: A, B"),
        ("label", "cannot be grouped by label"),
    ],
)
def test_a_group_that_cannot_be_used_is_refused(group, expected):
    cohort = Cohort(
        samples=(sample("s1", "p1", "a", site="A", scanner="x"), sample("s2", "p1", "b", site="B"))
    )
    with pytest.raises(SettingsError) as caught:
        fold_units(cohort, group)
    assert expected in str(caught.value)
