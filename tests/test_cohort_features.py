"""Features made elsewhere become bags: aligned, complete, finite, or refused with the cell named."""

import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from PIL import Image

from hemomil.cohort import fold_units, read_features
from hemomil.errors import FeaturesError, HemomilError, ManifestError

OBS = pd.DataFrame(
    {
        "sample": ["s2", "s1", "s2", "s1", "s3"],
        "patient": ["p2", "p1", "p2", "p1", "p3"],
        "label": ["scd", "control", "scd", "control", "scd"],
        "site": ["A", "B", "A", "B", None],
        "area": [1.0, 2.0, 3.0, 4.0, 5.0],
    },
    index=[f"c{k}" for k in range(5)],
)
X = np.arange(15, dtype=float).reshape(5, 3)
VAR = pd.DataFrame(index=["size", "pallor", "redness"])


def table(**changes) -> anndata.AnnData:
    return anndata.AnnData(**({"X": X.copy(), "obs": OBS.copy(), "var": VAR} | changes))


def stored(folder: Path, data: anndata.AnnData, suffix: str = ".h5ad") -> Path:
    path = folder / f"features{suffix}"
    if suffix == ".zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # announcements of anndata's next version
            data.write_zarr(path)
    else:
        data.write_h5ad(path)
    return path


def refused(*arguments, **options) -> str:
    with pytest.raises(HemomilError) as caught:
        read_features(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_become_the_bags_of_their_samples(tmp_path, suffix, sparse):
    data = table(X=scipy.sparse.csr_matrix(X) if sparse else X)
    brought = read_features(stored(tmp_path, data, suffix))
    assert [(b.sample, b.patient, b.label) for b in brought.bags] == [
        ("s2", "p2", "scd"),
        ("s1", "p1", "control"),
        ("s3", "p3", "scd"),
    ]
    assert brought.bags[0].cell_ids == ("c0", "c2")
    assert np.array_equal(brought.bags[0].features, X[[0, 2]].astype(np.float32))
    assert brought.bags[0].features.dtype == np.float32
    assert brought.names == ("size", "pallor", "redness")
    assert [s.sample for s in brought.cohort.samples] == ["s2", "s1", "s3"]
    assert [dict(s.metadata) for s in brought.cohort.samples] == [{"site": "A"}, {"site": "B"}, {}]
    assert brought.cohort.classes == ("control", "scd")
    assert len(fold_units(brought.cohort)) == 3


def test_known_classes_of_cells_are_kept_apart_from_what_is_said_of_samples(tmp_path):
    known = OBS.assign(cell_label=["sickle", "control", "", None, "target"])
    brought = read_features(stored(tmp_path, table(obs=known)))
    assert brought.cell_labels == {"s2": ("sickle", None), "s1": ("control", None), "s3": ("target",)}
    assert all("cell_label" not in sample.metadata for sample in brought.cohort.samples)
    assert read_features(stored(tmp_path, table())).cell_labels == {}


def test_a_key_of_obsm_is_read_by_name_and_alone_without_asking(tmp_path):
    frame = pd.DataFrame({"a": np.ones(5), "b": np.zeros(5)}, index=OBS.index)
    path = stored(tmp_path, table(obsm={"embedding": X * 2, "frame": frame}))
    assert read_features(path).names == ("size", "pallor", "redness")
    assert read_features(path, key="X").names == ("size", "pallor", "redness")
    brought = read_features(path, key="embedding")
    assert brought.names == ("embedding_0", "embedding_1", "embedding_2")
    assert np.array_equal(brought.bags[1].features, X[[1, 3]].astype(np.float32) * 2)
    assert read_features(path, key="frame").names == ("a", "b")
    assert "there are: X, embedding, frame" in refused(path, key="nothing")
    alone = stored(tmp_path, anndata.AnnData(obs=OBS, obsm={"embedding": X}))
    assert read_features(alone).names[0] == "embedding_0"
    several = stored(tmp_path, anndata.AnnData(obs=OBS, obsm={"e": X, "f": X}))
    assert "several features: e, f" in refused(several)
    assert "neither X nor obsm" in refused(stored(tmp_path, anndata.AnnData(obs=OBS)))


def test_numbers_as_ids_and_other_names_are_understood(tmp_path):
    obs = pd.DataFrame({"Slide_ID": [1, 1, 2, 2, 2], "case_id": [7, 7, 8, 8, 8]}, index=OBS.index)
    brought = read_features(stored(tmp_path, table(obs=obs)), labels_needed=False)
    assert [(b.sample, b.patient, b.label) for b in brought.bags] == [("1", "7", None), ("2", "8", None)]


def test_names_of_cells_that_repeat_are_numbered_in_their_sample(tmp_path):
    data = table()
    data.obs_names = ["c"] * 5
    path = stored(tmp_path, data)
    assert read_features(path).bags[0].cell_ids == ("s2/0000", "s2/0001")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_value_that_is_not_finite_is_named_by_cell_and_feature(tmp_path, value):
    values = X.copy()
    values[3, 1] = values[4, 1] = value
    text = refused(stored(tmp_path, table(X=values)))
    assert "feature 'pallor' of cell 'c3' (row 4)" in text
    assert "2 values of 2 cells and 1 features" in text


def test_problems_of_obs_are_told_at_once(tmp_path):
    obs = OBS.assign(patient=["p2", "p1", "p9", "p1", None], label=["scd", "scd", "scd", None, "scd"])
    text = refused(stored(tmp_path, table(obs=obs)))
    assert "row 1: sample 's2' has 2 patients: 'p2' (row 1), 'p9' (row 3)" in text
    assert "row 5: the patient is blank" in text
    assert "row 4: the label is blank" in text
    assert "no sample is labelled 'control'" in text
    assert "did you mean 'pateint'" in refused(
        stored(tmp_path, table(obs=OBS.rename(columns={"patient": "pateint"})))
    )


def test_features_of_another_shape_or_kind_are_refused(tmp_path):
    cube = stored(tmp_path, table(obsm={"maps": np.zeros((5, 2, 4))}))
    assert "has shape (5, 2, 4)" in refused(cube, key="maps")
    words = pd.DataFrame({"a": list("abcde")}, index=OBS.index)
    assert "not numbers" in refused(stored(tmp_path, table(obsm={"words": words})), key="words")


def test_what_is_not_anndata_is_refused(tmp_path):
    path = tmp_path / "features.h5ad"
    assert "there is no" in refused(path)
    path.write_text("not HDF5")
    assert "cannot be read as AnnData" in refused(path)
    assert "neither .h5ad nor .zarr" in refused(tmp_path)


# HDF5 files of slides


def slide(
    path: Path, n: int, *, key: str = "features", width: int = 4, values: np.ndarray | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = np.full((n, width), n, dtype=np.float16) if values is None else values
        file["coords"] = np.zeros((n, 2))


def manifest(folder: Path, *rows: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(["image,sample,patient,label", *rows, ""]))
    return path


def test_slides_become_bags_wherever_their_files_are_named(tmp_path):
    slide(tmp_path / "h5" / "one.h5", 3)
    slide(tmp_path / "h5" / "two.h5", 2, key="feats")
    slide(tmp_path / "h5" / "three.h5", 5, values=np.full((1, 5, 4), 5.0))
    path = manifest(tmp_path, "one.h5,s1,p1,control", "two,s2,p2,scd", "wsi/three.svs,s1,p1,control")
    brought = read_features(tmp_path / "h5", manifest=path)
    assert [(b.sample, b.features.shape) for b in brought.bags] == [("s1", (8, 4)), ("s2", (2, 4))]
    assert brought.bags[0].features[:, 0].tolist() == [3, 3, 3, 5, 5, 5, 5, 5]
    assert brought.bags[0].cell_ids[:2] == ("s1/0000", "s1/0001")
    assert brought.names == ("feature_0", "feature_1", "feature_2", "feature_3")


def test_slides_that_do_not_fit_are_named(tmp_path):
    slide(tmp_path / "one.h5", 3)
    slide(tmp_path / "wide.h5", 3, width=5)
    slide(tmp_path / "other.h5", 3, key="x")
    slide(tmp_path / "nan.h5", 2, values=np.array([[1, 2, 3, 4], [1, 2, np.nan, 4]]))
    (tmp_path / "text.h5").write_text("not HDF5")
    for name, expected in {
        "wide": "has 5 features a cell",
        "other": "has no 'features' or 'feats'",
        "nan": "feature 'feature_2' of cell '1' (row 2) is nan",
        "text": "is not an HDF5 file",
    }.items():
        path = manifest(tmp_path, "one.h5,s1,p1,control", f"{name}.h5,s2,p2,scd")
        assert expected in refused(tmp_path, manifest=path)
    with pytest.raises(ManifestError, match="row 2: image 'gone' is not there"):
        read_features(tmp_path, manifest=manifest(tmp_path, "gone,s1,p1,control"))
    path = manifest(tmp_path, "other.h5,s1,p1,control")
    assert read_features(tmp_path, manifest=path, key="x").bags[0].features.shape == (3, 4)


def test_an_image_is_no_features(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(FeaturesError, match="is not an HDF5 file"):
        read_features(tmp_path, manifest=manifest(tmp_path, "a.png,s1,p1,control"))
