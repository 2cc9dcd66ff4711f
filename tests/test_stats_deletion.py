"""Numbers of deletion curves: against a table worked out by hand, and the laws that they obey."""

import numpy as np
import pandas as pd
import pytest

from hemomil.stats import deletion_bands, deletion_metrics


def table_of(gains, *, method="default", run=0, per_patient=1):
    """A study's deletion.csv: for each sample a list of gains, at k = 1, 2, 4, 8 as far as it goes."""
    rows = [
        {"sample": f"s{s:02d}", "patient": f"p{s // per_patient:02d}", "label": "sickle", "fold": 0,
         "run": run, "method": method, "predicted": "sickle", "k": 2**i, "probability": 0.9,
         "without_top": 0.8 - gain, "without_random": 0.8}
        for s, of_sample in enumerate(gains)
        for i, gain in enumerate(of_sample)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_gain_is_that_of_a_table_worked_out_by_hand():
    # means over k: 0.2, 0.1, 0, -0.1, 0.3, 0.1; the mean of these: 0.1
    table = table_of([[0.1, 0.3], [0.1], [0.0, 0.0, 0.0, 0.0], [-0.1], [0.2, 0.3, 0.4], [0.0, 0.1, 0.2]])
    found = deletion_metrics(table, seed=0, n_boot=400)["default"]["deletion_gain"]
    assert found["value"] == pytest.approx(0.1)
    assert found["low"] < 0.05
    assert found["high"] > 0.15
    assert (found["n"], found["unit"], found["sd_runs"]) == (6, "patients", None)


def test_the_interval_is_that_of_patients_drawn_with_all_their_samples():
    gains = np.repeat(np.random.default_rng(0).normal(size=20), 5)[:, None].tolist()
    width = {}
    for per_patient in (1, 5):
        found = deletion_metrics(table_of(gains, per_patient=per_patient), seed=0)["default"]["deletion_gain"]
        assert found["value"] == pytest.approx(np.mean(gains))
        width[per_patient] = found["high"] - found["low"]
    assert width[5] / width[1] == pytest.approx(np.sqrt(5), rel=0.2)


def test_runs_are_averaged_and_their_spread_is_told_apart():
    table = pd.concat([table_of([[gain]] * 6, run=run) for run, gain in enumerate((0.1, 0.3))])
    found = deletion_metrics(table, seed=0, n_boot=50)["default"]["deletion_gain"]
    assert found["value"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(found["high"])
    assert found["sd_runs"] == pytest.approx(np.std([0.1, 0.3], ddof=1))


def test_few_patients_and_no_rows_have_no_number():
    table = table_of([[0.1], [0.2], [0.3], [0.4]])
    found = deletion_metrics(table, seed=0, n_boot=50)["default"]["deletion_gain"]
    assert (found["value"], found["low"], found["high"], found["n"]) == (None, None, None, 4)
    assert deletion_metrics(table.iloc[:0], seed=0) == {}


def test_the_order_of_rows_changes_nothing():
    table = table_of([[gain, 0.1] for gain in np.random.default_rng(1).normal(size=8)])
    assert deletion_metrics(table.sample(frac=1, random_state=0), seed=0) == deletion_metrics(table, seed=0)


def test_every_point_of_a_curve_is_of_the_same_samples():
    gains = [[0.1, 0.2, 0.3, 0.4]] * 6 + [[9.0]] * 3  # three samples of two cells
    bands = deletion_bands(table_of(gains), "default", seed=0, n_boot=50)
    top, random = bands["without_top"], bands["without_random"]
    assert top.x.tolist() == [0, 1, 2, 4, 8]
    assert top.value == pytest.approx([0.9, 0.7, 0.6, 0.5, 0.4])
    assert random.value == pytest.approx([0.9] + [0.8] * 4)
    assert top.n == 6


def test_a_curve_of_few_patients_is_not_estimable():
    gains = [[0.1, 0.2, 0.3, 0.4]] * 4 + [[0.1]] * 3
    for band in deletion_bands(table_of(gains), "default", seed=0, n_boot=50).values():
        assert np.isnan(band.value).all()
        assert np.isnan(band.low).all()
    for band in deletion_bands(table_of([[0.1]] * 6).iloc[:0], "default", seed=0).values():
        assert np.isnan(band.value).all()
