"""Red cell or white cell, where a network wavers between the two: size and doubt speak for the red cell.

Red cells full of parasites, or dark and uneven, look like white cells, and a parasite that is not given out
is never seen again. Axes: N boxes found in a tile.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

from hemomil.detect.examples import RED, WHITE
from hemomil.detect.scale import ENOUGH, SURE

WHITE_SURE = 0.7
"""Score under which nothing is taken for a white cell."""
LARGEST_RED = 1.5
"""A white cell is larger than this, in usual diameters of the red cells beside it: in txl_pbc train, 89 % of
white cells are, and 0.3 % of red ones; at 1.2 it is 97 and 9 %: red cells swollen by schizonts are lost."""
SAME = 0.5
"""IoU of two boxes that are of one thing."""


def in_doubt_red(result: dict[str, Tensor], nominal: float) -> dict[str, Tensor]:
    """What was found (`boxes`, `scores`, `labels`, …), with doubtful white cells as red cells.

    Where a doubtful white cell and a red cell of score under SURE have one place, the better of the two boxes
    is the red cell, with the sum of both scores. `nominal`: usual diameter of a red cell, where too few were
    found to tell it.
    """
    boxes, scores, labels = result["boxes"], result["scores"], result["labels"]
    red, doubtful = labels == RED, _doubtful(boxes, scores, labels, nominal)
    if not doubtful.any():
        return result
    rivals = (red[:, None] & doubtful) | (doubtful[:, None] & red)
    beside = torch.where(rivals & (box_iou(boxes, boxes) >= SAME), scores, 0.0).amax(dim=1)
    becomes = doubtful & (scores > beside)
    raised = red & (scores < SURE) & (scores >= beside)
    return {
        **result,
        "labels": torch.where(becomes, RED, labels),
        "scores": torch.where(becomes | raised, (scores + beside).clamp(max=1), scores),
    }


def _doubtful(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"], labels: Tensor, nominal: float
) -> Bool[Tensor, "N"]:
    """White cells of low score, or no larger than a red cell."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    sure = sides[(labels == RED) & (scores >= SURE)]
    usual = float(sure.median()) if len(sure) >= ENOUGH else nominal
    return (labels == WHITE) & ((scores < WHITE_SURE) | (sides <= LARGEST_RED * usual))
