"""Find the cell in a box that came without a mask, and the colour of the empty slide round it.

Axes: N cells, G = GRID crop pixels a side, H W image pixels.
Light is measured as optical density, ln(background / intensity): 0 on the empty slide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from hemomil.describe.windows import sample_masks, sample_windows, windows_of
from hemomil.lit import is_lit

GRID = 64
"""Every cell is measured on a grid of 64 x 64, so that texture does not depend on magnification."""
CONTEXT = 1.3
"""Side of the window in which a cell is sought, in sides of its box."""
MARGIN = 1.15
"""Side of the window in which a cell is measured, in sides of its mask."""
WEIGHTS = np.array([0.25, 0.5, 0.25], np.float32)
"""Red, green, blue: hemoglobin and eosin absorb green most."""
FLAT = ndimage.generate_binary_structure(2, 1)[None] & np.array([False, True, False])[:, None, None]
"""Neighbours within a crop, none between crops: one call of scipy.ndimage labels all cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slide:
    """What the image is without its cells."""

    background: Float32[np.ndarray, "3"]
    """RGB of the empty slide; white where everything outside the cell is masked out."""
    lit: Bool[np.ndarray, "H W"]
    """False where the image is masked out (black)."""
    masked: bool
    """The surroundings were masked out: what is lit is the cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Cells on the common grid, with their outline."""

    colour: Float32[np.ndarray, "N G G 3"]
    """RGB 0-255."""
    mask: Bool[np.ndarray, "N G G"]
    background: Float32[np.ndarray, "N 3"]
    """RGB of the empty slide near the cell."""
    windows: Float[np.ndarray, "N 4"]
    """Which part of the image the grid covers (see windows.py)."""
    segmented: Bool[np.ndarray, "N"]
    """False where no outline was found and an ellipse in the box stands in."""

    @property
    def pitch(self) -> Float[np.ndarray, "N"]:
        """Image pixels per grid pixel."""
        return np.asarray(self.windows[:, 2] / GRID)


def slide_of(image: UInt8[np.ndarray, "H W 3"]) -> Slide:
    """Background colour from the bright class of the green channel (Otsu), and what is masked out."""
    lit = is_lit(image)
    rim = np.concatenate([lit[0], lit[-1], lit[:, 0], lit[:, -1]])
    if (~rim).mean() > 0.2 or not lit.any():
        # compression smears the black into the outermost pixel
        return Slide(background=np.full(3, 255, np.float32), lit=ndimage.binary_erosion(lit), masked=True)
    counts = np.bincount(image[..., 1][lit], minlength=256)
    level = threshold_otsu(hist=(counts, np.arange(256))) if (counts > 0).sum() > 1 else -1
    bright = lit & (image[..., 1] > level)
    background = np.array([_median_of_bytes(image[..., c][bright]) for c in range(3)], np.float32)
    return Slide(background=background, lit=lit, masked=False)


def _median_of_bytes(values: UInt8[np.ndarray, "M"]) -> float:
    """The median, by counting: a sort of a million pixels would cost more than everything else."""
    cumulative = np.bincount(values, minlength=256).cumsum()
    return float(np.searchsorted(cumulative, (len(values) + 1) // 2))


def density(
    colour: Float32[np.ndarray, "N G G 3"], background: Float32[np.ndarray, "..."]
) -> Float32[np.ndarray, "N G G 3"]:
    """Optical density per channel, ln((background + 1) / (intensity + 1))."""
    return np.asarray(np.log((background + 1) / (colour + 1)), np.float32)


def view(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "N 4"],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None] | None,
) -> Views:
    """Every cell on the common grid: by its mask where it has one, else by segmenting its box."""
    slide = slide_of(image)
    # the last plane says how much of a footprint is image and not masked out
    planes = np.ones((4, *image.shape[:2]), np.float32)
    planes[:3] = image.transpose(2, 0, 1)
    planes *= slide.lit
    wide = windows_of(boxes, context=CONTEXT, least=8.0)
    colour, lit = _look(planes, wide)
    background = _near_background(colour, lit, slide)
    outline = {row: mask for row, mask in enumerate(masks or ()) if mask is not None and mask.any()}
    found, rest = np.ones(len(boxes), bool), [row for row in range(len(boxes)) if row not in outline]
    corners, pitch = np.floor(boxes[:, :2]).astype(np.float64), np.ones(len(boxes))
    if rest:
        corners[rest], pitch[rest] = wide[rest, :2] - wide[rest, 2:3] / 2, wide[rest, 2] / GRID
        segmented, found[rest] = _segment(colour[rest], lit[rest], background[rest], slide, boxes[rest])
        outline.update(zip(rest, segmented, strict=True))
    outlines = [outline[row] for row in range(len(boxes))]
    windows = _tight(outlines, corners, pitch)
    close, _ = _look(planes, windows)
    mask = sample_masks(outlines, corners, pitch, windows, GRID)
    return Views(colour=close, mask=mask, background=background, windows=windows, segmented=found)


def _look(
    planes: Float32[np.ndarray, "4 H W"], windows: Float[np.ndarray, "N 4"]
) -> tuple[Float32[np.ndarray, "N G G 3"], Float32[np.ndarray, "N G G"]]:
    """Colour of each footprint, averaged over its lit part, and how much is lit and inside the image."""
    seen = sample_windows(planes, windows, GRID)
    colour = seen[..., :3] / np.maximum(seen[..., 3:], 1e-3)
    return colour, seen[..., 3] * _inside(windows, planes.shape[1:])


def _inside(windows: Float[np.ndarray, "N 4"], shape: tuple[int, ...]) -> Bool[np.ndarray, "N G G"]:
    """Which grid pixels lie in the image (windows are not turned here)."""
    steps = ((np.arange(GRID) + 0.5) / GRID - 0.5) * windows[:, 2, None]
    x, y = windows[:, 0, None] + steps, windows[:, 1, None] + steps
    return np.asarray(((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :])


def _near_background(
    colour: Float32[np.ndarray, "N G G 3"], lit: Float32[np.ndarray, "N G G"], slide: Slide
) -> Float32[np.ndarray, "N 3"]:
    """Uneven light: the median of the pixels nearby that are close to the slide's background, if any."""
    background = np.repeat(slide.background[None], len(colour), axis=0)
    if slide.masked:
        return background
    pale = (np.abs(density(colour, slide.background) @ WEIGHTS) < 0.12) & (lit > 0.9)
    for i in np.flatnonzero(pale.mean(axis=(1, 2)) > 0.05):
        background[i] = np.median(colour[i][pale[i]], axis=0)
    return background


def _disc(radius: float) -> Bool[np.ndarray, "G G"]:
    """A disc in the middle of the grid; radius 1 touches the sides of the box."""
    steps = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    return np.asarray(np.hypot(*np.meshgrid(steps, steps)) * CONTEXT <= radius)


def _ellipses(boxes: Float[np.ndarray, "N 4"]) -> Bool[np.ndarray, "N G G"]:
    """The ellipse in each box, seen through its window."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    share = np.maximum(sides / sides.max(axis=1, keepdims=True), 0.15)
    steps = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * CONTEXT / 0.95
    across, down = steps / share[:, :1], steps / share[:, 1:]
    return np.asarray(across[:, None, :] ** 2 + down[:, :, None] ** 2 <= 1)


def _segment(
    colour: Float32[np.ndarray, "N G G 3"],
    lit: Float32[np.ndarray, "N G G"],
    background: Float32[np.ndarray, "N 3"],
    slide: Slide,
    boxes: Float[np.ndarray, "N 4"],
) -> tuple[Bool[np.ndarray, "N G G"], Bool[np.ndarray, "N"]]:
    """Outline of the cell at the centre of each window, and whether one was found."""
    dense = density(colour, background[:, None, None]) @ WEIGHTS
    dark = lit > 0.5 if slide.masked else _darker(dense, lit)
    filled = _without_holes(dark, _disc(0.85))
    opened = ndimage.binary_opening(filled, FLAT, iterations=1 if slide.masked else 2)
    label, _ = ndimage.label(opened, FLAT)
    mask = np.stack([_central(plane) for plane in label]) if len(label) else opened
    if not slide.masked:
        mask = np.stack([_parted(one) if _leaves(one) else one for one in mask]) if len(mask) else mask
    share = mask.sum(axis=(1, 2)) / GRID**2
    found = (share > 0.03) & (share < 0.9)
    return np.where(found[:, None, None], mask, _ellipses(boxes)), found


def _darker(
    dense: Float32[np.ndarray, "N G G"], lit: Float32[np.ndarray, "N G G"]
) -> Bool[np.ndarray, "N G G"]:
    """Darker than 45 % of the cell's own rim, so that a darker neighbour does not set the threshold."""
    smooth = ndimage.gaussian_filter(dense, (0, 0.7, 0.7))
    level = np.quantile(smooth[:, _disc(0.65)], 0.75, axis=1) if len(smooth) else np.empty(0)
    return np.asarray((smooth > np.maximum(0.45 * level, 0.02)[:, None, None]) & (lit > 0.5))


def _without_holes(
    dark: Bool[np.ndarray, "N G G"], near: Bool[np.ndarray, "G G"] | None = None
) -> Bool[np.ndarray, "N G G"]:
    """Enclosed pale areas belong to the cell (pallor); with `near`, only those that lie mostly in there.

    The rest are gaps in a crowd of touching cells.
    """
    label, count = ndimage.label(~dark, FLAT)
    reaches = np.zeros(count + 1, bool)
    for edge in (label[:, 0], label[:, -1], label[:, :, 0], label[:, :, -1]):
        reaches[edge.ravel()] = True
    if near is not None:
        sizes = np.bincount(label.ravel(), minlength=count + 1)
        inside = np.bincount(label[:, near].ravel(), minlength=count + 1)
        reaches |= inside < 0.5 * sizes
    return np.asarray(dark | ~reaches[label])


_CORE = _disc(0.4)
_BORDER = ~np.pad(np.ones((GRID - 4, GRID - 4), bool), 2)


def _central(label: Int[np.ndarray, "G G"]) -> Bool[np.ndarray, "G G"]:
    """The component that covers most of the middle."""
    counts = np.bincount(label[_CORE])
    counts[0] = 0
    chosen = int(counts.argmax())
    return np.asarray((label == chosen) & (chosen > 0))


def _leaves(mask: Bool[np.ndarray, "G G"]) -> bool:
    """Whether the component runs into the border of the window: it holds a neighbour."""
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    return bool(edge > 4)


def _parted(mask: Bool[np.ndarray, "G G"]) -> Bool[np.ndarray, "G G"]:
    """The middle part of touching cells, by a watershed of the distance to the outline."""
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    peaks = peak_local_max(depth, min_distance=6, labels=mask.astype(np.int32), exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(2, len(peaks) + 2)
    # what runs into the border of the window belongs to the neighbours
    markers[mask & _BORDER] = 1
    pieces = watershed(-depth, markers, mask=mask)
    middle = _central(np.where(pieces > 1, pieces, 0))
    return np.asarray(_without_holes(middle[None])[0])


def _tight(
    outlines: list[Bool[np.ndarray, "_ _"]], corners: Float[np.ndarray, "N 2"], pitch: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N 4"]:
    """Windows round the outlines themselves, so that loose and tight boxes give the same view."""
    boxes = np.zeros((len(outlines), 4))
    for i, mask in enumerate(outlines):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
        boxes[i] = np.concatenate([corners[i] + low * pitch[i], corners[i] + high * pitch[i]])
    return windows_of(boxes, context=MARGIN)
