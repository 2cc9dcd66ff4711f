"""Pictures of single cells: square, centred, padded rather than stretched, turned if asked."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from hemomil.describe.outline import outline_of
from hemomil.describe.segment import view
from hemomil.describe.windows import sample_windows, windows_of


def crops(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "N 4"],
    size: int = 64,
    *,
    context: float = 1.0,
    align: bool = False,
    masks: Sequence[Bool[np.ndarray, "_ _"] | None] | None = None,
) -> UInt8[np.ndarray, "N S S 3"]:
    """Square crops of `size` pixels, each centred at its box.

    The longer side of the box (times `context`) fills the crop and the shorter side shows more surroundings:
    nothing is stretched. Beyond the image its edge is repeated. With `align` a crop is turned until the
    cell's long axis lies level, by its mask or else by its segmented outline.
    """
    windows = windows_of(boxes, context=context)
    if align and len(boxes):
        windows[:, 3] = [outline_of(mask).angle for mask in view(image, boxes, masks).mask]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    values = sample_windows(planes, windows, size)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
