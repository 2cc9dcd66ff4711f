"""Average precision as COCO defines it: cells are matched once, the curve is computed on any draw of images.

Axes: I images, B draws of them, N cells found in an image, M known in it, D found in all images, T least
overlaps, H cells found that are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

OVERLAPS = torch.linspace(0.5, 0.95, 10).double().numpy()
"""Least IoU at which a found cell is a known one; COCO's ten, rounded as torchmetrics rounds them."""
RECALLS = torch.linspace(0, 1, 101).double().numpy()
"""Where the curve is read; COCO's 101 points, rounded likewise."""
MOST = 1000
"""Cells found in an image that count; COCO's usual 100 is fewer than a smear has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The cells found in one image, by falling score, and which of them are known ones."""

    scores: Float[np.ndarray, "N"]
    hits: Bool[np.ndarray, "T N"]
    """Whether each is a known cell, for each least overlap."""
    known: int
    """Known cells of the image."""


def rank(scores: Float[np.ndarray, "N"], iou: Float[np.ndarray, "N M"]) -> Ranked:
    """Match the cells of an image as COCO does: by falling score, each to the free known cell of most IoU."""
    order = np.argsort(-scores, kind="stable")[:MOST]
    padded = np.pad(iou[order], ((0, 0), (1, 0)), constant_values=-1)  # a known cell that none can be
    free = np.ones((len(OVERLAPS), padded.shape[1]), dtype=bool)
    hits = np.zeros((len(OVERLAPS), len(order)), dtype=bool)
    rows = np.arange(len(OVERLAPS))
    for n, overlap in enumerate(padded):
        open_TM = np.where(free & (overlap >= OVERLAPS[:, None]), overlap, -1)
        best = padded.shape[1] - 1 - open_TM[:, ::-1].argmax(axis=1)  # of equals the last, as COCO does
        hits[:, n] = open_TM[rows, best] > 0
        free[rows, best] &= ~hits[:, n]
    return Ranked(scores=scores[order], hits=hits, known=iou.shape[1])


def average_precision(images: Sequence[Ranked], draws: Int[np.ndarray, "B I"]) -> Float[np.ndarray, "B T"]:
    """Average precision at each of OVERLAPS on each draw; `draws` says how often each image is in it.

    An image that is drawn twice counts as two images with the same cells. NaN where a draw has no known cell.
    """
    scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
    order = np.argsort(-scores, kind="stable")
    owner = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])[order]
    none = np.zeros((len(OVERLAPS), 0), dtype=bool)
    hits_TD = np.concatenate([none, *(image.hits for image in images)], axis=1)[:, order]
    hits_at = [np.flatnonzero(hits) for hits in hits_TD]
    known = draws @ np.array([image.known for image in images], dtype=np.int64)
    return np.array([_under_curves(draw[owner], hits_at, n) for draw, n in zip(draws, known, strict=True)])


def _under_curves(
    times: Int[np.ndarray, "D"], hits_at: Sequence[Int[np.ndarray, "_"]], known: int | np.integer
) -> Float[np.ndarray, "T"]:
    """Area under each precision-recall curve, its steps at the hits; `times` each cell found counts."""
    if not known:
        return np.full(len(hits_at), np.nan)
    found = times.cumsum()
    return np.array([_under_curve(times[at].cumsum(), found[at], known) for at in hits_at])


def _under_curve(hits: Int[np.ndarray, "H"], found: Int[np.ndarray, "H"], known: int | np.integer) -> float:
    """Mean over RECALLS of the best precision at this recall or a higher one; 0 where it is not reached."""
    precision = hits / np.maximum(found, 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(hits / known, RECALLS)].mean())
