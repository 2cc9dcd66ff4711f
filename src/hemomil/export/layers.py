"""Cells on their image as napari takes them: pixels, and boxes coloured by a score.

Axes: N cells, H W pixels. napari counts rows first, and from the centre of the first pixel.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

LayerData = tuple[Any, dict[str, Any], str]
"""Data, what else the layer is told, and its kind."""
BOTH_WAYS = ("contribution",)
"""Scores around 0."""
UNKNOWN = (0.6, 0.6, 0.6, 1.0)
EDGE_PIXELS = 2.0


def image_layer(pixels: UInt8[np.ndarray, "H W 3"], name: str) -> LayerData:
    """The image, below its cells."""
    return pixels, {"name": name, "rgb": True}, "image"


def box_layer(cells: pd.DataFrame, score: str, span: tuple[float, float], name: str) -> LayerData:
    """The boxes of the cells of one image: yellow is low, dark is high, grey is unknown.

    Everything else that `cells` has is the layer's table of features. `span` are the values of the first and
    the last colour.
    """
    told = {
        "name": name,
        "shape_type": "rectangle",
        "edge_color": score_colours(cells[score].to_numpy(float), score, span),
        "edge_width": EDGE_PIXELS,
        "face_color": "transparent",
        "features": cells.reset_index(drop=True),
    }
    return _rectangles(cells[["x0", "y0", "x1", "y1"]].to_numpy(float)), told, "shapes"


def _rectangles(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4 2"]:
    """Corners row, column of half-open boxes."""
    x0, y0, x1, y1 = boxes.T - 0.5
    return np.stack([np.stack([y, x], axis=1) for y, x in ((y0, x0), (y0, x1), (y1, x1), (y1, x0))], axis=1)


def span_of(values: Float[np.ndarray, "N"], score: str) -> tuple[float, float]:
    """The range of a score without its outermost hundredths; even round 0 where it goes both ways."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(value) for value in np.quantile(known, [0.01, 0.99]))
    if score in BOTH_WAYS:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low, low + 1.0)


def score_colours(
    values: Float[np.ndarray, "N"], score: str, span: tuple[float, float]
) -> Float[np.ndarray, "N 4"]:
    """Red, green, blue and opacity, 0 to 1, on the scales of the report."""
    colours = matplotlib.colormaps["PuOr_r" if score in BOTH_WAYS else "viridis_r"]
    place = np.nan_to_num((values - span[0]) / (span[1] - span[0])).clip(0, 1)
    return np.where(np.isfinite(values)[:, None], colours(place), UNKNOWN)
