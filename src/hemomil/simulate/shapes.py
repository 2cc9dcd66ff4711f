"""The classes of red cells: what each looks like, as an outline and a profile more or less marked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hemomil.simulate.settings import CellClass, FieldSettings

FILLED = 2.1
"""Height of a cell without pallor, micrometres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellShape:
    """Outline and profile of one cell, in units of the healthy radius."""

    label: CellClass
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


_CLASSES: dict[CellClass, Callable[[np.random.Generator], CellShape]] = {
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


def random_shape(rng: np.random.Generator, label: CellClass, field: FieldSettings) -> CellShape:
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

    between: dict[str, Any] = {
        name: (1 - share) * getattr(shape, name) + share * getattr(ordinary, name) for name in _GRADED
    }
    return replace(shape, **between)
