"""Read the outlines of one image that another tool drew: a label image, or GeoJSON as QuPath writes it.

Axes: N cells, P corners, H W pixels. Pixel x y covers x to x + 1 and y to y + 1, as it does for boxes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask

from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.errors import CellsError

Mask = Bool[np.ndarray, "_ _"]
Ring = Float[np.ndarray, "_ 2"]
CELLS = ("cell", "detection", "annotation", "")
"""QuPath's objects that can be a cell; "" where the file does not say what an object is."""
EXPORT = "export it again; in QuPath: File > Export objects as GeoJSON"
SAVE = "save the labels themselves, as an 8-, 16- or 32-bit grey PNG or TIFF: 0 background, k the k-th cell"
NUMBER = (
    "give every cell its own number (Fiji: Analyze Particles, Count Masks; Python: skimage.measure.label)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polygons:
    """One cell as polygons: of each its outer ring and then its holes, corners x y in pixels."""

    parts: tuple[tuple[Ring, ...], ...]

    @property
    def box(self) -> Float[np.ndarray, "4"]:
        """x0 y0 x1 y1 of the outer rings."""
        corners = np.concatenate([part[0] for part in self.parts])
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])

    def mask(self, box: Float[np.ndarray, "4"]) -> Mask:
        """The pixels whose centre lies inside, cut to a box rounded outwards."""
        corner = np.floor(box[:2])
        width, height = (np.ceil(box[2:]) - corner).astype(int)
        mask = np.zeros((height, width), dtype=bool)
        for outer, *holes in self.parts:
            filled = _filled(outer - corner, mask.shape)
            for hole in holes:
                filled &= ~_filled(hole - corner, mask.shape)
            mask |= filled
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """The cells of one image, and what else its file holds."""

    boxes: Float[np.ndarray, "N 4"]
    shapes: tuple[Mask | Polygons, ...]
    """Masks are cut to their boxes."""
    labels: tuple[str, ...]
    """Class of each cell, "" if not known."""
    size: tuple[int, int] | None = None
    """Width and height of the image, where the file says so."""
    aside: Mapping[str, int] = field(default_factory=dict)
    """What is no cell, and how many there are."""


def _filled(ring: Ring, shape: tuple[int, ...]) -> Mask:
    # scikit-image counts from the centre of the first pixel
    return np.asarray(polygon2mask(shape, ring[:, ::-1] - 0.5), dtype=bool)


# Label images: Cellpose, StarDist, Fiji


def read_label_image(path: Path) -> Outlines:
    """Each number of a PNG or TIFF image but 0 is a cell, in the order of the numbers.

    Raises CellsError: unreadable files, colours or several planes, numbers that are not whole or
    below 0, and a mask of all cells in one number.
    """
    labels = _labels(path)
    spans = [(k, span) for k, span in enumerate(ndimage.find_objects(labels), start=1) if span]
    masks = tuple(labels[span] == k for k, span in spans)
    if len(masks) == 1 and (pieces := ndimage.label(masks[0], np.ones((3, 3)))[1]) > 1:
        raise CellsError(f"{path} is no label image: all its {pieces} pieces have one number", hint=NUMBER)
    boxes = [(x.start, y.start, x.stop, y.stop) for _, (y, x) in spans]
    return Outlines(
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        shapes=masks,
        labels=("",) * len(masks),
        size=(labels.shape[1], labels.shape[0]),
    )


def _labels(path: Path) -> Int[np.ndarray, "H W"]:
    """The numbers of a label image; small ones, in the same order, where they are large."""
    values = _values(path)
    if values.ndim != 2:
        shape = "x".join(map(str, values.shape))
        raise CellsError(
            f"{path} is no label image: it has colours or several planes (an array of {shape})", hint=SAVE
        )
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise CellsError(f"{path} is no label image: its {values.dtype} numbers are not whole", hint=SAVE)
    if values.min(initial=0) < 0:
        raise CellsError(f"{path} is no label image: it holds {values.min():g}, below 0", hint=SAVE)
    if values.max(initial=0) > values.size:
        with_background = np.append(values, np.zeros(1, values.dtype))
        places = np.unique(with_background, return_inverse=True)[1]
        values = places[:-1].reshape(values.shape)
    return values.astype(np.int64)


def _values(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path, formats=("PNG",)) as picture:
                return np.asarray(picture)
        return np.asarray(tifffile.imread(path)).squeeze()
    except MemoryError:
        raise
    except Exception as cause:  # a decoder fed damaged bytes raises anything
        raise CellsError(
            f"label image {path} cannot be read: {cause or type(cause).__name__}", hint="save it again"
        ) from cause


# GeoJSON: QuPath


def read_json(path: Path) -> Any:
    """Whatever JSON a file holds. Raises CellsError."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as cause:
        raise CellsError(
            f"{path} is not JSON: {cause}", hint="give GeoJSON, COCO JSON, or a CSV named .csv"
        ) from cause


def is_geojson(data: Any) -> bool:
    """Whether JSON holds GeoJSON: a collection of features, a list of them, or one."""
    first = data[0] if isinstance(data, list) and data else data
    return isinstance(first, dict) and first.get("type") in ("FeatureCollection", "Feature")


def read_geojson(path: Path) -> Outlines:
    """Each Polygon or MultiPolygon is a cell, its classification the label.

    What has another geometry, is another kind of object (a tile, a TMA core), or is an annotation
    drawn round cells and detections, is counted in `aside`. Raises CellsError listing every feature
    whose polygon cannot be read.
    """
    kept, aside = _sorted_out(_features(read_json(path), path))
    shapes = _shapes(kept, path)
    boxes = np.array([shape.box for shape in shapes]).reshape(-1, 4)
    is_cell = ~_round_others(boxes, [_object_type(feature) == "annotation" for _, feature in kept])
    if not is_cell.all():
        aside["annotation round cells"] = int((~is_cell).sum())
    return Outlines(
        boxes=boxes[is_cell],
        shapes=tuple(shape for shape, cell in zip(shapes, is_cell, strict=True) if cell),
        labels=tuple(_class(feature) for (_, feature), cell in zip(kept, is_cell, strict=True) if cell),
        aside=aside,
    )


def _features(data: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(data, dict):
        data = [data] if data.get("type") == "Feature" else data.get("features")
    if not isinstance(data, list) or not all(
        isinstance(f, dict) and f.get("type") == "Feature" for f in data
    ):
        raise CellsError(f"{path} is not GeoJSON: it has no list of features", hint=EXPORT)
    return data


def _sorted_out(
    features: Iterable[dict[str, Any]],
) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, int]]:
    """Features that may be cells, numbered from 1; and how many of what cannot."""
    kept, aside = [], Counter[str]()
    for number, feature in enumerate(features, start=1):
        shape = _part(feature, "geometry").get("type", "no")
        if shape not in ("Polygon", "MultiPolygon"):
            aside[f"{shape} geometry"] += 1
        elif _object_type(feature) not in CELLS:
            aside[f"{_object_type(feature)} object"] += 1
        else:
            kept.append((number, feature))
    return kept, dict(aside)


def _part(feature: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = feature.get(name)
    return part if isinstance(part, dict) else {}


def _object_type(feature: Mapping[str, Any]) -> str:
    """cell, detection, annotation, tile ...; older versions of QuPath write PathCellObject and the like."""
    properties = _part(feature, "properties")
    name = str(properties.get("objectType") or properties.get("object_type") or "").lower()
    return name.removeprefix("path").removesuffix("object")


def _class(feature: Mapping[str, Any]) -> str:
    """Name of the class; QuPath joins the names of a class and its parts by a colon."""
    given = _part(feature, "properties").get("classification") or {}
    if not isinstance(given, dict):
        return str(given)
    return str(given.get("name") or ": ".join(map(str, given.get("names") or ())))


def _shapes(features: list[tuple[int, dict[str, Any]]], path: Path) -> list[Polygons]:
    shapes, problems = [], []
    for number, feature in features:
        try:
            shapes.append(_polygons(feature["geometry"]))
        except (KeyError, TypeError, ValueError) as cause:
            problems.append(Problem(None, f"feature {number}", f"has no polygon: {cause}", EXPORT))
    refuse_if_any(problems, CellsError, path)
    return shapes


def _polygons(geometry: Mapping[str, Any]) -> Polygons:
    """Raises KeyError, TypeError or ValueError for what is no list of rings of corners."""
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    if not parts or not all(parts):
        raise ValueError("it has no ring")
    return Polygons(parts=tuple(tuple(_ring(corners) for corners in part) for part in parts))


def _ring(corners: Any) -> Ring:
    ring = np.array([corner[:2] for corner in corners], dtype=float)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("a ring needs three corners x y, in pixels")
    return ring


def _round_others(boxes: Float[np.ndarray, "N 4"], annotated: list[bool]) -> Bool[np.ndarray, "N"]:
    """Annotations whose box holds that of a cell or detection: where cells were sought."""
    others = boxes[~np.array(annotated, dtype=bool)]
    return np.array(
        [
            drawn and bool(((others[:, :2] >= box[:2]) & (others[:, 2:] <= box[2:])).all(axis=1).any())
            for box, drawn in zip(boxes, annotated, strict=True)
        ],
        dtype=bool,
    )
