"""Which pixels of an image are lit: the rest was masked out, or is field stop or frame.

Axes: H W image pixels.
"""

from functools import reduce

import numpy as np
from jaxtyping import Bool, UInt8

BLACK = 24
"""A pixel with no channel above this is not lit: stains and slides are never that dark."""


def is_lit(image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Whether any channel of a pixel is above `BLACK`."""
    # a maximum along the last axis would take twenty times as long
    return np.asarray(reduce(np.maximum, np.moveaxis(image, 2, 0)) > BLACK)
