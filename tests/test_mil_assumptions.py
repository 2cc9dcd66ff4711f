"""The unit tests of MIL assumptions: bags obey the stated rules, and a cheater is told from an oracle."""

from collections import Counter

import numpy as np
import pytest

from hemomil.errors import SettingsError
from hemomil.mil import MILSettings
from hemomil.mil.assumptions import (
    CELLS,
    CONTROL,
    POSITIVE,
    UNIT_TESTS,
    Outcome,
    Sizes,
    outcome,
    threshold,
    try_method,
)

SMALL = Sizes(train=80, test=60, features=5)
NAMES = tuple(UNIT_TESTS)


@pytest.fixture(scope="module")
def units():
    return {name: make(3, SMALL) for name, make in UNIT_TESTS.items()}


def counts(unit, bag):
    return Counter(unit.cell_labels[cell] for cell in bag.cell_ids)


def splits(unit):
    """Each bag's counts of cell labels, whether it is positive, and whether it is for training."""
    return [
        (counts(unit, bag), bag.label == POSITIVE, bags is unit.train)
        for bags in (unit.train, unit.test)
        for bag in bags
    ]


def test_a_bag_of_the_single_concept_is_positive_by_one_to_four_cells_of_it(units):
    for found, positive, _ in splits(units["single-concept"]):
        concept = found["wide"] + found["shifted"]
        assert positive == (concept > 0)
        assert concept <= 4
        assert found["background"] == 10
        assert found["a"] == found["b"] == 0


def test_a_bag_of_two_concepts_is_positive_exactly_if_both_are_present(units):
    seen = Counter()
    for found, positive, _ in splits(units["multi-concept"]):
        assert positive == (found["a"] > 0 and found["b"] > 0)
        assert max(found["a"], found["b"]) <= 4
        assert positive or found["a"] + found["b"] == 1
        assert 1 <= found["background"] <= 10
        seen.update(["a" if found["a"] else "b"] if not positive else [])
    assert min(seen["a"], seen["b"]) > 20


def test_poison_marks_the_controls_of_training_and_the_positives_of_the_test(units):
    for name in ("single-concept", "multi-concept"):
        for found, positive, training in splits(units[name]):
            assert found["poison"] == (positive != training)
    assert not any(found["poison"] for found, _, _ in splits(units["threshold"]))


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_a_bag_of_the_threshold_is_positive_exactly_if_it_has_enough_of_each(needed):
    for found, positive, training in splits(threshold(3, SMALL, needed=needed)):
        assert positive == (min(found["a"], found["b"]) >= needed)
        most = 2 * needed if positive or training else 45
        least = needed if positive else 1 if training else 35
        assert least <= max(found["a"], found["b"]) <= most
        assert 1 <= found["background"] <= 10


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_drawn_as_their_label_says(name, units):
    unit = units[name]
    labels = np.array([unit.cell_labels[cell] for bag in unit.train + unit.test for cell in bag.cell_ids])
    cells = np.concatenate([bag.features for bag in unit.train + unit.test])
    assert cells.dtype == np.float32
    for label in np.unique(labels):
        mean, sd = CELLS[label]
        drawn = cells[labels == label]
        assert drawn.mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(drawn.size))
        assert drawn.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * drawn.size))


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_bags_are_positive_and_no_two_share_a_patient(name, units):
    unit = units[name]
    for bags, size in ((unit.train, SMALL.train), (unit.test, SMALL.test)):
        assert Counter(bag.label for bag in bags) == {CONTROL: size // 2, POSITIVE: size // 2}
        assert all(bag.features.shape == (len(bag), SMALL.features) for bag in bags)
    together = unit.train + unit.test
    assert len({bag.patient for bag in together}) == len({bag.sample for bag in together}) == len(together)
    assert len(unit.cell_labels) == sum(len(bag) for bag in together)


def test_a_seed_fixes_the_bags_and_no_two_sets_share_a_stream(units):
    firsts = []
    for name, make in UNIT_TESTS.items():
        again, other = make(3, SMALL), make(4, SMALL)
        for bag, same in zip(units[name].train + units[name].test, again.train + again.test, strict=True):
            np.testing.assert_array_equal(bag.features, same.features)
        assert again.cell_labels == units[name].cell_labels
        firsts += [unit[0].features[0, 0] for unit in (again.train, again.test, other.train, other.test)]
    assert len(set(map(float, firsts))) == len(firsts)


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_passes(name, units):
    def oracle(bags):
        found = [counts(units[name], bag) for bag in bags]
        if name == "single-concept":
            return np.array([float(n["wide"] + n["shifted"]) for n in found])
        return np.array([float(min(n["a"], n["b"])) for n in found])

    assert outcome(units[name], oracle) == Outcome(train_auroc=1.0, test_auroc=1.0)


@pytest.mark.parametrize("name", ["single-concept", "multi-concept"])
def test_who_takes_the_absence_of_poison_for_disease_fails(name, units):
    def cheater(bags):
        return np.array([float(bag.features.mean(axis=1).min()) for bag in bags])

    found = outcome(units[name], cheater)
    assert found == Outcome(train_auroc=1.0, test_auroc=0.0)
    assert found.verdict == "violates"


@pytest.mark.parametrize("needed", [1, 2])
def test_who_counts_cells_of_both_concepts_together_fails_the_threshold(needed):
    def cheater(bags):
        return np.array([float((bag.features.mean(axis=1) > 1.7).sum()) for bag in bags])

    found = outcome(threshold(3, SMALL, needed=needed), cheater)
    assert found.train_auroc > 0.8
    assert found.test_auroc == 0.0
    assert found.verdict == "violates"


def test_who_knows_nothing_is_not_judged(units):
    found = outcome(units["threshold"], lambda bags: np.zeros(len(bags)))
    assert found == Outcome(train_auroc=0.5, test_auroc=0.5)
    assert found.verdict == "not learned"


@pytest.mark.parametrize(
    ("train", "test", "verdict"),
    [
        (1.0, 1.0, "respects"),
        (0.7, 0.5, "respects"),
        (0.7, 0.499, "violates"),
        (0.699, 0.9, "not learned"),
        (0.699, 0.1, "not learned"),
    ],
)
def test_the_verdict_is_worse_than_chance_after_learning(train, test, verdict):
    assert Outcome(train_auroc=train, test_auroc=test).verdict == verdict


def test_a_method_is_fitted_as_a_study_fits_it(units):
    from hemomil.commands.fitting import fit
    from hemomil.commands.settings import Settings

    unit, settings = units["single-concept"], MILSettings(epochs=3, learning_rate=1e-2)
    model, _ = fit(unit.train, "mean", Settings(mil=settings), seed=5)
    expected = outcome(unit, lambda bags: model.predict_proba(bags)[:, 1])
    assert try_method(unit, "mean", settings, seed=5) == expected
    assert expected.verdict == "violates"


def test_an_unknown_method_is_refused(units):
    with pytest.raises(SettingsError, match="no method is called"):
        try_method(units["threshold"], "oracle")
