"""The healthy reference: what distance means, and that it agrees with scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import oas
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from hemomil.mil import MILSettings
from hemomil.mil.pack import Segments
from hemomil.mil.reference import HealthyReference, Moments, fit_crossfitted, fit_gaussian

PAPER = MILSettings.preset("paper")


@pytest.fixture
def cells():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(12, 12))
    return torch.from_numpy(rng.normal(size=(300, 12)) @ mixing + 5)


def reference_of(cells, settings=PAPER):
    reference = HealthyReference(cells.shape[1])
    reference.set_gaussian(*fit_gaussian(cells, settings, 0))
    return reference


def test_the_fit_agrees_with_scikit_learn(cells):
    mean, covariance = fit_gaussian(cells, PAPER, 0)
    mixture = GaussianMixture(1, covariance_type="full", random_state=0).fit(cells.numpy())
    np.testing.assert_allclose(mean.numpy(), mixture.means_[0], rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), mixture.covariances_[0], rtol=1e-10, atol=1e-12)


def test_shrinkage_agrees_with_scikit_learn(cells):
    _, covariance = fit_gaussian(cells, MILSettings(reg_covar=0), 0)
    np.testing.assert_allclose(covariance.numpy(), oas(cells.numpy())[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_distance_agrees_with_scipy(cells, dtype, tolerance):
    mixture = GaussianMixture(1, covariance_type="full", random_state=0).fit(cells.numpy())
    precision = np.linalg.inv(mixture.covariances_[0])
    asked = cells[:40].to(dtype)
    expected = [mahalanobis(cell, mixture.means_[0], precision) for cell in asked.double().numpy()]
    found = reference_of(cells).distance(asked)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=max(tolerance, 1e-11))


def test_moments_of_parts_add_up(cells):
    whole, sum_of_parts = Moments.of(cells), Moments.of(cells[:17]) + Moments.of(cells[17:])
    torch.testing.assert_close(sum_of_parts.mean, whole.mean)
    torch.testing.assert_close(sum_of_parts.scatter, whole.scatter)


def test_moments_don_t_cancel_far_from_zero(cells):
    far = cells + 1e7
    torch.testing.assert_close(Moments.of(far).scatter, Moments.of(cells).scatter, rtol=1e-6, atol=1e-4)


def test_a_crossfitted_distance_is_that_of_a_reference_without_the_group(cells):
    group = torch.arange(len(cells)) % 4
    found = fit_crossfitted(cells, group, PAPER, 0).distance(cells, group)
    for g in range(4):
        expected = reference_of(cells[group != g]).distance(cells[group == g])
        torch.testing.assert_close(found[group == g], expected)
    everyone = fit_crossfitted(cells, group, PAPER, 0).distance(cells, torch.full_like(group, -1))
    torch.testing.assert_close(everyone, reference_of(cells).distance(cells))


def test_unseen_healthy_cells_look_stranger_than_those_fitted(cells):
    group = torch.arange(len(cells)) % 10
    crossfitted = fit_crossfitted(cells, group, PAPER, 0)
    inside = crossfitted.distance(cells, torch.full_like(group, -1))
    assert crossfitted.distance(cells, group).mean() > inside.mean()


def test_any_number_of_components_gives_the_distance_of_one(cells):
    """An EM step gives the mixture the sample's own mean and covariance, however many components."""
    one, three = reference_of(cells), reference_of(cells, PAPER.model_copy(update={"components": 3}))
    torch.testing.assert_close(three.distance(cells), one.distance(cells), rtol=1e-5, atol=1e-5)


def test_a_bayesian_mixture_is_read_as_its_mean_and_covariance(cells):
    settings = PAPER.model_copy(update={"components": 2, "mixture": "bayesian"})
    mean, covariance = fit_gaussian(cells, settings, 3)
    mixture = BayesianGaussianMixture(n_components=2, random_state=3).fit(cells.numpy())
    drawn = np.random.default_rng(0)
    rows = [
        drawn.multivariate_normal(mixture.means_[k], mixture.covariances_[k], size=round(20000 * weight))
        for k, weight in enumerate(mixture.weights_)
    ]
    sample = np.concatenate(rows)
    scale = np.sqrt(np.diag(covariance.numpy()))
    assert np.abs(sample.mean(axis=0) - mean.numpy()).max() < 0.05 * scale.max()
    np.testing.assert_allclose(np.cov(sample.T), covariance.numpy(), atol=0.05 * scale.max() ** 2)


@pytest.mark.parametrize("settings", [PAPER, MILSettings()])
def test_few_cells_and_dead_units_give_distances_that_are_numbers(settings):
    rng = np.random.default_rng(2)
    few = torch.from_numpy(rng.normal(size=(5, 40)).astype(np.float32))
    few[:, ::3] = 0
    reference = reference_of(few, settings)
    new = torch.from_numpy(rng.normal(size=(20, 40)).astype(np.float32))
    distances = torch.cat([reference.distance(few), reference.distance(new)])
    assert torch.isfinite(distances).all()
    assert (distances >= 0).all()


def test_a_constant_embedding_still_has_a_reference():
    same = torch.zeros(6, 4)
    reference = reference_of(same, MILSettings(reg_covar=0))
    assert torch.isfinite(reference.distance(torch.ones(2, 4))).all()


def test_a_bounded_share_does_not_give_the_bag_to_one_artefact(cells):
    """Thirty healthy cells and one ten standard deviations away: softmax over distances hands it the bag."""
    white = torch.from_numpy(np.random.default_rng(4).normal(size=(330, 12)))
    reference = reference_of(white[30:])
    reference.set_scale(reference.distance(white[30:]))
    distances = torch.cat([torch.tensor([10.0 + 12**0.5]), reference.distance(white[:30]).float()])
    bag = Segments.of_sizes([31])
    assert bag.softmax(distances)[0] > 0.95
    assert bag.softmax(reference.bounded(distances))[0] < 0.3


def test_the_bounded_weight_is_a_half_at_the_healthy_95th_percentile():
    reference = HealthyReference(2)
    distances = torch.linspace(0, 10, 101)
    reference.set_scale(distances)
    weight = reference.bounded(torch.tensor([9.5, 5.0, 1000.0])).exp()
    assert weight.tolist() == pytest.approx([0.5, 0.1192, 1.0], abs=1e-3)
