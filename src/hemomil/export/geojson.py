"""The cells of one image as QuPath's GeoJSON: outlines or boxes, classes with colours, measurements.

Axes: N cells, P corners, K classes. Pixel x y covers x to x + 1 and y to y + 1, in boxes and in polygons.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.measure import find_contours

Mask = Bool[np.ndarray, "_ _"]

# Okabe and Ito's palette, which the colour-blind tell apart; the control class comes first
COLOURS = (
    (86, 180, 233),
    (213, 94, 0),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (240, 228, 66),
)
BOX = ["x0", "y0", "x1", "y1"]


def feature_collection(
    cells: pd.DataFrame, masks: Sequence[Mask | None], measured: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """All cells of one image as GeoJSON; masks are cut to their boxes rounded outwards.

    `cells` has cell_id, x0 y0 x1 y1, `measured` (columns of numbers; NaN is left out) and the prob_<class> of
    the cell alone, the highest of which is its class. The same cell has the same id in every export.
    """
    colours = {name: list(COLOURS[k % len(COLOURS)]) for k, name in enumerate(classes)}
    probable = _most_probable(cells, classes)
    rows = zip(cells[["cell_id", *BOX, *measured]].to_dict("records"), masks, probable, strict=True)
    return {
        "type": "FeatureCollection",
        "features": [_feature(row, mask, name, colours, measured) for row, mask, name in rows],
    }


def _most_probable(cells: pd.DataFrame, classes: Sequence[str]) -> list[str | None]:
    columns = [f"prob_{name}" for name in classes if f"prob_{name}" in cells]
    values = cells[columns].to_numpy(float)
    known = np.isfinite(values).all(axis=1) if columns else np.zeros(len(cells), bool)
    names = [name.removeprefix("prob_") for name in columns]
    return [
        names[int(np.argmax(row))] if is_known else None for row, is_known in zip(values, known, strict=True)
    ]


def _feature(
    cell: Mapping[Any, Any],
    mask: Mask | None,
    name: str | None,
    colours: Mapping[str, list[int]],
    measured: Sequence[str],
) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "detection", "name": cell["cell_id"]}
    if name is not None:
        properties["classification"] = {"name": name, "color": colours[name]}
    properties["measurements"] = {key: float(cell[key]) for key in measured if math.isfinite(cell[key])}
    return {
        "type": "Feature",
        "id": str(uuid5(NAMESPACE_URL, f"hemomil:{cell['cell_id']}")),
        "geometry": _geometry([cell[edge] for edge in BOX], mask),
        "properties": properties,
    }


def _geometry(box: Sequence[float], mask: Mask | None) -> dict[str, Any]:
    """Polygon, or MultiPolygon of a mask in pieces; the box where there is no mask."""
    if mask is None or not mask.any():
        x0, y0, x1, y1 = box
        return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}
    pieces, count = ndimage.label(mask)
    corner = np.floor(box[:2])
    parts = [[ring.tolist() for ring in _rings(pieces == k, corner)] for k in range(1, count + 1)]
    if count == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _rings(piece: Mask, corner: Float[np.ndarray, "2"]) -> list[Float[np.ndarray, "P 2"]]:
    """Closed rings x y round a piece that hangs together: the outer one, then its holes.

    They run half-way between the centres of pixels inside and outside, so that reading them back gives the
    same mask, and its box.
    """
    contours = find_contours(np.pad(piece, 1).astype(float), 0.5)
    # rows and columns of the padded mask, whose first pixel has its centre half a pixel before the corner
    rings = [_corners(ring[:, ::-1]) - 0.5 + corner for ring in contours]
    return sorted(rings, key=lambda ring: -np.ptp(ring, axis=0).prod())


def _corners(ring: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "_ 2"]:
    """The points of a closed ring at which it turns; all are multiples of a half, so the sums are exact."""
    steps = np.diff(ring, axis=0)
    before = np.roll(steps, 1, axis=0)
    turns = ring[:-1][before[:, 0] * steps[:, 1] != before[:, 1] * steps[:, 0]]
    return np.concatenate([turns, turns[:1]])
