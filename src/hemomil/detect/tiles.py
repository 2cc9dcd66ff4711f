"""Large images in tiles: where tiles lie, which tile a cell belongs to, which boxes show one cell twice.

Axes: T tiles, N boxes. Boxes are x0 y0 x1 y1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_area, box_iou


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Tiles of one size that cover an image, row by row."""

    height: int
    width: int
    corners: Int[Tensor, "T 2"]
    """x y of the upper left pixel."""
    cores: Float[Tensor, "T 4"]
    """The part of the image a tile answers for: its box out to the middle of each overlap, and without end
    where the image ends. Cores cover the image and share no area."""


def lay_tiles(height: int, width: int, side: int, overlap: int) -> Tiles:
    """The fewest tiles of at most `side` that cover the image and overlap by at least `overlap` pixels."""
    overlap = min(overlap, side // 2)
    tops, tile_height = _starts(height, side, overlap)
    lefts, tile_width = _starts(width, side, overlap)
    y0, y1 = _core_edges(tops, tile_height)
    x0, x1 = _core_edges(lefts, tile_width)
    corners = torch.cartesian_prod(tops, lefts).reshape(-1, 2).flip(1)
    rows, columns = torch.cartesian_prod(torch.arange(len(tops)), torch.arange(len(lefts))).reshape(-1, 2).T
    cores = torch.stack([x0[columns], y0[rows], x1[columns], y1[rows]], dim=1)
    return Tiles(height=tile_height, width=tile_width, corners=corners, cores=cores)


def _starts(length: int, side: int, overlap: int) -> tuple[Int[Tensor, "_"], int]:
    if length <= side:
        return torch.zeros(1, dtype=torch.int64), length
    count = -(-(length - overlap) // (side - overlap))
    return torch.linspace(0, length - side, count).round().to(torch.int64), side


def _core_edges(starts: Int[Tensor, "_"], size: int) -> tuple[Float[Tensor, "_"], Float[Tensor, "_"]]:
    middles = (starts[:-1] + size + starts[1:]) / 2
    end = torch.tensor([torch.inf])
    return torch.cat([-end, middles]), torch.cat([middles, end])


def in_core(boxes: Float[Tensor, "N 4"], core: Float[Tensor, "4"], slack: float) -> Bool[Tensor, "N"]:
    """Is the centre of the box in the core, or at most `slack` pixels outside of it?"""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside: Tensor = ((centres >= core[:2] - slack) & (centres <= core[2:] + slack)).all(dim=1)
    return inside


def owners(boxes: Float[Tensor, "N 4"], tiles: Tiles) -> Int[Tensor, "N"]:
    """The tile that answers for each box: the one with the centre of the box in its core."""
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    inside = ((centres >= tiles.cores[:, :2]) & (centres < tiles.cores[:, 2:])).all(dim=2)
    return inside.to(torch.int64).argmax(dim=1)


def not_inside_a_better(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], limit: float
) -> Bool[Tensor, "N"]:
    """False for a box that shares more than `limit` of the smaller area with a better box.

    What IoU suppression misses: half a cell, or the dark rim of one, found beside the whole of it. Among
    equal scores the first is the better.
    """
    areas = box_area(boxes)
    iou = box_iou(boxes, boxes)
    shared = iou * (areas[:, None] + areas) / (1 + iou)
    over_smaller = shared / torch.minimum(areas[:, None], areas).clamp(min=1e-6)
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    inside: Tensor = ((over_smaller > limit) & (rank[None] < rank[:, None])).any(dim=1)
    return ~inside
