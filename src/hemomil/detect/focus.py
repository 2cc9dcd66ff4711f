"""How sharp is this image? The width of the edges of its cells, in cell diameters.

Axes: N cells, K points of an outline, S samples across it, from inside to outside.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage
from skimage.measure import find_contours

from hemomil.detect.examples import outer
from hemomil.types import Detections

POINTS = 48
"""Of an outline, evenly spaced."""
INSIDE, OUTSIDE, SAMPLES = 0.3, 0.25, 56
"""How far a profile reaches from the outline to either side, in diameters, and its samples."""
MARGIN = 0.1
"""Neighbours nearer than this, in diameters, are seen in the profile."""
STEP, ALONG = 0.03, 2.0
"""Blur where the steepest place of a profile is sought: across in diameters, along the outline in points."""
MOST = 200
"""Cells that are measured; more tell no more."""
CHUNK = 512
"""Cells that are compared with all others at once."""
LEAST_CONTRAST = 4.0
"""Grey levels; a fainter outline has no edge to measure."""


def edge_width(image: UInt8[np.ndarray, "H W 3"], detections: Detections) -> float:
    """Median over cells of the width of their edge, in diameters of the cell; NaN if none can be measured.

    The width is contrast over steepest gradient, of the mean profile across the outline; for a sharp step
    blurred by a Gaussian it is 2.5 standard deviations, about the rise from 10 to 90 %. Relative to the
    diameter it does not depend on magnification, and as a ratio neither on stain nor on contrast.

    Only cells that lie free decide: whole in the image, no other box near. Where there is none, all cells
    that are whole do; where there is none of these, all. Cells are darker than the slide; without masks, each
    is taken for the ellipse in its box.

    Notes
    -----
    The round rim of a cell counts as width too: 0.04 remains in a perfectly sharp image, more without
    pallor. Pixels blur as well: cells of few pixels are never sharp.
    """
    chosen = _deciding(detections.boxes, image.shape)
    if not len(chosen):
        return float("nan")
    outlines = [_outline(detections, row) for row in chosen.tolist()]
    points_NK2 = np.stack([points for points, _ in outlines])
    diameters = np.array([diameter for _, diameter in outlines])
    profiles = _profiles(image, points_NK2, diameters)
    widths = _widths(profiles)
    return float(np.nanmedian(widths)) if np.isfinite(widths).any() else float("nan")


def _deciding(boxes: Float[np.ndarray, "N 4"], shape: tuple[int, ...]) -> np.ndarray:
    """Rows of the cells that decide, at most MOST, evenly from all."""
    limit = np.array([shape[1], shape[0]])
    whole = np.asarray((boxes[:, :2] >= 1).all(axis=1) & (boxes[:, 2:] <= limit - 1).all(axis=1))
    alone = whole.copy()
    alone[whole] = ~_crowded(boxes[whole], boxes)
    rows = next((np.flatnonzero(some) for some in (alone, whole) if some.any()), np.arange(len(boxes)))
    return np.asarray(rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)])


def _crowded(boxes: Float[np.ndarray, "N 4"], others: Float[np.ndarray, "M 4"]) -> Bool[np.ndarray, "N"]:
    """Does another box come near?"""
    reach = MARGIN * np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[:, None]
    low, high = boxes[:, :2] - reach, boxes[:, 2:] + reach
    crowded = np.zeros(len(boxes), bool)
    for at in range(0, len(boxes), CHUNK):
        part = slice(at, at + CHUNK)
        near = (low[part, None] < others[None, :, 2:]) & (others[None, :, :2] < high[part, None])
        crowded[part] = near.all(axis=2).sum(axis=1) > 1  # every box is near itself
    return crowded


def _outline(detections: Detections, row: int) -> tuple[Float[np.ndarray, "K 2"], float]:
    """Points x y along the outline of a cell in the image, and the diameter of its area, pixels."""
    box = detections.boxes[row]
    mask = detections.masks[row] if detections.masks is not None else None
    if mask is None or mask.sum() < 4:
        return _ellipse(box), float(np.sqrt(np.prod(box[2:] - box[:2])))
    smooth = ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float32), np.sqrt(mask.sum()) / 30)
    contours = find_contours(smooth, 0.5)
    if not contours:
        return _ellipse(box), float(np.sqrt(np.prod(box[2:] - box[:2])))
    around = max(contours, key=len)[:, ::-1] - 1.5  # pixel centres, padded by 2, to pixel edges
    corner = outer(box[None])[0, :2]
    return _evenly(around) + corner, float(np.sqrt(4 / np.pi * mask.sum()))


def _ellipse(box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "K 2"]:
    angle = np.arange(POINTS) * 2 * np.pi / POINTS
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray((box[:2] + box[2:]) / 2 + circle * (box[2:] - box[:2]) / 2, np.float64)


def _evenly(around: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "K 2"]:
    """The same closed line by K points at even distances."""
    length = np.concatenate([[0], np.linalg.norm(np.diff(around, axis=0), axis=1).cumsum()])
    at = np.arange(POINTS) * length[-1] / POINTS
    return np.stack([np.interp(at, length, axis) for axis in around.T], axis=1)


def _profiles(
    image: UInt8[np.ndarray, "H W 3"],
    points: Float[np.ndarray, "N K 2"],
    diameters: Float[np.ndarray, "N"],
) -> Float32[np.ndarray, "N K S"]:
    """Light across the outline, in the channel where cells and slide differ most; 255 is white."""
    steps = np.linspace(-INSIDE, OUTSIDE, SAMPLES)[:, None] * diameters[:, None, None, None]
    places = points[:, :, None] + _normals(points)[:, :, None] * steps - 0.5  # centres of pixels are whole
    grid = [places[..., 1], places[..., 0]]
    light = np.stack(
        [ndimage.map_coordinates(image[..., c], grid, np.float32, order=1, mode="nearest") for c in range(3)]
    )
    contrast = np.median(light[..., -1] - light[..., : SAMPLES // 2].min(axis=-1), axis=(1, 2))
    return np.asarray(light[int(np.argmax(contrast))])


def _normals(points: Float[np.ndarray, "N K 2"]) -> Float[np.ndarray, "N K 2"]:
    """Unit vectors that point out of closed lines."""
    along = np.roll(points, -1, axis=1) - np.roll(points, 1, axis=1)
    normal = np.stack([along[..., 1], -along[..., 0]], axis=-1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    outwards = ((points - points.mean(axis=1, keepdims=True)) * normal).sum(axis=(1, 2)) > 0
    return np.where(outwards[:, None, None], normal, -normal)


def _widths(profiles: Float32[np.ndarray, "N K S"]) -> Float[np.ndarray, "N"]:
    """Contrast over steepest gradient of each cell, in diameters; NaN where there is no contrast."""
    pitch = (INSIDE + OUTSIDE) / (SAMPLES - 1)
    mean = _aligned(profiles, STEP / pitch).mean(axis=1)
    slope = np.diff(mean, axis=1) / pitch
    edge = slope.argmax(axis=1)
    place = np.arange(SAMPLES)
    dark = np.where(place <= edge[:, None], mean, np.inf).min(axis=1)
    bright = np.where(place > edge[:, None], mean, -np.inf).max(axis=1)
    contrast = bright - dark
    return np.where(contrast > LEAST_CONTRAST, contrast / np.maximum(slope.max(axis=1), 1e-6), np.nan)


def _aligned(profiles: Float32[np.ndarray, "N K S"], sigma: float) -> Float32[np.ndarray, "N K S"]:
    """Profiles shifted so that their steepest places meet: outlines are not exact to the pixel."""
    smooth = ndimage.gaussian_filter1d(profiles, ALONG, axis=1, mode="wrap")
    steep = ndimage.gaussian_filter1d(smooth, sigma, axis=2, order=1)
    middle = round(INSIDE / (INSIDE + OUTSIDE) * (SAMPLES - 1))
    far = SAMPLES // 5
    shift = steep[..., middle - far : middle + far + 1].argmax(axis=2)[..., None] - far
    places = np.clip(np.arange(SAMPLES) + shift, 0, SAMPLES - 1)
    return np.asarray(np.take_along_axis(profiles, places, axis=2))
