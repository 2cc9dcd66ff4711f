"""The store of cells: what is written is read, whole or not at all."""

import mmap
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr
from pydantic import ValidationError

from hemomil.describe import (
    SHAPE_NAMES,
    DescribeSettings,
    StoreWriter,
    feature_names,
    fingerprint,
    read_bags,
    read_obs,
)
from hemomil.errors import FeaturesError, RunFolderError
from hemomil.segmentation import mask_of
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


@pytest.mark.parametrize("n", [1, 64, 65, 100, 131])
def test_a_file_of_maps_is_hardly_larger_than_the_maps(path, n):
    samples = ["s"] * n
    with StoreWriter(path, cells_of(samples), cohort_of(["s"]), ("roi",)) as writer:
        writer.write(slice(0, n), "roi", np.broadcast_to(MAPS[0], (n, 256, 14, 14)))
    size = sum(file.stat().st_size for file in (path / "obsm" / "roi").rglob("*") if file.is_file())
    assert n * MAPS[0].nbytes <= size <= (n + 1) * MAPS[0].nbytes + 4096


MAPS = ROI.astype(np.float16)


def file_of(array):
    """What the memory of a view is a map of, if it is."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array


def rewrite(path, maps, **layout):
    """The maps as another writer, or an earlier version of ours, laid them down."""
    array = zarr.open_group(path, mode="r+").create_array("obsm/roi", data=maps, overwrite=True, **layout)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def test_maps_are_views_of_the_file_and_what_was_written_bit_for_bit(path):
    write(path, kinds=("roi",))
    first, second = read_bags(path, ["roi"])
    np.testing.assert_array_equal(first.features.view(np.uint16), MAPS[:3].view(np.uint16))
    np.testing.assert_array_equal(second.features.view(np.uint16), MAPS[3:].view(np.uint16))
    assert isinstance(file_of(first.features), mmap.mmap)
    assert file_of(first.features) is file_of(second.features)
    assert first.features.flags.writeable  # so that torch shares the memory


def test_changing_a_map_in_memory_does_not_change_the_file(path):
    write(path, kinds=("roi",))
    read_bags(path, ["roi"])[0].features[:] = 0
    np.testing.assert_array_equal(read_bags(path, ["roi"])[0].features, MAPS[:3])


@pytest.mark.parametrize("n", [1, 64, 65, 130])
def test_zarr_and_anndata_read_the_same_maps_and_so_does_a_copy(path, tmp_path, n):
    maps = rng.normal(size=(n, 3, 2, 2)).astype(np.float16)
    with StoreWriter(path, cells_of(["a"] * n), cohort_of("a"), ("roi",)) as writer:
        writer.write(slice(None), "roi", maps)
    shutil.copytree(path, tmp_path / "copy.zarr")
    np.testing.assert_array_equal(anndata.read_zarr(path).obsm["roi"], maps)
    np.testing.assert_array_equal(zarr.open_array(path / "obsm/roi", mode="r")[n - 1 :], maps[n - 1 :])
    np.testing.assert_array_equal(read_bags(tmp_path / "copy.zarr", ["roi"])[0].features, maps)


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (2, 256, 14, 14), "compressors": None},
        {"chunks": (7, 256, 14, 14), "compressors": "auto"},
        {"chunks": (2, 256, 14, 14), "shards": (8, 256, 14, 14), "compressors": "auto"},
    ],
)
def test_maps_laid_down_otherwise_are_read_the_same(path, layout):
    write(path, kinds=("roi",), samples=(samples := ["b", "a", "b", "a", "a", "b", "a"]))
    rewrite(path, MAPS, **layout)
    first, second = read_bags(path, ["roi"])
    np.testing.assert_array_equal(first.features, MAPS[[i for i, s in enumerate(samples) if s == "b"]])
    np.testing.assert_array_equal(second.features, MAPS[[i for i, s in enumerate(samples) if s == "a"]])
    assert not isinstance(file_of(first.features), mmap.mmap)
    bad = MAPS.copy()
    bad[4, 2] = np.nan
    rewrite(path, bad, **layout)
    with pytest.raises(FeaturesError, match="cell 'a/0004': roi_002 is nan"):
        read_bags(path, ["roi"])


def test_a_file_of_maps_that_is_cut_short_is_refused(path):
    write(path, kinds=("roi",))
    file = path / "obsm/roi/c/0/0/0/0"
    with file.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(FeaturesError, match="0 has 1,000 bytes, not 702,480"):
        read_bags(path, ["roi"])
    file.unlink()
    with pytest.raises(FeaturesError, match="0 has 0 bytes"):
        read_bags(path, ["roi"])


def test_of_maps_only_samples_whose_cells_lie_apart_are_gathered(path):
    write(path, kinds=("roi",), samples=["b", "a", "b", "c", "c", "c", "c"])
    apart, alone, together = read_bags(path, ["roi"])
    np.testing.assert_array_equal(apart.features, MAPS[[0, 2]])
    np.testing.assert_array_equal(alone.features, MAPS[1:2])
    np.testing.assert_array_equal(together.features, MAPS[3:])
    assert apart.cell_ids == ("b/0000", "b/0002")
    mapped = [isinstance(file_of(bag.features), mmap.mmap) for bag in (apart, alone, together)]
    assert mapped == [False, True, True]


def test_maps_may_come_in_any_order(path):
    with StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("roi",)) as writer:
        for rows in ([6, 0, 3], [5, 1], [4, 2]):
            writer.write(rows, "roi", MAPS[rows])
            writer._flush("roi")
    np.testing.assert_array_equal(anndata.read_zarr(path).obsm["roi"], MAPS)


@pytest.mark.parametrize(("value", "told"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e6, "inf")])
def test_a_map_that_is_not_finite_is_refused_when_it_is_written(path, value, told):
    bad = ROI[[4, 6]]
    bad[1, 2, 3, 4] = value
    with (
        pytest.raises(FeaturesError, match=f"cell 'a/0006': roi_002 is {told}"),
        StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("roi",)) as writer,
    ):
        writer.write([4, 6], "roi", bad)
    assert list(path.parent.iterdir()) == []


def test_a_store_without_cells_has_no_bags(path):
    with StoreWriter(path, cells_of([]), cohort_of([]), ("roi",)):
        pass
    assert read_bags(path, ["roi"]) == []


def test_bags_of_a_large_store_take_no_memory_until_they_are_used(path):
    """4,000 cells, 400 MB, of which only the last bag is on the disk."""
    n = 4000
    with StoreWriter(
        path,
        cells_of([f"s{i // 40}" for i in range(n)]),
        cohort_of([f"s{i}" for i in range(n // 40)]),
        ("roi",),
    ) as writer:
        writer.write(slice(n - 7, n), "roi", MAPS)
        writer._done["roi"][:] = True
    tracemalloc.start()
    bags = read_bags(path, ["roi"])
    np.testing.assert_array_equal(bags[-1].features[-7:], MAPS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(bag.features.nbytes for bag in bags) == n * MAPS[0].nbytes
    assert peak < 20e6


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


HALF_WAY = """
import os, signal, sys; sys.path.insert(0, sys.argv[1])
from test_describe_store import *
writer = StoreWriter(Path(sys.argv[2]), cells_of(SAMPLES), cohort_of("ab"), ("roi",), resume=True)
writer.write([5, 1, 2], "roi", MAPS[[5, 1, 2]]); writer._flush("roi")
writer.write([3], "roi", MAPS[[3]])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_half_way_is_resumed_to_the_same_maps(path):
    run = subprocess.run([sys.executable, "-c", HALF_WAY, str(Path(__file__).parent), str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    with StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("roi",), resume=True) as writer:
        assert writer.done("roi").tolist() == [False, True, True, False, False, True, False]
        writer.write([0, 3, 4, 6], "roi", MAPS[[0, 3, 4, 6]])
    np.testing.assert_array_equal(np.concatenate([bag.features for bag in read_bags(path, ["roi"])]), MAPS)


def test_maps_that_an_earlier_version_began_in_chunks_are_finished_in_chunks(path):
    writer = StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("roi",), resume=True)
    writer.write([0, 5], "roi", MAPS[[0, 5]])
    writer._flush("roi")
    begun = np.where(np.isin(np.arange(7), [0, 5])[:, None, None, None], MAPS, np.float16(0))
    rewrite(writer.part, begun, chunks=(2, 256, 14, 14), compressors=None)
    with StoreWriter(path, cells_of(SAMPLES), cohort_of("ab"), ("roi",), resume=True) as writer:
        writer.write([1, 2, 3, 4, 6], "roi", MAPS[[1, 2, 3, 4, 6]])
    np.testing.assert_array_equal(np.concatenate([bag.features for bag in read_bags(path, ["roi"])]), MAPS)


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
