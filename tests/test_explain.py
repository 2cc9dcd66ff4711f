"""Checks of explanations, on models whose explanation is known."""

from dataclasses import asdict

import numpy as np
import pytest

from hemomil.explain import deletion_check
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
