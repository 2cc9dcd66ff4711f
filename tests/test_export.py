"""A run taken out to QuPath, Fiji, scanpy and R, and back in where that is possible."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile

from hemomil import commands
from hemomil.cohort import read_cells, read_manifest
from hemomil.commands.export import export_anndata, export_csv, export_geojson, export_labels
from hemomil.describe import read_obs
from hemomil.errors import ImageError, RunFolderError, SettingsError
from hemomil.segmentation import mask_of

pytestmark = pytest.mark.usefixtures("no_pages")

QUICK = {
    "study.methods": ("att", "mean"),
    "study.runs": 2,
    "study.folds": 2,
    "study.bootstrap": 100,
    "mil.epochs": 2,
}
EXPORTS = {
    "geojson": export_geojson,
    "labels": export_labels,
    "cells.h5ad": export_anndata,
    "cells.csv": export_csv,
}


@pytest.fixture(scope="module")
def run(cohort: Path, unchecked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of cells with masks, two methods and two runs."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    settings = commands.resolve_settings(flags=QUICK)
    with unchecked():
        commands.study(cohort / "manifest.csv", folder, settings=settings, cells=cohort / "coco.json", jobs=1)
    return folder


@pytest.fixture(scope="module")
def run_without_images(unchecked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of features that were brought along."""
    folder = tmp_path_factory.mktemp("brought")
    rng = np.random.default_rng(0)
    obs = [(f"s{s}", f"p{s}", "control" if s % 2 else "ill") for s in range(8) for _ in range(5)]
    table = pd.DataFrame(obs, columns=["sample", "patient", "label"], index=[f"c{i}" for i in range(40)])
    anndata.AnnData(rng.normal(size=(40, 3)), obs=table).write_h5ad(folder / "cells.h5ad")
    settings = commands.resolve_settings(flags=QUICK)
    with unchecked():
        commands.study(folder / "cells.h5ad", folder / "run", settings=settings, jobs=1)
    return folder / "run"


def shown(run: Path, method: str = "mean") -> pd.DataFrame:
    """The cells of the first run of a method; `mean` is the last of the two, which the report shows."""
    cells = pd.read_parquet(run / "cells.parquet")
    return cells[(cells["method"] == method) & (cells["run"] == cells["run"].min())].reset_index(drop=True)


def same_cells(found, run: Path) -> None:
    """Cells that came back have the masks, and the boxes of these masks, that the store has."""
    obs = read_obs(run / "cells.zarr")
    for sample, image, box, mask in zip(found.samples, found.images, found.boxes, found.masks, strict=True):
        alike = obs[(obs["sample"] == sample) & (obs["image"] == image)]
        there = alike[(np.abs(alike[["x0", "y0", "x1", "y1"]] - box) < 1e-9).all(axis=1)]
        assert len(there) == 1
        np.testing.assert_array_equal(mask_of(there["mask_rle"].iloc[0]), mask)


# QuPath


def features(run: Path, output: Path, **asked: object) -> list[dict]:
    export_geojson(run, output, **asked)
    files = sorted(output.rglob("*.geojson"))
    return [f for file in files for f in json.loads(file.read_text(), parse_constant=pytest.fail)["features"]]


def test_every_cell_is_a_detection_with_its_own_numbers(run, tmp_path):
    cells = shown(run).set_index("cell_id")
    found = features(run, tmp_path / "out")
    assert {f["properties"]["name"] for f in found} == set(cells.index)
    assert len({UUID(f["id"]) for f in found}) == len(cells)
    for feature in found:
        cell, told = cells.loc[feature["properties"]["name"]], feature["properties"]
        assert told["objectType"] == "detection"
        names = [name for name in cells if name.startswith("prob_")]
        most = max(names, key=lambda name, cell=cell: cell[name])
        assert told["classification"]["name"] == most.removeprefix("prob_")
        assert len(told["classification"]["color"]) == 3
        assert "attention" not in told["measurements"], "`mean` has no attention, and NaN is no JSON"
        for name in ("anomaly", "contribution", "weight", "anomaly_p", "anomaly_q", *names):
            assert told["measurements"][name] == cell[name]


def test_outlines_are_closed_and_come_back_as_the_same_cells(run, cohort, tmp_path):
    for feature in features(run, tmp_path / "out"):
        parts = feature["geometry"]["coordinates"]
        rings = parts if feature["geometry"]["type"] == "Polygon" else [ring for p in parts for ring in p]
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
    back = read_cells(tmp_path / "out", read_manifest(cohort / "manifest.csv"))
    assert len(back) == len(shown(run))
    same_cells(back, run)


def test_the_same_run_gives_the_same_files(run, tmp_path):
    for name, export in EXPORTS.items():
        if name != "cells.h5ad":  # HDF5 notes times
            export(run, tmp_path / "a" / name)
            export(run, tmp_path / "b" / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) > 40
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


# Label images


def test_numbers_of_a_label_image_are_rows_of_its_table_and_come_back_as_cells(run, cohort, tmp_path):
    export_labels(run, tmp_path / "out")
    cells = shown(run)
    for image, own in cells.groupby("image"):
        file = tmp_path / "out" / f"{image}_labels.ome.tif"
        table = pd.read_csv(file.with_name(file.name.replace(".ome.tif", ".csv")))
        with tifffile.TiffFile(file) as tiff:
            assert tiff.is_ome
            assert tiff.series[0].axes == "YX"
            labels = tiff.asarray()
        assert table["number"].tolist() == list(range(1, len(own) + 1))
        assert table["cell_id"].tolist() == own["cell_id"].tolist()
        np.testing.assert_allclose(table["anomaly"], own["anomaly"], rtol=1e-12)
        np.testing.assert_array_equal(np.bincount(labels.ravel())[1:], table["pixels"])
    back = read_cells(tmp_path / "out", read_manifest(cohort / "manifest.csv"))
    assert len(back) == len(cells)


def test_an_image_that_was_replaced_by_a_smaller_one_is_named(run, cohort, tmp_path):
    from PIL import Image

    moved = shutil.copytree(run, tmp_path / "run")
    record = json.loads((moved / "run.json").read_text())
    shutil.copytree(cohort, tmp_path / "cohort")
    record["data"]["manifest"] = str(tmp_path / "cohort" / "manifest.csv")
    (moved / "run.json").write_text(json.dumps(record))
    image = shown(run)["image"].iloc[0]
    Image.new("RGB", (40, 40)).save(tmp_path / "cohort" / image)
    with pytest.raises(ImageError, match=f"{image} is 40x40 pixels, but cells"):
        export_labels(moved, tmp_path / "out")
    (tmp_path / "cohort" / image).unlink()
    with pytest.raises(ImageError, match="is not there"):
        export_labels(moved, tmp_path / "other")


# AnnData


def test_anndata_has_every_cell_with_scores_features_and_where_they_come_from(run, tmp_path):
    cells, store = shown(run), anndata.read_zarr(run / "cells.zarr")
    for name in ("cells.h5ad", "cells.zarr"):
        export_anndata(run, tmp_path / name)
    for data in (anndata.read_h5ad(tmp_path / "cells.h5ad"), anndata.read_zarr(tmp_path / "cells.zarr")):
        assert data.obs_names.tolist() == cells["cell_id"].tolist()
        assert data.var_names.tolist() == store.var_names.tolist()
        np.testing.assert_array_equal(data.X, store[data.obs_names].X)
        np.testing.assert_array_equal(data.obsm["shape"], data.X)
        np.testing.assert_array_equal(data.obs["anomaly"], cells["anomaly"])
        assert data.obs["sample"].astype(str).tolist() == cells["sample"].tolist()
        assert {"site", "det_score", "area", "prob_control", "cell_label", "fold"} <= set(data.obs)
        assert data.uns["hemomil"]["method"] == "mean"
        assert data.uns["hemomil"]["run"] == cells["run"].iloc[0]
        assert data.uns["hemomil"]["classes"].tolist() == ["control", "hs", "scd"]


SCANPY = """
import numpy as np, scanpy, sys
data = scanpy.read_h5ad(sys.argv[1])
scanpy.pp.scale(data)
scanpy.pp.neighbors(data, n_neighbors=5, use_rep="X")
scanpy.tl.umap(data, maxiter=20)
assert data.obsm["X_umap"].shape == (data.n_obs, 2)
assert np.isfinite(data.obsm["X_umap"]).all()
"""


def test_scanpy_reads_it_and_umap_runs(run, tmp_path):
    export_anndata(run, tmp_path / "cells.h5ad")
    # for so few cells, numba's compiler takes nearly all of the time
    uncompiled = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", SCANPY, tmp_path / "cells.h5ad"], check=True, env=uncompiled
    )


def test_vectors_brought_along_are_the_features_and_have_no_image(run_without_images, tmp_path):
    export_anndata(run_without_images, tmp_path / "cells.h5ad")
    data = anndata.read_h5ad(tmp_path / "cells.h5ad")
    store = anndata.read_zarr(run_without_images / "cells.zarr")
    np.testing.assert_array_equal(data.X, store[data.obs_names].obsm["embedding"])
    for export in (export_geojson, export_labels):
        with pytest.raises(RunFolderError, match="lie in no image") as refused:
            export(run_without_images, tmp_path / "out")
        assert "anndata or csv" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_anything_but_h5ad_and_zarr_is_refused(run, tmp_path):
    with pytest.raises(SettingsError, match=r"neither \.h5ad nor \.zarr"):
        export_anndata(run, tmp_path / "cells.loom")


def test_force_does_not_replace_a_folder_that_is_no_store(run, tmp_path):
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="no zarr store"):
        export_anndata(run, tmp_path / "thesis.zarr", force=True)
    assert (tmp_path / "thesis.zarr" / "thesis.txt").read_text() == "years of work"


# CSV


def test_csv_has_the_columns_of_the_tables_and_blanks_for_what_is_missing(run, tmp_path):
    export_csv(run, tmp_path / "cells.csv")
    cells, said = shown(run), pd.read_csv(tmp_path / "cells.csv")
    assert list(said) == list(cells)
    np.testing.assert_allclose(said["anomaly"], cells["anomaly"], rtol=1e-12)
    column = list(said).index("attention")
    assert {line.split(",")[column] for line in (tmp_path / "cells.csv").read_text().splitlines()[1:]} == {""}
    samples = pd.read_csv(tmp_path / "cells_samples.csv").set_index("sample")
    assert samples["cells"].to_dict() == cells.groupby("sample").size().to_dict()
    assert set(samples["method"]) == {"mean"}
    assert samples.columns[-1] == "cells"


# All of them


@pytest.mark.parametrize("name", EXPORTS)
def test_nothing_is_overwritten_without_force(run, tmp_path, name):
    EXPORTS[name](run, tmp_path / name)
    with pytest.raises(RunFolderError, match=r"already there|is not empty") as refused:
        EXPORTS[name](run, tmp_path / name)
    assert "--force" in refused.value.hint
    EXPORTS[name](run, tmp_path / name, force=True)
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name.split(".")]


@pytest.mark.parametrize("name", EXPORTS)
def test_another_method_is_exported_on_request_and_an_unknown_one_refused(run, tmp_path, name):
    EXPORTS[name](run, tmp_path / "att" / name, method="att")
    with pytest.raises(RunFolderError, match="'lse' is not in this run"):
        EXPORTS[name](run, tmp_path / "lse" / name, method="lse")
    if name == "cells.csv":
        said = pd.read_csv(tmp_path / "att" / name)
        np.testing.assert_allclose(said["attention"], shown(run, "att")["attention"])


@pytest.mark.parametrize("name", EXPORTS)
def test_a_folder_that_is_no_finished_run_is_refused(tmp_path, name):
    with pytest.raises(RunFolderError, match="no finished run"):
        EXPORTS[name](tmp_path, tmp_path / name)


def test_images_above_or_beside_the_manifest_stay_below_the_output(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    cells = pd.read_parquet(moved / "cells.parquet")
    first, second = cells["image"].unique()[:2]
    cells["image"] = cells["image"].replace({first: "../../other/a.png", second: "C:\\slides\\b.png"})
    cells.to_parquet(moved / "cells.parquet")
    export_geojson(moved, tmp_path / "out" / "deep")
    assert (tmp_path / "out" / "deep" / "other" / "a.png.geojson").is_file()
    assert (tmp_path / "out" / "deep" / "slides" / "b.png.geojson").is_file()
    cells["image"] = cells["image"].replace({"C:\\slides\\b.png": "other/a.png"})
    cells.to_parquet(moved / "cells.parquet")
    with pytest.raises(RunFolderError, match="one file"):
        export_geojson(moved, tmp_path / "again")
