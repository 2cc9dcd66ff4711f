"""Masks as COCO keeps them: polygons or run lengths, read and written in one place.

Axes: H W pixels.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

RunLengths = dict[str, Any]
"""A mask in COCO's compressed run lengths: `size` (H, W) and `counts` (bytes)."""


def run_lengths(segmentation: Any, shape: tuple[int, int]) -> RunLengths:
    """A COCO segmentation (polygons, or run lengths plain or compressed) of an image of this shape (H, W)."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *shape)
    lengths: RunLengths = segmentation
    return lengths


def encode(mask: Bool[np.ndarray, "_ _"]) -> RunLengths:
    """The run lengths of a mask."""
    lengths: RunLengths = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return lengths


def decode(lengths: RunLengths) -> Bool[np.ndarray, "_ _"]:
    """The mask that the run lengths stand for."""
    with warnings.catch_warnings():  # pycocotools hands its array over in a way that NumPy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco_mask.decode(lengths), dtype=bool)
