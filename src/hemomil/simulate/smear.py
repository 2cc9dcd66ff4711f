"""Where cells lie: scattered, touching, overlapping, pressed flat against each other, cut by the border.

Axes: N cells.
"""

from dataclasses import dataclass

import numpy as np

from hemomil.simulate.settings import FieldSettings


@dataclass(slots=True)
class Layout:
    """Centres and radii (pixels) of the cells laid so far, and the flat sides pressed into each."""

    x: list[float]
    y: list[float]
    radius: list[float]
    sides: list[list[tuple[float, float, float]]]


def lay(
    rng: np.random.Generator,
    radii: list[float],
    settings: FieldSettings,
    lying: tuple[tuple[float, float, float], ...] = (),
) -> Layout:
    """Lay cells one after another, beside those `lying` there already (x, y, radius), which come first.

    A cell for which no room is found after 30 tries gets radius 0.
    """
    x, y, r = (list(values) for values in zip(*lying, strict=True)) if lying else ([], [], [])
    layout = Layout(x=x, y=y, radius=r, sides=[[] for _ in lying])
    for radius in radii:
        place = _find_place(rng, radius, layout, settings)
        layout.sides.append([])
        layout.x.append(place[0] if place else 0.0)
        layout.y.append(place[1] if place else 0.0)
        layout.radius.append(radius if place else 0.0)
        if place:
            _press(rng, layout, settings)
    return layout


def _find_place(
    rng: np.random.Generator, radius: float, layout: Layout, settings: FieldSettings
) -> tuple[float, float] | None:
    height, width = settings.size
    touches = rng.random() < settings.touching
    laid = np.flatnonzero(np.asarray(layout.radius))
    others_x, others_y, others_r = (np.asarray(v)[laid] for v in (layout.x, layout.y, layout.radius))
    nearest = 1.0 - settings.overlap if touches else 1.03
    for _ in range(30):
        if touches and len(laid):
            x, y = _beside(rng, radius, int(rng.choice(laid)), layout, nearest)
        else:
            x, y = rng.uniform(-0.5 * radius, (width + 0.5 * radius, height + 0.5 * radius))
        if not (-0.6 * radius < x < width + 0.6 * radius and -0.6 * radius < y < height + 0.6 * radius):
            continue
        if np.all(np.hypot(others_x - x, others_y - y) >= nearest * (others_r + radius)):
            return float(x), float(y)
    return None


def _beside(
    rng: np.random.Generator, radius: float, other: int, layout: Layout, nearest: float
) -> tuple[float, float]:
    angle = rng.uniform(0, 2 * np.pi)
    apart = (layout.radius[other] + radius) * rng.uniform(nearest, 1.0)
    return layout.x[other] + apart * np.cos(angle), layout.y[other] + apart * np.sin(angle)


def _press(rng: np.random.Generator, layout: Layout, settings: FieldSettings) -> None:
    """Flatten the newest cell and those it reaches into, where a pair is pressed rather than laid over."""
    new = len(layout.x) - 1
    dx, dy = np.asarray(layout.x) - layout.x[new], np.asarray(layout.y) - layout.y[new]
    apart, total = np.hypot(dx, dy), np.asarray(layout.radius) + layout.radius[new]
    for other in np.nonzero((apart < 1.04 * total) & (apart > 0) & (np.asarray(layout.radius) > 0))[0]:
        if rng.random() >= settings.pressed:
            continue
        nx, ny = dx[other] / apart[other], dy[other] / apart[other]
        # a thin bright gap stays between pressed cells
        share = 0.97 * apart[other] / total[other]
        layout.sides[new].append((nx, ny, share * layout.radius[new]))
        layout.sides[other].append((-nx, -ny, share * layout.radius[other]))
