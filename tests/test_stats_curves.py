"""Curves with bands: against scikit-learn on rows copied as often as their patient was drawn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from hemomil.stats import patient_draws, precision_recall_band, roc_band
from hemomil.stats.curves import FALSE_POSITIVE_RATES, RECALLS

BANDS = [roc_band, precision_recall_band]


def table(runs=2, n_patients=20, per_patient=2, seed=0, decimals=2):
    """A study's samples.csv of one method; half the patients are sick; scores tie."""
    rng = np.random.default_rng(seed)
    parts = []
    for run in range(runs):
        patient = np.repeat(np.arange(n_patients), per_patient)
        sick = patient % 2 == 1
        score = (rng.random(len(patient)) + 0.4 * sick) / 1.4
        part = pd.DataFrame({"patient": [f"p{p:03d}" for p in patient], "method": "att", "run": run})
        part["sample"] = [f"s{row:03d}" for row in range(len(part))]
        part["label"] = np.where(sick, "sickle", "control")
        part["prob_sickle"] = score.round(decimals)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def second_roc(truth, scores):
    """The line through scikit-learn's points; where it rises straight up, its upper end."""
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    heights = []
    for x in FALSE_POSITIVE_RATES:
        at = np.flatnonzero(false <= x)[-1]
        rest = (x - false[at]) / (false[at + 1] - false[at]) if x > false[at] else 0
        heights.append(true[at] + rest * (true[min(at + 1, len(true) - 1)] - true[at]))
    return np.array(heights)


def second_precision(truth, scores):
    """The precision of the strictest threshold that reaches the recall."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    return np.array([precision[np.flatnonzero(recall >= x)[-1]] for x in RECALLS])


SECOND = {roc_band: second_roc, precision_recall_band: second_precision}


def mean_curve(samples, band):
    return np.mean(
        [SECOND[band](run["label"] == "sickle", run["prob_sickle"]) for _, run in samples.groupby("run")],
        axis=0,
    )


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("decimals", [1, 6])
def test_the_curve_is_scikit_learns_averaged_over_runs(band, decimals):
    samples = table(decimals=decimals)
    assert band(samples, "att", "sickle", seed=0, n_boot=5).value == pytest.approx(mean_curve(samples, band))


@pytest.mark.parametrize("band", BANDS)
def test_the_band_is_that_of_curves_of_redrawn_patients(band):
    samples, n_boot = table(decimals=1), 30
    names = sorted(set(samples["patient"]))
    rows_of = {name: samples[samples["patient"] == name] for name in names}
    slow = []
    for counts in patient_draws(len(names), n_boot, seed=4):
        drawn = [rows_of[name] for name, count in zip(names, counts, strict=True) for _ in range(count)]
        slow.append(mean_curve(pd.concat(drawn), band))
    low, high = np.percentile(slow, [2.5, 97.5], axis=0)
    found = band(samples, "att", "sickle", seed=4, n_boot=n_boot)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert (found.low <= found.high).all()


def test_the_mean_precision_is_the_average_precision():
    samples = table(runs=1)  # 20 samples of the class: each step of recall is five points of the grid
    truth, scores = samples["label"] == "sickle", samples["prob_sickle"]
    found = precision_recall_band(samples, "att", "sickle", seed=0, n_boot=5)
    assert found.value.mean() == pytest.approx(average_precision_score(truth, scores))


def test_a_perfect_score_has_no_width():
    samples = table().assign(prob_sickle=lambda rows: (rows["label"] == "sickle") * 0.5)
    for band in BANDS:
        found = band(samples, "att", "sickle", seed=0, n_boot=50)
        assert (found.value == 1).all()
        assert (found.low == 1).all()


@pytest.mark.parametrize("band", BANDS)
def test_neither_order_nor_copies_of_a_patients_samples_change_the_band(band):
    samples = table()
    copies = pd.concat([samples, samples.assign(sample=samples["sample"] + "-copy")])
    first = band(samples, "att", "sickle", seed=0, n_boot=50)
    for other in (samples.sample(frac=1, random_state=0), copies):
        again = band(other, "att", "sickle", seed=0, n_boot=50)
        for part in ("value", "low", "high"):
            assert getattr(again, part) == pytest.approx(getattr(first, part))


@pytest.mark.parametrize("band", BANDS)
def test_a_class_of_fewer_than_five_patients_has_no_curve(band):
    samples = table()
    sick = samples["patient"].isin(["p001", "p003", "p005", "p007"])
    found = band(samples[sick | (samples["label"] == "control")], "att", "sickle", seed=0, n_boot=5)
    assert found.n == 4
    assert np.isnan([found.value, found.low, found.high]).all()
