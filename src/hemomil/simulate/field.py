"""One microscope field of a smear: red cells and what else lies there, photographed, with the truth of each.

Axes: N red cells, M distractors, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
from jaxtyping import Bool, Float, UInt8

from hemomil.simulate.camera import field_stop, focus, photograph, transmittance
from hemomil.simulate.distractors import Distractor, artefact, inclusion, platelet, white_cell
from hemomil.simulate.settings import RGB, FieldSettings
from hemomil.simulate.shapes import random_shape
from hemomil.simulate.smear import lay
from hemomil.simulate.thickness import CellPatch, draw_cell

VISIBLE = 0.2
"""A cell of which less than this share lies in the picture is in the picture but not in the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A simulated photograph and its truth; row i is the same cell in boxes, masks and labels."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "N 4"]
    """x0 y0 x1 y1 of red cells in pixels, half-open, whole numbers, inside the image."""
    masks: tuple[Bool[np.ndarray, "_ _"], ...]
    """Each cut to its box; where cells overlap, both masks hold the overlap."""
    labels: tuple[str, ...]
    """Class of each red cell, of CELL_CLASSES."""
    distractor_boxes: Float[np.ndarray, "M 4"]
    distractor_masks: tuple[Bool[np.ndarray, "_ _"], ...]
    distractor_labels: tuple[str, ...]
    """`platelet`, `white_cell` or `artefact`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What of one thing can be seen."""

    label: str
    box: tuple[int, int, int, int]
    mask: Bool[np.ndarray, "_ _"]


def draw_field(rng: np.random.Generator, field: FieldSettings) -> Field:
    """Draw one field; the same generator state and settings give the same bytes."""
    lying, white = _white_cells(rng, field)
    cells = _red_cells(rng, field, lying)
    others = white + _small_things(rng, field)
    absorbance = _absorbance(rng, field, cells, others)
    passed = focus(transmittance(absorbance * np.float32(field.stain.concentration)), field.optics)
    image = photograph(rng, passed, field.light, field.camera)
    lit = field_stop(field.size, field.light)
    red = [t for label, c in cells if (t := _truth(label, c.x, c.y, c.mask, lit))]
    rest = [t for o in others if (t := _truth(o.label, o.x, o.y, o.mask, lit))]
    return Field(
        image=image,
        boxes=_boxes(red),
        masks=tuple(t.mask for t in red),
        labels=tuple(t.label for t in red),
        distractor_boxes=_boxes(rest),
        distractor_masks=tuple(t.mask for t in rest),
        distractor_labels=tuple(t.label for t in rest),
    )


def _boxes(truths: list[Truth]) -> Float[np.ndarray, "N 4"]:
    return np.array([t.box for t in truths], dtype=np.float32).reshape(-1, 4)


def _red_cells(
    rng: np.random.Generator, field: FieldSettings, lying: tuple[tuple[float, float, float], ...]
) -> list[tuple[str, CellPatch]]:
    """Red cells, laid beside what is `lying` there (x, y, radius)."""
    names = tuple(field.mix)
    share = np.array([field.mix[name] for name in names], dtype=float)
    labels = [names[i] for i in rng.choice(len(names), size=field.cells, p=share / share.sum())]
    shapes = [random_shape(rng, label, field) for label in labels]
    layout = lay(rng, [field.diameter / 2 * shape.size for shape in shapes], field, lying)
    places = list(zip(layout.x, layout.y, layout.radius, layout.sides, strict=True))[len(lying) :]
    return [
        (shape.label, draw_cell(rng, shape, (x, y), field.diameter / 2, tuple(sides)))
        for shape, (x, y, radius, sides) in zip(shapes, places, strict=True)
        if radius
    ]


def _places(rng: np.random.Generator, field: FieldSettings, expected: float) -> list[tuple[float, float]]:
    height, width = field.size
    return [
        (float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(rng.poisson(expected))
    ]


def _white_cells(
    rng: np.random.Generator, field: FieldSettings
) -> tuple[tuple[tuple[float, float, float], ...], list[Distractor]]:
    """Where white cells lie (x, y, radius), and what they look like."""
    places = _places(rng, field, field.white_cells)
    lying = tuple((x, y, field.diameter / 2 * float(rng.uniform(1.15, 2.0))) for x, y in places)
    return lying, [white_cell(rng, field.stain, size, x, y) for x, y, size in lying]


def _small_things(rng: np.random.Generator, field: FieldSettings) -> list[Distractor]:
    kinds = ((platelet, field.platelets), (artefact, field.artefacts))
    return [
        draw(rng, field.stain, field.diameter / 2, x, y)
        for draw, expected in kinds
        for x, y in _places(rng, field, expected)
    ]


def _absorbance(
    rng: np.random.Generator,
    field: FieldSettings,
    cells: list[tuple[str, CellPatch]],
    others: list[Distractor],
) -> Float[np.ndarray, "H W 3"]:
    """Everything the light passes through, added up; thicknesses add (`overlay`) where cells overlap."""
    thickness = np.zeros(field.size, np.float32)
    chromatin = np.zeros(field.size, np.float32)
    for _, cell in cells:
        window, part = _overlap(cell.x, cell.y, cell.mask.shape, field.size)
        below, above = thickness[window], cell.thickness[part]
        thickness[window] = np.maximum(below, above) + np.float32(field.overlay) * np.minimum(below, above)
        inside = cell.mask[part]
        if field.inclusions and rng.random() < field.inclusions and inside.any():
            chromatin[window] += inclusion(rng, inside.shape, inside, field.diameter / 2)
    if field.texture:
        thickness *= 1 + np.float32(field.texture) * _mottling(rng, field.size, max(field.diameter / 40, 0.7))
    stain = field.stain
    absorbance = thickness[..., None] * _colour(stain.hemoglobin) + chromatin[..., None] * _colour(
        stain.nucleus
    )
    absorbance += _colour(stain.plasma)
    if field.dirt:
        uneven = np.clip(_mottling(rng, field.size, field.diameter / 3), 0, None)[..., None]
        absorbance += uneven * (np.float32(field.dirt) * _colour(stain.cytoplasm))
    for other in others:
        window, part = _overlap(other.x, other.y, other.mask.shape, field.size)
        absorbance[window] += other.absorbance[part]
    return np.asarray(absorbance)


def _colour(absorbance: RGB) -> Float[np.ndarray, "3"]:
    return np.array(absorbance, dtype=np.float32)


def _mottling(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> Float[np.ndarray, "H W"]:
    """Smooth noise of unit standard deviation, drawn coarse and enlarged where it is smooth."""
    step = max(1, int(sigma))
    coarse = rng.standard_normal((size[0] // step + 2, size[1] // step + 2), dtype=np.float32)
    coarse = ndi.gaussian_filter(coarse, sigma / step)
    coarse /= coarse.std() + 1e-6
    fine = ndi.zoom(coarse, step, order=1) if step > 1 else coarse
    return np.asarray(fine[: size[0], : size[1]])


def _overlap(
    x: int, y: int, shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the image that a patch covers, and the part of the patch that lies in the image."""
    y0, y1 = max(y, 0), max(min(y + shape[0], size[0]), 0)
    x0, x1 = max(x, 0), max(min(x + shape[1], size[1]), 0)
    y0, x0 = min(y0, y1), min(x0, x1)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _truth(
    label: str, x: int, y: int, mask: Bool[np.ndarray, "H W"], lit: Bool[np.ndarray, "A B"]
) -> Truth | None:
    """The visible part of a thing, or None where too little of it is seen."""
    window, part = _overlap(x, y, mask.shape, (lit.shape[0], lit.shape[1]))
    seen = mask[part] & lit[window]
    if seen.sum() < max(VISIBLE * mask.sum(), 4):
        return None
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    top, left = window[0].start, window[1].start
    box = (left + x0, top + y0, left + x1, top + y1)
    return Truth(label=label, box=box, mask=seen[y0:y1, x0:x1].copy())
