"""How far a site lies from another: against scipy, and on shifts that are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from hemomil.stats.drift import donor_mean, feature_shifts, ks_among, ks_from


def scored(donors, sizes, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    names = np.repeat(donors, sizes)
    return pd.DataFrame({"donor": names, "score": rng.normal(shift, 1, size=len(names))})


def test_distances_between_distributions_are_scipys():
    cells, others = scored(["a", "b"], [20, 30], shift=1), scored(["x", "y", "z"], [10, 20, 40], seed=1)
    found = ks_from(cells, others)
    for donor, own in cells.groupby("donor"):
        assert found[donor] == ks_2samp(own["score"], others["score"]).statistic
    among = ks_among(others)
    x, rest = others["donor"] == "x", others["donor"] != "x"
    assert among["x"] == ks_2samp(others.loc[x, "score"], others.loc[rest, "score"]).statistic
    assert ks_among(others[x]).isna().all()


def test_a_shift_is_the_median_donors_and_one_odd_donor_does_not_move_it():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(21, 3)) * 0.1 + [0, 1, -2]
    table = feature_shifts(means, ["a", "b", "c"], seed=0)
    np.testing.assert_array_equal(table["shift"], np.median(means, axis=0))
    assert ((table["low"] < [0, 1, -2]) & (table["high"] > [0, 1, -2])).all()
    means[0] = 1e6
    assert np.abs(feature_shifts(means, ["a", "b", "c"], seed=0)["shift"] - table["shift"]).max() < 0.1


def test_a_mean_over_donors_has_no_value_with_fewer_than_five():
    assert donor_mean(pd.Series([0.0, 1.0, 0.0, 1.0]), seed=0).value is None
    found = donor_mean(pd.Series([0.0, 1.0, 0.0, 1.0, 1.0]), seed=0)
    assert found.value == pytest.approx(0.6)
    assert found.low < 0.6 < found.high
