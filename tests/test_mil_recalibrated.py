"""A model with a second healthy reference: anomaly is read from it, and nothing else is."""

import numpy as np
import pytest
from sklearn.covariance import oas

from hemomil import commands
from hemomil.commands.drift import feature_names
from hemomil.commands.fitting import fit
from hemomil.commands.model_folder import TrainedModel
from hemomil.mil import AnomalyMIL, MILSettings
from mil_cohorts import make_bag, make_cohort

METHODS = ("default", "anomaly+att+sic", "anomaly-quantiles", "att")
QUICK = MILSettings(epochs=3, members=2, embedding=8)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_that_was_recalibrated_is_left_as_it_was(method):
    bags = make_cohort(0, 18)
    model = AnomalyMIL(method, QUICK).fit(bags)
    before, scores = model.predict_cells(bags), model.control_scores_
    new = model.recalibrated([bag for bag in make_cohort(1, 18) if bag.label == "control"])
    for first, second in zip(before, model.predict_cells(bags), strict=True):
        np.testing.assert_array_equal(first.anomaly, second.anomaly)
        np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert model.control_scores_ is scores
    # what is saved of it has no second reference, as what was saved before there was one
    assert not any(name.startswith("site_reference") for name in model.to_state()[0])
    assert {*new.to_state()[0]} - {*model.to_state()[0]} == {
        f"site_reference.{name}" for name in ("mean", "cholesky", "centre", "spread")
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_recalibrated_model_put_away_and_taken_out_is_the_same(method):
    bags = make_cohort(0, 18)
    controls = [bag for bag in make_cohort(1, 18) if bag.label == "control"]
    model = AnomalyMIL(method, QUICK).fit(bags).recalibrated(controls)
    again = AnomalyMIL.from_state(*model.to_state())
    for first, second in zip(model.predict_cells(bags), again.predict_cells(bags), strict=True):
        np.testing.assert_array_equal(first.anomaly, second.anomaly)
        np.testing.assert_array_equal(first.probabilities, second.probabilities)
    twice = again.recalibrated(controls)  # a second time: in place of the first, not on top of it
    for first, second in zip(model.predict_cells(bags), twice.predict_cells(bags), strict=True):
        np.testing.assert_array_equal(first.anomaly, second.anomaly)


def test_the_new_anomaly_is_the_distance_to_the_controls_of_the_site():
    """Against scikit-learn's shrunk covariance of the site's cells, in the old standardisation, clipped."""
    bags = make_cohort(0, 18)
    controls = [bag for bag in make_cohort(1, 30) if bag.label == "control"]
    model = AnomalyMIL("default", QUICK).fit(bags).recalibrated(controls)
    cells = np.concatenate([model.standardised(bag) for bag in controls]).clip(-QUICK.clip, QUICK.clip)
    covariance, _ = oas(cells.astype(np.float64))
    precision = np.linalg.inv(covariance + QUICK.reg_covar * np.eye(cells.shape[1]))
    new = make_bag("new", np.random.default_rng(2).normal(size=(9, 8)).astype(np.float32))
    off = model.standardised(new).clip(-QUICK.clip, QUICK.clip) - cells.mean(axis=0, dtype=np.float64)
    expected = np.sqrt(np.einsum("nf,fg,ng->n", off, precision, off))
    np.testing.assert_allclose(model.predict_cells([new])[0].anomaly, expected, rtol=1e-5)


def test_scores_of_the_site_come_from_references_without_the_donor():
    """A donor far from the others looks farther to the others' reference than to everyone's."""
    rng = np.random.default_rng(0)
    controls = [make_bag(f"s{k}", rng.normal(size=(30, 8)).astype(np.float32)) for k in range(6)]
    controls.append(make_bag("odd", rng.normal(2, 1, size=(30, 8)).astype(np.float32)))
    model = AnomalyMIL("default", QUICK).fit(make_cohort(0, 18)).recalibrated(controls)
    scores, donors = model.control_scores_
    assert donors == tuple(bag.patient for bag in controls for _ in range(30))
    odd = np.array(donors) == "p-odd"
    assert scores[odd].mean() > 1.2 * model.predict_cells(controls)[-1].anomaly.mean()


def test_maps_have_a_shift_for_the_mean_and_the_maximum_of_each_channel():
    rng = np.random.default_rng(0)
    bags = [
        make_bag(f"s{k}", rng.normal(size=(2, 256, 14, 14)).astype(np.float16), label=label)
        for k, label in enumerate(("control", "ill") * 2)
    ]
    settings = commands.resolve_settings(flags={"mil.epochs": 1, "mil.members": 1, "features": ("roi",)})
    model, jury = fit(bags, "default", settings, seed=0)
    names = [f"roi_{k:03d}" for k in range(256)]
    trained = TrainedModel(model=model, jury=jury, settings=settings, fingerprint={"names": names})
    assert feature_names(trained)[255:258] == ["roi_255_mean", "roi_000_max", "roi_001_max"]
    vectors = model.standardised(bags[0])
    assert vectors.shape == (2, 512)
    raw = bags[0].features.astype(np.float32).max(axis=(2, 3))[:, 3]
    controls = np.concatenate([bag.features for bag in bags if bag.label == "control"]).astype(np.float32)
    known = controls.max(axis=(2, 3))[:, 3]
    np.testing.assert_allclose(vectors[:, 256 + 3], (raw - known.mean()) / known.std(), rtol=1e-4)
