"""Describe cells by named numbers: size, outline, pallor, light profile, texture, colour, inclusions.

Axes: N cells, F = len(SHAPE_NAMES) features, H W image pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from hemomil.describe.interior import (
    COLOUR_NAMES,
    INCLUSION_NAMES,
    PALLOR_NAMES,
    PROFILE_NAMES,
    TEXTURE_NAMES,
    interior_values,
)
from hemomil.describe.outline import OUTLINE_NAMES, SIZE_NAMES, outline_of, size_values
from hemomil.describe.segment import view

SHAPE_VERSION = 1
"""Changes whenever a feature changes its meaning: a model refuses features of another version."""
_COLUMNS = {
    "size": SIZE_NAMES,
    "outline": OUTLINE_NAMES,
    "profile": PROFILE_NAMES,
    "pallor": PALLOR_NAMES,
    "texture": TEXTURE_NAMES,
    "colour": COLOUR_NAMES,
    "inclusions": INCLUSION_NAMES,
    "quality": ("segmented",),
}
SHAPE_NAMES: tuple[str, ...] = tuple(name for names in _COLUMNS.values() for name in names)
STAIN_NAMES = tuple(
    name
    for name in SHAPE_NAMES
    if name.startswith(("mean_", "background_", "density_red", "density_green", "density_blue"))
    or name in ("density_rim", "density_sum")
)
"""Absolute colour and light: they tell stain and camera as much as disease, so suspect them first."""
SHAPE_GROUPS = {
    **{group: tuple(name for name in names if name not in STAIN_NAMES) for group, names in _COLUMNS.items()},
    "stain": STAIN_NAMES,
}
"""What each feature is about; every name is in one group."""


def measure(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "N 4"],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None] | None = None,
) -> Float32[np.ndarray, "N F"]:
    """The shape features of each cell; every value is finite, whatever the image.

    A cell without a mask is segmented inside its box; where that fails a disc in the box stands in and the
    feature `segmented` is 0. Sizes are in image pixels; all else is free of scale.
    """
    if len(boxes) == 0:
        return np.zeros((0, len(SHAPE_NAMES)), np.float32)
    views = view(image, boxes, masks)
    outlines = [outline_of(mask) for mask in views.mask]
    sizes = [size_values(o, p, b) for o, p, b in zip(outlines, views.pitch, boxes, strict=True)]
    columns = [
        np.stack(sizes),
        np.stack([outline.values for outline in outlines]),
        interior_values(views),
        views.segmented[:, None],
    ]
    values = np.concatenate(columns, axis=1).astype(np.float32)
    assert values.shape[1] == len(SHAPE_NAMES), "features and their names are not aligned"
    return values
