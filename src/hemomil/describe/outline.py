"""Size and outline of a cell, from its contour at sub-pixel precision.

Axes: P = POINTS points along a contour, G grid pixels a side. The contour is a closed polygon (x, y).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import find_contours

POINTS = 128
SIZE_NAMES = (
    "equivalent_diameter_px",
    "perimeter_px",
    "feret_max_px",
    "feret_min_px",
    "box_width_px",
    "box_height_px",
    "box_fill",
)
OUTLINE_NAMES = (
    "circularity",
    "solidity",
    "eccentricity",
    "feret_ratio",
    "concavity_depth",
    "radius_cv",
    "radius_min",
    "radius_max",
    "fourier_2",
    "fourier_3",
    "fourier_4",
    "fourier_5_8",
    "fourier_9_20",
    "curvature_max",
    "curvature_min",
    "spikes",
    "taper",
    "point_asymmetry",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What one contour measures, in grid pixels."""

    area: float
    perimeter: float
    feret_max: float
    feret_min: float
    angle: float
    """Of the long axis against the x axis, radians."""
    values: Float[np.ndarray, "O"]
    """As OUTLINE_NAMES, free of scale."""


def contour_of(mask: Bool[np.ndarray, "G G"]) -> Float[np.ndarray, "P 2"]:
    """The outer contour of the largest piece, smoothed by a pixel, at equal steps along its length."""
    soft = ndimage.gaussian_filter(np.pad(mask, 3).astype(np.float32), 1.0)
    found = find_contours(soft, 0.5)
    if not found or len(longest := max(found, key=len)) < 8:
        return _circle(mask)
    points = longest[:, ::-1] - 2.5
    along = np.concatenate([[0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    steps = np.linspace(0, along[-1], POINTS, endpoint=False)
    return np.column_stack([np.interp(steps, along, points[:, axis]) for axis in (0, 1)])


def _circle(mask: Bool[np.ndarray, "G G"]) -> Float[np.ndarray, "P 2"]:
    """A circle of the mask's area, where the mask is too thin for a contour."""
    turn = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    centre = np.array(mask.shape[::-1]) / 2
    radius = np.sqrt(max(int(mask.sum()), 1) / np.pi)
    circle: np.ndarray = centre + radius * np.column_stack([np.cos(turn), np.sin(turn)])
    return circle


def outline_of(mask: Bool[np.ndarray, "G G"]) -> Outline:
    """Measure one mask."""
    points = contour_of(mask)
    area, centre, inertia = polygon_moments(points)
    moments, axes = np.linalg.eigh(inertia)
    minor, major = 4 * np.sqrt(np.maximum(moments, 1e-6))
    hull = _hull(points)
    perimeter, hull_area = _length(points), max(abs(_shoelace(hull)), 1e-6)
    widths = _widths(hull)
    diameter = np.sqrt(4 * area / np.pi)
    arms = np.hypot(*(points - centre).T) / (diameter / 2)
    along = (points - centre) @ axes[:, 1]
    curvature = _curvature(points, diameter / 2)
    values = [
        min(4 * np.pi * area / perimeter**2, 1.0),
        min(area / hull_area, 1.0),
        np.sqrt(max(1 - (minor / major) ** 2, 0.0)),
        widths.min() / widths.max(),
        _deepest_bay(points, hull) / diameter,
        arms.std(),
        arms.min(),
        arms.max(),
        *_fourier(points),
        curvature.max(),
        curvature.min(),
        _spikes(curvature),
        abs(along.max() + along.min()) / max(float(np.ptp(along)), 1e-6),
        _point_asymmetry(mask, centre),
    ]
    return Outline(
        area=area,
        perimeter=perimeter,
        feret_max=float(widths.max()),
        feret_min=float(widths.min()),
        angle=float(np.arctan2(axes[1, 1], axes[0, 1])),
        values=np.array(values),
    )


def size_values(outline: Outline, pitch: float, box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "Z"]:
    """As SIZE_NAMES, in image pixels; `pitch` is image pixels per grid pixel."""
    area = outline.area * pitch**2
    width, height = np.maximum(box[2:] - box[:2], 1e-3)
    return np.array(
        [
            np.sqrt(4 * area / np.pi),
            outline.perimeter * pitch,
            outline.feret_max * pitch,
            outline.feret_min * pitch,
            width,
            height,
            min(area / (width * height), 2.0),
        ]
    )


def polygon_moments(
    points: Float[np.ndarray, "P 2"],
) -> tuple[float, Float[np.ndarray, "2"], Float[np.ndarray, "2 2"]]:
    """Area, centroid and covariance of the area inside a polygon (Green's theorem; Steger 1996)."""
    shift = points.mean(axis=0)
    x, y = (points - shift).T
    u, v = np.roll(x, -1), np.roll(y, -1)
    cross = x * v - u * y
    area = cross.sum() / 2
    if abs(area) < 1e-6:
        return 1e-6, shift, np.eye(2) * 1e-6
    centre = np.array([((x + u) * cross).sum(), ((y + v) * cross).sum()]) / (6 * area)
    xx = ((x * x + x * u + u * u) * cross).sum() / (12 * area) - centre[0] ** 2
    yy = ((y * y + y * v + v * v) * cross).sum() / (12 * area) - centre[1] ** 2
    xy = ((x * v + 2 * x * y + 2 * u * v + u * y) * cross).sum() / (24 * area) - centre[0] * centre[1]
    return abs(float(area)), centre + shift, np.array([[xx, xy], [xy, yy]])


def _shoelace(points: Float[np.ndarray, "M 2"]) -> float:
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _length(points: Float[np.ndarray, "M 2"]) -> float:
    return float(np.hypot(*(np.roll(points, -1, axis=0) - points).T).sum())


def _hull(points: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "M 2"]:
    """Corners of the convex hull; the points themselves where they lie on a line."""
    try:
        hull: np.ndarray = points[ConvexHull(points).vertices]
    except QhullError:
        return points
    return hull


def _widths(hull: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "D"]:
    """Caliper widths in 36 directions."""
    turn = np.linspace(0, np.pi, 36, endpoint=False)
    cast = hull @ np.stack([np.cos(turn), np.sin(turn)])
    return np.asarray(np.maximum(np.ptp(cast, axis=0), 1e-3))


def _deepest_bay(points: Float[np.ndarray, "P 2"], hull: Float[np.ndarray, "M 2"]) -> float:
    """How far the contour lies inside its hull, at most."""
    edge = np.roll(hull, -1, axis=0) - hull
    normal = np.stack([-edge[:, 1], edge[:, 0]]) / np.maximum(np.hypot(*edge.T), 1e-9)
    distance = np.abs(points @ normal - (hull * normal.T).sum(axis=1))
    return float(distance.min(axis=1).max())


def _curvature(points: Float[np.ndarray, "P 2"], radius: float) -> Float[np.ndarray, "P"]:
    """Turning per length along the contour, smoothed: 1 on a circle of this radius, negative in a bay."""
    step = _length(points) / POINTS
    smooth = ndimage.gaussian_filter1d(points, 3.0, axis=0, mode="wrap")
    dx, dy = ((np.roll(smooth, -1, axis=0) - np.roll(smooth, 1, axis=0)) / (2 * step)).T
    ddx, ddy = ((np.roll(smooth, -1, axis=0) - 2 * smooth + np.roll(smooth, 1, axis=0)) / step**2).T
    sign = np.sign(_shoelace(points)) or 1.0
    bend: np.ndarray = radius * sign * (dx * ddy - dy * ddx) / np.maximum((dx**2 + dy**2) ** 1.5, 1e-3)
    return np.asarray(np.clip(bend, -10, 10))


def _spikes(curvature: Float[np.ndarray, "P"]) -> float:
    """How many corners bend twice as much as a circle of the same area, and more than both neighbours."""
    left, right = np.roll(curvature, 1), np.roll(curvature, -1)
    return float(((curvature > 2) & (curvature >= left) & (curvature > right)).sum())


def _fourier(points: Float[np.ndarray, "P 2"]) -> list[float]:
    """Amplitudes of elliptic Fourier descriptors, as shares of the first: two lobes, three, ever finer."""
    terms = np.abs(np.fft.fft(points[:, 0] + 1j * points[:, 1]))
    first = max(terms[1], terms[-1], 1e-9)
    pair = np.hypot(terms[1:22], terms[-1:-22:-1]) / first
    bands = [pair[1], pair[2], pair[3], np.linalg.norm(pair[4:8]), np.linalg.norm(pair[8:20])]
    return [float(band) for band in bands]


def _point_asymmetry(mask: Bool[np.ndarray, "G G"], centre: Float[np.ndarray, "2"]) -> float:
    """Share of the mask that a half turn about its centroid does not map onto itself."""
    rows, columns = np.nonzero(mask)
    turned_row = np.rint(2 * (centre[1] - 0.5) - rows).astype(int)
    turned_column = np.rint(2 * (centre[0] - 0.5) - columns).astype(int)
    inside = (
        (turned_row >= 0)
        & (turned_row < mask.shape[0])
        & (turned_column >= 0)
        & (turned_column < mask.shape[1])
    )
    kept = mask[turned_row[inside], turned_column[inside]].sum()
    return 1 - float(kept) / max(len(rows), 1)
