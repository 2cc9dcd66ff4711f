"""Complete annotations that are boxes only: a mask in each box, and the red cells that nobody boxed.

Annotators draw boxes loosely and leave out cells that are cut by the border or lie under others. To a network
that learns from such images, an unboxed cell is background. An earlier detector draws the missing parts; what
it draws is derived, not annotated.

Axes: N things annotated, M cells added.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torchvision.ops import box_iou

from hemomil.detect.detector import Detector
from hemomil.detect.examples import RED, Example, Mask, outer

SURE = 0.6
"""Score of a cell that is added."""
APART = 0.3
"""A cell is added only if it shares at most this much of the smaller box with anything annotated."""
LIKE = 0.5
"""A derived mask whose own box has less than this IoU with the annotated one is not believed."""


def complete_example(detector: Detector, example: Example) -> Example:
    """The example with a mask for everything, boxes drawn tight round the masks, and unboxed cells added.

    Examples that have masks come back as they are. A mask that does not fit its box is replaced by the
    ellipse in that box.
    """
    if example.masks is not None:
        return example
    boxes, masks = _tightened(detector, example)
    found = detector.detect(example.image)
    new = _apart(found.boxes, example.boxes) & (found.scores >= SURE)
    assert found.masks is not None, "a detector of this package gives masks"
    added = tuple(mask for mask, kept in zip(found.masks, new, strict=True) if kept)
    return Example(
        image=example.image,
        boxes=np.concatenate([boxes, found.boxes[new]]),
        masks=masks + added,
        labels=(*example.kinds.tolist(), *(RED,) * len(added)),
    )


def _tightened(detector: Detector, example: Example) -> tuple[Float[np.ndarray, "N 4"], tuple[Mask, ...]]:
    """Masks as the detector sees them in the annotated boxes, each cut to its own tight box."""
    derived = detector.masks_at(example.image, example.boxes, example.kinds)
    pairs = [
        _believed(box, given, mask)
        for box, given, mask in zip(outer(example.boxes), example.boxes, derived, strict=True)
    ]
    boxes = np.array([box for box, _ in pairs], dtype=np.float32).reshape(-1, 4)
    return boxes, tuple(mask for _, mask in pairs)


def _believed(
    window: np.ndarray, given: Float[np.ndarray, "4"], mask: Mask
) -> tuple[Float[np.ndarray, "4"], Mask]:
    """The mask and its tight box, or the ellipse in the annotated box."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if len(rows):
        x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        tight = np.array([x0, y0, x1, y1], dtype=np.float32) + np.tile(window[:2], 2)
        if (x1 - x0) * (y1 - y0) >= LIKE * (given[2:] - given[:2]).prod():
            return tight.astype(np.float32), mask[y0:y1, x0:x1].copy()
    return window.astype(np.float32), _ellipse(*mask.shape)


def _ellipse(height: int, width: int) -> Mask:
    y, x = (np.arange(height) + 0.5) / height * 2 - 1, (np.arange(width) + 0.5) / width * 2 - 1
    return np.asarray(y[:, None] ** 2 + x[None] ** 2 <= 1)


def _apart(found: Float[np.ndarray, "M 4"], known: Float[np.ndarray, "N 4"]) -> Bool[np.ndarray, "M"]:
    """Which of the boxes found share hardly anything with any known one."""
    if not len(found) or not len(known):
        return np.ones(len(found), dtype=bool)
    iou = box_iou(torch.tensor(found), torch.tensor(known)).numpy()
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (found, known)]
    shared = iou * (areas[0][:, None] + areas[1]) / (1 + iou)
    return np.asarray((shared / np.minimum(areas[0][:, None], areas[1]) <= APART).all(axis=1))
