"""The store of cells: what is written is read, whole or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from pydantic import ValidationError

from hemomil.describe import (
    SHAPE_NAMES,
    DescribeSettings,
    StoreWriter,
    feature_names,
    fingerprint,
    mask_of,
    read_bags,
    read_obs,
)
from hemomil.errors import FeaturesError, RunFolderError
from hemomil.types import Cells, Cohort, ImageRow, Sample


def cohort_of(names, label="control"):
    row = ImageRow(image="a.png", path=Path("a.png"), row=2, site="A")
    return Cohort(
        samples=tuple(Sample(sample=s, patient=f"p-{s}", label=label, images=(row,)) for s in names)
    )


def cells_of(samples):
    n = len(samples)
    mask = np.zeros((6, 8), bool)
    mask[1:5, 2:7] = True
    return Cells(
        cell_ids=tuple(f"{s}/{i:04d}" for i, s in enumerate(samples)),
        samples=tuple(samples),
        images=("a.png",) * n,
        boxes=np.tile([1.0, 2.0, 9.0, 8.0], (n, 1)),
        scores=np.linspace(0.5, 1, n),
        masks=tuple(mask if i % 2 else None for i in range(n)),
        cell_labels=tuple("ring" if i == 1 else None for i in range(n)),
    )


SAMPLES = ["b"] * 3 + ["a"] * 4
rng = np.random.default_rng(0)
SHAPE = rng.normal(size=(7, len(SHAPE_NAMES))).astype(np.float32)
ROI = rng.normal(size=(7, 256, 14, 14))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.zarr"


def write(path, *, samples=SAMPLES, kinds=("shape",), shape=SHAPE, **how):
    with StoreWriter(path, cells_of(samples), cohort_of(set(samples)), kinds, **how) as writer:
        for i in range(len(samples)):
            for kind in kinds:
                values = {
                    "shape": shape,
                    "roi": ROI,
                    "embedding": shape[:, :5],
                    "crop": np.zeros((7, 8, 8, 3)),
                }
                writer.write(slice(i, i + 1), kind, values[kind][i : i + 1])


def test_bags_are_what_was_written_in_the_order_of_samples(path):
    write(path)
    first, second = read_bags(path, ["shape"])
    assert (first.sample, second.sample) == ("b", "a")
    assert (first.patient, first.label) == ("p-b", "control")
    np.testing.assert_array_equal(first.features, SHAPE[:3])
    np.testing.assert_array_equal(second.features, SHAPE[3:])
    assert second.cell_ids == tuple(f"a/{i:04d}" for i in range(3, 7))
    assert first.features.base is second.features.base is not None


def test_samples_whose_cells_lie_apart_are_gathered(path):
    samples = ["b", "a", "b", "a", "a", "b", "a"]
    write(path, samples=samples)
    first, second = read_bags(path, ["shape"])
    np.testing.assert_array_equal(first.features, SHAPE[[0, 2, 5]])
    np.testing.assert_array_equal(second.features, SHAPE[[1, 3, 4, 6]])
    assert first.cell_ids == ("b/0000", "b/0002", "b/0005")


def test_it_opens_as_anndata(path):
    write(path, kinds=("shape", "crop"))
    data = anndata.read_zarr(path)
    assert list(data.var_names) == list(SHAPE_NAMES)
    np.testing.assert_array_equal(data.X, SHAPE)
    np.testing.assert_array_equal(data.obsm["shape"], SHAPE)
    assert data.obsm["crop"].dtype == np.uint8
    assert data.obs.loc["a/0004", "sample"] == "a"
    assert data.obs_names[1] == "b/0001"


def test_obs_holds_who_and_where(path):
    write(path)
    obs = read_obs(path)
    assert list(obs.loc["b/0001", ["x0", "y0", "x1", "y1"]]) == [1, 2, 9, 8]
    assert obs["cell_label"].tolist() == [None, "ring", *[None] * 5]
    assert obs["area"].tolist()[:2] == [48, 20]
    assert obs["site"].tolist() == ["A"] * 7
    np.testing.assert_array_equal(mask_of(obs["mask_rle"].iloc[1]), cells_of(SAMPLES).masks[1])
    assert mask_of(obs["mask_rle"].iloc[0]) is None


def test_samples_without_a_label_stay_without(path):
    with StoreWriter(path, cells_of(["s"]), cohort_of(["s"], label=None), ("shape",)) as writer:
        writer.write([0], "shape", SHAPE[:1])
    assert read_bags(path, ["shape"])[0].label is None


def test_half_precision_maps_are_near_what_was_given(path):
    write(path, kinds=("roi",))
    bags = read_bags(path, ["roi"])
    maps = np.concatenate([bag.features for bag in bags])
    assert maps.dtype == np.float16
    assert maps.shape == (7, 256, 14, 14)
    np.testing.assert_allclose(maps, ROI, rtol=2**-11, atol=1e-7)


def test_vectors_are_joined_side_by_side_and_keep_their_names(path):
    write(path, kinds=("shape", "embedding"))
    bag = read_bags(path, ["shape", "embedding"])[0]
    np.testing.assert_array_equal(bag.features, np.hstack([SHAPE, SHAPE[:, :5]])[:3])
    names = feature_names(path, ["shape", "embedding"])
    assert names == (*SHAPE_NAMES, *(f"embedding_{i:03d}" for i in range(5)))


def test_a_map_among_vectors_is_the_mean_and_the_maximum_of_each_channel(path):
    write(path, kinds=("shape", "roi"))
    maps = read_bags(path, ["roi"])[0].features.astype(np.float64)
    joined = read_bags(path, ["shape", "roi"])[0].features
    expected = np.hstack([SHAPE[:3], maps.mean(axis=(2, 3)), maps.max(axis=(2, 3))])
    np.testing.assert_allclose(joined, expected, rtol=1e-3, atol=1e-6)
    names = feature_names(path, ["shape", "roi"])
    assert len(names) == joined.shape[1]
    assert names[len(SHAPE_NAMES)] == "roi_000_mean"
    assert names[-1] == "roi_255_max"


def test_rows_may_come_in_any_order(path):
    with StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("shape",)) as writer:
        writer.write([6, 0, 3], "shape", SHAPE[[6, 0, 3]])
        writer.write(np.array([5, 1]), "shape", SHAPE[[5, 1]])
        writer._flush("shape")
        writer.write([2, 4], "shape", SHAPE[[2, 4]])
    np.testing.assert_array_equal(anndata.read_zarr(path).X, SHAPE)


def test_nan_names_the_cell_and_the_feature(path):
    bad = SHAPE.copy()
    bad[4, 2] = np.nan
    write(path, shape=bad)
    with pytest.raises(FeaturesError, match=rf"cell 'a/0004': {SHAPE_NAMES[2]} is nan"):
        read_bags(path, ["shape"])


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (["roi"], "not roi"),
        (["shape", "crop"], "pictures"),
        (["crop"], "pictures"),
        ([], "nothing"),
    ],
)
def test_features_that_cannot_be_had_are_refused(path, features, complaint):
    write(path, kinds=("shape", "crop"))
    with pytest.raises(FeaturesError, match=complaint):
        read_bags(path, features)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(FeaturesError, match="no store of cells"):
        read_obs(tmp_path / "nothing.zarr")


def test_the_fingerprint_tells_features_apart(path, tmp_path):
    write(path, kinds=("shape", "roi"), versions={"roi": "detector-1"})
    write(tmp_path / "other.zarr", kinds=("shape", "roi"), versions={"roi": "detector-2"})
    one, other = fingerprint(path, ["roi"]), fingerprint(tmp_path / "other.zarr", ["roi"])
    assert one["versions"] == {"roi": "detector-1"} != other["versions"]
    assert fingerprint(path, ["shape"]) == fingerprint(tmp_path / "other.zarr", ["shape"])


def write_some(path, rows, *, error=None, samples=SAMPLES, **how):
    """Write only these rows, and fail; returns what was done before."""
    with StoreWriter(path, cells_of(samples), cohort_of(set(samples)), ("shape",), **how) as writer:
        done = writer.done("shape").tolist()
        writer.write(rows, "shape", SHAPE[rows])
        if error is not None:
            raise error
    return done


def test_a_failed_writer_leaves_nothing(path, tmp_path):
    with pytest.raises(RuntimeError):
        write_some(path, [0], error=RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_forgot_a_cell_leaves_nothing(path, tmp_path):
    with pytest.raises(AssertionError, match="6 cells have no shape, first b/0001"):
        write_some(path, [0])
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_not_overwritten_unasked(path):
    write(path)
    with pytest.raises(RunFolderError, match="already there"):
        write(path)
    write(path, shape=SHAPE + 1, overwrite=True)
    np.testing.assert_array_equal(anndata.read_zarr(path).X, SHAPE + 1)


def test_an_interrupted_writer_goes_on_where_it_stopped(path):
    with pytest.raises(KeyboardInterrupt):
        write_some(path, [0, 1, 2], error=KeyboardInterrupt(), resume=True)
    assert not path.exists()
    assert write_some(path, [3, 4, 5, 6], resume=True) == [True] * 3 + [False] * 4
    np.testing.assert_array_equal(anndata.read_zarr(path).X, SHAPE)


def test_what_other_cells_left_behind_is_not_resumed(path):
    with pytest.raises(KeyboardInterrupt):
        write_some(path, [0], error=KeyboardInterrupt(), resume=True)
    assert write_some(path, [0], samples=["c"], resume=True) == [False]
    assert [p.name for p in path.parent.iterdir()] == ["cells.zarr"]


KILLED = """
import os, signal, sys; sys.path.insert(0, sys.argv[1])
from test_describe_store import *
writer = StoreWriter(Path(sys.argv[2]), cells_of(SAMPLES), cohort_of("ab"), ("shape",))
writer.write([0], "shape", SHAPE[:1]); writer._flush("shape")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_a_new_run_cleans_up(path, tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".cells.zarr.part"]
    write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["cells.zarr"]


def test_settings_refuse_unknown_keys_and_kinds():
    assert DescribeSettings().kinds == ("shape",)
    for wrong in ({"kind": "shape"}, {"kinds": ("colour",)}, {"kinds": ()}, {"crop_size": 1}):
        with pytest.raises(ValidationError):
            DescribeSettings(**wrong)
