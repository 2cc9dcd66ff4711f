"""What a detector found of one image whose cells are known: counts, and what average precision needs.

Axes: N cells found, M cells known, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from hemomil.detect.examples import Mask, outer
from hemomil.detect.precision import Ranked, average_precision, rank
from hemomil.segmentation import RunLengths, encode
from hemomil.types import Detections

BORDER = 2
"""A cell touches the border of its image if it comes this near to it, pixels."""
NAMES = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
"""Average precision by name: the mean over these of OVERLAPS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The known cells of an image."""

    boxes: Float[np.ndarray, "M 4"]
    """x0 y0 x1 y1 in pixels, half-open."""
    labels: tuple[str, ...]
    """The class of each; "" if not known."""
    masks: tuple[RunLengths, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.boxes), "labels and boxes are not aligned"
        assert self.masks is None or len(self.masks) == len(self.boxes), "boxes and masks are not aligned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What came of one image; cells that do not count are in none of the numbers."""

    hits: Bool[np.ndarray, "M"]
    """Whether each known cell was found."""
    labels: tuple[str, ...]
    """The class of each known cell; "" if not known."""
    found: int | None = None
    """Cells found; None where not every cell is known, so that nothing can be a false alarm."""
    ranked: Mapping[str, Ranked] = field(default_factory=dict)
    """What average precision needs, for `box` and, if both sides have masks, `mask`."""


def tally_cells(
    found: Detections, known: Known, shape: tuple[int, int], *, least: float, inner: bool = False
) -> Tally:
    """Compare the cells found in an image of this shape (H, W) with the known ones.

    Counts rest on the cells found of score `least` or more, matched to known cells by `pairs`; average
    precision rests on all. With `inner`, what `inside` leaves out counts for nothing, neither as lost nor as
    false.
    """
    good = found.boxes[found.scores >= least]
    hits = np.zeros(len(known.boxes), dtype=bool)
    hits[pairs(good, known.boxes)[1]] = True
    good_in, known_in = inside(good, known.boxes, shape) if inner else _all(good, known.boxes)
    return Tally(
        hits=hits[known_in],
        labels=_chosen(known.labels, known_in),
        found=int(good_in.sum()),
        ranked=_ranked(found, known, shape, inner),
    )


def tally_points(
    found: Detections,
    points: Float[np.ndarray, "M 2"],
    labels: tuple[str, ...],
    shape: tuple[int, int],
    *,
    least: float,
    inner: bool = False,
) -> Tally:
    """Which points (x, y in pixels) lie in the box of a cell found (score at least `least`), one each.

    Points share out the boxes so that as many as possible have one. With `inner`, points within BORDER
    pixels of the border do not count; of others, a point does not tell whether its cell touches the border.
    """
    boxes = found.boxes[found.scores >= least][None]
    within = (points[:, None] >= boxes[..., :2]) & (points[:, None] < boxes[..., 2:])
    held_MN = np.all(within, axis=2)
    hits = np.zeros(len(points), dtype=bool)
    rows, columns = linear_sum_assignment(held_MN, maximize=True)
    hits[rows] = held_MN[rows, columns]
    counted = ~_at_border(np.tile(points, 2), shape) if inner else np.ones(len(points), dtype=bool)
    return Tally(hits=hits[counted], labels=_chosen(labels, counted))


def pairs(
    found: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"], least_iou: float = 0.5
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """Rows of cells found and of known ones that are the same by the IoU of their boxes, each in one pair.

    Of all such matchings one with the most pairs, and of these the one of most IoU.
    """
    iou = box_iou(torch.tensor(found, dtype=torch.float64), torch.tensor(known, dtype=torch.float64)).numpy()
    gain = np.where(iou >= least_iou, min(iou.shape) + iou, 0)  # one pair more outweighs any overlap
    rows, columns = linear_sum_assignment(gain, maximize=True)
    same = gain[rows, columns] > 0
    return rows[same], columns[same]


def inside(
    found: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"], shape: tuple[int, int]
) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "M"]]:
    """Which cells found and which known ones count, where cells that the border cuts may not be annotated.

    Everything is matched first. Known cells that touch the border do not count, nor do the found ones
    matched to them. A found one matched to another known cell counts, and is right, wherever it lies. A
    found one matched to none counts, as a false alarm, unless it touches the border.
    """
    rows, columns = pairs(found, known)
    found_in, known_in = ~_at_border(found, shape), ~_at_border(known, shape)
    found_in[rows] = known_in[columns]
    return found_in, known_in


def _all(
    found: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"]
) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "M"]]:
    return np.ones(len(found), dtype=bool), np.ones(len(known), dtype=bool)


def _at_border(boxes: Float[np.ndarray, "N 4"], shape: tuple[int, int]) -> Bool[np.ndarray, "N"]:
    height, width = shape
    near_start = (boxes[:, :2] <= BORDER).any(axis=1)
    return np.asarray(near_start | (boxes[:, 2:] >= [width - BORDER, height - BORDER]).any(axis=1))


def _chosen(labels: tuple[str, ...], rows: Bool[np.ndarray, "M"]) -> tuple[str, ...]:
    return tuple(labels[row] for row in np.flatnonzero(rows))


# Average precision


def average_precisions(
    tallies: Sequence[Tally], draws: Int[np.ndarray, "B I"]
) -> dict[str, Float[np.ndarray, "B"]]:
    """COCO average precision on each draw of the images, over IoU 0.5 to 0.95, at 0.5 and at 0.75.

    `box_ap`, `box_ap50`, `box_ap75`, and the same of `mask` if every image has masks; none for points. NaN:
    no known cell.
    """
    kinds = [kind for kind in ("box", "mask") if tallies and all(kind in tally.ranked for tally in tallies)]
    curves = {kind: average_precision([tally.ranked[kind] for tally in tallies], draws) for kind in kinds}
    return {
        f"{kind}_{name}": curves[kind][:, at].mean(axis=1) for kind in kinds for name, at in NAMES.items()
    }


def _ranked(found: Detections, known: Known, shape: tuple[int, int], inner: bool) -> dict[str, Ranked]:
    both = inside(found.boxes, known.boxes, shape) if inner else _all(found.boxes, known.boxes)
    overlaps = {"box": _overlaps(_corner_and_size(found.boxes), _corner_and_size(known.boxes))}
    masks = found.masks if len(found.boxes) else ()
    if masks is not None and known.masks is not None:
        lengths = laid_out(found.boxes, masks, shape)
        overlaps["mask"] = _overlaps(list(lengths), list(known.masks))
    return {kind: rank(found.scores[both[0]], iou[np.ix_(*both)]) for kind, iou in overlaps.items()}


def _corner_and_size(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    wide = boxes.astype(np.float64)
    # pycocotools takes rows to lie one after another, whatever the array says
    return np.ascontiguousarray(np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], axis=1))


def _overlaps(found: Any, known: Any) -> Float[np.ndarray, "N M"]:
    """IoU of every pair: boxes (x y width height) or masks."""
    iou = coco_mask.iou(found, known, [0] * len(known))
    return np.asarray(iou, dtype=np.float64).reshape(len(found), len(known))


def laid_out(
    boxes: Float[np.ndarray, "N 4"], masks: Sequence[Mask], shape: tuple[int, int]
) -> tuple[RunLengths, ...]:
    """Masks that are cut to their boxes (rounded outwards), each laid into the whole image."""
    return tuple(
        _laid_out(mask, window, shape) for mask, window in zip(masks, outer(boxes).clip(0), strict=True)
    )


def _laid_out(mask: Mask, window: Int[np.ndarray, "4"], shape: tuple[int, int]) -> RunLengths:
    x0, y0, x1, y1 = window
    plane = np.zeros(shape, dtype=bool, order="F")
    plane[y0:y1, x0:x1] = mask[: shape[0] - y0, : shape[1] - x0]
    return encode(plane)
