"""Cells that the border of their image cuts: what is left of one has not the shape of a cell.

Axes: N cells.
"""

from itertools import compress

import numpy as np
import pandas as pd
from jaxtyping import Bool

from hemomil.cohort.images import image_sizes
from hemomil.errors import ImageError
from hemomil.segmentation import Masks
from hemomil.types import Cells, Cohort, Notice

MARGIN = 0.03
"""A box that ends this close to the border, in usual cell sides of its image, is taken to reach it."""
LEAST = 1.5
"""The same in pixels, at least."""


def cut_by_border(cells: Cells, cohort: Cohort) -> Bool[np.ndarray, "N"]:
    """Which cells reach the border of their image; images of kind=cell are cells whole.

    Raises ImageError for an image that cannot be read.
    """
    sides = np.sqrt((cells.boxes[:, 2:] - cells.boxes[:, :2]).prod(axis=1))
    names = pd.Series(cells.images, dtype=object)
    usual = pd.Series(sides).groupby(names).transform("median").to_numpy(np.float64)
    margin = np.maximum(MARGIN * usual, LEAST)[:, None]
    limits = _field_sizes(cohort)
    far = np.array([limits.get(image, (np.inf, np.inf)) for image in cells.images]).reshape(-1, 2)
    in_field = np.isfinite(far[:, 0])
    near_end = (cells.boxes[:, :2] < margin) | (cells.boxes[:, 2:] > far - margin)
    return np.asarray(near_end.any(axis=1) & in_field)


def without_cut(cells: Cells, cohort: Cohort) -> tuple[Cells, tuple[Notice, ...]]:
    """The cells that are seen whole, under the ids they had, and a Notice that counts the others."""
    cut = cut_by_border(cells, cohort)
    return take(cells, ~cut), cut_notice(cut, "the images")


def take(cells: Cells, kept: Bool[np.ndarray, "N"]) -> Cells:
    """Some of the cells, under the ids they had."""
    return Cells(
        cell_ids=tuple(compress(cells.cell_ids, kept)),
        samples=tuple(compress(cells.samples, kept)),
        images=tuple(compress(cells.images, kept)),
        boxes=cells.boxes[kept],
        scores=cells.scores[kept],
        masks=Masks(compress(Masks.of(cells.masks).texts, kept)),
        cell_labels=tuple(compress(cells.cell_labels, kept)),
    )


def cut_notice(cut: Bool[np.ndarray, "N"], subject: str) -> tuple[Notice, ...]:
    """How many of the cells were left out, if any."""
    text = f"{int(cut.sum())} of {len(cut)} cells are cut by the border of their image and were left out"
    return (Notice(kind="cells-cut-by-border", subject=subject, text=text),) if cut.any() else ()


def _field_sizes(cohort: Cohort) -> dict[str, tuple[int, int]]:
    """Width and height of the images of kind=field, by name."""
    rows = [row for sample in cohort.samples for row in sample.images if row.kind == "field"]
    sizes = image_sizes({row.path for row in rows})
    found = {}
    for row in rows:
        size = sizes[row.path]
        if isinstance(size, ImageError):
            raise size
        found[row.image] = size
    return found
