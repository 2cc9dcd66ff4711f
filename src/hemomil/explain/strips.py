"""Pictures of a cell beside others, at one scale, and file names that no id can lead astray.

Axes: H W pixels, S side of a tile.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

GAP = 4
"""White pixels between the others; three times as many after the first."""
MISSING = 230
"""Grey of a picture that is not there."""
LONGEST = 40


def same_scale(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Squares about the boxes' centres, all as large as the longest side of any box needs."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max() / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def strip(tiles: Sequence[UInt8[np.ndarray, "S S 3"] | None], side: int) -> UInt8[np.ndarray, "{side} W 3"]:
    """The first tile, a gap, and the others side by side; a missing one is grey."""
    blank = np.full((side, side, 3), MISSING, np.uint8)
    parts: list[np.ndarray] = []
    for place, tile in enumerate(tiles):
        gap = {0: 0, 1: 3 * GAP}.get(place, GAP)
        parts += [np.full((side, gap, 3), 255, np.uint8), blank if tile is None else tile]
    return np.concatenate(parts, axis=1)


def file_name(rank: int, sample: str, cell_id: str) -> str:
    """`0001_sample_cell.png`; where an id has to be changed for that, a hash of both is added."""
    cell = cell_id.removeprefix(f"{sample}/")
    slugs = [_slug(sample), _slug(cell)]
    if slugs != [sample, cell]:
        slugs.append(hashlib.sha256(f"{sample}\0{cell_id}".encode()).hexdigest()[:8])
    return "_".join([f"{rank:04d}", *slugs]) + ".png"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:LONGEST].strip("-.")
