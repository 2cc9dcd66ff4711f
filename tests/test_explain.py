"""Checks of explanations, on models whose explanation is known."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import norm

from hemomil.explain import deletion_check, strangest_features
from hemomil.types import Bag


def bag_of(scores):
    """A bag of one number a cell: its vote for the disorder."""
    features = np.array(scores, dtype=np.float32)[:, None]
    return Bag(
        sample="s1",
        patient="p1",
        label=None,
        features=features,
        cell_ids=tuple(f"s1/{row:04d}" for row in range(len(features))),
    )


def predict(bags):
    """Log-odds of the disorder are the sum of the cells' votes, less one."""
    odds = np.array([bag.features.sum() - 1 for bag in bags], dtype=np.float64)
    disorder = 1 / (1 + np.exp(-odds))
    return np.stack([1 - disorder, disorder], axis=1)


def check(bag, contribution, **rest):
    return deletion_check(predict, bag, contribution, **{"k": 2, "seed": 5} | rest)


VOTES = np.array([0.1, 3.0, -0.2, 2.0, 0.3, 0.0, -0.1, 0.05, 0.15, -0.3])


def test_deleting_what_counts_costs_more_than_deleting_at_random():
    found = check(bag_of(VOTES), VOTES)
    whole, rest = (predict([bag_of(v)])[0, 1] for v in (VOTES, np.delete(VOTES, [1, 3])))
    assert found.fall == pytest.approx(whole - rest)
    assert found.fall > found.random_fall
    assert found.random_share < 0.2
    assert found.rank_agreement == pytest.approx(1)


def test_an_explanation_turned_round_is_found_out():
    found = check(bag_of(VOTES), -VOTES)
    assert found.fall < 0
    assert found.random_share == 1
    assert found.rank_agreement == pytest.approx(-1)


def test_the_probability_followed_is_that_of_the_predicted_class():
    votes = -VOTES
    found = check(bag_of(votes), VOTES)  # predicted healthy; cells 1 and 3 speak most for health
    whole, rest = (predict([bag_of(v)])[0, 0] for v in (votes, np.delete(votes, [1, 3])))
    assert found.fall == pytest.approx(whole - rest)
    assert found.fall > 0


def test_random_deletions_take_as_many_cells_and_average_out():
    seen = []

    def spy(bags):
        seen.extend(bags)
        return predict(bags)

    found = deletion_check(spy, bag_of(VOTES), VOTES, k=3, seed=5, n_random=30, n_left_out=4)
    sizes = [len(bag) for bag in seen]
    assert sizes == [10] + [7] * 31 + [9] * 4
    chosen = predict(seen)[:, 1]
    assert found.random_fall == pytest.approx((chosen[0] - chosen[2:32]).mean())
    assert len({bag.cell_ids for bag in seen[2:32]}) > 20
    for bag in seen:
        rows = [int(name[-4:]) for name in bag.cell_ids]
        assert bag.features[:, 0] == pytest.approx(VOTES[rows])


def test_the_same_seed_gives_the_same_check():
    assert check(bag_of(VOTES), VOTES) == check(bag_of(VOTES), VOTES)


def test_cells_of_no_influence_fall_by_nothing_and_have_no_ranks():
    found = check(bag_of(np.zeros(8)), np.arange(8.0))
    assert found.fall == found.random_fall == 0
    assert found.rank_agreement is None
    assert found.random_share == 1


def test_one_cell_always_stays():
    assert check(bag_of([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]), k=99).k == 2


def test_a_bag_of_one_has_nothing_to_delete():
    found = check(bag_of([4.0]), np.array([0.0]))
    assert (found.k, found.fall, found.random_fall, found.n_left_out) == (0, 0, 0, 0)
    assert found.rank_agreement is None


def test_certainty_beyond_double_precision_is_borne():
    found = check(bag_of(VOTES * 1000), VOTES)
    assert found.fall == pytest.approx(1 - predict([bag_of([0.0])])[0, 1])
    assert all(value is None or np.isfinite(value) for value in list(asdict(found).values())[1:])


# --- names for what is strange

NAMES = ("area", "central pallor", "eccentricity", "dust")


def controls(n=4000, seed=0):
    values = np.random.default_rng(seed).normal([50, 0.4, 0.2, 0], [5, 0.1, 0.05, 0], size=(n, 4))
    return values.astype(np.float32)


def test_the_strangest_feature_is_named_first_with_its_distance():
    cells = np.array([[50, 0.4, 0.9, 0], [25, 0.1, 0.2, 0]], dtype=np.float32)
    elongated, small = strangest_features(cells, controls(), NAMES, top=2)
    assert elongated[0] == ("eccentricity", pytest.approx(14, rel=0.1))
    assert small == [("area", pytest.approx(-5, rel=0.1)), ("central pallor", pytest.approx(-3, rel=0.1))]


def test_robust_distances_of_normal_controls_are_standard_deviations():
    cells = controls(n=500, seed=1)
    found = dict(strangest_features(cells[:1], controls(n=50_000), NAMES, top=4)[0])
    expected = (cells[0, :3] - [50, 0.4, 0.2]) / [5, 0.1, 0.05]
    assert [found[name] for name in NAMES[:3]] == pytest.approx(expected, abs=0.05)


def test_a_tenth_of_artefacts_among_the_controls_hides_nothing():
    dirty = controls()
    dirty[:400] *= 100
    cell = np.array([[80, 0.4, 0.2, 0]], dtype=np.float32)
    (name, z), *_ = strangest_features(cell, dirty, NAMES)[0]
    assert name == "area"
    assert z > 4


def test_the_unit_of_a_feature_does_not_matter():
    cells, scale = controls(n=20, seed=2).astype(np.float64), np.array([1000.0, 0.01, 7.0, 1.0])
    first = strangest_features(cells, controls().astype(np.float64), NAMES)
    again = strangest_features(cells * scale, controls() * scale, NAMES)
    for one, other in zip(first, again, strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        assert [z for _, z in one] == pytest.approx([z for _, z in other])


def test_a_feature_that_never_varies_in_controls_says_nothing():
    found = dict(strangest_features(np.array([[50, 0.4, 0.2, 9]]), controls(), NAMES, top=4)[0])
    assert found["dust"] == 0


def test_a_feature_that_seldom_varies_is_measured_by_its_standard_deviation():
    values = controls()
    values[:100, 3] = 1.0
    found = dict(strangest_features(np.array([[50, 0.4, 0.2, 1.0]]), values, NAMES, top=4)[0])
    assert found["dust"] == pytest.approx(1 / values[:, 3].std(), rel=1e-4)
    assert norm.sf(found["dust"]) < 0.001


def test_more_names_than_features_are_not_invented():
    assert len(strangest_features(controls(n=1), controls(), NAMES, top=9)[0]) == 4
