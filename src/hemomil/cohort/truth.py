"""Match cells to known ones, to learn the class of a detected cell."""

from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from hemomil.cohort.cells import match_names
from hemomil.cohort.given import BOX
from hemomil.errors import CellsError
from hemomil.types import Cells

OVERLAP = 0.5
"""Least intersection over union at which two boxes are the same cell."""


def match_truth(cells: Cells, truth: pd.DataFrame) -> tuple[str | None, ...]:
    """The known class of each cell, or None: pairs of largest total overlap per image, IoU at least 0.5.

    `truth` is what `read_truth` gives. A cell in several samples is matched in each; a box that the
    truth repeats (once per sample) counts once. Raises CellsError if the truth shares no image.
    """
    labels: list[str | None] = [None] * len(cells)
    names = match_names(truth["image"].unique(), set(cells.images))
    if len(cells) and not names:
        raise CellsError(
            f"none of the {truth['image'].nunique()} images of the known cells is among those of the cells",
            hint=f"name images as the manifest does, for example {cells.images[0]!r}",
        )
    known = truth.assign(image=truth["image"].map(names)).drop_duplicates(["image", *BOX])
    known_by_image = {
        image: (part[BOX].to_numpy(dtype=float), part["cell_label"].to_numpy())
        for image, part in known.groupby("image")
    }
    boxes = np.asarray(cells.boxes, dtype=float)
    key = pd.MultiIndex.from_arrays([cells.samples, cells.images])
    for group, rows in pd.Series(0, index=key).groupby(level=[0, 1]).indices.items():
        _, image = cast(tuple[str, str], group)
        if image in known_by_image:
            known_boxes, known_labels = known_by_image[image]
            for cell, match in _pairs(boxes[rows], known_boxes):
                labels[rows[cell]] = known_labels[match] or None
    return tuple(labels)


def _pairs(boxes: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"]) -> list[tuple[int, int]]:
    overlap_NM = _iou(boxes, known)
    overlap_NM[overlap_NM < OVERLAP] = 0.0
    rows, columns = linear_sum_assignment(overlap_NM, maximize=True)
    return [(int(n), int(m)) for n, m in zip(rows, columns, strict=True) if overlap_NM[n, m] > 0]


def _iou(boxes: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Intersection over union of every pair of boxes."""
    top_left = np.maximum(boxes[:, None, :2], known[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], known[None, :, 2:])
    shared_NM = np.clip(bottom_right - top_left, 0, None).prod(axis=-1)
    area_N = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    area_M = (known[:, 2:] - known[:, :2]).prod(axis=-1)
    return np.asarray(shared_NM / (area_N[:, None] + area_M[None] - shared_NM))
