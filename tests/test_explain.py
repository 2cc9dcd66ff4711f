"""Checks of explanations, on models whose explanation is known."""

from dataclasses import asdict

import numpy as np
import pytest

from hemomil.explain import deletion_check, deletion_curve
from hemomil.types import Bag, Prediction


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


def predict_without(bag, sets):
    return predict([bag_of(np.delete(bag.features[:, 0], cells)) for cells in sets])


def check(bag, contribution, **rest):
    return deletion_check(predict_without, bag, contribution, **{"k": 2, "seed": 5} | rest)


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

    def spy(bag, sets):
        seen.extend(sets)
        return predict_without(bag, sets)

    found = deletion_check(spy, bag_of(VOTES), VOTES, k=3, seed=5, n_random=30, n_left_out=4)
    assert [len(set(cells.tolist())) for cells in seen] == [0] + [3] * 31 + [1] * 4
    chosen = predict_without(bag_of(VOTES), seen)[:, 1]
    assert found.random_fall == pytest.approx((chosen[0] - chosen[2:32]).mean())
    assert len({frozenset(cells.tolist()) for cells in seen[2:32]}) > 20


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


def said_of(bag, contribution):
    blank = np.zeros(len(bag))
    return Prediction(
        sample=bag.sample,
        classes=("control", "disorder"),
        probabilities=predict([bag])[0],
        cell_ids=bag.cell_ids,
        attention=blank,
        anomaly=blank,
        weight=blank,
        contribution=contribution,
        cell_probabilities=np.zeros((len(bag), 2)),
    )


def curve(votes, contribution, seed=5):
    bag = bag_of(votes)
    return deletion_curve(predict_without, bag, said_of(bag, contribution), seed=seed)


def test_a_curve_follows_the_cells_of_highest_contribution():
    found = curve(VOTES, VOTES)
    assert found.k == (1, 2, 4, 8)
    assert found.probability == pytest.approx(predict([bag_of(VOTES)])[0, 1])
    falling = np.argsort(-VOTES)
    expected = [predict([bag_of(np.delete(VOTES, falling[:k]))])[0, 1] for k in found.k]
    assert found.without_top == pytest.approx(expected)


def test_a_planted_cell_has_a_gain_and_random_contributions_have_none():
    votes = np.full(40, 0.01)
    votes[17] = 6.0
    planted = curve(votes, votes)
    assert (planted.without_random - planted.without_top).mean() > 0.5
    rng = np.random.default_rng(0)
    gains = [
        (found.without_random - found.without_top).mean()
        for seed in range(200)
        for found in [curve(votes, rng.normal(size=40), seed=seed)]
    ]
    assert abs(np.mean(gains)) < 0.02


def test_a_curve_follows_the_class_that_was_called():
    found = curve(-VOTES, VOTES)  # called healthy; cells 1 and 3 speak most for health
    assert found.probability == pytest.approx(predict([bag_of(-VOTES)])[0, 0])
    assert found.without_top[1] == pytest.approx(predict([bag_of(-np.delete(VOTES, [1, 3]))])[0, 0])


def test_random_sets_of_a_curve_are_of_its_size_and_the_same_for_every_explanation():
    seen = {}
    for name, contribution in (("one", VOTES), ("other", -VOTES)):
        bag = bag_of(VOTES)

        def spy(bag, sets, name=name):
            seen[name] = [cells.tolist() for cells in sets]
            return predict_without(bag, sets)

        found = deletion_curve(spy, bag, said_of(bag, contribution), seed=5, n_random=3)
    assert [len(set(cells)) for cells in seen["one"][4:]] == [1] * 3 + [2] * 3 + [4] * 3 + [8] * 3
    assert seen["one"][4:] == seen["other"][4:]
    chosen = predict_without(bag, [np.array(cells) for cells in seen["other"][4:]])[:, 1]
    assert found.without_random == pytest.approx(chosen.reshape(4, 3).mean(axis=1))


@pytest.mark.parametrize(("cells", "k"), [(1, ()), (2, (1,)), (4, (1, 2)), (8, (1, 2, 4)), (9, (1, 2, 4, 8))])
def test_a_curve_leaves_one_cell_at_least(cells, k):
    found = curve(np.ones(cells), np.ones(cells))
    assert found.k == k
    assert len(found.without_top) == len(found.without_random) == len(k)
