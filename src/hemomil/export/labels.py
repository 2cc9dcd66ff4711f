"""The cells of one image as a label image, as Fiji and Cellpose have it: 0 background, k the k-th cell.

Axes: N cells, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import tifffile
from jaxtyping import Bool, Float, Integer

Mask = Bool[np.ndarray, "_ _"]


def label_image(
    boxes: Float[np.ndarray, "N 4"],
    masks: Sequence[Mask | None],
    scores: Float[np.ndarray, "N"],
    size: tuple[int, int],
) -> Integer[np.ndarray, "H W"]:
    """Row i has the number i + 1; where cells overlap, the higher detection score is on top.

    `size` is width and height of the image, which holds all boxes. A cell without a mask is its whole box.
    """
    labels = np.zeros(size[::-1], np.uint16 if len(boxes) < 2**16 else np.uint32)
    corners, ends = np.floor(boxes[:, :2]).astype(int), np.ceil(boxes[:, 2:]).astype(int)
    for row in np.argsort(scores, kind="stable"):
        (x0, y0), (x1, y1), mask = corners[row], ends[row], masks[row]
        labels[y0:y1, x0:x1][slice(None) if mask is None else mask] = row + 1
    return labels


def write_labels(path: Path, labels: Integer[np.ndarray, "H W"], name: str) -> None:
    """Write an OME-TIFF, the same bytes every time; `name` is what viewers show."""
    tifffile.imwrite(
        path,
        labels,
        ome=True,
        compression="zlib",
        metadata={"axes": "YX", "Name": name, "UUID": str(uuid5(NAMESPACE_URL, f"hemomil:{name}"))},
    )
