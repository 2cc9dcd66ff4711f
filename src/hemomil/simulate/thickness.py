"""How thick a red cell is at every pixel.

A healthy cell is the biconcave disc of Evans & Fung (1972, Microvasc Res 4:335): with s = r / radius its
thickness is sqrt(1 - s^2) (0.81 + 7.83 s^2 - 4.39 s^4) micrometres. Every other class deforms it: the
outline (stretched, bent, drawn out, spiculed, cut, pressed) or the profile (shallower, wider, filled,
off-centre, with a bump).

Axes: H W pixels of the cell's own patch.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from hemomil.simulate.shapes import CellShape

BICONCAVE = (0.81, 7.83, -4.39)
"""Evans & Fung's coefficients, micrometres, at 300 mOsm."""
PEAK = 2.55
"""Their thickest place, micrometres: the unit of thickness here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPatch:
    """A cell drawn on its own patch; the patch's corner may lie outside the image."""

    x: int
    y: int
    thickness: Float[np.ndarray, "H W"]
    """In units of the thickest place of a discocyte, times hemoglobin concentration."""
    mask: Bool[np.ndarray, "H W"]


def draw_cell(
    rng: np.random.Generator,
    shape: CellShape,
    centre: tuple[float, float],
    radius: float,
    pressed: tuple[tuple[float, float, float], ...] = (),
) -> CellPatch:
    """Draw a cell with its centre at `centre` (x, y in pixels), turned at random.

    `radius` is the healthy radius in pixels. Each of `pressed` is a straight side (nx, ny, distance in
    pixels) that a neighbour presses into the outline.
    """
    px = radius * shape.size
    half = int(np.ceil(px * reach(shape))) + 1
    x, y = int(np.floor(centre[0])) - half, int(np.floor(centre[1])) - half
    span = np.arange(2 * half + 1, dtype=np.float32)
    dx = (span + np.float32(x + 0.5 - centre[0]))[None, :]
    dy = (span + np.float32(y + 0.5 - centre[1]))[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    u = (dx * np.float32(np.cos(turn)) + dy * np.float32(np.sin(turn))) / np.float32(px)
    v = (dy * np.float32(np.cos(turn)) - dx * np.float32(np.sin(turn))) / np.float32(px)
    long, wide = _own_axes(shape, u, v)
    s = _outline(rng, shape, long, wide)
    if shape.cut is not None:
        s = _flattened(s, u / np.float32(shape.cut + 0.15))
    for nx, ny, distance in pressed:
        s = _flattened(s, (dx * np.float32(nx) + dy * np.float32(ny)) / np.float32(max(distance, 1.0)))
    return CellPatch(x=x, y=y, thickness=_profile(rng, shape, s, long, wide), mask=s < 1)


def reach(shape: CellShape) -> float:
    """How far the cell may extend from its centre, in its own radii."""
    stretch = max(shape.aspect, 1.0) ** 0.5
    return float(
        (stretch * (1 + shape.tail) + shape.bend) * (1 + 3 * shape.irregularity + shape.spicule_height)
    )


def _own_axes(
    shape: CellShape, u: Float[np.ndarray, "H W"], v: Float[np.ndarray, "H W"]
) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """Coordinates in which the outline is the unit circle, but for its roughness."""
    stretch = np.float32(shape.aspect**0.5)
    long = u / stretch
    wide = (v + np.float32(shape.bend) * (0.35 - long * long)) * stretch if shape.bend else v * stretch
    if shape.tail:
        ahead = np.clip(long, 0, None)
        long = np.where(long > 0, long / np.float32(1 + shape.tail), long)
        # a round body that narrows to a waist: width falls fastest half-way along the tail
        wide = wide / (0.18 + 0.82 / (1 + (ahead / np.float32(0.5 * (1 + shape.tail))) ** 4))
    return long.astype(np.float32), wide.astype(np.float32)


def _outline(
    rng: np.random.Generator, shape: CellShape, long: Float[np.ndarray, "H W"], wide: Float[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """Distance from the centre, 1 on the outline."""
    first = long * long if shape.pointed == 2 else np.abs(long) ** np.float32(shape.pointed)
    s = np.sqrt(first + wide * wide)
    angle = np.arctan2(wide, long)
    table = _roughness(rng, shape)
    return np.asarray(s / table[((angle + np.pi) * (len(table) / (2 * np.pi))).astype(np.int32) % len(table)])


def _roughness(rng: np.random.Generator, shape: CellShape, steps: int = 720) -> Float[np.ndarray, "_"]:
    """Radius of the outline at every half degree, 1 on average."""
    angle = np.linspace(-np.pi, np.pi, steps, endpoint=False)
    order = np.arange(2, 7)
    height = rng.normal(0, shape.irregularity, len(order)) / (order - 1)
    phase = rng.uniform(0, 2 * np.pi, len(order))
    radius = 1 + (height[:, None] * np.cos(order[:, None] * angle + phase[:, None])).sum(0)
    if shape.spicules:
        # jitter the spacing and height of spicules: crenation is never a cogwheel
        warp = angle + 0.25 * np.sin(angle + rng.uniform(0, 6)) * rng.uniform(0, 1)
        tooth = np.abs(np.cos(warp * shape.spicules / 2)) ** 2.5
        radius += shape.spicule_height * (tooth * (0.8 + 0.3 * np.sin(3 * angle + rng.uniform(0, 6))) - 0.3)
    return np.asarray(radius, dtype=np.float32)


def _flattened(s: Float[np.ndarray, "H W"], across: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The outline with one side pressed flat where `across` reaches 1; corners stay rounded."""
    return np.asarray((s**8 + np.clip(across, 0, 4) ** 8) ** np.float32(0.125))


def _profile(
    rng: np.random.Generator,
    shape: CellShape,
    s: Float[np.ndarray, "H W"],
    long: Float[np.ndarray, "H W"],
    wide: Float[np.ndarray, "H W"],
) -> Float[np.ndarray, "H W"]:
    """Thickness: the rim's fall to zero times a dimple that may be shallower, wider, slit or off-centre."""
    near = _dimple_square(rng, shape, s, long, wide)
    q2 = near ** np.float32(shape.steepness)
    depth = min(shape.pallor, 1.7)
    # a narrow dimple leaves a wide plateau where the rim hasn't begun to fall: keep its height at PEAK
    level = min(1.0, 0.6 / (1 - min(shape.pallor_width, 0.9) ** 2) ** 0.5)
    c0, c2, c4 = (depth * level * c for c in BICONCAVE)
    height = (c0 + (1 - depth) * shape.filled) + c2 * q2 + c4 * q2 * q2
    if shape.bump:
        height = height + shape.bump * PEAK * np.exp(-near / np.float32(0.10))
    rim = np.clip(1 - s * s, 0, None) ** np.float32(shape.edge or 0.5)
    return np.asarray(rim * np.clip(height, 0.25, None) * (shape.density / PEAK), dtype=np.float32)


def _dimple_square(
    rng: np.random.Generator,
    shape: CellShape,
    s: Float[np.ndarray, "H W"],
    long: Float[np.ndarray, "H W"],
    wide: Float[np.ndarray, "H W"],
) -> Float[np.ndarray, "H W"]:
    """Square of the distance from the dimple's centre: 1 where the profile stops rising."""
    if shape.slit == 1 and shape.eccentric < 0.1:
        return np.asarray(np.clip(s / np.float32(shape.pallor_width), 0, 1) ** 2)
    turn = rng.uniform(0, 2 * np.pi)
    a = long - np.float32(shape.eccentric * np.cos(turn))
    b = wide - np.float32(shape.eccentric * np.sin(turn))
    squeeze = np.float32(shape.slit**0.5)
    along, across = (
        (a / squeeze) / np.float32(shape.pallor_width),
        (b * squeeze) / np.float32(shape.pallor_width),
    )
    return np.asarray(np.clip(along * along + across * across, 0, 0.9))
