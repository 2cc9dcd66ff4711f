"""The words of the report follow its numbers."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemomil.report.choose import strangest
from hemomil.report.reasons import Reason
from hemomil.report.scales import scales
from hemomil.report.vocabulary import NOT_OF_THE_CELL, plain_words
from hemomil.report.words import estimate_text, flagged_text, novelty_text, p_text, verdict


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        ({"control": 0.95, "sickle": 0.05}, "Clearly control (0.95)."),
        ({"control": 0.25, "sickle": 0.75}, "Likely sickle (0.75); possibly control (0.25)."),
        ({"control": 0.48, "sickle": 0.52}, "Undecided: sickle (0.52) or control (0.48)."),
        ({}, "Nothing is predicted for this sample."),
    ],
)
def test_a_verdict_is_as_sure_as_its_probabilities(probabilities, said):
    assert verdict(probabilities) == said


def test_an_estimate_without_a_value_is_not_a_number():
    row = {"value": np.nan, "low": np.nan, "high": np.nan}
    assert estimate_text(row) == "not estimable"
    assert estimate_text({"value": 0.787, "low": 0.68, "high": 0.871}) == "0.79 [0.68, 0.87]"


@given(st.floats(0, 1))
def test_a_p_value_is_never_shown_as_zero(p):
    assert p_text(p).strip("< ").strip("0.") != ""


def test_a_sample_is_called_strange_only_when_it_is():
    assert "stranger than healthy" in novelty_text(0.03)
    assert "within the range" in novelty_text(0.3)
    assert novelty_text(np.nan) == ""


def test_cells_that_stand_out_are_counted():
    assert flagged_text(pd.Series([0.01, 0.1, 0.11, np.nan])).startswith("2 of 4 cells")
    assert flagged_text(pd.Series([np.nan])) == ""


def test_a_cell_below_control_cells_is_said_to_be_below():
    assert Reason("area_px", -5.0).words == "much smaller"
    assert Reason("area_px", 2.5).words == "larger"
    assert Reason("area_px", -5.0).measure == "area px −5.0"
    assert Reason("mean_green", -9.0).words == "far darker"


def test_the_features_of_a_cell_have_plain_words():
    from hemomil.describe.shape import SHAPE_NAMES  # torch comes with it, so only here

    of_cells = [name for name in SHAPE_NAMES if not NOT_OF_THE_CELL.fullmatch(name)]
    bare = [name for name in of_cells if plain_words(name, higher=True).startswith("higher in ")]
    assert len(bare) < 0.1 * len(of_cells), bare


def test_one_artefact_does_not_bleach_the_other_cells():
    anomaly = np.append(np.linspace(1, 10, 999), 1e6)
    cells = pd.DataFrame({"anomaly": anomaly, "attention_ratio": np.nan, "contribution": np.nan})
    (scale,) = scales(cells)
    steps = scale.steps(anomaly)
    assert steps[-1] == 9
    assert set(steps[:999]) == set(range(10))


def test_contributions_for_and_against_have_opposite_colours():
    contribution = np.array([-2.0, -0.01, 0.01, 2.0, np.nan])
    cells = pd.DataFrame({"anomaly": np.nan, "attention_ratio": np.nan, "contribution": contribution})
    (scale,) = scales(cells)
    assert list(scale.steps(contribution)) == [0, 4, 5, 9, -1]
    assert scale.widths[0] == scale.widths[9] > scale.widths[4]


def cells_with(anomaly, anomaly_p):
    ids = [f"s{i % 2}/{i}" for i in range(len(anomaly))]
    samples = [name[:2] for name in ids]
    return pd.DataFrame({"cell_id": ids, "sample": samples, "anomaly": anomaly, "anomaly_p": anomaly_p})


def test_the_least_likely_cells_are_the_strangest_and_distance_breaks_ties():
    cells = cells_with([5.0, 9.0, 7.0, np.nan], [0.01, 0.2, 0.01, 0.001])
    assert list(strangest(cells, 9)["anomaly"]) == [7.0, 5.0, 9.0]


def test_without_p_values_the_farthest_cells_are_the_strangest():
    cells = cells_with([5.0, 9.0, 7.0, 1.0], [np.nan] * 4)
    assert list(strangest(cells, 2)["anomaly"]) == [9.0, 7.0]
    assert list(strangest(cells, 9, per_sample=1)["anomaly"]) == [9.0, 7.0]
