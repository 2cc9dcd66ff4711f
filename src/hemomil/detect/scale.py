"""How large are the cells of this image? A first guess without a network.

The network sees every image at the scale where a cell has its nominal diameter, so the guess only has to be
near: the detector corrects it by the boxes that it finds.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

WORKING_SIDE = 512
"""The guess is made on the image shrunk to this side."""
SMALLEST, LARGEST = 6.0, 256.0
"""Plausible diameters in the shrunken image."""


def guess_diameter(image: UInt8[np.ndarray, "H W 3"]) -> float | None:
    """Typical cell diameter in pixels of the image; None where nothing looks like cells.

    Cells are darker than the glass (Otsu on the green channel, where hemoglobin absorbs), their pallor is
    filled, and the peaks of the distance to the outline are their radii.
    """
    shrink = min(1.0, WORKING_SIDE / max(image.shape[:2]))
    green = resize(image, shrink, shrink)[1].numpy().astype(np.float32)
    green = ndimage.gaussian_filter(green, 1.0)
    if np.ptp(green) < 16:  # blank: whatever Otsu splits is noise
        return None
    dark = green < threshold_otsu(green)
    cells = ndimage.binary_fill_holes(dark)
    depth = ndimage.distance_transform_edt(cells)
    radii = _peaks(depth)
    if len(radii) == 0:
        return None
    # large cells count by their area, so that specks and platelets do not set the scale
    return float(2 * _weighted_median(radii, radii**2) / shrink)


def resize(image: UInt8[np.ndarray, "H W 3"], scale_y: float, scale_x: float) -> Tensor:
    """The image, uint8 3 H' W', with each side scaled and rounded to at least one pixel."""
    tensor = torch.tensor(image).permute(2, 0, 1)
    size = [max(1, round(image.shape[0] * scale_y)), max(1, round(image.shape[1] * scale_x))]
    return tensor if size == list(tensor.shape[1:]) else tv.resize(tensor, size, antialias=True)


def _peaks(depth: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "P"]:
    """Heights of the local maxima that could be the radius of a cell."""
    smooth = ndimage.gaussian_filter(depth, 1.0)
    wide = ndimage.maximum_filter(smooth, size=9)
    radii = depth[(smooth == wide) & (depth >= SMALLEST / 2) & (depth <= LARGEST / 2)]
    return np.asarray(radii, dtype=np.float64)


def _weighted_median(values: Float[np.ndarray, "P"], weights: Float[np.ndarray, "P"]) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
