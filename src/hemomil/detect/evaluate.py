"""Score a detector on images with known cells: COCO average precision, and what a user sees at the threshold.

Axes: N cells found, M cells known.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from hemomil.detect.detector import Detector
from hemomil.detect.examples import Example, Mask, outer
from hemomil.types import Detections

LOWEST_SCORE = 0.05
"""Average precision looks at detections down to this score."""
MOST = 1000
"""Detections of an image that count; COCO's usual 100 is fewer than a smear has."""


def evaluate_detector(detector: Detector, examples: Iterable[Example]) -> dict[str, float]:
    """Scores over all images together.

    `box_ap`, `box_ap50`, `box_ap75` and, if every example has masks, `mask_ap`, `mask_ap50`, `mask_ap75`:
    COCO average precision. `recall` and `precision` at IoU 0.5 of what passes the detector's own score
    threshold, each known cell matched to one found (the matching with the most pairs, best IoU first).
    `count_error`: mean over images of |found - known| / known. `cells`, `images`: what this rests on.
    """
    examples = list(examples)
    with_masks = bool(examples) and all(example.masks is not None for example in examples)
    metric = MeanAveragePrecision(
        iou_type=("bbox", "segm") if with_masks else "bbox", max_detection_thresholds=[1, 100, MOST]
    )
    lenient = detector.with_settings(detector.settings.model_copy(update={"score_threshold": LOWEST_SCORE}))
    tallies = [_add(metric, lenient.detect(e.image), e, detector.settings.score_threshold) for e in examples]
    return _average_precision(metric, with_masks) | _seen(np.array(tallies, dtype=np.float64).reshape(-1, 3))


def _add(
    metric: MeanAveragePrecision, found: Detections, example: Example, least: float
) -> tuple[int, int, int]:
    """Add an image to the metric; cells matched, found and known at the user's threshold."""
    shape = (example.image.shape[0], example.image.shape[1])
    prediction = _entry(found.boxes, found.masks, shape) | {"scores": torch.from_numpy(found.scores)}
    metric.update([prediction], [_entry(example.boxes, example.masks, shape)])
    good = found.boxes[found.scores >= least]
    return matched(good, example.boxes), len(good), len(example.boxes)


def matched(found: Float[np.ndarray, "N 4"], known: Float[np.ndarray, "M 4"], least_iou: float = 0.5) -> int:
    """Pairs of a cell found and a cell known whose boxes have this IoU, each cell in one pair at most."""
    iou = box_iou(torch.tensor(found, dtype=torch.float64), torch.tensor(known, dtype=torch.float64)).numpy()
    gain = np.where(iou >= least_iou, 1 + iou, 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return int((gain[rows, columns] > 0).sum())


def _entry(
    boxes: Float[np.ndarray, "N 4"], masks: tuple[Mask, ...] | None, shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """One image as torchmetrics wants it; masks as large as the image, for the moment of one update."""
    entry = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }
    if masks is not None:
        planes = np.zeros((len(boxes), *shape), dtype=bool)
        for plane, mask, (x0, y0, x1, y1) in zip(planes, masks, outer(boxes), strict=True):
            plane[y0:y1, x0:x1] = mask[: shape[0] - y0, : shape[1] - x0]
        entry["masks"] = torch.from_numpy(planes)
    return entry


def _average_precision(metric: MeanAveragePrecision, with_masks: bool) -> dict[str, float]:
    values = metric.compute()
    kinds = {"box": "bbox_", "mask": "segm_"} if with_masks else {"box": ""}
    names = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
    return {
        f"{kind}_{short}": float(values[f"{prefix}{long}"])
        for kind, prefix in kinds.items()
        for short, long in names.items()
    }


def _seen(tallies: Float[np.ndarray, "I 3"]) -> dict[str, float]:
    """Recall, precision and count error from matched, found and known cells of each image."""
    hit, found, known = tallies.sum(axis=0)
    error = np.abs(tallies[:, 1] - tallies[:, 2]) / np.maximum(tallies[:, 2], 1)
    return {
        "recall": float(hit / known) if known else float("nan"),
        "precision": float(hit / found) if found else float("nan"),
        "count_error": float(error.mean()) if len(error) else float("nan"),
        "cells": float(known),
        "images": float(len(tallies)),
    }
