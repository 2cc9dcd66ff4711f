"""Training crops: a random window of an example at a random scale around the nominal, turned and recoloured.

Axes: N cells, S crop side.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from hemomil.detect.examples import RED, Example, outer
from hemomil.detect.settings import TrainSettings

VISIBLE = 0.2
"""A cell of which less than this share lies in the crop is not asked for."""
SMALLEST = 4.0
"""Nor one whose box is narrower than this, in pixels of the crop."""

RECOLOUR = v2.Compose(
    [
        v2.RandomPhotometricDistort(brightness=(0.75, 1.2), contrast=(0.6, 1.4), hue=(-0.1, 0.1), p=0.4),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], 0.2),
    ]
)
TURN = v2.Compose(
    [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomApply([v2.RandomRotation((90, 90))], 0.5)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What the network learns from: pixels from 0 to 1, and its target as torchvision wants it."""

    image: Float[Tensor, "3 S S"]
    target: dict[str, Tensor]
    """boxes N 4, labels N (as in `Example`), and masks N S S where they are known."""


def random_crop(example: Example, settings: TrainSettings, rng: np.random.Generator) -> Crop:
    """A crop; geometry is drawn from `rng`, turning and colour from torch's current generator."""
    scale = _scale(example, settings, rng)
    left, top, side = _window(example, settings.crop / scale, rng)
    image = tv_tensors.Image(torch.tensor(example.image).permute(2, 0, 1))
    boxes, masks, areas, labels = _cells_in(example, left, top, side)
    image = v2.functional.crop(image, top, left, side, side)
    size = [settings.crop, settings.crop]
    image = v2.functional.resize(image, size, antialias=True)
    boxes, masks = (None if v is None else v2.functional.resize(v, size) for v in (boxes, masks))
    image, boxes, masks = TURN(image, boxes, masks)
    image = RECOLOUR(image)
    return Crop(
        image=v2.functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True),
        target=_target(boxes, masks, areas * (settings.crop / side) ** 2, labels),
    )


def _scale(example: Example, settings: TrainSettings, rng: np.random.Generator) -> float:
    """Brings the typical red cell to the nominal diameter, times a random zoom (log-uniform)."""
    zoom = float(np.exp(rng.uniform(*np.log(settings.zoom))))
    red = example.boxes[example.kinds == RED]
    sides = np.sqrt((red[:, 2:] - red[:, :2]).prod(axis=1))
    return zoom * (settings.nominal / float(np.median(sides)) if len(sides) else 1.0)


def _window(example: Example, side: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Left, top and side of a window; where the image is smaller, the window reaches beyond it."""
    whole = max(8, round(side))
    height, width = example.image.shape[:2]
    left = int(rng.integers(min(0, width - whole), max(0, width - whole) + 1))
    top = int(rng.integers(min(0, height - whole), max(0, height - whole) + 1))
    return left, top, whole


def _cells_in(
    example: Example, left: int, top: int, side: int
) -> tuple[tv_tensors.BoundingBoxes, tv_tensors.Mask | None, Float[Tensor, "N"], Int64[Tensor, "N"]]:
    """Boxes, masks, full areas and labels of what reaches into the window, in its coordinates."""
    near = (example.boxes[:, 0] < left + side) & (example.boxes[:, 2] > left)
    near &= (example.boxes[:, 1] < top + side) & (example.boxes[:, 3] > top)
    rows = np.nonzero(near)[0]
    shifted = example.boxes[rows] - np.array([left, top, left, top], dtype=np.float32)
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor(shifted, dtype=torch.float32), format="XYXY", canvas_size=(side, side)
    )
    labels = torch.from_numpy(example.kinds[rows])
    if example.masks is None:
        full = (shifted[:, 2:] - shifted[:, :2]).prod(axis=1)
        return boxes, None, torch.tensor(full, dtype=torch.float32), labels
    chosen = [example.masks[row] for row in rows]
    areas = torch.tensor([float(mask.sum()) for mask in chosen])
    canvas = np.zeros((len(rows), side, side), dtype=np.uint8)
    for plane, mask, (x0, y0, _, _) in zip(canvas, chosen, outer(shifted), strict=True):
        _paste(plane, mask, int(x0), int(y0))
    return boxes, tv_tensors.Mask(torch.from_numpy(canvas)), areas, labels


def _paste(plane: UInt8[np.ndarray, "S S"], mask: np.ndarray, x: int, y: int) -> None:
    """Set the part of the plane that the mask covers; the mask may reach beyond it."""
    part = mask[max(0, -y) : plane.shape[0] - y, max(0, -x) : plane.shape[1] - x]
    plane[max(0, y) : max(0, y) + part.shape[0], max(0, x) : max(0, x) + part.shape[1]] = part


def _target(
    boxes: tv_tensors.BoundingBoxes,
    masks: tv_tensors.Mask | None,
    full: Float[Tensor, "N"],
    labels: Int64[Tensor, "N"],
) -> dict[str, Tensor]:
    """Boxes of what is seen of each cell; cells hardly seen are left out."""
    if masks is None:
        plain = v2.functional.clamp_bounding_boxes(boxes).as_subclass(Tensor)
        seen = (plain[:, 2:] - plain[:, :2]).prod(dim=1)
        rows = _worth_finding(plain, seen / full)
        return {"boxes": plain[rows], "labels": labels[rows]}
    planes = masks.as_subclass(Tensor)
    seen = planes.sum(dim=(1, 2), dtype=torch.float32)
    visible = torch.nonzero(seen >= 1)[:, 0]
    tight = masks_to_boxes(planes[visible])
    tight[:, 2:] += 1  # masks_to_boxes counts the last pixel as the edge
    rows = _worth_finding(tight, seen[visible] / full[visible])
    return {"boxes": tight[rows], "labels": labels[visible[rows]], "masks": planes[visible[rows]]}


def _worth_finding(boxes: Float[Tensor, "N 4"], share: Float[Tensor, "N"]) -> Tensor:
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST).all(dim=1)
    return torch.nonzero(wide & (share >= VISIBLE))[:, 0]
