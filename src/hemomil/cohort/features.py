"""Read features that were made elsewhere: AnnData, or the HDF5 files that CLAM, TRIDENT and STAMP write.

Axes: N cells (or patches), F features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float32

from hemomil.cohort.manifest import manifest_cohort
from hemomil.cohort.problems import refuse_if_any
from hemomil.cohort.samples import ALIASES, sample_problems, shared_metadata
from hemomil.cohort.table import find_columns
from hemomil.errors import FeaturesError
from hemomil.types import Bag, Cohort, Sample

KEYS = ("features", "feats")
"""Data sets of an HDF5 file that hold the features: CLAM and TRIDENT, STAMP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtFeatures:
    """Bags with the features of each cell, their cohort, and what each feature is called."""

    bags: list[Bag]
    cohort: Cohort
    """For AnnData, samples without images."""
    names: tuple[str, ...]
    cell_labels: Mapping[str, tuple[str | None, ...]]
    """Known class of each cell of a sample, None where it is not known; never learned from."""


def read_features(
    path: Path,
    *,
    key: str | None = None,
    manifest: Path | None = None,
    control: str = "control",
    labels_needed: bool = True,
) -> BroughtFeatures:
    """Read .h5ad or .zarr (`obs` has sample, patient, label), or a folder of per-slide HDF5 files.

    A column `cell_label` of `obs`, if there is one, is the known class of each cell.

    `key` is "X" or a key of `obsm`; by default X, or the only key where X is empty. For HDF5 files,
    `manifest` has a row per slide whose `image` is the file (in the folder or relative to the
    manifest, with or without .h5), and `key` the data set. Features become float32. Raises
    FeaturesError: columns, samples with two patients or labels, NaN or infinite values (naming
    cell and feature), unequal widths; ManifestError for the manifest.
    """
    if path.suffix.lower() in (".h5ad", ".zarr"):
        return _read_anndata(path, key, control, labels_needed=labels_needed)
    if manifest is None:
        raise FeaturesError(
            f"{path} is neither .h5ad nor .zarr",
            hint="for HDF5 files of slides, give a manifest that names the file, sample and patient of each",
        )
    return _read_slides(path, manifest, key, control, labels_needed=labels_needed)


# AnnData


def _read_anndata(path: Path, key: str | None, control: str, *, labels_needed: bool) -> BroughtFeatures:
    data = _open_anndata(path)
    table, metadata = _obs_table(data, path, labels_needed=labels_needed)
    problems = sample_problems(table, control, labels_needed=labels_needed)
    refuse_if_any(problems, FeaturesError, f"obs of {path} (rows counted from 1)")
    matrix, names = _matrix(data, key, path)
    cells = np.array([str(name) for name in data.obs_names], dtype=object)
    _refuse_not_finite(matrix, cells, names, path)
    samples = _samples(table, metadata)
    rows = table.reset_index(drop=True).groupby("sample", sort=False).indices
    unique = len(set(cells)) == len(cells)
    bags = [
        _bag(s, matrix[rows[s.sample]], cells[rows[s.sample]].tolist() if unique else None) for s in samples
    ]
    known = [label or None for label in _text(data.obs["cell_label"])] if "cell_label" in data.obs else []
    labels = {str(name): tuple(known[row] for row in own) for name, own in rows.items()} if known else {}
    cohort = Cohort(samples=samples, control=control)
    return BroughtFeatures(bags=bags, cohort=cohort, names=names, cell_labels=labels)


def _open_anndata(path: Path) -> anndata.AnnData:
    if not path.exists():
        raise FeaturesError(f"there is no {path}", hint="correct the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that repeat are dealt with here
            return anndata.read_zarr(path) if path.suffix.lower() == ".zarr" else anndata.read_h5ad(path)
    except MemoryError:
        raise
    except Exception as cause:  # damaged HDF5 and zarr raise anything
        raise FeaturesError(f"{path} cannot be read as AnnData: {cause}", hint="write it again") from cause


def _obs_table(data: anndata.AnnData, path: Path, *, labels_needed: bool) -> tuple[pd.DataFrame, list[str]]:
    """obs as text under the names sample, patient, label; blank where missing; rows counted from 1."""
    required = ["sample", "patient", *(["label"] if labels_needed else [])]
    found, problems = find_columns([str(c) for c in data.obs.columns], ALIASES, required)
    refuse_if_any(problems, FeaturesError, f"obs of {path}")
    # measurements of cells say nothing of their sample
    texts = data.obs.select_dtypes(exclude="floating").columns
    metadata = [str(c) for c in texts if str(c) not in {*found.values(), "cell_label"}]
    columns = {name: _text(data.obs[found[name]]) if name in found else "" for name in ALIASES}
    columns |= {name: _text(data.obs[name]) for name in metadata}
    return pd.DataFrame(columns, index=pd.RangeIndex(1, data.n_obs + 1)), metadata


def _text(column: pd.Series) -> np.ndarray:
    return np.where(column.isna(), "", column.astype(str).str.strip()).astype(object)


def _matrix(
    data: anndata.AnnData, key: str | None, path: Path
) -> tuple[Float32[np.ndarray, "N F"], tuple[str, ...]]:
    key = key or _only_key(data, path)
    if key == "X" and data.X is not None:
        return _float32(data.X, f"X of {path}"), tuple(str(name) for name in data.var_names)
    if key not in data.obsm:
        raise FeaturesError(
            f"{path} has no {key!r}", hint=f"there are: {', '.join(_keys(data)) or 'no features'}"
        )
    values = data.obsm[key]
    matrix = _float32(values, f"obsm {key!r} of {path}")
    if isinstance(values, pd.DataFrame):
        return matrix, tuple(str(name) for name in values.columns)
    return matrix, _numbered(key, matrix.shape[1])


def _keys(data: anndata.AnnData) -> list[str]:
    return [*(["X"] if data.X is not None and data.n_vars else []), *map(str, data.obsm)]


def _only_key(data: anndata.AnnData, path: Path) -> str:
    keys = _keys(data)
    if "X" in keys or len(keys) == 1:
        return keys[0]
    if not keys:
        raise FeaturesError(f"{path} has neither X nor obsm", hint="write the features into X or obsm")
    raise FeaturesError(f"{path} has several features: {', '.join(keys)}", hint="choose one by its key")


def _float32(values: Any, name: str) -> Float32[np.ndarray, "N F"]:
    dense = values.toarray() if scipy.sparse.issparse(values) else np.asarray(values)
    if dense.ndim != 2 or dense.shape[1] == 0:
        raise FeaturesError(f"{name} has shape {dense.shape}", hint="features are a table, cells x features")
    if not (np.issubdtype(dense.dtype, np.number) or dense.dtype == np.bool_):
        raise FeaturesError(f"{name} holds {dense.dtype}, not numbers", hint="keep numeric columns only")
    with np.errstate(over="ignore"):  # what overflows is found as infinite
        return np.ascontiguousarray(dense, dtype=np.float32)


def _numbered(key: str, width: int) -> tuple[str, ...]:
    return tuple(f"{key}_{k}" for k in range(width))


def _refuse_not_finite(
    matrix: Float32[np.ndarray, "N F"], cells: Sequence[str] | np.ndarray, names: tuple[str, ...], path: Path
) -> None:
    bad_cells, bad_features = np.nonzero(~np.isfinite(matrix))
    if len(bad_cells):
        n, f = bad_cells[0], bad_features[0]
        raise FeaturesError(
            f"{path}: feature {names[f]!r} of cell {cells[n]!r} (row {n + 1}) is {matrix[n, f]}; "
            f"{len(bad_cells)} values of {len(set(bad_cells))} cells and {len(set(bad_features))} features "
            "are not finite float32 numbers",
            hint="fill in or remove these features or cells, then write the file again",
        )


def _samples(table: pd.DataFrame, metadata: list[str]) -> tuple[Sample, ...]:
    shared = shared_metadata(table, metadata)
    parts = table.groupby("sample", sort=False)[["patient", "label"]].max()
    return tuple(
        Sample(
            sample=str(sample),
            patient=str(patient),
            label=str(label) or None,
            images=(),
            metadata=shared[str(sample)],
        )
        for sample, patient, label in zip(parts.index, parts["patient"], parts["label"], strict=True)
    )


def _bag(sample: Sample, features: Float32[np.ndarray, "N F"], cell_ids: Sequence[str] | None) -> Bag:
    ids = cell_ids if cell_ids is not None else [f"{sample.sample}/{k:04d}" for k in range(len(features))]
    return Bag(
        sample=sample.sample,
        patient=sample.patient,
        label=sample.label,
        features=features,
        cell_ids=tuple(ids),
    )


# HDF5 files of CLAM, TRIDENT and STAMP


def _read_slides(
    folder: Path, manifest: Path, key: str | None, control: str, *, labels_needed: bool
) -> BroughtFeatures:
    cohort = manifest_cohort(
        manifest,
        control,
        labels_needed=labels_needed,
        find=lambda name: _slide_path(folder, manifest.parent, name),
    )
    slides = {s.sample: [_slide(row.path, key) for row in s.images] for s in cohort.samples}
    widths = {
        row.path: slides[s.sample][k].shape[1] for s in cohort.samples for k, row in enumerate(s.images)
    }
    _refuse_widths(widths)
    bags = [_bag(s, np.concatenate(slides[s.sample]), None) for s in cohort.samples]
    names = _numbered("feature", next(iter(widths.values())))
    return BroughtFeatures(bags=bags, cohort=cohort, names=names, cell_labels={})


def _slide_path(folder: Path, beside: Path, name: str) -> Path:
    """Where a slide's file lies: in the folder or beside the manifest, with or without its suffix."""
    places = [root / (name + suffix) for root in (folder, beside) for suffix in ("", ".h5", ".hdf5")]
    places += [folder / f"{Path(name).stem}.h5"]
    return next((place for place in places if place.is_file()), places[0])


def _slide(path: Path, key: str | None) -> Float32[np.ndarray, "N F"]:
    values, used = _slide_values(path, key)
    # older writers keep a leading axis of length 1
    matrix = _float32(values[0] if values.ndim == 3 and len(values) == 1 else values, f"{used!r} of {path}")
    _refuse_not_finite(
        matrix, [str(n) for n in range(len(matrix))], _numbered("feature", matrix.shape[1]), path
    )
    return matrix


def _slide_values(path: Path, key: str | None) -> tuple[np.ndarray, str]:
    try:
        with h5py.File(path) as file:
            used = next((name for name in ((key,) if key else KEYS) if name in file), None)
            values = None if used is None else np.asarray(file[used])
            keys = ", ".join(map(str, file))
    except OSError as cause:
        raise FeaturesError(
            f"{path} is not an HDF5 file: {cause}", hint="write it again as HDF5 (.h5)"
        ) from cause
    if used is None or values is None:
        wanted = repr(key) if key else "'features' or 'feats'"
        raise FeaturesError(
            f"{path} has no {wanted}", hint=f"name the data set by its key; there are: {keys}"
        )
    return values, used


def _refuse_widths(widths: dict[Path, int]) -> None:
    first = next(iter(widths))
    for path, width in widths.items():
        if width != widths[first]:
            raise FeaturesError(
                f"{path} has {width} features a cell, {first} has {widths[first]}",
                hint="make the features of all slides with the same encoder",
            )
