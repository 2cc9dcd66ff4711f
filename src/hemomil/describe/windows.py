"""Look at an image through windows: square, freely placed and turned, averaged onto a common grid.

Axes: N cells, S grid pixels a side, C channels, H W image pixels.
A *window* is a row (centre x, centre y, side, angle): a square of the image, in pixels, and the angle in
radians that its x axis makes with the image's.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch.nn.functional import avg_pool2d, grid_sample

MAX_OVERSAMPLING = 8
"""Samples a side that are averaged into one grid pixel, at most: larger windows alias a little."""


def windows_of(
    boxes: Float[np.ndarray, "N 4"], *, context: float = 1.0, least: float = 3.0
) -> Float[np.ndarray, "N 4"]:
    """Square windows round boxes: the longer side times `context`, at least `least` pixels."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) * context, least)
    return np.column_stack([centres, side, np.zeros(len(boxes))]).astype(np.float64)


def sample_windows(
    planes: Float32[np.ndarray, "C H W"],
    windows: Float[np.ndarray, "N 4"],
    size: int,
    *,
    outside: str = "border",
) -> Float32[np.ndarray, "N size size C"]:
    """Mean colour of each crop pixel's footprint; `outside`: repeat the border, or zeros."""
    taken = np.empty((len(windows), size, size, len(planes)), np.float32)
    image = torch.from_numpy(planes)[None]
    folds = np.clip(np.ceil(windows[:, 2] / size), 1, MAX_OVERSAMPLING).astype(int)
    for fold in np.unique(folds).tolist():  # one call for all cells that need the same oversampling
        rows = np.flatnonzero(folds == fold)
        grid = _grid(windows[rows], size * fold, planes.shape[1:])
        values = grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)
        values = avg_pool2d(values, fold) if fold > 1 else values
        stacked = values[0].reshape(len(planes), len(rows), size, size)
        taken[rows] = stacked.permute(1, 2, 3, 0).numpy()
    return taken


def _grid(windows: Float[np.ndarray, "N 4"], size: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Where to sample, in grid_sample's units (-1 to 1 over the image); cells are stacked along the rows."""
    across = ((np.arange(size) + 0.5) / size - 0.5)[None, None, :]
    down = across.transpose(0, 2, 1)
    x, y, side, angle = (column[:, None, None] for column in windows.T)
    cos, sin = side * np.cos(angle), side * np.sin(angle)
    unit = np.empty((len(windows), size, size, 2), np.float32)
    unit[..., 0] = (2 / shape[1] * (x + cos * across) - 1) - 2 / shape[1] * sin * down
    unit[..., 1] = (2 / shape[0] * (y + sin * across) - 1) + 2 / shape[0] * cos * down
    return torch.from_numpy(unit).reshape(1, -1, size, 2)


def sample_masks(
    masks: list[Bool[np.ndarray, "_ _"]],
    corners: Float[np.ndarray, "N 2"],
    pitch: Float[np.ndarray, "N"],
    windows: Float[np.ndarray, "N 4"],
    size: int,
) -> Bool[np.ndarray, "N size size"]:
    """Masks seen through windows: mask i has its corner at `corners[i]` and pixels `pitch[i]` wide."""
    seen = np.zeros((len(masks), size, size), bool)
    for i, mask in enumerate(masks):
        window = windows[i : i + 1].copy()
        window[0, :2] = (window[0, :2] - corners[i]) / pitch[i]
        window[0, 2] /= pitch[i]
        share = sample_windows(mask.astype(np.float32)[None], window, size, outside="zeros")
        seen[i] = share[0, ..., 0] >= 0.5
    return seen
