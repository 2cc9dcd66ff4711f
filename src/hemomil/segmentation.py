"""Masks as COCO keeps them: polygons or run lengths, read and written in one place.

Axes: H W pixels.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, overload

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


def mask_text(mask: Bool[np.ndarray, "_ _"] | None) -> str:
    """`height width counts` with COCO's compressed run lengths; empty for no mask."""
    if mask is None or mask.size == 0:
        return ""
    return f"{mask.shape[0]} {mask.shape[1]} {encode(mask)['counts'].decode('ascii')}"


def mask_of(text: str) -> Bool[np.ndarray, "_ _"] | None:
    """The mask that `mask_text` wrote; None where it is empty."""
    return decode(_lengths_of(text)) if text else None


def _lengths_of(text: str) -> RunLengths:
    height, width, counts = text.split(" ", 2)
    return {"size": [int(height), int(width)], "counts": counts.encode("ascii")}


class Masks(Sequence[Bool[np.ndarray, "_ _"] | None]):
    """Masks of many cells, kept as `mask_text` and drawn when they are asked for.

    A cell of 60 pixels takes 0.2 KB, not 4. None: no mask is known.
    """

    __slots__ = ("texts",)

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)

    @classmethod
    def of(cls, masks: Iterable[Bool[np.ndarray, "_ _"] | None]) -> "Masks":
        """These masks; those that are kept so already are not drawn."""
        return masks if isinstance(masks, Masks) else cls(map(mask_text, masks))

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, row: int) -> Bool[np.ndarray, "_ _"] | None: ...
    @overload
    def __getitem__(self, row: slice) -> "Masks": ...
    def __getitem__(self, row: int | slice) -> "Bool[np.ndarray, '_ _'] | Masks | None":
        return Masks(self.texts[row]) if isinstance(row, slice) else mask_of(self.texts[row])

    def areas(self) -> list[int | None]:
        """Pixels of each mask, counted without drawing it."""
        return [int(coco_mask.area(_lengths_of(text))) if text else None for text in self.texts]
