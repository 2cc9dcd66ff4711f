"""The viewer as a browser meets it: what it shows of a run, and what of it stays hidden when it is blind."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

import hemomil.view
from hemomil.report.ranks import COUNTED
from hemomil.report.words import verdict
from view_runs import CLASSES, PER_SAMPLE, make_run, shown_cells
from view_server import serving

STATIC = Path(hemomil.view.__file__).parent / "static"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with serving(run, marks=tmp_path_factory.mktemp("marks") / "marks.csv") as client:
        yield client


def edit(path, change):
    """Read a table, change it, write it back."""
    if path.suffix == ".parquet":
        change(pd.read_parquet(path)).to_parquet(path, index=False)
    else:
        change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def test_every_cell_of_the_shown_method_and_run_is_sent_once(run, client):
    cells = shown_cells(run)
    names = client.ask("/api/samples").json["sample"]
    assert sorted(names) == sorted(cells["sample"].unique())
    for index, name in enumerate(names):
        expected = cells[cells["sample"] == name]
        sample, numbers = client.ask(f"/api/samples/{index}").json, client.numbers(index)
        assert sample["ids"] == expected["cell_id"].tolist()
        for column in ("x0", "y1", "anomaly", "weight", "contribution", "anomaly_q"):
            np.testing.assert_allclose(numbers[column], expected[column], rtol=1e-6)
        np.testing.assert_allclose(numbers["attention_ratio"], expected["attention"] * PER_SAMPLE, rtol=1e-5)
        alone = expected[[f"prob_{name}" for name in CLASSES]].to_numpy()
        assert numbers["looks_like"].tolist() == alone.argmax(axis=1).tolist()
        images = [sample["image_names"][place] for place in sample["image_of"]]
        assert images == expected["image"].tolist()


def test_quantiles_are_among_the_cells_that_the_same_model_judged(run, client):
    folds = pd.read_csv(run / "samples.csv").drop_duplicates("sample").set_index("sample")["fold"]
    cells = shown_cells(run)
    cells["fold"] = cells["sample"].map(folds)
    sent = {}
    for index, name in enumerate(client.ask("/api/samples").json["sample"]):
        ids = cells.loc[cells["sample"] == name, "cell_id"]
        sent |= dict(zip(ids, client.numbers(index)["strange"], strict=True))
    for _, part in cells.groupby("fold"):
        expected = (rankdata(part["anomaly"]) - 0.5) / len(part)
        np.testing.assert_allclose([sent[cell] for cell in part["cell_id"]], expected, rtol=1e-6)


def test_the_list_agrees_with_the_tables(run, client):
    table = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0").set_index("sample")
    strange = shown_cells(run).groupby("sample")["anomaly"].quantile(0.95)
    sent = pd.DataFrame(client.ask("/api/samples").json).set_index("sample")
    assert sent["predicted"].to_dict() == table["predicted"].to_dict()
    assert (sent["cells"] == PER_SAMPLE).all()
    pd.testing.assert_series_equal(sent["novelty_p"], table["novelty_p"].loc[sent.index], rtol=1e-5)
    np.testing.assert_allclose(sent["strange"], strange.loc[sent.index], rtol=1e-5)


def test_a_sample_is_put_into_the_words_of_the_report(run, client):
    sample = client.ask("/api/samples/0").json
    assert sample["verdict"] == verdict({name: round(p, 6) for name, p in sample["probabilities"]})
    assert "2 of 2 trainings, each with its own seed, read it so." in sample["remarks"]


@pytest.mark.parametrize(
    "path", ["samples/6", "samples/999999999", "samples/-1", "samples/6/numbers", "images/12"]
)
def test_what_is_not_there_is_not_found(client, path):
    assert client.ask(f"/api/{path}").status == 404


# The expert's marks


def test_a_mark_can_be_taken_back(run, tmp_path):
    with serving(run, marks=tmp_path / "marks.csv") as client:
        client.mark(0, "unsure")
        client.mark(0, "none")
        assert client.ask("/api/samples/0").json["marks"] == {}
    assert pd.read_csv(tmp_path / "marks.csv")["mark"].tolist() == ["unsure", "none"]


def test_marks_of_cells_that_are_not_shown_stay_in_the_file(run, tmp_path):
    marks = tmp_path / "marks.csv"
    marks.write_text("cell_id,mark,class,note,time\nelsewhere/7,unsure,,,\n")
    with serving(run, marks=marks) as client:
        assert client.mark(0, "artefact").status == 200
        assert sum(client.ask("/api/samples").json["marks"]) == 1
    assert pd.read_csv(marks)["cell_id"].tolist()[0] == "elsewhere/7"


@pytest.mark.parametrize(
    ("row", "mark", "label", "said"),
    [
        (10**6, "unsure", "", "No such cell"),
        (-1, "unsure", "", "No such cell"),
        (True, "unsure", "", "No such cell"),
        (0, "lovely", "", "No such mark"),
        (0, "class", " ", "a class that has no name"),
        (0, "class", "x" * 201, "Too long"),
        (0, "class", 7, "are text"),
    ],
)
def test_a_mark_that_cannot_be_is_refused(client, row, mark, label, said):
    answer = client.mark(row, mark, label)
    assert answer.status == 400
    assert said in answer.text
    assert sum(client.ask("/api/samples").json["marks"]) == 0


def test_a_mark_that_could_not_be_written_is_not_shown_as_saved(run):
    with serving(run, marks=run / "run.json" / "marks.csv") as client:
        answer = client.mark(0, "unsure")
        assert answer.status == 507
        assert "marks.csv cannot be written" in answer.json["problem"]
        assert sum(client.ask("/api/samples").json["marks"]) == 0


# Blind


def test_blind_answers_hold_no_score_and_no_class(tmp_path):
    run = make_run(tmp_path)
    edit(run / "cells.parquet", lambda cells: cells.assign(cell_label="tell-tale", verdict="tell-tale"))
    with serving(run, blind=True) as client:
        about, table, sample = (client.ask(f"/api/{name}").json for name in ("run", "samples", "samples/0"))
        assert set(about) == {
            "title", "command", "blind", "classes", "samples", "cells", "marks_file", "pictures"
        }  # fmt: skip
        assert set(table) == {"sample", "patient", "cells", "marks"}
        assert set(sample) == {
            "index", "sample", "patient", "first", "ids", "columns", "images", "image_names", "image_of",
            "one_cell_per_image", "marks",
        }  # fmt: skip
        assert set(client.numbers(0)) == {"x0", "y0", "x1", "y1"}
        assert len(client.ask("/api/samples/0/numbers").body) == 4 * 4 * PER_SAMPLE
        assert "images/" not in json.dumps(sample["image_names"])
        assert "tell-tale" not in client.ask("/api/samples/0").text
        assert table["sample"] == sorted(table["sample"])


def test_a_blind_problem_does_not_name_the_file(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "cohort" / "images" / "0-0.png").unlink()
    with serving(run, blind=True) as client:
        assert client.ask("/api/images/0").json == {"problem": ""}
        lost = client.ask(f"{client.ask('/api/run').json['pictures']}/cells/0")
        assert (lost.status, lost.json) == (404, {"problem": ""})


def test_blind_numbers_of_images_follow_the_order_shown(tmp_path):
    run = make_run(tmp_path)
    edit(run / "cells.parquet", lambda cells: cells.iloc[::-1])
    with serving(run, blind=True) as client:
        images = [client.ask(f"/api/samples/{i}").json["images"] for i in range(6)]
        assert images == [[2 * i, 2 * i + 1] for i in range(6)]


def test_marks_can_be_set_blind(tmp_path):
    run = make_run(tmp_path)
    with serving(run, blind=True) as client:
        assert client.mark(3, "class", "sickle").json["label"] == "sickle"
        assert client.ask("/api/samples/0").json["marks"]["3"]["label"] == "sickle"


# Runs that lack something


def test_missing_scores_are_sent_as_missing(tmp_path):
    run = make_run(tmp_path)
    edit(run / "cells.parquet", lambda c: c.assign(anomaly=np.nan, attention=np.nan, anomaly_q=np.nan))
    with serving(run) as client:
        assert client.ask("/api/samples").json["strange"] == [None] * 6
        assert [scale["key"] for scale in client.ask("/api/run").json["scales"]] == ["contribution"]
        assert client.ask("/api/run").json["counted"] == COUNTED["weight"]
        numbers = client.numbers(0)
        assert np.isnan(numbers["anomaly"]).all()
        assert np.isnan(numbers["strange"]).all()


def test_a_prediction_without_images_labels_or_runs_is_shown(tmp_path):
    run = make_run(tmp_path, command="predict", data={}, methods=["default"])
    gone = ["image", "x0", "y0", "x1", "y1", "method", "run", "patient"]
    shown_cells(run).drop(columns=gone).to_parquet(run / "cells.parquet", index=False)
    table = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0")
    table = table.drop(columns=["method", "run", "fold", "label", "novelty_p"])
    table.to_csv(run / "samples.csv", index=False)
    with serving(run) as client:
        sample = client.ask("/api/samples/0").json
        assert sample["images"] == []
        assert sample["image_of"] == [-1] * PER_SAMPLE
        assert client.ask("/pictures/x/cells/0").status == 404
        assert "without knowing their classes" in client.ask("/api/run").json["caveat"]


def test_a_sample_without_cells_is_there(tmp_path):
    run = make_run(tmp_path)
    edit(run / "cells.parquet", lambda cells: cells[cells["sample"] != "s02"])
    with serving(run) as client:
        names = client.ask("/api/samples").json
        lost = names["sample"].index("s02")
        assert names["cells"][lost] == 0
        assert client.ask(f"/api/samples/{lost}").json["ids"] == []


def test_single_cell_images_are_known_as_such(tmp_path):
    run = make_run(tmp_path)
    edit(run / "cells.parquet", lambda c: c.assign(image=c["cell_id"] + ".png", x0=0, y0=0, x1=40, y1=40))
    with serving(run) as client:
        assert client.ask("/api/samples/0").json["one_cell_per_image"] is True


def test_names_that_are_markup_travel_as_text_only(tmp_path):
    run = make_run(tmp_path)
    hostile = "<script>alert(1)</script>"
    edit(run / "samples.csv", lambda s: s.assign(label=hostile, predicted=hostile, patient=hostile))
    with serving(run) as client:
        answer = client.ask("/api/samples/0")
        assert answer.json["label"] == hostile
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert hostile not in client.ask("/").text


@pytest.mark.parametrize("script", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_no_script_of_the_page_turns_text_into_markup(script):
    ways = "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|Function|setHTML|srcdoc|Fragment"
    assert not re.search(ways, script.read_text(encoding="utf-8"))
