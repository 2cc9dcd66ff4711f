"""The classes of red cells: what each looks like, and how thick it is at every pixel.

A healthy red cell is the biconcave disc of Evans & Fung (1972, Microvasc Res 4:335): with s = r / radius its
thickness is sqrt(1 - s^2) (0.81 + 7.83 s^2 - 4.39 s^4) micrometres. Every other class deforms it: the outline
(stretched, bent, drawn out, spiculed, cut) or the profile (shallower, wider, filled, off-centre, with a bump).

Axes: H W pixels of the cell's own patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from hemomil.simulate.settings import FieldSettings

BICONCAVE = (0.81, 7.83, -4.39)
"""Evans & Fung's coefficients, micrometres, at 300 mOsm."""
PEAK = 2.55
"""Their thickest place, micrometres: the unit of thickness here."""
FILLED = 2.1
"""Height of a cell without pallor, micrometres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellShape:
    """Outline and profile of one cell, in units of the healthy radius."""

    label: str
    size: float = 1.0
    """Radius."""
    aspect: float = 1.0
    """Length over width, at equal area."""
    bend: float = 0.0
    """How far the ends curve to one side (sickle)."""
    pointed: float = 2.0
    """Exponent of the long axis: 2 ellipse, less: pointed ends."""
    tail: float = 0.0
    """How far one end is drawn out (tear-drop)."""
    spicules: int = 0
    spicule_height: float = 0.0
    irregularity: float = 0.0
    """Roughness of the outline, beyond the smear's."""
    cut: float | None = None
    """Where a straight line cuts the cell off (fragment)."""
    pallor: float = 1.0
    """Depth of the dimple: 0 none, 1 Evans & Fung."""
    pallor_width: float = 1.0
    slit: float = 1.0
    """Length over width of the dimple."""
    eccentric: float = 0.0
    """Offset of the dimple."""
    bump: float = 0.0
    """Height of a hill in the middle of the dimple (target)."""
    filled: float = FILLED
    steepness: float = 1.3
    """How flat-bottomed the dimple is: 1 Evans & Fung."""
    edge: float | None = None
    """Exponent of the rim's fall to zero: 0.5 a hemisphere; None: the smear's."""
    density: float = 1.0
    """Hemoglobin concentration."""


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _discocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="discocyte",
        aspect=_uniform(rng, 1.0, 1.13),
        pallor=_uniform(rng, 0.75, 1.05),
        pallor_width=_uniform(rng, 0.9, 1.05),
        eccentric=_uniform(rng, 0.0, 0.08),
        density=_uniform(rng, 0.93, 1.07),
    )


def _ovalocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(label="ovalocyte", aspect=_uniform(rng, 1.4, 2.2), pallor=_uniform(rng, 0.4, 0.95))


def _sickle(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="sickle",
        size=_uniform(rng, 0.78, 0.95),
        aspect=_uniform(rng, 2.6, 4.2),
        bend=_uniform(rng, 0.15, 0.6),
        pointed=_uniform(rng, 1.15, 1.5),
        pallor=_uniform(rng, 0.0, 0.25),
        density=_uniform(rng, 1.05, 1.3),
    )


def _target(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="target",
        size=_uniform(rng, 0.95, 1.12),
        aspect=_uniform(rng, 1.0, 1.15),
        pallor=_uniform(rng, 1.15, 1.4),
        pallor_width=_uniform(rng, 1.0, 1.12),
        bump=_uniform(rng, 0.75, 1.1),
        density=_uniform(rng, 0.8, 1.0),
    )


def _teardrop(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="teardrop",
        size=_uniform(rng, 0.75, 0.95),
        aspect=_uniform(rng, 1.0, 1.2),
        tail=_uniform(rng, 0.6, 1.3),
        pallor=_uniform(rng, 0.4, 1.0),
    )


def _microcyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="microcyte",
        size=_uniform(rng, 0.6, 0.76),
        aspect=_uniform(rng, 1.0, 1.15),
        pallor=_uniform(rng, 0.7, 1.1),
        density=_uniform(rng, 0.85, 1.0),
    )


def _macrocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="macrocyte",
        size=_uniform(rng, 1.2, 1.4),
        aspect=_uniform(rng, 1.0, 1.25),
        pallor=_uniform(rng, 0.3, 0.8),
    )


def _hypochromic(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="hypochromic",
        size=_uniform(rng, 0.85, 1.05),
        aspect=_uniform(rng, 1.0, 1.2),
        pallor=_uniform(rng, 1.2, 1.4),
        pallor_width=_uniform(rng, 1.12, 1.3),
        density=_uniform(rng, 0.5, 0.7),
    )


def _spherocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="spherocyte",
        size=_uniform(rng, 0.7, 0.84),
        aspect=_uniform(rng, 1.0, 1.05),
        pallor=0.0,
        filled=_uniform(rng, 3.0, 3.6),
        edge=0.5,
        density=_uniform(rng, 1.0, 1.15),
    )


def _stomatocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="stomatocyte",
        size=_uniform(rng, 0.95, 1.08),
        aspect=_uniform(rng, 1.0, 1.2),
        pallor=_uniform(rng, 1.0, 1.3),
        pallor_width=_uniform(rng, 0.42, 0.52),
        slit=_uniform(rng, 2.2, 3.4),
        steepness=1.0,
    )


def _echinocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="echinocyte",
        size=_uniform(rng, 0.82, 0.95),
        spicules=int(rng.integers(9, 17)),
        spicule_height=_uniform(rng, 0.08, 0.18),
        pallor=_uniform(rng, 0.0, 0.5),
        density=_uniform(rng, 1.0, 1.2),
    )


def _xerocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="xerocyte",
        size=_uniform(rng, 0.82, 0.95),
        aspect=_uniform(rng, 1.0, 1.3),
        irregularity=0.02,
        pallor=_uniform(rng, 0.7, 1.1),
        pallor_width=_uniform(rng, 0.5, 0.7),
        eccentric=_uniform(rng, 0.28, 0.45),
        bump=_uniform(rng, 0.0, 0.3),
        density=_uniform(rng, 1.3, 1.6),
    )


def _schistocyte(rng: np.random.Generator) -> CellShape:
    return CellShape(
        label="schistocyte",
        size=_uniform(rng, 0.7, 0.95),
        aspect=_uniform(rng, 1.0, 1.4),
        irregularity=0.03,
        cut=_uniform(rng, 0.0, 0.4),
        pallor=_uniform(rng, 0.0, 0.5),
    )


_CLASSES: dict[str, Callable[[np.random.Generator], CellShape]] = {
    "discocyte": _discocyte,
    "ovalocyte": _ovalocyte,
    "sickle": _sickle,
    "target": _target,
    "teardrop": _teardrop,
    "microcyte": _microcyte,
    "macrocyte": _macrocyte,
    "hypochromic": _hypochromic,
    "spherocyte": _spherocyte,
    "stomatocyte": _stomatocyte,
    "echinocyte": _echinocyte,
    "xerocyte": _xerocyte,
    "schistocyte": _schistocyte,
}
_GRADED = (
    *(
        "size",
        "aspect",
        "bend",
        "pointed",
        "tail",
        "spicule_height",
        "irregularity",
        "pallor",
        "pallor_width",
    ),
    *("slit", "eccentric", "bump", "filled", "steepness", "density"),
)
"""What may be more or less marked."""
CELL_CLASSES: tuple[str, ...] = tuple(_CLASSES)
"""Every class of red cell that can be drawn; the ordinary one first."""


def random_shape(rng: np.random.Generator, label: str, field: FieldSettings) -> CellShape:
    """A cell of class `label`, with the variation of its smear applied."""
    shape = _milder(_CLASSES[label](rng), _discocyte(rng), field.mildness * float(rng.random()))
    return replace(
        shape,
        size=shape.size * float(np.exp(rng.normal(0.0, field.anisocytosis))),
        irregularity=shape.irregularity + field.irregularity,
        pallor=shape.pallor * field.pallor,
        steepness=shape.steepness * float(np.exp(rng.normal(0.0, 0.15))),
        edge=field.edge if shape.edge is None else shape.edge,
    )


def _milder(shape: CellShape, ordinary: CellShape, share: float) -> CellShape:
    """The cell moved by `share` of the way to an ordinary one: what is measured of it, not its class."""

    def between(name: str) -> float:
        return float((1 - share) * getattr(shape, name) + share * getattr(ordinary, name))

    return replace(shape, **{name: between(name) for name in _GRADED})


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

    `radius` is the healthy radius in pixels. Each of `pressed` is a straight side (nx, ny, distance in pixels)
    that a neighbour presses into the outline.
    """
    px = radius * shape.size
    half = int(np.ceil(px * reach(shape))) + 1
    x, y = int(np.floor(centre[0])) - half, int(np.floor(centre[1])) - half
    span = np.arange(2 * half + 1, dtype=np.float32)
    dx, dy = (
        (span + np.float32(x + 0.5 - centre[0]))[None, :],
        (span + np.float32(y + 0.5 - centre[1]))[:, None],
    )
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
    return np.asarray(rim * np.clip(height, 0.12, None) * (shape.density / PEAK), dtype=np.float32)


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
