"""Find red cells without a network: a threshold against the glass, and a watershed where cells touch.

Lengths are given in cell diameters, so that nothing depends on the magnification.
Axes: N cells, H W pixels. Boxes are x0 y0 x1 y1 in pixels of the image, half-open.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import reconstruction
from skimage.segmentation import watershed
from torchvision.ops import nms

from hemomil.detect.examples import Mask
from hemomil.detect.scale import guess_diameter, resize
from hemomil.detect.settings import DetectSettings
from hemomil.detect.tiles import Tiles, in_core, lay_tiles
from hemomil.lit import BLACK, is_lit
from hemomil.types import Detections

ALGORITHM = "threshold-1"
"""Name and version; the number rises whenever the same image would give other cells."""
COARSE = 16.0
"""Cell diameter, in pixels, of the small picture in which glass and level are estimated."""
COARSE_SIDE = 2048
"""Longest side of the small picture: bounds its memory."""
FITTED, PASSES = 20_000, 3
"""Pixels that the surface of the light is fitted to, and how often glass and light are told apart anew."""
LEAST_LEVEL = 0.02
"""Share of the light that is missing where cells begin, at least; below it there is nothing to see."""
LEAST_GAP = 2.8
"""Glass and cells lie this many standard deviations apart; the halves of one bell curve do by 2.65."""
LEAST_SURE = 1.3
"""The same, times the coherence of what is dark: below it, it is noise."""
SMOOTH = 1 / 60
"""Blur before the threshold, of the outline after it, and of the depth, in diameters."""
OUTLINE = 1 / 30
DEPTH = 1 / 20
GRID = 24
"""Pixels of a cell's diameter on which the tops of the depth are sought."""
STEEP = 0.02
"""How deep the waist between two cells is, at least, in diameters of the depth map."""
PALLOR = 0.6
"""Largest hole that is pallor, as a share of a cell."""
TINY = 0.02
"""A hole that is filled whatever its form."""
GAP = 0.8
"""A hole less convex than this is a gap between cells that touch."""
SPECK = 0.15
"""Smaller things, as a share of a typical cell, are specks and platelets."""
THIN = 3
"""Pixels that a cell is wide and high, at least."""
ENOUGH, TOLERANCE = 5, 1.25
"""This many cells correct the guess of their diameter if it was off by more than this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Glass:
    """The image without its cells, and where cells begin."""

    light: Float32[np.ndarray, "3 h w"]
    """Of the empty slide, in a small picture."""
    channel: int
    """In which cells stand out most."""
    level: float
    """Share of the light that is missing where a cell begins."""
    diameter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """What may be cells; row i is the same piece everywhere."""

    boxes: Float32[np.ndarray, "N 4"]
    areas: Float32[np.ndarray, "N"]
    solidity: Float32[np.ndarray, "N"]
    """Share of the convex hull that is filled."""
    colour: Float32[np.ndarray, "N 3"]
    """Share of the light of each channel that is missing, on average."""
    masks: tuple[Mask, ...]

    def rows(self, rows: Int[np.ndarray, "_"]) -> "_Pieces":
        return _Pieces(
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            solidity=self.solidity[rows],
            colour=self.colour[rows],
            masks=tuple(self.masks[i] for i in rows),
        )

    def __add__(self, other: "_Pieces") -> "_Pieces":
        return _Pieces(
            boxes=np.concatenate([self.boxes, other.boxes]),
            areas=np.concatenate([self.areas, other.areas]),
            solidity=np.concatenate([self.solidity, other.solidity]),
            colour=np.concatenate([self.colour, other.colour]),
            masks=self.masks + other.masks,
        )


_NONE = _Pieces(
    boxes=np.zeros((0, 4), np.float32),
    areas=np.zeros(0, np.float32),
    solidity=np.zeros(0, np.float32),
    colour=np.zeros((0, 3), np.float32),
    masks=(),
)


class ThresholdDetector:
    """Otsu's threshold and a watershed, with the face of `Detector`; it has no RoI maps to give."""

    classes = ("red cell",)
    fingerprint = ALGORITHM

    def __init__(self, *, settings: DetectSettings | None = None) -> None:
        self.settings = settings or DetectSettings()

    def with_settings(self, settings: DetectSettings) -> "ThresholdDetector":
        """The same algorithm, applied otherwise."""
        return ThresholdDetector(settings=settings)

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """The cells of an image of any size, by rising y0, then x0."""
        diameter = self.settings.diameter or guess_diameter(image)
        if diameter is None:
            return _detections(_NONE, np.zeros(0, np.float32))
        pieces = self._search(image, diameter)
        if self.settings.diameter is None and (better := _corrected(diameter, pieces)) != diameter:
            pieces = self._search(image, better)
        return self._chosen(pieces)

    def _search(self, image: UInt8[np.ndarray, "H W 3"], diameter: float) -> _Pieces:
        """Everything that may be a cell of about this diameter, tile by tile."""
        glass = _find_glass(image, diameter)
        if glass is None:
            return _NONE
        tiles = self._lay(image, diameter)
        parts = [_search_tile(image, glass, tiles, row) for row in range(len(tiles.corners))]
        return reduce(lambda a, b: a + b, parts, _NONE)

    def _lay(self, image: UInt8[np.ndarray, "H W 3"], diameter: float) -> Tiles:
        overlap = max(self.settings.overlap, round(2 * diameter))
        side = max(self.settings.tile, round(12 * diameter))
        return lay_tiles(image.shape[0], image.shape[1], side, overlap)

    def _chosen(self, pieces: _Pieces) -> Detections:
        """What scores well enough, each cell once, in reading order."""
        scores = _scores(pieces)
        good = np.flatnonzero(scores >= self.settings.score_threshold)
        boxes, ranks = torch.from_numpy(pieces.boxes[good]), torch.from_numpy(scores[good])
        once = nms(boxes, ranks, self.settings.nms_iou).numpy()
        kept = good[once[: self.settings.max_cells]]
        kept = kept[np.lexsort(pieces.boxes[kept, :2].T)]
        return _detections(pieces.rows(kept), scores[kept])


def _detections(pieces: _Pieces, scores: Float32[np.ndarray, "N"]) -> Detections:
    return Detections(boxes=pieces.boxes, scores=scores, masks=pieces.masks)


def _corrected(guess: float, pieces: _Pieces) -> float:
    """The median diameter of the round pieces, if they are enough and the guess was far from it."""
    areas = pieces.areas[(pieces.solidity > 0.9) & (pieces.areas > 0.1 * guess**2)]
    if len(areas) < ENOUGH:
        return guess
    found = float(np.sqrt(4 / np.pi * np.median(areas)))
    return guess if 1 / TOLERANCE < found / guess < TOLERANCE else found


def _find_glass(image: UInt8[np.ndarray, "H W 3"], diameter: float) -> _Glass | None:
    """The light of the empty slide everywhere, and the level of cells; None where nothing stands out."""
    shrink = min(1.0, COARSE / diameter, COARSE_SIDE / max(image.shape[:2]))
    small = resize(image, shrink, shrink).numpy().astype(np.float32)
    lit = ndimage.minimum_filter(small.max(axis=0), 3) > BLACK
    if not lit.any():
        return None
    small = ndimage.gaussian_filter(small, (0, 0.7, 0.7))
    across = diameter * shrink
    light = _surface(_closed(small * lit, across), lit)
    for _ in range(PASSES):
        light = _smooth_light(small, _pale(small, light, lit), across)
    missing = _missing(small, light)
    dark = [_held_down(one[lit]) for one in missing]
    channel = int(np.argmax([_spread(one) for one in dark]))
    level = float(threshold_otsu(dark[channel]))
    gap = _gap(dark[channel], level)
    sure = gap * _coherence(missing[channel] * lit, across)
    if level < LEAST_LEVEL or gap < LEAST_GAP or sure < LEAST_SURE:
        return None
    return _Glass(light=light, channel=channel, level=level, diameter=diameter)


def _missing(
    seen: Float32[np.ndarray, "*axes"], light: Float32[np.ndarray, "*axes"]
) -> Float32[np.ndarray, "*axes"]:
    """Share of the light that does not arrive: 0 on the empty slide."""
    return np.asarray(1 - seen / np.maximum(light, 1), np.float32)


def _closed(small: Float32[np.ndarray, "3 h w"], across: float) -> Float32[np.ndarray, "3 h w"]:
    """The light with everything filled in that a window of a few cells sees past: a first guess."""
    size = (1, *[2 * round(across) + 1] * 2)
    return np.asarray(ndimage.minimum_filter(ndimage.maximum_filter(small, size), size))


def _pale(
    small: Float32[np.ndarray, "3 h w"], light: Float32[np.ndarray, "3 h w"], lit: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Where the slide is empty, by the channel that misses most."""
    dark = _missing(small, light).max(axis=0)
    return np.asarray((dark <= threshold_otsu(_held_down(dark[lit]))) & lit)


def _smooth_light(
    small: Float32[np.ndarray, "3 h w"], pale: Bool[np.ndarray, "h w"], across: float
) -> Float32[np.ndarray, "3 h w"]:
    """Light of the empty slide: a surface of second order, and where slide is near, what differs from it."""
    surface = _surface(small, pale)
    sigma = (2 * across, 2 * across)
    near = ndimage.gaussian_filter(pale.astype(np.float32), sigma, mode="nearest") + 0.01
    beside = ndimage.gaussian_filter((small - surface) * pale, (0, *sigma), mode="nearest")
    return np.asarray(surface + beside / near, np.float32)


def _surface(
    small: Float32[np.ndarray, "3 h w"], where: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "3 h w"]:
    """The surface of second order nearest to these pixels: uneven light is smooth."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in where.shape)
    y, x = y[:, None], x[None, :]
    terms = np.stack(np.broadcast_arrays(np.float32(1), x, y, x * x, x * y, y * y))
    rows, columns = np.nonzero(where)
    step = max(1, len(rows) // FITTED)
    rows, columns = rows[::step], columns[::step]
    fit, *_ = np.linalg.lstsq(terms[:, rows, columns].T, small[:, rows, columns].T, rcond=None)
    return np.asarray(np.tensordot(fit, terms, (0, 0)), np.float32)


def _held_down(dark: Float32[np.ndarray, "P"]) -> Float32[np.ndarray, "P"]:
    """The same values, those of few far darker things (nuclei, dirt) cut off above the cells."""
    level = threshold_otsu(dark)
    lower = dark[dark <= level]
    second = threshold_otsu(lower)
    if (lower > second).sum() > (dark > level).sum() and _gap(lower, second) > LEAST_GAP:
        level = second
    cells = dark[dark > level]
    return np.minimum(dark, 1.5 * np.median(cells)) if len(cells) else dark


def _gap(dark: Float32[np.ndarray, "P"], level: np.floating | float) -> float:
    """Distance of what lies above the level from what lies below, in standard deviations of each."""
    upper = dark > level
    if upper.all() or not upper.any():
        return 0.0
    within = upper.mean() * dark[upper].var() + (1 - upper.mean()) * dark[~upper].var()
    return float((dark[upper].mean() - dark[~upper].mean()) / np.sqrt(max(within, 1e-12)))


def _spread(dark: Float32[np.ndarray, "P"]) -> float:
    """Variance between glass and cells: how much they stand out."""
    upper = dark > threshold_otsu(dark)
    if upper.all() or not upper.any():
        return 0.0
    share = upper.mean()
    return float(share * (1 - share) * (dark[upper].mean() - dark[~upper].mean()) ** 2)


def _coherence(dark: Float32[np.ndarray, "h w"], across: float) -> float:
    """Share of the variance that outlives a blur much smaller than a cell: little of noise does."""
    blurred = ndimage.gaussian_filter(dark, max(across / 8, 1.0))
    return float(blurred.var() / max(dark.var(), 1e-12))


def _search_tile(image: UInt8[np.ndarray, "H W 3"], glass: _Glass, tiles: Tiles, row: int) -> _Pieces:
    """The pieces that this tile answers for."""
    x, y = tiles.corners[row].tolist()
    window = image[y : y + tiles.height, x : x + tiles.width]
    light = _light_at(glass, (x, y), window.shape, image.shape)
    dark = _missing(window.astype(np.float32).transpose(2, 0, 1), light)
    labels = _separated(_cells(dark[glass.channel], window, glass), glass.diameter)
    pieces = _measured(labels, dark, SPECK * np.pi / 4 * glass.diameter**2)
    pieces.boxes[:] += np.array([x, y, x, y], np.float32)
    own = in_core(torch.from_numpy(pieces.boxes), tiles.cores[row], 0.0)
    return pieces.rows(np.flatnonzero(own.numpy()))


def _light_at(
    glass: _Glass, corner: tuple[int, int], shape: tuple[int, ...], whole: tuple[int, ...]
) -> Float32[np.ndarray, "3 h w"]:
    """The light of the empty slide at the pixels of a window."""
    _, height, width = glass.light.shape
    y = (np.arange(shape[0]) + corner[1] + 0.5) * height / whole[0] - 0.5
    x = (np.arange(shape[1]) + corner[0] + 0.5) * width / whole[1] - 0.5
    grid = np.meshgrid(y, x, indexing="ij")
    return np.stack([ndimage.map_coordinates(one, grid, order=1, mode="nearest") for one in glass.light])


def _cells(
    dark: Float32[np.ndarray, "h w"], window: UInt8[np.ndarray, "h w 3"], glass: _Glass
) -> Bool[np.ndarray, "h w"]:
    """Where cells lie, with their pallor, and a smooth outline."""
    above = (ndimage.gaussian_filter(dark, SMOOTH * glass.diameter) > glass.level) & is_lit(window)
    smooth = ndimage.gaussian_filter(above.astype(np.float32), OUTLINE * glass.diameter) > 0.5
    return _without_pallor(smooth, np.pi / 4 * glass.diameter**2)


def _without_pallor(mask: Bool[np.ndarray, "h w"], cell: float) -> Bool[np.ndarray, "h w"]:
    """Fill what is pale and small, and convex as no gap between touching cells is; also where it is cut."""
    holes, count = ndimage.label(~mask)
    fill = np.zeros(count + 1, bool)
    for hole in regionprops(holes):
        if hole.area < PALLOR * cell:
            fill[hole.label] = hole.area < TINY * cell or hole.solidity > GAP
    return np.asarray(mask | fill[holes])


def _separated(mask: Bool[np.ndarray, "h w"], diameter: float) -> Int[np.ndarray, "h w"]:
    """A number for every piece: watershed of the depth, from the tops that a waist sets apart."""
    depth = ndimage.distance_transform_edt(mask).astype(np.float32)
    depth = ndimage.gaussian_filter(depth, DEPTH * diameter)
    depth[~mask] = 0
    return np.asarray(watershed(-depth, _tops(depth, diameter), mask=mask))


def _tops(depth: Float32[np.ndarray, "h w"], diameter: float) -> Int[np.ndarray, "h w"]:
    """A number at the top of every piece: h-maxima, on every few pixels because the depth is smooth."""
    stride, step = max(1, int(diameter / GRID)), STEEP * diameter
    coarse = depth[::stride, ::stride]
    domes = coarse - reconstruction(np.maximum(coarse - step, 0), coarse)
    tops, _ = ndimage.label((domes >= 0.999 * step) & (coarse > 0), np.ones((3, 3)))
    numbers = np.zeros(depth.shape, np.int32)
    numbers[::stride, ::stride] = tops
    return numbers


def _measured(labels: Int[np.ndarray, "h w"], dark: Float32[np.ndarray, "3 h w"], least: float) -> _Pieces:
    """Box, area, solidity and colour of every piece that is no speck."""
    pieces = [one for one in regionprops(labels) if one.area >= least and min(one.image.shape) >= THIN]
    if not pieces:
        return _NONE
    boxes = np.array([piece.bbox for piece in pieces], np.float32)[:, [1, 0, 3, 2]]
    numbers = [piece.label for piece in pieces]
    colour = np.stack([ndimage.mean(channel, labels, numbers) for channel in dark], axis=1)
    return _Pieces(
        boxes=boxes,
        areas=np.array([piece.area for piece in pieces], np.float32),
        solidity=np.array([piece.solidity for piece in pieces], np.float32),
        colour=colour.astype(np.float32),
        masks=tuple(piece.image for piece in pieces),
    )


def _scores(pieces: _Pieces) -> Float32[np.ndarray, "N"]:
    """From 0 to 1: is it convex, as large as the others, and of their colour?"""
    if not len(pieces.areas):
        return np.zeros(0, np.float32)
    convex = np.clip((pieces.solidity - 0.7) / 0.25, 0, 1)
    octaves = np.abs(np.log2(pieces.areas / np.median(pieces.areas)))
    usual = np.exp(-0.5 * (octaves / 1.5) ** 2)
    middle = np.median(pieces.colour, axis=0)
    strange = np.linalg.norm(pieces.colour - middle, axis=1) / max(float(np.linalg.norm(middle)), 1e-6)
    same = np.exp(-0.5 * (strange / 0.7) ** 2)
    return np.asarray((convex * usual * same) ** 0.5, np.float32)
