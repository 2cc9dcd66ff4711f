"""Masks of single cells: from the network's 28 x 28 probabilities to pixels, each cut to its own box.

No mask is ever as large as the image. Axes: N cells, M mask side.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from hemomil.detect.examples import Mask, outer

CHUNK = 64
"""Masks resampled together; bounds the memory by the largest boxes of a chunk."""


def cut_masks(probabilities: Float[Tensor, "N M M"], boxes: Float[np.ndarray, "N 4"]) -> tuple[Mask, ...]:
    """Each mask (probability above one half), cut to its box rounded outwards."""
    order = np.argsort((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0), kind="stable")
    cut: list[Mask] = [np.empty((0, 0), dtype=bool)] * len(boxes)
    for chunk in np.split(order, range(CHUNK, len(order), CHUNK)):
        for place, mask in zip(chunk, _cut_chunk(probabilities[chunk], boxes[chunk]), strict=True):
            cut[place] = mask
    return tuple(cut)


def _cut_chunk(probabilities: Float[Tensor, "C M M"], boxes: Float[np.ndarray, "C 4"]) -> list[Mask]:
    """Sample every mask at the pixel centres of a canvas as large as the largest box, then cut."""
    if len(boxes) == 0:
        return []
    windows = outer(boxes)
    sizes = windows[:, 2:] - windows[:, :2]
    width, height = sizes.max(axis=0)
    x = _relative(windows[:, 0], int(width), boxes[:, 0], boxes[:, 2])
    y = _relative(windows[:, 1], int(height), boxes[:, 1], boxes[:, 3])
    shape = (len(boxes), int(height), int(width))
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    canvas = grid_sample(
        probabilities[:, None].float().cpu(), grid, padding_mode="border", align_corners=False
    )
    # outside of the box itself is outside of the cell, though the window is rounded outwards
    inside: Bool[Tensor, "C H W"] = (grid.abs() <= 1).all(dim=-1)
    whole = ((canvas[:, 0] > 0.5) & inside).numpy()
    return [mask[:h, :w].copy() for mask, (w, h) in zip(whole, sizes, strict=True)]


def _relative(first: np.ndarray, count: int, low: np.ndarray, high: np.ndarray) -> Float[Tensor, "C _"]:
    """Centres of `count` pixels from `first` on, with the box from `low` to `high` as -1 to 1."""
    centres = first[:, None] + np.arange(count) + 0.5
    span = np.maximum(high - low, 1e-6)[:, None]
    return torch.from_numpy((2 * (centres - low[:, None]) / span - 1).astype(np.float32))
