"""Scorers of strangeness: each agrees with a second implementation, and all keep the same promises."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS, EmpiricalCovariance
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from hemomil.errors import FeaturesError, ModelError, SettingsError
from hemomil.novelty.combined import Surprise
from hemomil.novelty.densities import Gaussian, Mixture
from hemomil.novelty.forest import Forest, isolation_trees
from hemomil.novelty.held_out import donor_groups
from hemomil.novelty.neighbours import NEAREST, NEAREST_DONOR, DonorNeighbours, Neighbours, balanced_rows
from hemomil.novelty.scorers import (
    SCORERS,
    fit_scorer,
    from_state,
    held_out_scores,
    to_state,
)

FEATURES = 6
MIXING = np.random.default_rng(99).normal(size=(FEATURES, FEATURES))


def healthy_cells(n=240, n_donors=8, seed=0):
    """Correlated features of healthy cells, and donors of unequal size."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(n, FEATURES)) @ MIXING + 3
    donors = [f"d{k}" for k in np.sort(rng.integers(0, n_donors, n))]
    return cells.astype(np.float32), donors


def strange_cells(n=60):
    """Healthy but for one of the independent parts that a cell is mixed from, by 5 SD."""
    cells, _ = healthy_cells(n, seed=5)
    return (cells + 5 * MIXING[0]).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    cells, donors = healthy_cells()
    background = np.concatenate([cells, strange_cells(20)])
    return {name: fit_scorer(name, cells, donors, background) for name in SCORERS}


@pytest.mark.parametrize("name", SCORERS)
def test_strange_cells_score_higher_than_new_healthy_ones(fitted, name):
    new, strange = healthy_cells(seed=1)[0], strange_cells()
    scores = fitted[name].score_samples(np.concatenate([new, strange]))
    truth = np.repeat([0, 1], [len(new), len(strange)])
    assert roc_auc_score(truth, scores) > 0.9


@pytest.mark.parametrize("name", SCORERS)
def test_a_cell_is_scored_by_itself(fitted, name):
    new = healthy_cells(seed=1)[0]
    together = fitted[name].score_samples(new)
    assert together.shape == (len(new),)
    order = np.random.default_rng(3).permutation(len(new))
    assert fitted[name].score_samples(new[order]) == pytest.approx(together[order], rel=1e-5)
    assert fitted[name].score_samples(new[:1]) == pytest.approx(together[:1], rel=1e-5)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_rebuilt_from_plain_arrays(fitted, name, tmp_path):
    np.savez(tmp_path / "scorer.npz", **to_state(fitted[name]))
    with np.load(tmp_path / "scorer.npz", allow_pickle=False) as state:
        again = from_state(name, dict(state))
    new = healthy_cells(seed=1)[0]
    assert (again.score_samples(new) == fitted[name].score_samples(new)).all()


@pytest.mark.parametrize("name", SCORERS)
def test_the_same_seed_gives_the_same_scores(name):
    cells, donors = healthy_cells()
    new = healthy_cells(seed=1)[0]
    first, again = (fit_scorer(name, cells, donors, cells, seed=4).score_samples(new) for _ in range(2))
    assert (first == again).all()


def test_the_papers_distance_is_scikit_learns():
    cells, donors = healthy_cells()
    new = healthy_cells(seed=1)[0]
    found = fit_scorer("gaussian", cells, donors).score_samples(new)
    expected = np.sqrt(EmpiricalCovariance().fit(cells.astype(np.float64)).mahalanobis(new))
    assert found == pytest.approx(expected, rel=1e-4)  # 1e-6 is added to the variances


def test_the_shrunk_distance_is_scikit_learns():
    cells, donors = healthy_cells(20)
    new = healthy_cells(seed=1)[0]
    found = fit_scorer("shrunk", cells, donors).score_samples(new)
    expected = np.sqrt(OAS().fit(cells.astype(np.float64)).mahalanobis(new))
    assert found == pytest.approx(expected, rel=1e-4)


def test_halved_correlations_keep_every_variance():
    cells, _ = healthy_cells()
    full, halved = (Gaussian.fit(cells, kind) for kind in ("shrunk", "halved"))
    whole, half = (of.factor @ of.factor.T for of in (full, halved))
    expected = np.where(np.eye(FEATURES) > 0, whole, whole / 2)
    assert half == pytest.approx(expected)


def test_at_length_one_only_the_direction_of_a_cell_counts(fitted):
    new = healthy_cells(seed=1)[0]
    assert fitted["l2"].score_samples(7 * new) == pytest.approx(fitted["l2"].score_samples(new), rel=1e-4)


def test_the_relative_distance_is_a_log_ratio_of_two_densities(fitted):
    """Twice the difference of log densities, but for what both normalisations add to every cell."""
    scorer, new = fitted["relative"], healthy_cells(seed=1)[0]
    log_density = [
        multivariate_normal(part.mean, part.factor @ part.factor.T).logpdf(new)
        for part in (scorer.background, scorer.healthy)
    ]
    expected = 2 * (log_density[0] - log_density[1])
    found = scorer.score_samples(new)
    assert np.ptp(found - expected) == pytest.approx(0, abs=1e-8)


def test_a_mixture_scores_by_its_log_density():
    cells, _ = healthy_cells(300)
    scorer = Mixture.fit(cells, seed=0)
    new = healthy_cells(seed=1)[0]
    white = scorer.space.whiten(new)
    parts = zip(scorer.weights, scorer.means, scorer.covariances, strict=True)
    density = sum(w * multivariate_normal(mean, covariance).pdf(white) for w, mean, covariance in parts)
    assert scorer.score_samples(new) == pytest.approx(-np.log(density))
    assert len(scorer.weights) == 5


def test_whitened_healthy_cells_are_a_sphere():
    cells, _ = healthy_cells()
    white = Gaussian.fit(cells, "plain").whiten(cells)
    assert np.cov(white.T, ddof=0) == pytest.approx(np.eye(FEATURES), abs=1e-4)


def test_neighbours_are_those_that_a_loop_finds():
    cells, donors = healthy_cells()
    scorer = Neighbours.fit(cells, donors, seed=0)
    new = healthy_cells(seed=1)[0]
    far = cdist(scorer.space.whiten(new), scorer.space.whiten(cells))
    expected = np.sort(far, axis=1)[:, :NEAREST].mean(axis=1)
    assert scorer.score_samples(new) == pytest.approx(expected, rel=1e-4)


def test_donors_are_ranked_by_their_nearest_cell():
    cells, donors = healthy_cells()
    scorer = DonorNeighbours.fit(cells, donors, seed=0)
    new = healthy_cells(seed=1)[0]
    far = cdist(scorer.space.whiten(new), scorer.space.whiten(cells))
    names = np.array(donors)
    nearest = np.stack([far[:, names == name].min(axis=1) for name in sorted(set(donors))], axis=1)
    expected = np.sort(nearest, axis=1)[:, NEAREST_DONOR - 1]
    assert scorer.score_samples(new) == pytest.approx(expected, rel=1e-4)


def test_surprise_is_minus_the_log_of_the_share_of_healthy_cells_above():
    healthy = np.random.default_rng(0).normal(size=20_000)
    surprise = Surprise.fit(healthy)
    asked = np.array([-1.0, 0.0, 1.0, 1.5])
    expected = [-np.log((healthy >= score).mean()) for score in asked]
    assert surprise.of(asked) == pytest.approx(expected, abs=0.02)
    assert surprise.of(np.array([-99.0])) == 0


def test_beyond_the_highest_healthy_score_surprise_still_rises():
    """An exponential tail, for scores that are exponential, goes on as it began."""
    healthy = np.random.default_rng(0).exponential(2, size=50_000)
    told = Surprise.fit(healthy).of(np.array([20.0, 40.0, 80.0]))
    assert told == pytest.approx([10, 20, 40], rel=0.05)


def test_healthy_scores_that_tie_at_the_top_leave_surprise_finite():
    surprise = Surprise.fit(np.minimum(np.arange(100.0), 60))
    assert np.isfinite(surprise.of(np.array([0.0, 60.0, 61.0]))).all()
    assert (np.diff(surprise.of(np.arange(0.0, 70.0))) >= 0).all()


def test_the_combined_score_is_the_sum_of_three_surprises():
    cells, donors = healthy_cells()
    background = np.concatenate([cells, strange_cells(20)])
    new = healthy_cells(seed=1)[0]
    expected = np.zeros(len(new))
    for name in ("shrunk", "forest", "relative"):
        held = held_out_scores(name, cells, donors, background, seed=3)
        alone = fit_scorer(name, cells, donors, background, seed=3).score_samples(new)
        expected += Surprise.fit(held).of(alone)
    found = fit_scorer("combined", cells, donors, background, seed=3).score_samples(new)
    assert found == pytest.approx(expected)


def test_one_odd_donor_excuses_nothing():
    """A cell that only one healthy donor has is strange to the third nearest donor."""
    cells, donors = healthy_cells()
    odd = strange_cells(30)
    cells, donors = np.concatenate([cells, odd]), [*donors, *["odd"] * len(odd)]
    scorer = DonorNeighbours.fit(cells, donors, seed=0)
    assert np.median(scorer.score_samples(odd)) > np.quantile(
        scorer.score_samples(healthy_cells(seed=1)[0]), 0.9
    )


def test_every_donor_is_remembered_alike():
    donors = ["a"] * 500 + ["b"] * 50 + ["c"] * 5
    rows = balanced_rows(donors, 60, seed=0)
    counts = [sum(donors[row] == name for row in rows) for name in "abc"]
    assert counts == [20, 20, 5]
    assert len(set(rows.tolist())) == len(rows)
    assert [donors[row] for row in rows] == sorted(donors[row] for row in rows)


def test_the_forest_is_scikit_learns():
    cells, donors = healthy_cells(300)
    rows = balanced_rows(donors, len(cells) * 8, seed=3)
    expected = IsolationForest(random_state=3).fit(cells[rows])
    new = np.concatenate([healthy_cells(seed=1)[0], strange_cells()])
    assert Forest.fit(cells, donors, seed=3).score_samples(new) == pytest.approx(-expected.score_samples(new))


@pytest.mark.parametrize(
    ("n", "features", "seed"), [(1, 3, 0), (40, 1, 1), (300, 6, 2), (3000, 20, 2**32 - 1)]
)
def test_the_trees_are_scikit_learns_to_the_last_bit(n, features, seed):
    cells = np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32)
    cells[:, 0] = 1  # nothing to cut
    expected = IsolationForest(random_state=seed).fit(cells).estimators_
    found = isolation_trees(cells, seed)
    assert len(found) == len(expected)
    for own, theirs in zip(found, expected, strict=True):
        for name in ("children_left", "children_right", "feature", "threshold", "n_node_samples"):
            np.testing.assert_array_equal(getattr(own, name), getattr(theirs.tree_, name))


def test_the_forest_cuts_where_scikit_learn_does_however_near_a_cell_is():
    """Cells are single, thresholds are not: cells next to every threshold, below it and above."""
    cells, donors = healthy_cells(300)
    expected = IsolationForest(random_state=3).fit(cells[balanced_rows(donors, len(cells) * 8, seed=3)])
    trees = [tree.tree_ for tree in expected.estimators_]
    asked = np.concatenate([tree.feature[tree.feature >= 0] for tree in trees])
    cuts = np.concatenate([tree.threshold[tree.feature >= 0] for tree in trees])
    near = cells[np.arange(len(cuts)) % len(cells)]
    rounded = cuts.astype(np.float32)
    above, below = (np.nextafter(rounded, np.float32(way)) for way in (np.inf, -np.inf))
    new = np.concatenate([near] * 3)
    new[np.arange(len(new)), np.tile(asked, 3)] = np.concatenate([below, rounded, above])
    found = Forest.fit(cells, donors, seed=3).score_samples(new)
    assert found == pytest.approx(-expected.score_samples(new), abs=1e-12)


def test_held_out_scores_come_from_scorers_that_did_not_see_the_donor():
    cells, donors = healthy_cells()
    found = held_out_scores("shrunk", cells, donors, groups=4, seed=2)
    group, names = donor_groups(donors, 4, seed=2), np.array(donors)
    assert set(group) == {0, 1, 2, 3}
    for name in set(donors):
        own = names == name
        assert len(set(group[own])) == 1
        others = group != group[own][0]
        expected = Gaussian.fit(cells[others]).score_samples(cells[own])
        assert found[own] == pytest.approx(expected)


def test_a_single_donor_is_scored_by_what_was_learned_of_them():
    cells, _ = healthy_cells(30)
    donors = ["d"] * 30
    expected = fit_scorer("shrunk", cells, donors).score_samples(cells)
    assert held_out_scores("shrunk", cells, donors) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCORERS)
def test_a_feature_that_never_varies_does_no_harm(name):
    cells, donors = healthy_cells()
    cells[:, 2] = 0
    new = healthy_cells(seed=1)[0]
    assert np.isfinite(fit_scorer(name, cells, donors, cells).score_samples(new)).all()


@pytest.mark.parametrize("name", SCORERS)
def test_fewer_cells_than_features_are_enough_to_go_on(name):
    cells, donors = healthy_cells(4)
    new = healthy_cells(seed=1)[0]
    assert np.isfinite(fit_scorer(name, cells, donors, cells).score_samples(new)).all()


def test_an_unknown_scorer_is_refused_with_the_known_names():
    cells, donors = healthy_cells()
    with pytest.raises(SettingsError, match="no scorer is called 'svm'") as caught:
        fit_scorer("svm", cells, donors)
    assert "donor-knn" in caught.value.hint


@pytest.mark.parametrize("name", ["relative", "combined"])
def test_a_comparison_with_all_cells_asks_for_them(name):
    cells, donors = healthy_cells()
    with pytest.raises(SettingsError, match="cells of all training samples"):
        fit_scorer(name, cells, donors)


def test_cells_that_are_no_numbers_are_named():
    cells, donors = healthy_cells()
    cells[7, 1] = np.nan
    with pytest.raises(FeaturesError, match=r"1 cells .* row 7"):
        fit_scorer("knn", cells, donors)


def test_a_single_cell_is_no_reference():
    cells, donors = healthy_cells()
    with pytest.raises(FeaturesError, match="1 control cells"):
        fit_scorer("shrunk", cells[:1], donors[:1])


def test_a_state_that_lacks_something_is_refused(fitted):
    state = to_state(fitted["knn"])
    del state["memory"]
    with pytest.raises(ModelError, match="'knn' has no 'memory'"):
        from_state("knn", state)
