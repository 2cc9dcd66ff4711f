"""`explain`: the cells that made each diagnosis, their neighbours in health, and an expert's marks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil import commands
from hemomil.commands.explaining import explain, vectors_of
from hemomil.commands.marks import Mark, append_mark
from hemomil.describe import StoreWriter, read_bags
from hemomil.errors import CellsError, RunFolderError, SettingsError
from hemomil.explain.neighbours import MOST_HEALTHY, nearest_healthy
from hemomil.explain.ranks import foremost, with_ranks
from hemomil.explain.strips import file_name, same_scale, strip
from hemomil.types import Cells, Cohort, Sample

pytestmark = pytest.mark.usefixtures("no_pages")

QUICK = {"study.runs": 2, "study.folds": 2, "study.bootstrap": 100, "mil.epochs": 3}


@pytest.fixture(scope="module")
def run(cohort: Path, unchecked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the small cohort, on its known cells."""
    folder = tmp_path_factory.mktemp("study") / "run"
    settings = commands.resolve_settings(flags={**QUICK, "study.methods": ("att", "default")})
    with unchecked():
        commands.study(cohort / "manifest.csv", folder, settings=settings, cells=cohort / "cells.csv", jobs=1)
    return folder


@pytest.fixture(scope="module")
def explained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("explained") / "out"
    explain(run, output, top=6)
    return output


def told(output):
    return json.loads((output / "explain.json").read_text())


def shown_rows(run, method="default"):
    cells = pd.read_parquet(run / "cells.parquet")
    return cells[(cells["method"] == method) & (cells["run"] == 0)].reset_index(drop=True)


def test_the_cells_of_the_shown_method_and_run_keep_what_the_run_said_of_them(run, explained):
    own, found = shown_rows(run), pd.read_parquet(explained / "cells.parquet")
    added = ["attention_percentile", "rank", "nearest_healthy", "nearest_healthy_distance"]
    assert list(found) == [*own, *added]
    pd.testing.assert_frame_equal(found[list(own)], own)


def test_another_method_is_explained_on_request(run, tmp_path):
    explain(run, tmp_path / "out", method="att", crops=False)
    found, own = pd.read_parquet(tmp_path / "out" / "cells.parquet"), shown_rows(run, "att")
    np.testing.assert_array_equal(found["contribution"], own["contribution"])
    assert told(tmp_path / "out")["method"] == "att"
    with pytest.raises(RunFolderError, match="method 'mean' is not in this run"):
        explain(run, tmp_path / "other", method="mean")


def test_ranks_and_percentiles_are_within_the_sample():
    cells = pd.DataFrame(
        {
            "sample": ["a", "a", "a", "a", "b", "c"],
            "attention": [0.1, 0.4, 0.1, 0.4, 1.0, np.nan],
            "contribution": [0.5, -1.0, 2.0, 0.5, 0.0, np.nan],
        }
    )
    found = with_ranks(cells)
    assert found["attention_percentile"].tolist()[:5] == [25.0, 75.0, 25.0, 75.0, 50.0]
    assert found["rank"].tolist()[:5] == [2, 4, 1, 2, 1]
    assert found[["attention_percentile", "rank"]].iloc[5].isna().all()


def test_each_cell_is_listed_once_and_told_by_which_order():
    cells = pd.DataFrame({"cell_id": ["a", "b", "c", "d"]})
    found = foremost(cells, cells.iloc[::-1], 3)
    assert found["cell_id"].tolist() == ["a", "b", "c", "d"]
    assert found["chosen_by"].tolist() == [
        "contribution", "contribution+anomaly", "contribution+anomaly", "anomaly",
    ]  # fmt: skip
    assert foremost(cells, cells, 9)["chosen_by"].unique().tolist() == ["contribution+anomaly"]


def cells_of_people(n=60, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4)).astype(np.float32) * [1, 10, 100, 0] + [0, 0, 0, 5]
    patients = np.array([f"p{i % 6}" for i in range(n)], dtype=object)
    return features.astype(np.float32), patients, np.isin(patients, ["p0", "p1", "p2"])


def test_the_nearest_healthy_cells_are_those_of_a_plain_search_among_other_people():
    features, patients, healthy = cells_of_people()
    found = nearest_healthy(features, patients, healthy)
    spread = features[healthy].std(axis=0)
    scaled = features / np.where(spread > 0, spread, 1)
    for i in range(len(features)):
        others = np.flatnonzero(healthy & (patients != patients[i]))
        distance = np.sqrt(((scaled[others] - scaled[i]) ** 2).sum(axis=1))
        assert found.rows[i].tolist() == others[np.argsort(distance)[:3]].tolist()
        np.testing.assert_allclose(found.distances[i], np.sort(distance)[:3], rtol=1e-4)


def test_a_scale_of_a_feature_does_not_choose_the_neighbours():
    features, patients, healthy = cells_of_people()
    first = nearest_healthy(features, patients, healthy)
    again = nearest_healthy(features * np.float32([1000, 1, 0.1, 1]) + 7, patients, healthy)
    np.testing.assert_array_equal(first.rows, again.rows)


def test_fewer_healthy_cells_of_others_than_asked_for_leave_blanks():
    features, patients, healthy = cells_of_people(8)  # p0: 0 6; p1: 1 7; p2: 2
    healthy &= patients != "p2"
    found = nearest_healthy(features, patients, healthy)
    assert set(found.rows[0][:2]) == {1, 7}
    assert found.rows[0][2] == -1
    assert np.isnan(found.distances[0][2])
    assert (found.rows[2] >= 0).all()
    nothing = nearest_healthy(features, patients, np.zeros(8, bool))
    assert (nothing.rows == -1).all()
    assert nothing.n_healthy == 0


def test_many_healthy_cells_are_thinned_evenly():
    n = 2 * MOST_HEALTHY + 2
    features = np.arange(n, dtype=np.float32)[:, None]
    patients = np.array(["ill", *["healthy"] * (n - 1)], dtype=object)
    found = nearest_healthy(features, patients, patients == "healthy")
    assert found.n_healthy <= MOST_HEALTHY
    assert found.rows[0].tolist() == [1, 4, 7]  # every third


def test_neighbours_in_the_table_are_control_cells_of_other_patients(run, explained):
    cells = pd.read_parquet(explained / "cells.parquet").set_index("cell_id")
    bags = {bag.sample: bag for bag in read_bags(run / "cells.zarr", ("shape",))}
    features = pd.concat(
        [pd.DataFrame(bag.features, index=list(bag.cell_ids), dtype=float) for bag in bags.values()]
    )
    controls = cells.index[cells["label"] == "control"]
    scaled = features / features.loc[controls].std(ddof=0).replace(0, 1)
    for cell_id, row in cells.iterrows():
        others = controls[cells.loc[controls, "patient"] != row["patient"]]
        assert set(row["nearest_healthy"]) <= set(others)
        distance = np.sqrt(((scaled.loc[others] - scaled.loc[cell_id]) ** 2).sum(axis=1)).nsmallest(3)
        np.testing.assert_allclose(row["nearest_healthy_distance"], distance, rtol=1e-3)


def test_roi_maps_are_compared_by_mean_and_maximum_as_when_joined(tmp_path):
    store, rng = tmp_path / "cells.zarr", np.random.default_rng(0)
    ids = tuple(f"s/{i:04d}" for i in range(6))
    cells = Cells(
        cell_ids=ids, samples=("s",) * 6, images=("",) * 6, boxes=np.zeros((6, 4)), scores=np.ones(6),
        masks=(None,) * 6, cell_labels=(None,) * 6,
    )  # fmt: skip
    cohort = Cohort(samples=(Sample(sample="s", patient="p", label=None, images=()),))
    names = {"embedding": ("one", "two")}
    with StoreWriter(store, cells, cohort, ("roi", "embedding"), names=names) as writer:
        writer.write(slice(None), "roi", rng.normal(size=(6, 256, 14, 14)).astype(np.float16))
        writer.write(slice(None), "embedding", np.zeros((6, 2), np.float32))
    order = pd.Index(ids[::-1])
    joined = read_bags(store, ("roi", "embedding"))[0].features[::-1, :512]
    np.testing.assert_array_equal(vectors_of(store, ("roi",), order), joined)


def test_the_top_cells_come_first_by_contribution_then_the_strangest(run, explained):
    table, cells = pd.read_csv(explained / "top.csv"), shown_rows(run)
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert table["contribution"].tolist()[:6] == pytest.approx(
        sorted(cells["contribution"], reverse=True)[:6]
    )
    strange = cells.sort_values(["anomaly_p", "anomaly"], ascending=[True, False])["cell_id"].head(6)
    assert set(table.loc[table["chosen_by"].str.contains("anomaly"), "cell_id"]) == set(strange)
    samples = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0").set_index("sample")
    assert (table["predicted"] == table["sample"].map(samples["predicted"])).all()
    assert {"patient", "label", "attention", "anomaly", "prob_control", "nearest_healthy_3"} <= set(table)


def test_every_listed_cell_has_its_picture_beside_three_healthy_ones(explained):
    table = pd.read_csv(explained / "top.csv")
    files = sorted(path.name for path in (explained / "crops").iterdir())
    assert [f"crops/{name}" for name in files] == table["file"].tolist()
    assert files[0] == f"0001_{table['cell_id'][0].replace('/', '_')}.png"
    for name in files:
        with Image.open(explained / "crops" / name) as picture:
            assert picture.size == (4 * 128 + 12 + 2 * 4, 128)
            assert np.asarray(picture)[:, 130:138].min() == 255
    assert told(explained)["crops"] == len(table)


def test_chosen_samples_alone_are_shown_while_the_table_has_all(run, tmp_path):
    cells = shown_rows(run)
    sample = cells["sample"].iloc[-1]
    explain(run, tmp_path / "out", samples=(sample,), top=99, crops=False)
    table = pd.read_csv(tmp_path / "out" / "top.csv", keep_default_na=False)
    assert set(table["cell_id"]) == set(cells.loc[cells["sample"] == sample, "cell_id"])
    assert set(table["file"]) == {""}
    assert not (tmp_path / "out" / "crops").exists()
    assert len(pd.read_parquet(tmp_path / "out" / "cells.parquet")) == len(cells)
    deletion = told(tmp_path / "out")["deletion_check"]["shown"]
    assert {point["samples"] for point in deletion} == {1}
    with pytest.raises(SettingsError, match=f"no sample '{sample[:-1]}'") as caught:
        explain(run, tmp_path / "other", samples=(sample[:-1],))
    assert f"did you mean '{sample}'" in str(caught.value)


def test_the_deletion_check_is_that_of_the_study(run, explained):
    check = told(explained)["deletion_check"]
    assert (
        check["all_samples_and_runs"] == json.loads((run / "metrics.json").read_text())["deletion"]["default"]
    )
    rows = pd.read_csv(run / "deletion.csv").query("method == 'default' and run == 0 and k == 2")
    point = next(point for point in check["shown"] if point["k"] == 2)
    assert point["without_top"] == pytest.approx(rows["without_top"].mean())
    assert point["samples"] == len(rows)


def test_a_prediction_without_labels_is_explained_without_neighbours(cohort, unchecked, tmp_path):
    settings = commands.resolve_settings(flags={"mil.epochs": 3})
    model, said = tmp_path / "model", tmp_path / "said"
    with unchecked():
        commands.train(cohort / "manifest.csv", model, settings=settings, cells=cohort / "cells.csv", jobs=1)
    rows = pd.read_csv(cohort / "manifest.csv", dtype=str).assign(label="")
    shutil.copytree(cohort / "images", tmp_path / "images")
    rows.to_csv(tmp_path / "new.csv", index=False)
    with unchecked():
        commands.predict(tmp_path / "new.csv", said, model=model, cells=cohort / "cells.csv", jobs=1)
    record = explain(said, tmp_path / "out", top=2)
    assert [notice["kind"] for notice in record["notices"]] == ["no-control-cells"]
    assert record["deletion_check"] == json.loads((said / "run.json").read_text())["explanation_check"]
    cells = pd.read_parquet(tmp_path / "out" / "cells.parquet")
    assert cells["nearest_healthy"].str.len().eq(0).all()
    assert record["crops"] == record["cells_shown"] > 0
    of_model = explain(model, tmp_path / "of-model", top=2)
    assert of_model["deletion_check"]["cells_deleted"] == 3
    assert of_model["notices"] == []


@pytest.fixture
def moved(run, cohort, tmp_path):
    """The same run, whose images lie in a folder that a test may change."""
    images = tmp_path / "cohort"
    shutil.copytree(cohort, images)
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["data"]["manifest"] = str(images / "manifest.csv")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run", images


def test_an_image_that_cannot_be_read_is_named_and_costs_its_pictures_only(moved, tmp_path):
    folder, images = moved
    lost = shown_rows(folder).nlargest(1, "contribution")["image"].item()
    (images / lost).write_bytes(b"no image")
    record = explain(folder, tmp_path / "out", top=6)
    assert [notice["subject"] for notice in record["notices"]] == [lost]
    table = pd.read_csv(tmp_path / "out" / "top.csv", keep_default_na=False)
    assert table["file"][0] == ""
    assert 0 < record["crops"] == (table["file"] != "").sum() < len(table)


def test_a_sample_in_which_no_cell_was_found_shows_nothing(moved, tmp_path):
    folder, _ = moved
    cells = pd.read_parquet(folder / "cells.parquet")
    sample = cells["sample"].iloc[0]
    cells[cells["sample"] != sample].to_parquet(folder / "cells.parquet")
    record = explain(folder, tmp_path / "out", samples=(sample,))
    assert record["cells_shown"] == record["crops"] == 0
    assert len(pd.read_csv(tmp_path / "out" / "top.csv")) == 0


def test_cells_that_the_store_has_not_are_refused(moved, tmp_path):
    folder, _ = moved
    cells = pd.read_parquet(folder / "cells.parquet")
    cells.assign(cell_id="x" + cells["cell_id"]).to_parquet(folder / "cells.parquet")
    with pytest.raises(RunFolderError, match="has no cell x"):
        explain(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "ü ♥", ".", "a" * 300, "c:\\x", "CON", "-rf", "a_b.1"])
def test_no_id_becomes_a_path(name):
    file = file_name(3, name, f"{name}/0001")
    assert Path(file).name == file
    assert file.startswith("0003_")
    assert len(file) < 120
    assert file.isascii()


def test_ids_that_look_alike_as_file_names_are_kept_apart():
    assert file_name(1, "s1", "s1/0007") == "0001_s1_0007.png"
    names = {file_name(1, sample, cell) for sample in ("a b", "a/b", "a-b") for cell in ("1", "1/", "/1")}
    assert len(names) == 9


def test_a_strip_has_one_scale_and_a_grey_place_for_what_is_missing():
    boxes = np.array([[0, 0, 10, 20], [100, 100, 104, 104]], dtype=float)
    assert same_scale(boxes).tolist() == [[-5, 0, 15, 20], [92, 92, 112, 112]]
    tile = np.zeros((8, 8, 3), np.uint8)
    found = strip([tile, None, tile], 8)
    assert found.shape == (8, 3 * 8 + 12 + 4, 3)
    assert set(found[0, 20:28].ravel().tolist()) == {230}


def test_an_explanation_is_replaced_only_by_force_and_other_files_never(run, tmp_path):
    output = tmp_path / "out"
    explain(run, output, top=1, crops=False)
    with pytest.raises(RunFolderError, match="holds an explanation"):
        explain(run, output, top=2, crops=False)
    assert explain(run, output, top=2, crops=False, force=True)["top"] == told(output)["top"] == 2
    append_mark(output / "marks.csv", Mark("s1/0001", "unsure"))
    with pytest.raises(RunFolderError, match=r"holds marks\.csv"):
        explain(run, output, crops=False, force=True)
    assert (output / "marks.csv").exists()
    with pytest.raises(RunFolderError, match="not of an explanation"):
        explain(run, run, crops=False, force=True)
    assert (run / "run.json").exists()


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(RunFolderError, match="no finished run"):
        explain(tmp_path, tmp_path / "out")
    with pytest.raises(SettingsError, match="top 0"):
        explain(run, tmp_path / "out", top=0)


def marks_of(run, tmp_path):
    """Every third cell marked: as the simulation drew it, some as artefacts and unsure."""
    cells = shown_rows(run).iloc[::3].reset_index(drop=True)
    path = tmp_path / "marks.csv"
    for row in cells.itertuples():
        kind = {0: "artefact", 1: "unsure"}.get(row.Index % 10, "class")
        append_mark(path, Mark(row.cell_id, kind, row.cell_label if kind == "class" else ""))
    return path, cells[cells.index % 10 > 1]


def test_scores_by_marks_are_those_of_scikit_learn_over_the_cells_marked_with_a_class(run, tmp_path):
    path, cells = marks_of(run, tmp_path)
    explain(run, tmp_path / "out", marks=path, crops=False)
    found = json.loads((tmp_path / "out" / "marks.json").read_text())
    abnormal = cells["cell_label"] != "control"
    assert 5 < abnormal.sum() < len(cells) - 5
    scores = {"abnormal_probability": 1 - cells["prob_control"]}
    for name in ("attention", "anomaly", "contribution", "abnormal_probability"):
        score = scores.get(name, cells.get(name))
        assert found["scores"][name]["auroc"]["value"] == pytest.approx(roc_auc_score(abnormal, score))
        assert found["scores"][name]["ap"]["value"] == pytest.approx(average_precision_score(abnormal, score))
        assert found["scores"][name]["auroc"]["low"] < found["scores"][name]["auroc"]["high"]
        assert found["scores"][name]["auroc"]["n"] == cells["patient"].nunique() == found["patients"]
    assert found["classes"] == cells["cell_label"].value_counts().to_dict()


def test_artefacts_and_doubt_are_counted_and_change_no_score(run, tmp_path):
    path, _ = marks_of(run, tmp_path)
    explain(run, tmp_path / "with", marks=path, crops=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "artefact" not in line and "unsure" not in line))
    explain(run, tmp_path / "without", marks=path, crops=False)
    more, less = (json.loads((tmp_path / name / "marks.json").read_text()) for name in ("with", "without"))
    assert more["scores"] == less["scores"]
    assert more["counts"]["artefact"] > 0
    assert more["counts"]["unsure"] > 0
    assert less["counts"] == {"class": more["counts"]["class"], "artefact": 0, "unsure": 0}


def test_the_share_of_artefacts_is_of_the_top_cells_that_were_marked(run, tmp_path):
    first = shown_rows(run).nlargest(4, "contribution")["cell_id"].tolist()
    for cell_id, kind in zip(first, ("artefact", "unsure", "artefact"), strict=False):
        append_mark(tmp_path / "marks.csv", Mark(cell_id, kind))
    explain(run, tmp_path / "out", marks=tmp_path / "marks.csv", top=4, crops=False)
    found = json.loads((tmp_path / "out" / "marks.json").read_text())
    assert found["artefacts_among_top"]["contribution"] == {
        "cells": 4, "marked": 3, "artefacts": 2, "share": pytest.approx(2 / 3),
    }  # fmt: skip
    assert found["scores"] == {}


def test_marks_that_do_not_fit_the_run_are_told_with_their_rows(run, tmp_path):
    path = tmp_path / "marks.csv"
    append_mark(path, Mark("nobody/0001", "artefact"))
    append_mark(path, Mark(shown_rows(run)["cell_id"][0], "class", "Control"))
    record = explain(run, tmp_path / "out", marks=path, crops=False)
    said = {notice["kind"]: notice["text"] for notice in record["notices"]}
    assert said["mark-of-unknown-cell"] == "row 2: the run has no cell nobody/0001"
    assert "class 'Control' is none of the run's" in said["mark-of-other-class"]
    assert "row 3" in said["mark-of-other-class"]
    assert "of 1 patients" in said["few-patients"]
    found = json.loads((tmp_path / "out" / "marks.json").read_text())
    assert found["unknown"] == [{"cell_id": "nobody/0001", "row": 2}]
    assert found["scores"]["anomaly"]["auroc"]["value"] is None


def test_marks_that_cannot_be_read_stop_before_any_work(run, tmp_path):
    with pytest.raises(CellsError, match="there is no file"):
        explain(run, tmp_path / "out", marks=tmp_path / "marks.csv")
    (tmp_path / "marks.csv").write_text("cell_id,mark,class\nx,what,\n")
    with pytest.raises(CellsError, match="row 2: mark 'what'"):
        explain(run, tmp_path / "out", marks=tmp_path / "marks.csv")
    assert not (tmp_path / "out").exists()


def test_vectors_brought_along_are_explained_without_pictures(tmp_path):
    from anndata import AnnData

    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"sample": [f"s{i // 5:02d}" for i in range(60)]}, index=[f"c{i}" for i in range(60)])
    obs["patient"] = obs["sample"].str.replace("s", "p")
    obs["label"] = np.where(obs["sample"] < "s06", "control", "scd")
    values = (rng.normal(size=(60, 4)) + (obs["label"] == "scd").to_numpy()[:, None]).astype(np.float32)
    AnnData(X=values, obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    settings = commands.resolve_settings(flags={**QUICK, "study.methods": ("mean",), "study.runs": 1})
    commands.study(tmp_path / "cells.h5ad", tmp_path / "run", settings=settings, jobs=1)
    record = explain(tmp_path / "run", tmp_path / "out", top=3)
    assert record["features"] == ["embedding"]
    assert record["crops"] == 0
    assert [notice["kind"] for notice in record["notices"]] == ["no-images"]
    cells = pd.read_parquet(tmp_path / "out" / "cells.parquet")
    assert cells["nearest_healthy"].str.len().eq(3).all()
    assert cells["attention_percentile"].isna().all()
