"""How large are the cells of this image? A first guess without a network.

The network sees every image at the scale where a cell has its nominal diameter, so the guess only has to be
near: the detector corrects it by the boxes that it finds.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops_table
from skimage.segmentation import clear_border
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

GREEN, BLUE = 1, 2
"""Channels in which hemoglobin absorbs: green first, as stains leave the glass bright in it."""
WORKING_SIDE = 512
"""The guess is made on the image shrunk to this side."""
SMALLEST, LARGEST = 6.0, 256.0
"""Plausible diameters in the shrunken image."""
ROUND = 0.8
"""Roundness (4 pi area / perimeter^2) of a cell that lies alone; two that touch have less."""
ENOUGH = 5
"""Cells that must be found before their size overrules the guess."""
SURE = 0.5
"""Score of a red cell that counts for that, and needs no support."""
ENOUGH_ALONE = 4
"""So many round things tell the size of cells."""


def guess_diameter(image: UInt8[np.ndarray, "H W 3"], channel: int = GREEN) -> float | None:
    """Typical cell diameter in pixels of the image; None where nothing looks like cells.

    Cells are darker than the glass (Otsu on one channel), and their pallor is filled. Cells that lie alone
    tell the size; where there are none, the peaks of the distance to the outline are the radii, which in a
    crowd is too much.
    """
    shrink = min(1.0, WORKING_SIDE / max(image.shape[:2]))
    light = resize(image, shrink, shrink)[channel].numpy().astype(np.float32)
    light = ndimage.gaussian_filter(light, 1.0)
    if np.ptp(light) < 16:  # blank: whatever Otsu splits is noise
        return None
    dark = light < threshold_otsu(light)
    cells = ndimage.binary_fill_holes(dark)
    radii = _lone(cells)
    if len(radii) < ENOUGH_ALONE:
        radii = _peaks(ndimage.distance_transform_edt(cells))
    if len(radii) == 0:
        return None
    # large cells count by their area, so that specks and platelets do not set the scale
    return float(2 * _weighted_median(radii, radii**2) / shrink)


def resize(image: UInt8[np.ndarray, "H W 3"], scale_y: float, scale_x: float) -> Tensor:
    """The image, uint8 3 H' W', with each side scaled and rounded to at least one pixel."""
    tensor = torch.tensor(image).permute(2, 0, 1)
    size = [max(1, round(image.shape[0] * scale_y)), max(1, round(image.shape[1] * scale_x))]
    return tensor if size == list(tensor.shape[1:]) else tv.resize(tensor, size, antialias=True)


def _lone(cells: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "P"]:
    """Radii of the round things that touch nothing and are not cut by the border."""
    whole = clear_border(cells)
    found = regionprops_table(label(whole), properties=("area", "perimeter"))
    area, around = found["area"].astype(np.float64), np.maximum(found["perimeter"], 1.0)
    radii = np.sqrt(area / np.pi)
    kept = (4 * np.pi * area / around**2 > ROUND) & (2 * radii >= SMALLEST) & (2 * radii <= LARGEST)
    return np.asarray(radii[kept])


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
