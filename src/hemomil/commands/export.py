"""`export`: a finished run out to the tools that people use: QuPath, scanpy, Fiji, R, onnxruntime."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet
from jaxtyping import Float

from hemomil.cohort import image_size
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.run_folder import load_record
from hemomil.errors import ImageError, ModelError, RunFolderError, SettingsError
from hemomil.export import (
    annotated,
    feature_collection,
    label_image,
    plain_names,
    write_annotated,
    write_labels,
)
from hemomil.files import write_text, written_whole
from hemomil.report.tables import RunTables, read_run
from hemomil.segmentation import mask_of
from hemomil.streams import stream
from hemomil.types import Bag

if TYPE_CHECKING:
    from hemomil.commands.model_folder import TrainedModel

BOX = ["x0", "y0", "x1", "y1"]
SCORES = ("anomaly", "attention", "contribution", "weight", "anomaly_p", "anomaly_q")
SIZES_TRIED = (1, 2, 7, 50, 300)
"""Bags, in cells, on which an ONNX file is held against the model."""


def export_geojson(
    run: Path, output: Path, *, method: str | None = None, force: bool = False, talk: Talk = SILENT
) -> Path:
    """One QuPath GeoJSON per image of the run, `OUT/<image>.geojson`: outlines, classes, measurements."""
    tables = shown_run(run, method)
    cells = _cells_on_images(tables)
    files = _files(output, cells["image"].unique(), ".geojson", force=force)
    measured = [name for name in (*SCORES, *(f"prob_{c}" for c in tables.classes)) if name in cells]
    for image, part in talk.track(_by_image(cells), "GeoJSON", len(files)):
        found = feature_collection(part, _masks(part), measured, tables.classes)
        write_text(files[image], json.dumps(found, allow_nan=False) + "\n")
    talk.say(f"wrote {len(files)} files with {len(cells)} cells to {output}")
    return output


def export_labels(
    run: Path, output: Path, *, method: str | None = None, force: bool = False, talk: Talk = SILENT
) -> Path:
    """One OME-TIFF of labels per image, and beside it a CSV that says which cell each number is."""
    tables = shown_run(run, method)
    cells = _cells_on_images(tables)
    files = _files(output, cells["image"].unique(), "_labels.ome.tif", force=force)
    for image, part in talk.track(_by_image(cells), "label images", len(files)):
        boxes = part[BOX].to_numpy(float)
        labels = label_image(
            boxes, _masks(part), part["det_score"].to_numpy(float), _size(tables, image, boxes)
        )
        seen = np.bincount(labels.ravel(), minlength=len(part) + 1)[1:]
        table = part.drop(columns="mask_rle")
        table.insert(0, "number", np.arange(1, len(part) + 1))
        table.insert(1, "pixels", seen)
        write_text(_beside(files[image]), table.to_csv(index=False))
        with written_whole(files[image]) as whole:
            write_labels(whole, labels, image)
    talk.say(f"wrote {len(files)} label images with {len(cells)} cells to {output}")
    return output


def export_anndata(
    run: Path, output: Path, *, method: str | None = None, force: bool = False, talk: Talk = SILENT
) -> Path:
    """Cells, scores and features as one AnnData file, .h5ad or .zarr."""
    if output.suffix not in (".h5ad", ".zarr"):
        raise SettingsError(
            f"{output} is neither .h5ad nor .zarr", hint="name the file cells.h5ad, for example"
        )
    tables = shown_run(run, method)
    _refuse_taken(output, force=force)
    about = {
        "method": tables.method,
        "run": "" if tables.run is None else tables.run,
        "classes": list(tables.classes),
        "control": tables.control,
        "version": version("hemomil"),
    }
    data = annotated(_store(tables), _cells(tables), about)
    write_annotated(output, data)
    talk.say(f"wrote {data.n_obs} cells with {data.n_vars} features to {output}")
    return output


def export_csv(
    run: Path, output: Path, *, method: str | None = None, force: bool = False, talk: Talk = SILENT
) -> Path:
    """Cells as a flat CSV, and their samples beside it in `<name>_samples.csv`."""
    tables = shown_run(run, method)
    beside = output.with_name(f"{output.stem}_samples.csv")
    for path in (output, beside):
        _refuse_taken(path, force=force)
    cells, samples = _cells(tables), _samples(tables)
    write_text(output, plain_names(cells).to_csv(index=False))
    write_text(beside, plain_names(samples).to_csv(index=False))
    talk.say(f"wrote {len(cells)} cells to {output}, {len(samples)} samples to {beside}")
    return output


def export_onnx(run: Path, output: Path, *, force: bool = False, talk: Talk = SILENT) -> Path:
    """The model of a `train` run: from the features of one bag to probabilities, attention and anomaly.

    onnxruntime has to repeat the model on bags of several sizes, else ModelError and no file.
    """
    from hemomil.export.network import refuse_if_different, refuse_without_onnx, write_onnx

    refuse_without_onnx()
    load_record(run, "model/model.json")
    _refuse_taken(output, force=force)

    import torch

    from hemomil.commands.exported_network import OUTPUTS, Graph
    from hemomil.commands.model_folder import load_model

    trained = load_model(run / "model")
    if trained.settings.mil.bfloat16:
        raise ModelError(
            "this model computes in bfloat16, which is not written as ONNX",
            hint="train it without mil.bfloat16",
        )
    cells = _cells_to_try(run / "cells.zarr", trained)
    metadata = {
        "classes": json.dumps(trained.model.classes_.tolist()),
        "control": trained.settings.control,
        "method": trained.model.method,
        "input_fingerprint": json.dumps(dict(trained.fingerprint)),
        "temperature": repr(trained.jury.temperature),
        "hemomil_version": version("hemomil"),
    }
    with written_whole(output) as part:
        example = torch.from_numpy(cells[:2].astype(np.float32))
        write_onnx(part, Graph(trained.model.core_), example, OUTPUTS, metadata)
        for size in SIZES_TRIED:
            bag = Bag(sample="", patient="", label=None, features=cells[:size], cell_ids=_numbers(size))
            (said,) = trained.model.predict_cells([bag])
            refuse_if_different(part, bag.features, {name: getattr(said, name) for name in OUTPUTS})
    talk.say(
        f"wrote {output}; onnxruntime repeats the model on bags of {', '.join(map(str, SIZES_TRIED))} cells"
    )
    return output


def _cells_to_try(store: Path, trained: "TrainedModel") -> Float[np.ndarray, "N ..."]:
    """As many cells as the largest bag tried: those of the run, again and again, else random ones."""
    shape = (max(SIZES_TRIED), *trained.model.feature_shape_)
    if not store.exists():
        return stream(0, "onnx-cells").normal(size=shape).astype(np.float32)
    from hemomil.describe import read_bags

    (first, *_) = read_bags(store, trained.settings.features)
    return np.resize(first.features, shape)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


# What is exported


def shown_run(run: Path, method: str | None) -> RunTables:
    """A finished run: its first run of the method asked for, else of the one that its report shows."""
    return read_run(run, method, load_record(run, "samples.csv", "cells.parquet"))


def _cells(tables: RunTables) -> pd.DataFrame:
    """The cells with the columns of cells.parquet: what the report adds for itself is left out."""
    names = pyarrow.parquet.read_schema(tables.folder / "cells.parquet").names
    cells: pd.DataFrame = tables.cells[names]
    return cells


def _samples(tables: RunTables) -> pd.DataFrame:
    """The samples with the columns of samples.csv, and the number of cells of each."""
    names = pd.read_csv(tables.folder / "samples.csv", nrows=0).columns
    return tables.samples[[*names, "cells"]]


def _cells_on_images(tables: RunTables) -> pd.DataFrame:
    """The cells with detection score and mask; RunFolderError where no image belongs to them."""
    cells = _cells(tables)
    if not (cells["image"] != "").all() or cells[BOX].isna().any(axis=None):
        raise RunFolderError(
            f"the cells of {tables.folder} lie in no image: their features were brought along",
            hint="export them as anndata or csv",
        )
    return cells.join(_obs(tables)[["det_score", "mask_rle"]], on="cell_id")


def _obs(tables: RunTables) -> pd.DataFrame:
    from hemomil.describe import read_obs

    return read_obs(tables.folder / "cells.zarr")


def _store(tables: RunTables) -> anndata.AnnData:
    path = tables.folder / "cells.zarr"
    if not path.is_dir():
        raise RunFolderError(
            f"{path} is missing", hint="export csv needs no features, or run the study again"
        )
    return anndata.read_zarr(path)


def _by_image(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for image, part in cells.groupby("image", sort=False):
        yield str(image), part


def _masks(cells: pd.DataFrame) -> list[Any]:
    return [mask_of(runs) for runs in cells["mask_rle"]]


def _size(tables: RunTables, image: str, boxes: np.ndarray) -> tuple[int, int]:
    """Width and height of an image, from its file."""
    if tables.manifest is None:
        raise RunFolderError(f"run.json of {tables.folder} names no manifest", hint="was it edited by hand?")
    width, height = image_size(tables.manifest.parent / image)
    if (boxes[:, :2] < 0).any() or (boxes[:, 2:] > (width, height)).any():
        raise ImageError(
            f"image {image} is {width}x{height} pixels, but cells of this run lie outside",
            hint="bring the image back that the run was made from",
        )
    return width, height


# Where it goes


def _files(output: Path, images: np.ndarray, ending: str, *, force: bool) -> Mapping[str, Path]:
    """A file for each image, below `output` in folders of the same names; none of them is there yet."""
    if output.is_file():
        raise RunFolderError(f"{output} is a file", hint="name a folder with -o")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise RunFolderError(f"{output} is not empty", hint="choose another folder, or give --force")
    files = {str(image): output / f"{_below(str(image))}{ending}" for image in images}
    if len(set(files.values())) < len(files):
        raise RunFolderError(
            "two images would be written to one file", hint="name images in the manifest without .."
        )
    return files


def _below(image: str) -> PurePosixPath:
    """The image's path without what would lead out of a folder."""
    parts = PurePosixPath(image.replace("\\", "/")).parts
    return PurePosixPath(*(part for part in parts if part not in ("/", "..") and not part.endswith(":")))


def _beside(labels: Path) -> Path:
    return labels.with_name(labels.name.removesuffix(".ome.tif") + ".csv")


def _refuse_taken(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise RunFolderError(f"{path} is already there", hint="choose another name, or give --force")
