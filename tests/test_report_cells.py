"""What the page says of cells and samples: ranks, classes, healthy donors, the check of an explanation."""

import base64
import gzip
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from hemomil.report import ReportSettings, write_report
from hemomil.report.class_marks import class_marks, with_class
from hemomil.report.healthy import against_healthy
from hemomil.report.plane import plane_item, shown_points
from hemomil.report.ranks import counted_key, percent_text, quantiles, with_ranks
from hemomil.report.tables import read_run, records
from hemomil.streams import stream
from test_report import CLASSES, SCRIPTS, Elements, make_run, read_image, text_of


def change_table(run, **columns):
    """New columns of samples.csv."""
    table = pd.read_csv(run / "samples.csv", dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(run / "samples.csv", index=False)


def change_cells(run, **columns):
    """New columns of cells.parquet."""
    pd.read_parquet(run / "cells.parquet").assign(**columns).to_parquet(run / "cells.parquet")


def add_cell_classes(run, classes=CLASSES):
    """What a method with a classifier of cells writes: prob_<class> of each cell."""
    cells = pd.read_parquet(run / "cells.parquet")
    shares = stream(0, "cell-classes").dirichlet(np.ones(len(classes)), len(cells))
    change_cells(run, **{f"prob_{name}": shares[:, k] for k, name in enumerate(classes)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report-cells"), samples=15, images=1)
    add_cell_classes(folder)
    write_report(folder, read_image=read_image)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def tables(run):
    return read_run(run)


def changed(tmp_path, samples=6):
    return make_run(tmp_path, samples=samples, images=1)


def written(run, **settings):
    return write_report(run, read_image=read_image, settings=ReportSettings(**settings)).read_text()


# --- ranks


def test_a_quantile_is_the_share_of_the_cells_of_the_same_model_that_have_less(tables):
    found = quantiles(tables.cells, "anomaly")
    for _, own in tables.cells.groupby("fold"):
        # midranks: half of the cell itself counts as less
        expected = [percentileofscore(own["anomaly"], x, kind="mean") / 100 for x in own["anomaly"]]
        assert np.allclose(found[own.index], expected)
    assert tables.cells["fold"].nunique() == 3


def test_cells_without_a_score_have_no_quantile(tables):
    cells = tables.cells.assign(anomaly=tables.cells["anomaly"].where(tables.cells.index % 2 == 0))
    found = quantiles(cells, "anomaly")
    assert found.isna().tolist() == (cells.index % 2 == 1).tolist()
    assert percent_text({"q_a": 0.999, "q_b": float("nan"), "q_c": 0.0}, ["q_a", "q_b", "q_c"]) == "99 x 0"


def test_strange_cells_that_counted_and_that_did_not_are_told_apart(tables):
    cells = with_ranks(tables.cells)
    for _, cell in cells.iterrows():
        strange = cell["strange"] >= 0.9
        expected = "counted" if cell["counted"] >= 0.9 else "ignored" if cell["counted"] < 0.5 else ""
        assert cell["group"] == (expected if strange else "")
    assert (cells["group"] == "counted").any()


def test_a_cell_that_speaks_against_the_prediction_is_not_ignored(tables):
    turned = tables.cells.assign(attention_ratio=-tables.cells["attention_ratio"])
    assert with_ranks(turned)["group"].equals(with_ranks(tables.cells)["group"])


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({}, "attention_ratio"),
        ({"attention_ratio": np.nan}, "weight"),
        ({"attention_ratio": np.nan, "weight": 0.1}, "contribution"),
        ({"attention_ratio": np.nan, "weight": np.nan, "contribution": np.nan}, None),
    ],
)
def test_what_counted_is_the_first_score_that_tells_cells_apart(tables, columns, key):
    assert counted_key(tables.cells.assign(**columns)) == key


def test_without_attention_the_plane_shows_something_else_and_says_so(tmp_path):
    run = changed(tmp_path)
    change_cells(run, attention=np.nan, weight=1.0)
    page = written(run)
    assert "it counted more (contribution (for or against); attention tells nothing in this method)" in page
    assert 'class="plot"' in page


def test_without_anything_that_counted_there_is_no_plane_and_no_library(tmp_path):
    run = changed(tmp_path)
    change_cells(run, attention=np.nan, weight=np.nan, contribution=np.nan)
    page = written(run)
    assert 'class="plot"' not in page
    assert page.count("<script") == SCRIPTS - 1


# --- the plane


def arrays_of(item):
    """Every x, y and cell number of a plane, by group."""
    found = re.findall(r'\["(x|y|n)",\{"type":"ndarray","array":\{"type":"bytes","data":"([^"]*)"\}', item)
    types = {"x": np.float32, "y": np.float32, "n": np.int32}
    return [
        (name, np.frombuffer(gzip.decompress(base64.b64decode(data)), types[name])) for name, data in found
    ]


def test_a_point_of_the_plane_lies_where_its_cell_ranks(tables):
    cells = with_ranks(tables.cells)
    cells = cells.assign(number=range(len(cells)))
    arrays = arrays_of(plane_item(cells, "attention_ratio", "s0"))
    seen = 0
    for (_, x), (_, y), (_, n) in zip(arrays[0::3], arrays[1::3], arrays[2::3], strict=True):
        own = cells.iloc[n]
        assert np.allclose(10**-x, 1 - own["strange"], atol=1e-3)
        assert np.allclose(10**-y, 1 - own["counted"], atol=1e-3)
        seen += len(n)
    assert seen == len(cells)


def test_a_plane_drawn_twice_is_the_same_text_and_no_two_share_an_id(tables):
    cells = with_ranks(tables.cells).assign(number=0).head(20)
    first, second, other = (plane_item(cells, "weight", prefix) for prefix in ("s0", "s0", "s1"))
    assert first == second
    ids = [set(re.findall(r'"id":"([^"]+)"', text)) for text in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_of_too_many_cells_the_plane_keeps_the_highest(tables):
    cells = with_ranks(tables.cells)
    kept = shown_points(cells, 10)
    highest = cells[["strange", "counted"]].max(axis=1)
    assert highest[kept.index].min() >= highest.drop(kept.index).max()


def test_every_point_of_a_plane_has_its_numbers_on_the_page(page):
    for section in re.findall(r'<section class="sample".*?</section>', page, flags=re.S):
        attributes = next(a for _, a in Elements(section).found if a.get("class") == "plot")
        texts = json.loads(attributes["data-texts"])
        drawn = set(re.findall(r'data-n="(\d+)"', section)) | set(texts)
        points = {
            str(n) for name, values in arrays_of(attributes["data-item"]) if name == "n" for n in values
        }
        assert points <= drawn


# --- classes of cells


def test_a_cell_is_marked_by_its_most_probable_class(run, page):
    cells = pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0")
    best = cells.set_index("cell_id")[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(axis=1)
    expected = dict(zip(cells["cell_id"], best, strict=True))
    found = re.findall(r'<g class="a\d t\d c\d k(\d)" data-cell="(\S+) ', page)
    assert len(found) > 100
    assert all(int(k) == expected[cell_id] for k, cell_id in found)
    assert 'data-set-colour="k"' in page


def test_classes_differ_in_more_than_colour():
    marks = class_marks([f"class {i}" for i in range(35)])
    assert len({(mark.colour, mark.dash) for mark in marks}) == len({mark.letters for mark in marks}) == 35
    few = class_marks(["control", "sickle", "thalassemia", "xerocytosis", "spherocytosis"])
    assert len({mark.dash for mark in few}) == 5
    assert [mark.letters for mark in few] == ["CO", "SI", "TH", "XE", "SP"]


def test_a_cell_without_class_probabilities_has_no_class(tables):
    cells = with_class(tables.cells.assign(prob_control=np.nan, prob_sickle=np.nan), CLASSES[:2])
    assert set(cells["looks_like"]) == {-1}
    assert cells["looks_sure"].isna().all()


def test_a_threshold_goes_by_the_quantiles_of_each_score(tables, page):
    cells = tables.cells.set_index("cell_id")
    keys = ("anomaly", "attention_ratio", "contribution")
    expected = {key: quantiles(cells, key) for key in keys}
    found = re.findall(r'<g class="[^"]*" data-cell="(\S+) [^"]*" data-n="\d+" data-q="([^"]*)"', page)
    for cell_id, percents in found:
        told = [int(text) for text in percents.split()]
        assert told[:3] == [int(100 * expected[key][cell_id]) for key in keys]
    assert 'data-scores="a t c k"' in page


# --- samples


def test_a_sample_is_laid_beside_the_other_healthy_donors_of_its_model(tables):
    for row in records(tables.samples):
        own = tables.cells[tables.cells["sample"] == row["sample"]]
        donors = tables.samples[
            (tables.samples["label"] == "control")
            & (tables.samples["fold"] == row["fold"])
            & (tables.samples["patient"] != row["patient"])
        ]
        view = against_healthy(tables, row, own)
        if donors["patient"].nunique() < 2:
            assert view is None
            continue
        scores = [tables.cells.loc[tables.cells["sample"] == name, "anomaly"] for name in donors["sample"]]
        limit = np.quantile(np.concatenate(scores), 0.95, method="inverted_cdf")  # all donors have 12 cells
        counts = [int((donor > limit).sum()) for donor in scores]
        assert view.text.startswith(f"{int((own['anomaly'] > limit).sum())} of 12 cells are stranger")
        assert f"each of {len(donors)} healthy donors has {min(counts)}" in view.text
    assert any(against_healthy(tables, r, tables.cells) for r in records(tables.samples))


def test_a_healthy_sample_is_not_compared_with_another_of_its_donor(tables):
    same = tables.samples["patient"].where(tables.samples["sample"] != "s003", "p000")
    shared = replace(tables, samples=tables.samples.assign(patient=same))
    texts = {
        row["sample"]: against_healthy(shared, row, shared.cells).text
        for row in records(shared.samples)
        if row["label"] == "control"
    }
    assert "each of 3 healthy donors" in texts["s000"]
    assert "each of 3 healthy donors" in texts["s006"]  # two samples of one donor are one donor


def test_deleted_cells_are_told_of_the_shown_method_and_run(tmp_path):
    run = changed(tmp_path)
    samples = pd.read_csv(run / "samples.csv", dtype={"patient": str})
    rows = samples[["sample", "patient", "label", "fold", "run", "method", "predicted"]].sort_values("run")
    shown = (rows["method"] == "default") & (rows["run"] == 0)
    parts = [
        rows.assign(k=k, probability=0.9, without_top=np.where(shown, 0.9 - k / 20, 0.1), without_random=0.88)
        for k in (1, 2, 4)
    ]
    pd.concat(parts).to_csv(run / "deletion.csv", index=False)
    text = text_of(written(run))
    said = "falls from 0.90 to 0.70; without 4 random cells, to 0.88. So these cells do count for the model."
    assert text.count(said) == 6


def test_bounds_sets_and_verdicts_are_told_where_a_run_has_them(tmp_path):
    run = changed(tmp_path)
    change_table(run, abnormal_low="0.04", conformal_set="control|sickle", novelty_floor="0.05")
    change_cells(run, anomaly_low=1.0, anomaly_high=2.5, verdict="undecided")
    text = text_of(written(run))
    assert "At least 4.0 % of the cells are abnormal (95 % bound)." in text
    assert "Not to be told apart: control, sickle. Health cannot be excluded." in text
    assert "with these healthy donors p cannot be below 0.05" in text
    assert "0 abnormal, 12 undecided, 0 normal" in text
    assert re.search(r"anomaly \d+\.\d \[1\.0, 2\.5\] \(p = [\d.]+, undecided\)", written(run))
    assert "smallest novelty p possible 0.05" in text


def test_an_empty_set_means_none_of_the_known_classes(tmp_path):
    run = changed(tmp_path, samples=3)
    change_table(run, conformal_set="", abnormal_low="0")
    text = text_of(written(run))
    assert text.count("None of the known classes fits: all of them can be excluded.") == 3
    assert text.count("No share of abnormal cells is certain") == 3
    change_table(run, healthy_like="0.03")
    told = "None of the known classes fits: all of them can be excluded (3 % healthy-like)."
    assert text_of(written(run)).count(told) == 3
