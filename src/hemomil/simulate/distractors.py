"""What else lies on a slide: platelets, white cells, dust and stain precipitate, and bodies inside red cells.

Each is a patch of absorbance in the stain's own colours. Axes: H W pixels, C colour channels.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
from jaxtyping import Bool, Float

from hemomil.simulate.settings import Stain


@dataclass(frozen=True, slots=True, kw_only=True)
class Distractor:
    """A patch that is no red cell; its corner may lie outside the image."""

    label: str
    x: int
    y: int
    absorbance: Float[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]


def _grid(half: int) -> tuple[Float[np.ndarray, "1 W"], Float[np.ndarray, "H 1"]]:
    span = np.arange(-half, half + 1, dtype=np.float32)
    return span[None, :], span[:, None]


def _blob(
    rng: np.random.Generator, half: int, radius: float, roughness: float, aspect: float = 1.0
) -> Float[np.ndarray, "H W"]:
    """Distance from the centre, 1 on a rough outline."""
    x, y = _grid(half)
    turn = rng.uniform(0, 2 * np.pi)
    u = (x * np.cos(turn) + y * np.sin(turn)) / (radius * aspect**0.5)
    v = (y * np.cos(turn) - x * np.sin(turn)) / (radius * aspect**-0.5)
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    for order in range(2, 7):
        outline += rng.normal(0, roughness / order**0.5) * np.cos(order * angle + rng.uniform(0, 6.3))
    return np.asarray(np.hypot(u, v) / np.clip(outline, 0.4, 1.6), dtype=np.float32)


def _grain(rng: np.random.Generator, half: int, sigma: float) -> Float[np.ndarray, "H W"]:
    """Smooth noise of unit standard deviation."""
    noise = ndi.gaussian_filter(rng.standard_normal((2 * half + 1, 2 * half + 1), dtype=np.float32), sigma)
    return np.asarray(noise / (noise.std() + 1e-6))


def _soft(s: Float[np.ndarray, "H W"], radius: float) -> Float[np.ndarray, "H W"]:
    """1 inside, 0 outside, over about one pixel."""
    return np.asarray(np.clip((1 - s) * np.float32(radius) + 0.5, 0, 1))


def platelet(rng: np.random.Generator, stain: Stain, radius: float, x: float, y: float) -> Distractor:
    """A platelet: a purple granular fleck, 2 to 4 micrometres."""
    size = radius * float(rng.uniform(0.2, 0.45))
    half = int(np.ceil(2 * size)) + 2
    s = _blob(rng, half, size, 0.07, float(rng.uniform(1, 1.7)))
    granules = np.clip(1 + 0.3 * _grain(rng, half, max(size / 5, 0.8)), 0.4, 1.8)
    colour = np.asarray(stain.nucleus) * 0.35 + np.asarray(stain.cytoplasm)
    amount = (_soft(s, size) * granules * rng.uniform(0.35, 1.0)).astype(np.float32)
    return _finished("platelet", x, y, half, amount[..., None] * colour, s < 1)


def white_cell(rng: np.random.Generator, stain: Stain, size: float, x: float, y: float) -> Distractor:
    """A white cell of radius `size`: lobed or round dark nucleus in pale, granular cytoplasm."""
    half = int(np.ceil(1.5 * size)) + 2
    s = _blob(rng, half, size, 0.03, float(rng.uniform(1, 1.15)))
    body = _soft(s, size)
    nucleus = np.clip(_nucleus(rng, half, size), 0, 1) * body
    granules = np.clip(1 + rng.uniform(0.1, 0.5) * _grain(rng, half, max(size / 25, 0.6)), 0.2, 3)
    chromatin = np.clip(1 + 0.2 * _grain(rng, half, max(size / 12, 0.8)), 0.4, 1.8) * rng.uniform(0.7, 1.2)
    cytoplasm = (body - 0.7 * nucleus) * granules * rng.uniform(0.5, 1.6)
    tint = np.asarray(stain.cytoplasm) * rng.uniform(0.6, 1.4, 3)
    absorbance = (nucleus * chromatin)[..., None] * np.asarray(stain.nucleus) + cytoplasm[..., None] * tint
    return _finished("white_cell", x, y, half, absorbance, s < 1)


def _nucleus(rng: np.random.Generator, half: int, size: float) -> Float[np.ndarray, "H W"]:
    """One round nucleus (lymphocyte, monocyte) or two to five lobes in an arc (granulocyte)."""
    lobes = int(rng.choice([1, 1, 2, 3, 4, 5]))
    if lobes == 1:
        share = rng.uniform(0.6, 0.92)
        return _soft(_blob(rng, half, size * share, 0.08, float(rng.uniform(1, 1.3))), size * share)
    start, found = rng.uniform(0, 2 * np.pi), np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    lobe = size * rng.uniform(0.28, 0.4)
    for i in range(lobes):
        angle = start + i * rng.uniform(0.9, 1.3)
        dx, dy = 0.48 * size * np.cos(angle), 0.48 * size * np.sin(angle)
        one = _soft(_blob(rng, half, lobe, 0.1, float(rng.uniform(1, 1.6))), lobe)
        found = np.maximum(found, np.roll(one, (round(dy), round(dx)), axis=(0, 1)))
    return found


def artefact(rng: np.random.Generator, stain: Stain, radius: float, x: float, y: float) -> Distractor:
    """Dust, a scratch of dirt, a smudge of broken nuclei, or a clump of stain precipitate."""
    kind = rng.choice(["dust", "precipitate", "smudge", "fibre"])
    if kind == "precipitate":
        return _precipitate(rng, stain, radius, x, y)
    size = radius * float({"dust": rng.uniform(0.1, 0.4), "smudge": rng.uniform(0.6, 1.6)}.get(kind, 0.5))
    aspect = float(rng.uniform(6, 20)) if kind == "fibre" else float(rng.uniform(1, 2))
    half = int(np.ceil(1.7 * size * aspect**0.5)) + 2
    s = _blob(rng, half, size * (0.4 if kind == "fibre" else 1), 0.12, aspect)
    if kind == "smudge":
        amount = np.clip(1.2 - s, 0, 1) * np.clip(0.6 + 0.5 * _grain(rng, half, max(size / 10, 0.7)), 0, 2)
        colour = (np.asarray(stain.nucleus) * 0.5 + np.asarray(stain.cytoplasm)) * rng.uniform(0.3, 1.0)
    else:
        # it lies above the cells: dark, of no stain's colour, with a light heart where it acts as a lens
        amount = _soft(s, size) - rng.uniform(0, 0.9) * np.exp(-((s / 0.4) ** 2))
        colour = rng.uniform(0.2, 1.6) * rng.uniform(0.8, 1.2, 3)
    return _finished("artefact", x, y, half, amount[..., None] * colour, s < 1)


def _precipitate(rng: np.random.Generator, stain: Stain, radius: float, x: float, y: float) -> Distractor:
    """Grains of undissolved stain in a loose clump."""
    spread = radius * rng.uniform(0.2, 0.7)
    half = int(np.ceil(3 * spread)) + 3
    dots = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    place = np.clip(np.round(rng.normal(0, spread, (int(rng.integers(5, 40)), 2))) + half, 1, 2 * half - 1)
    dots[place[:, 0].astype(int), place[:, 1].astype(int)] = rng.uniform(0.5, 1.5, len(place))
    sigma = max(radius * 0.04, 0.6)
    amount = ndi.gaussian_filter(dots, sigma) * (2 * np.pi * sigma**2)
    absorbance = np.clip(amount, 0, 1.5)[..., None] * np.asarray(stain.nucleus) * 1.3
    return _finished("artefact", x, y, half, absorbance, ndi.binary_closing(amount > 0.2, iterations=2))


def inclusion(
    rng: np.random.Generator, shape: tuple[int, int], inside: Bool[np.ndarray, "H W"], radius: float
) -> Float[np.ndarray, "H W"]:
    """Amount of chromatin of a parasite-like body within a red cell.

    A dot, a ring with a dot, a mass, or a grown one: mottled, over much of the cell.
    """
    rows, columns = np.nonzero(inside)
    pick = int(rng.integers(len(rows)))
    y = np.arange(shape[0], dtype=np.float32)[:, None] - rows[pick]
    x = np.arange(shape[1], dtype=np.float32)[None, :] - columns[pick]
    r = np.hypot(x, y) / np.float32(radius)
    kind, size = rng.choice(["dot", "ring", "mass", "grown"]), rng.uniform(0.06, 0.14)
    if kind == "grown":
        amount = _grown(rng, shape, r)
    elif kind == "dot":
        amount = np.exp(-((r / size) ** 2))
    elif kind == "ring":
        wide = rng.uniform(0.18, 0.32)
        amount = 0.5 * np.exp(-(((r - wide) / 0.06) ** 2)) + np.exp(
            -((x / radius - wide) ** 2 + (y / radius) ** 2) / 0.007
        )
    else:
        amount = rng.uniform(0.3, 0.7) * np.clip(1.5 - r / rng.uniform(0.3, 0.6), 0, 1)
    return np.asarray(amount * inside * rng.uniform(0.5, 1.0), dtype=np.float32)


def _grown(
    rng: np.random.Generator, shape: tuple[int, int], r: Float[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """A body that fills much of its cell: coarse grains, and here and there a denser one (pigment)."""
    reach, grain = rng.uniform(0.5, 2.2), np.zeros(shape, np.float32)
    for sigma, share in ((2.0, 0.6), (4.0, 0.4)):
        noise = ndi.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        grain += share * noise / (noise.std() + 1e-6)
    body = np.clip((reach - r) * 3, 0, 1) * rng.uniform(0.1, 0.45)
    return np.asarray(
        body * np.clip(1 + rng.uniform(0.4, 1.2) * grain, 0, 3) + 0.5 * (grain > 2.2) * (r < reach)
    )


def _finished(
    label: str,
    x: float,
    y: float,
    half: int,
    absorbance: Float[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "H W"],
) -> Distractor:
    return Distractor(
        label=label,
        x=int(np.floor(x)) - half,
        y=int(np.floor(y)) - half,
        absorbance=np.clip(absorbance, 0, None).astype(np.float32),
        mask=mask,
    )
