"""Intervals of anomaly scores: what the moments of donors give is what their cells would give."""

import numpy as np
import pytest
from sklearn.covariance import oas

from hemomil.novelty import DonorBootstrap, ensemble_interval, verdicts
from hemomil.streams import stream


def donors(n_donors, per_donor=40, features=5, donor_sd=0.5, seed=0):
    """Cells of healthy donors that differ from one another, with features on unlike scales."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), per_donor)
    cells = donor_sd * rng.normal(size=(n_donors, features))[donor] + rng.normal(size=(len(donor), features))
    mixed = cells @ (np.eye(features) + 0.3 * np.random.default_rng(99).normal(size=(features, features)))
    return mixed + 7, [f"d{d}" for d in donor]


def distance(cells, reference):
    """Mahalanobis distance to scikit-learn's shrunk Gaussian of these cells."""
    covariance = oas(reference)[0] + 1e-6 * np.eye(reference.shape[1])
    step = cells - reference.mean(axis=0)
    return np.sqrt(np.einsum("ni,ij,nj->n", step, np.linalg.inv(covariance), step))


def test_intervals_are_those_of_gaussians_fitted_to_the_drawn_donors_cells():
    cells, names = donors(9)
    cells, names = cells[:-17], names[:-17]  # donors with unlike numbers of cells
    new = np.vstack([donors(2, seed=1)[0], donors(1, seed=2)[0] * 3])
    low, high = DonorBootstrap.fit(cells, names, n_draws=40, seed=5).interval(new)
    order = list(dict.fromkeys(names))
    times = stream(5, "novelty", "donor-bootstrap").multinomial(9, np.full(9, 1 / 9), size=40)
    by_donor = {name: cells[np.array(names) == name] for name in order}
    drawn = [
        distance(new, np.vstack([by_donor[n] for n, k in zip(order, row, strict=True) for _ in range(k)]))
        for row in times
    ]
    ends = np.percentile(drawn, [2.5, 97.5], axis=0) / np.median(drawn, axis=0) * distance(new, cells)
    assert low == pytest.approx(ends[0])
    assert high == pytest.approx(ends[1])


def test_blocks_of_cells_change_nothing(monkeypatch):
    bootstrap = DonorBootstrap.fit(*donors(8), n_draws=20)
    new = donors(3, seed=1)[0]
    whole = bootstrap.interval(new)
    monkeypatch.setattr("hemomil.novelty.intervals.BLOCK_BYTES", 7 * bootstrap.weights[0].nbytes)
    assert np.array(bootstrap.interval(new)) == pytest.approx(np.array(whole))
    empty = bootstrap.interval(new[:0])
    assert [len(end) for end in empty] == [0, 0]


def test_other_donors_mostly_give_a_score_inside_the_interval():
    """The truth: the same cell against references made of as many other donors of the same kind."""
    inside, new = [], donors(12, seed=500)[0][::40]
    truth = np.median([distance(new, donors(25, seed=1000 + k)[0]) for k in range(60)], axis=0)
    for trial in range(40):
        low, high = DonorBootstrap.fit(*donors(25, seed=trial), n_draws=60).interval(new)
        inside.append(((low <= truth) & (truth <= high)).mean())
    assert 0.8 < np.mean(inside) < 0.99


def test_more_donors_make_the_interval_narrower():
    new = donors(3, seed=1)[0]
    few, many = (np.subtract(*DonorBootstrap.fit(*donors(n)).interval(new)[::-1]).mean() for n in (8, 80))
    assert many < few / 2


def test_a_single_donor_leaves_no_doubt_to_be_seen():
    low, high = DonorBootstrap.fit(*donors(1), n_draws=10).interval(donors(1, seed=1)[0])
    assert low == pytest.approx(high)


def test_a_feature_that_never_varies_does_no_harm():
    cells, names = donors(6)
    cells[:, 2] = 3.0
    low, high = DonorBootstrap.fit(cells, names, n_draws=20).interval(cells)
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()


def test_many_features_get_fewer_draws_than_memory_holds(monkeypatch):
    whole = DonorBootstrap.fit(*donors(8), n_draws=40, seed=3)
    monkeypatch.setattr("hemomil.novelty.intervals.WEIGHT_BYTES", 12 * whole.weights[0].nbytes)
    few = DonorBootstrap.fit(*donors(8), n_draws=40, seed=3)
    assert len(few.weights) == 1 + 12  # all donors, then the draws
    assert few.weights == pytest.approx(whole.weights[:13])


def test_the_same_seed_gives_the_same_interval_and_a_state_rebuilds_it():
    new = donors(2, seed=1)[0]
    first, other = (DonorBootstrap.fit(*donors(8), n_draws=20, seed=seed) for seed in (0, 1))
    again = DonorBootstrap.from_state(first.to_state())
    assert (np.array(again.interval(new)) == np.array(first.interval(new))).all()
    assert (np.array(again.interval(new)) != np.array(other.interval(new))).all()


def test_verdicts_need_the_whole_interval_on_one_side():
    low, high = np.array([1.0, 1.0, 3.0, 2.0]), np.array([2.0, 5.0, 5.0, 2.0])
    assert verdicts(low, high, 2.0).tolist() == ["normal", "undecided", "abnormal", "normal"]


def test_an_ensemble_is_as_sure_as_its_members_agree():
    members = np.array([[1.0, 2.0, 1.5], [1.0, 5.0, 2.0], [4.0, 3.0, 9.0]])
    low, high = ensemble_interval(members)
    assert verdicts(low, high, 2.5).tolist() == ["normal", "undecided", "abnormal"]


def test_missing_values_and_names_are_refused():
    cells, names = donors(3)
    with pytest.raises(AssertionError, match="not aligned"):
        DonorBootstrap.fit(cells, names[1:])
    cells[0, 0] = np.nan
    with pytest.raises(AssertionError, match="missing feature"):
        DonorBootstrap.fit(cells, names)
