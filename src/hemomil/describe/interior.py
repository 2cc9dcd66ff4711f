"""What lies inside a cell's outline: light profile, pallor, texture, colour and inclusions.

Axes: N cells, G grid pixels a side, R = RINGS rings of equal area from the rim (0) to the middle.
Everything is computed on the stack of all cells of an image; a cell's values depend on no other cell.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage
from skimage.color import rgb2lab

from hemomil.describe.segment import FLAT, WEIGHTS, Views, density

RINGS = 8
PROFILE_NAMES = (
    *(f"ring_{i}_density" for i in range(RINGS - 1)),  # the innermost is pallor_ratio
    *(f"ring_{i}_{i + 1}_sd" for i in range(0, RINGS, 2)),
)
PALLOR_NAMES = (
    "density_rim",
    "density_sum",
    "pallor_ratio",
    "pallor_share",
    "pallor_share_half",
    "pallor_depth",
    "pallor_offset",
    "pallor_axis_ratio",
    "pallor_pieces",
    "target_bump",
    "density_offset",
    "density_turn_asymmetry",
)
TEXTURE_NAMES = (
    "density_cv",
    "density_skew",
    "density_kurtosis",
    "gradient_mean",
    "gradient_p95",
    "detail_1",
    "detail_2",
    "detail_4",
    "detail_1_max",
    "detail_2_max",
    "detail_4_max",
    "detail_1_min",
    "detail_2_min",
    "detail_4_min",
)
COLOUR_NAMES = (
    *(f"{stat}_{c}" for stat in ("mean", "sd") for c in ("red", "green", "blue", "a", "b")),
    *(f"density_{c}" for c in ("red", "green", "blue")),
    "density_red_to_green",
    "density_blue_to_green",
    *(f"background_{c}" for c in ("red", "green", "blue")),
)
INCLUSION_NAMES = (
    *(f"spot_{c}" for c in ("red", "green", "blue", "a", "b")),
    *(f"pale_{c}" for c in ("red", "green", "blue")),
    *(f"spot_peak_{c}" for c in ("red", "green")),
    "spot_z_red",
    "spot_z_green",
    "spot_share",
    "spot_count",
    "spot_largest",
    "spot_depth",
    "spot_redness",
    "spot_blueness",
)
Stack = Float[np.ndarray, "N G G"]
Masks = Bool[np.ndarray, "N G G"]


def quantiles(values: Stack, mask: Masks, shares: tuple[float, ...]) -> Float[np.ndarray, "N Q"]:
    """Quantiles (nearest rank) of the pixels inside each mask; 0 where a mask is empty."""
    order = np.sort(np.where(mask, values, np.float32(np.inf)).reshape(len(values), mask[0].size), axis=1)
    count = mask.sum(axis=(1, 2))
    rank = np.rint(np.outer(np.maximum(count - 1, 0), shares)).astype(int)
    taken = np.take_along_axis(order, rank, axis=1).astype(np.float64)
    return np.where(count[:, None] > 0, taken, 0.0)


def mean_inside(values: Float[np.ndarray, "N G G *C"], mask: Masks) -> Float[np.ndarray, "N *C"]:
    """Mean over each mask; 0 where it is empty."""
    count = np.maximum(mask.sum(axis=(1, 2)), 1)
    total = np.einsum("nij...,nij->n...", values, mask, dtype=np.float64)
    return np.asarray((total.T / count).T)


def depth_of(mask: Masks) -> Stack:
    """Distance to the outline within each mask, in grid pixels."""
    depth = np.zeros(mask.shape, np.float32)
    for i, one in enumerate(mask):
        depth[i] = ndimage.distance_transform_edt(one)
    return depth


def rings_of(mask: Masks, depth: Stack) -> Int[np.ndarray, "N G G"]:
    """Ring of each pixel by the rank of its depth: rings of equal area, whatever the shape; -1 outside."""
    ring = np.full(mask.shape, -1, np.int64)
    for i, one in enumerate(mask):
        inside = depth[i][one]
        rank = np.empty(len(inside), np.int64)
        rank[np.argsort(inside, kind="stable")] = np.arange(len(inside))
        ring[i][one] = rank * RINGS // max(len(inside), 1)
    return ring


def interior_values(views: Views) -> Float[np.ndarray, "N I"]:
    """Profile, pallor, texture, colour and inclusions, in the order of their names."""
    dense, lab = density(views.colour, views.background[:, None, None]), _lab(views.colour)
    depth = depth_of(views.mask)
    ring = rings_of(views.mask, depth)
    profile, spread = _profile(dense @ WEIGHTS, ring)
    rim = np.maximum(profile[:, 1:4].mean(axis=1), 0.02)
    # the outermost pixels mix with the slide
    core = views.mask & (depth > 1.5)
    core = np.where(core.any(axis=(1, 2), keepdims=True), core, views.mask)
    return np.concatenate(
        [
            profile[:, :-1] / rim[:, None],
            (spread[:, ::2] + spread[:, 1::2]) / 2 / rim[:, None],
            _pallor(dense @ WEIGHTS, views, depth, profile, rim),
            _texture(dense @ WEIGHTS, core, rim),
            _colour(views, dense, lab, core),
            _inclusions(dense, lab, core, depth),
        ],
        axis=1,
    )


def _profile(
    dense: Stack, ring: Int[np.ndarray, "N G G"]
) -> tuple[Float[np.ndarray, "N R"], Float[np.ndarray, "N R"]]:
    """Mean and standard deviation of density in each ring; an empty ring repeats the ring outside it."""
    rows = np.arange(len(dense))[:, None, None] * (RINGS + 1) + ring + 1
    parts = [
        np.bincount(rows.ravel(), weights=w, minlength=len(dense) * (RINGS + 1)).reshape(-1, RINGS + 1)[:, 1:]
        for w in (None, dense.ravel(), (dense.astype(np.float64) ** 2).ravel())
    ]
    count = np.maximum(parts[0], 1)
    mean = parts[1] / count
    spread = np.sqrt(np.maximum(parts[2] / count - mean**2, 0))
    for r in range(1, RINGS):
        mean[:, r] = np.where(parts[0][:, r] > 0, mean[:, r], mean[:, r - 1])
    return mean, spread


def _pallor(
    dense: Stack, views: Views, depth: Stack, profile: Float[np.ndarray, "N R"], rim: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N P"]:
    """The pale centre of a thin-centred disc, and what stands there in targets and stomatocytes."""
    mask = views.mask
    smooth = (ndimage.gaussian_filter(dense, (0, 1.5, 1.5)) / rim[:, None, None]).astype(np.float32)
    deepest = depth.max(axis=(1, 2), keepdims=True)
    inner, middle = mask & (depth > 0.2 * deepest), mask & (depth >= 0.8 * deepest)
    pale, half = inner & (smooth < 0.8), inner & (smooth < 0.5)
    area = np.maximum(mask.sum(axis=(1, 2)), 1)
    diameter = np.sqrt(4 * area / np.pi)
    centre, pale_centre = _centroid(mask), _centroid(pale)
    offset = np.hypot(*(pale_centre - centre).T) / diameter
    heavy = _centroid(np.where(mask, np.maximum(dense, 0), 0))
    lowest = profile[:, 3:].min(axis=1)  # the outermost rings are blurred into the slide
    return np.column_stack(
        [
            rim,
            mean_inside(dense, mask) * area * views.pitch**2,
            profile[:, -1] / rim,
            pale.sum(axis=(1, 2)) / area,
            half.sum(axis=(1, 2)) / area,
            1 - quantiles(smooth, inner, (0.02,))[:, 0],
            np.where(pale.any(axis=(1, 2)), offset, 0),
            _axis_ratio(pale),
            _pieces(pale, 8)[0],
            np.maximum(mean_inside(smooth, middle) - lowest / rim, 0),
            np.hypot(*(heavy - centre).T) / diameter,
            _turn_asymmetry(smooth, mask),
        ]
    )


def _centroid(weight: Float[np.ndarray, "N G G"] | Masks) -> Float[np.ndarray, "N 2"]:
    """Centre of weight (x, y) in grid pixels; the middle of the grid where there is none."""
    steps = np.arange(weight.shape[1]) + 0.5
    total = weight.sum(axis=(1, 2), dtype=np.float64)
    x = weight.sum(axis=1, dtype=np.float64) @ steps
    y = weight.sum(axis=2, dtype=np.float64) @ steps
    safe = np.maximum(total, 1e-9)
    middle = weight.shape[1] / 2
    return np.asarray(np.where(total[:, None] > 1e-9, np.column_stack([x, y]) / safe[:, None], middle))


def _axis_ratio(mask: Masks) -> Float[np.ndarray, "N"]:
    """Short to long axis by second moments; 1 for an empty mask."""
    steps = np.arange(mask.shape[1]) + 0.5
    total = np.maximum(mask.sum(axis=(1, 2)), 1).astype(np.float64)
    columns, rows = mask.sum(axis=1) / total[:, None], mask.sum(axis=2) / total[:, None]
    mx, my = columns @ steps, rows @ steps
    xx, yy = columns @ steps**2 - mx**2 + 1 / 12, rows @ steps**2 - my**2 + 1 / 12
    xy = np.einsum("nij,i,j->n", mask, steps, steps) / total - mx * my
    root = np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    ratio = np.sqrt(np.maximum((xx + yy) / 2 - root, 1e-6) / np.maximum((xx + yy) / 2 + root, 1e-6))
    return np.asarray(np.where(mask.any(axis=(1, 2)), ratio, 1.0))


def _pieces(mask: Masks, least: int) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """How many pieces of at least `least` pixels each mask has, and the pixels of the largest."""
    label, count = ndimage.label(mask, FLAT)
    sizes = np.bincount(label.ravel(), minlength=count + 1)
    first = np.zeros(count + 1, np.int64)
    planes = np.broadcast_to(np.arange(len(mask))[:, None, None], mask.shape)
    first[label.ravel()] = planes.ravel()
    big = np.flatnonzero(sizes >= least)
    big = big[big > 0]
    pieces = np.bincount(first[big], minlength=len(mask)).astype(np.float64)
    largest = np.zeros(len(mask))
    np.maximum.at(largest, first[big], sizes[big])
    return pieces, largest


def _turn_asymmetry(smooth: Stack, mask: Masks) -> Float[np.ndarray, "N"]:
    """Mean difference of density under a half turn of the window."""
    turned, both = smooth[:, ::-1, ::-1], mask & mask[:, ::-1, ::-1]
    return mean_inside(np.abs(smooth - turned), both)


def _texture(dense: Stack, core: Masks, rim: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N T"]:
    """Moments of density, gradients, and bands of detail (differences of Gaussians), relative to the rim."""
    level = mean_inside(dense, core)
    # outside the core the mean stands in, so that the outline itself is no texture
    flat = np.where(core, dense, level[:, None, None]).astype(np.float32) / rim[:, None, None].astype(
        np.float32
    )
    away = flat - (level / rim)[:, None, None]
    spread = np.sqrt(mean_inside(away**2, core))
    safe = np.maximum(spread, 1e-3)
    slopes = (ndimage.gaussian_filter(flat, (0, 0.8, 0.8), order=order) for order in ((0, 1, 0), (0, 0, 1)))
    gradient = np.hypot(*slopes)
    blurred = [flat, *(ndimage.gaussian_filter(flat, (0, s, s)) for s in (1.0, 2.0, 4.0))]
    bands = [fine - coarse for fine, coarse in pairwise(blurred)]
    extremes = [quantiles(band, core, (0.005, 0.995)) for band in bands]
    return np.column_stack(
        [
            spread,
            mean_inside(away**3, core) / safe**3,
            mean_inside(away**4, core) / safe**4,
            mean_inside(gradient, core),
            quantiles(gradient, core, (0.95,)),
            *(np.sqrt(mean_inside(band**2, core)) for band in bands),
            *(pair[:, 1] for pair in extremes),
            *(pair[:, 0] for pair in extremes),
        ]
    )


def _colour(
    views: Views, dense: Float32[np.ndarray, "N G G 3"], lab: Float32[np.ndarray, "N G G 3"], core: Masks
) -> Float[np.ndarray, "N C"]:
    """Colour of the cell, absolute and against the slide."""
    full = np.concatenate([views.colour, lab[..., 1:]], axis=3)
    mean = mean_inside(full, core)
    spread = np.sqrt(np.maximum(mean_inside((full - mean[:, None, None].astype(np.float32)) ** 2, core), 0))
    absorbed = mean_inside(dense, core)
    green = np.maximum(absorbed[:, 1], 0.02)
    ratios = np.clip(np.column_stack([absorbed[:, 0] / green, absorbed[:, 2] / green]), -5, 5)
    return np.concatenate([mean, spread, absorbed, ratios, views.background], axis=1)


def _lab(colour: Float32[np.ndarray, "N G G 3"]) -> Float32[np.ndarray, "N G G 3"]:
    """CIE L*a*b* of RGB 0-255."""
    lab: Float32[np.ndarray, "N G G 3"] = rgb2lab(np.clip(colour, 0, 255) / np.float32(255)).astype(
        np.float32
    )
    return lab


def _inclusions(
    dense: Float32[np.ndarray, "N G G 3"], lab: Float32[np.ndarray, "N G G 3"], core: Masks, depth: Stack
) -> Float[np.ndarray, "N S"]:
    """Chromatin, pigment and other bodies: small, darker than the cell, and darkest in red light."""
    red, green, blue = (dense[..., c] for c in range(3))
    levels = {
        name: quantiles(values, core, (0.01, 0.5, 0.99))
        for name, values in (
            ("red", red),
            ("green", green),
            ("blue", blue),
            ("a", lab[..., 1]),
            ("b", lab[..., 2]),
        )
    }
    peaks = {name: _peaks(values, core) for name, values in (("red", red), ("green", green))}
    noise = {
        name: _noise(values, core, levels[name][:, 1]) for name, values in (("red", red), ("green", green))
    }
    excess = red - levels["red"][:, 1, None, None].astype(np.float32)
    spot = core & (excess > np.maximum(4 * noise["red"], 0.12)[:, None, None])
    area = np.maximum(core.sum(axis=(1, 2)), 1)
    count, largest = _pieces(spot, 4)
    any_spot = spot.any(axis=(1, 2))
    rest = core & ~spot
    shift = np.where(any_spot[:, None], mean_inside(lab, spot) - mean_inside(lab, rest), 0)
    deep = mean_inside(depth, spot) / np.maximum(depth.max(axis=(1, 2)), 1)
    return np.column_stack(
        [
            *(levels[c][:, 2] - levels[c][:, 1] for c in ("red", "green", "blue", "a")),
            levels["b"][:, 1] - levels["b"][:, 0],
            *(levels[c][:, 1] - levels[c][:, 0] for c in ("red", "green", "blue")),
            *(peaks[c] for c in ("red", "green")),
            *(np.minimum(peaks[c] / noise[c], 50) for c in ("red", "green")),
            spot.sum(axis=(1, 2)) / area,
            count,
            largest / area,
            np.where(any_spot, deep, 0),
            shift[:, 1],
            shift[:, 2],
        ]
    )


def _peaks(values: Stack, core: Masks) -> Float[np.ndarray, "N"]:
    """The highest rise over the surroundings within about a tenth of the cell's width."""
    level = quantiles(values, core, (0.5,))[:, 0]
    flat = np.where(core, values, level[:, None, None]).astype(np.float32)
    rise = ndimage.gaussian_filter(flat, (0, 0.8, 0.8)) - ndimage.gaussian_filter(
        flat, (0, 6.0, 6.0), truncate=2.5
    )
    return np.asarray(np.where(core, rise, -np.inf).max(axis=(1, 2), initial=0.0))


def _noise(values: Stack, core: Masks, level: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Robust spread (1.4826 x median absolute deviation), at least 0.01."""
    away = np.abs(values - level[:, None, None].astype(np.float32))
    return np.maximum(1.4826 * quantiles(away, core, (0.5,))[:, 0], 0.01)
