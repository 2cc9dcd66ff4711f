"""Score a detector on images with known cells: COCO average precision, and what a user sees at the threshold.

Axes: I images.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from hemomil.detect.examples import RED, Example
from hemomil.detect.face import CellFinder
from hemomil.detect.tally import Known, Tally, average_precisions, laid_out, tally_cells

LOWEST_SCORE = 0.05
"""Average precision looks at cells found down to this score."""


def evaluate_detector(detector: CellFinder, examples: Iterable[Example]) -> dict[str, float]:
    """Scores over the red cells of all images together.

    `box_ap`, `box_ap50`, `box_ap75` and, if every example has masks, `mask_ap`, `mask_ap50`, `mask_ap75`:
    COCO average precision, of up to 1000 cells found in an image. `recall` and `precision` at IoU 0.5 of
    what passes the detector's own score threshold, each known cell matched to one found (the matching with
    the most pairs, best IoU first). `count_error`: mean over images of |found - known| / max(known, 1).
    `cells`, `images`: what this rests on. NaN: not defined, for want of cells.
    """
    least = detector.settings.score_threshold
    lowest = min(least, LOWEST_SCORE)
    eager = detector.with_settings(detector.settings.model_copy(update={"score_threshold": lowest}))
    tallies = [
        tally_cells(eager.detect(e.image), _known(e), e.image.shape[:2], least=least) for e in examples
    ]
    once = np.ones((1, len(tallies)), dtype=np.int64)
    precisions = {name: float(value[0]) for name, value in average_precisions(tallies, once).items()}
    return precisions | _seen(tallies)


def _known(example: Example) -> Known:
    red = np.flatnonzero(example.kinds == RED)
    boxes, masks = example.boxes[red], None
    if example.masks is not None or not len(red):
        chosen = [example.masks[row] for row in red] if example.masks is not None else []
        masks = laid_out(boxes, chosen, example.image.shape[:2])
    return Known(boxes=boxes, labels=("",) * len(red), masks=masks)


def _seen(tallies: Sequence[Tally]) -> dict[str, float]:
    """Recall, precision and count error of all images together."""
    counts = np.array([(t.hits.sum(), t.found, len(t.hits)) for t in tallies], dtype=np.float64).reshape(
        -1, 3
    )
    hit, found, known = counts.sum(axis=0)
    error = np.abs(counts[:, 1] - counts[:, 2]) / np.maximum(counts[:, 2], 1)
    return {
        "recall": float(hit / known) if known else float("nan"),
        "precision": float(hit / found) if found else float("nan"),
        "count_error": float(error.mean()) if len(error) else float("nan"),
        "cells": float(known),
        "images": float(len(tallies)),
    }
