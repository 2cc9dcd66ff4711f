"""Whether probabilities mean what they say: against scikit-learn and torchmetrics."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from hemomil.stats import Scored, calibration_metrics, patient_draws, reliability_diagram, study_metrics

CLASSES = ("control", "sickle", "spherocyte", "target")


def scored(n_patients=30, per_patient=4, n_classes=4, seed=0, signal=0.4):
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), per_patient)
    truth = patients % n_classes
    probabilities = rng.dirichlet(np.ones(n_classes), len(patients))
    probabilities[np.arange(len(truth)), truth] += signal
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    called = probabilities.argmax(axis=1)
    return Scored(truth=truth, called=called, probabilities=probabilities, patients=patients)


def table(runs=2, **rest):
    """A study's samples.csv of one method."""
    parts = []
    for run in range(runs):
        of = scored(seed=run, **rest)
        part = pd.DataFrame({"patient": [f"p{p:03d}" for p in of.patients], "method": "att", "run": run})
        part["sample"] = [f"s{row:03d}" for row in range(len(part))]
        part["label"] = [CLASSES[k] for k in of.truth]
        part["predicted"] = [CLASSES[k] for k in of.called]
        part[[f"prob_{name}" for name in CLASSES]] = of.probabilities
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def second_numbers(truth, probabilities):
    n_classes = probabilities.shape[1]
    error = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(truth), n_classes, n_bins=10, norm="l1"
    )
    return brier_score_loss(truth, probabilities, labels=range(n_classes)), float(error)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_values_and_draws_are_those_of_scikit_learn_and_torchmetrics(n_classes):
    of = scored(n_classes=n_classes)
    draws = patient_draws(30, 20, seed=1)
    found = calibration_metrics(of, draws)
    brier, error = second_numbers(of.truth, of.probabilities)
    assert found["brier"].value == pytest.approx(brier)
    assert found["ece"].value == pytest.approx(error, abs=1e-6)
    for row, counts in enumerate(draws):
        rows = np.repeat(np.arange(len(of.truth)), counts[of.patients])
        brier, error = second_numbers(of.truth[rows], of.probabilities[rows])
        assert found["brier"].draws[row] == pytest.approx(brier)
        reflected = max(0, 2 * found["ece"].value - error)
        assert found["ece"].draws[row] == pytest.approx(reflected, abs=1e-6)


def test_probabilities_that_are_sure_and_right_have_no_error():
    of = scored()
    sure = Scored(truth=of.truth, called=of.truth, probabilities=np.eye(4)[of.truth], patients=of.patients)
    assert [metric.value for metric in calibration_metrics(sure, patient_draws(30, 5, seed=0)).values()] == [
        0,
        0,
    ]


def test_four_patients_support_no_calibration():
    found = calibration_metrics(scored(n_patients=4), patient_draws(4, 5, seed=0))
    assert all(np.isnan(metric.value) for metric in found.values())


def test_both_are_among_the_numbers_of_a_study():
    found = study_metrics(table(), CLASSES, control="control", seed=1, n_boot=50)["att"]
    runs = [calibration_metrics(scored(seed=run), patient_draws(30, 5, seed=1)) for run in range(2)]
    for name in ("brier", "ece"):
        assert found[name]["value"] == pytest.approx(np.mean([run[name].value for run in runs]))
        assert found[name]["low"] < found[name]["high"]


def test_the_diagram_is_scikit_learns_calibration_curve_of_the_class_called():
    samples = table()
    probabilities = samples[[f"prob_{name}" for name in CLASSES]].to_numpy()
    right = samples["predicted"] == samples["label"]
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    found = reliability_diagram(samples, "att", CLASSES, seed=0, n_boot=50)
    full = found.share > 0
    assert found.share.sum() == pytest.approx(1)
    known = np.isfinite(found.accuracy)[full]
    assert known.sum() >= 5
    assert found.accuracy[full][known] == pytest.approx(accuracy[known])
    assert found.confidence[full][known] == pytest.approx(confidence[known])


def test_the_interval_of_a_point_is_that_of_redrawn_patients():
    samples = table()
    names, draws = sorted(set(samples["patient"])), patient_draws(30, 40, seed=3)
    found = reliability_diagram(samples, "att", CLASSES, seed=3, n_boot=40)
    highest = samples[[f"prob_{name}" for name in CLASSES]].max(axis=1)
    inside = samples[(highest > 0.5) & (highest <= 0.6)]
    slow = []
    for counts in draws:
        rows = pd.concat(
            [inside[inside["patient"] == n] for n, c in zip(names, counts, strict=True) for _ in range(c)]
        )
        slow.append((rows["predicted"] == rows["label"]).mean())
    assert [found.low[5], found.high[5]] == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_a_bin_of_fewer_than_five_patients_has_no_point():
    found = reliability_diagram(table(runs=1), "att", CLASSES, seed=0, n_boot=50)
    few = found.patients < 5
    assert 0 < few.sum() < 10
    for part in (found.accuracy, found.confidence, found.low, found.high):
        assert np.isnan(part[few]).all()
        assert np.isfinite(part[~few]).all()


def test_a_run_more_of_the_same_changes_no_point():
    once = table(runs=1)
    again = pd.concat([once.assign(run=run) for run in range(3)])
    first, second = (reliability_diagram(rows, "att", CLASSES, seed=0, n_boot=50) for rows in (once, again))
    for name in first.__slots__:
        np.testing.assert_allclose(getattr(first, name), getattr(second, name))
