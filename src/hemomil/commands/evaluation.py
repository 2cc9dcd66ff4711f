"""`detect evaluate`: how well a detector finds known cells, each number with an interval over images.

Axes: I images, B bootstrap draws of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from hemomil.cohort import read_image
from hemomil.commands.cells import open_detector
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.known import POINT, ImageSet, read_image_sets
from hemomil.commands.settings import Settings
from hemomil.errors import CellsError
from hemomil.segmentation import run_lengths
from hemomil.stats import MIN_PATIENTS, Resampled, estimate, estimate_dict, patient_draws
from hemomil.types import Detections, Estimate

if TYPE_CHECKING:
    from hemomil.detect import CellFinder
    from hemomil.detect.tally import Tally
    from hemomil.segmentation import RunLengths

DRAWS = 1000
"""Bootstrap draws of the images."""
MIN_IMAGES = MIN_PATIENTS
"""A number that rests on fewer images comes without an interval."""


def detect_evaluate(
    files: Sequence[Path],
    *,
    settings: Settings,
    categories: Sequence[str] | None = None,
    only: Path | None = None,
    inner: bool = False,
    limit: int | None = None,
    talk: Talk = SILENT,
) -> list[dict[str, Any]]:
    """Score the detector of the settings on each image set; one block of results per file.

    Files, `categories`, `only` and `limit` are as in `read_image_sets`. A block has `file`, `images`,
    `cells` (the known cells that count), `classes` (how many of each class), `inner`, and `scores`: {value,
    low, high, n, unit} by name, with the 95 % percentile interval over images drawn with replacement. `n` is
    the number of images that have something to say; where it is below 5, `low` and `high` are null.

    - Boxes: `box_ap`, `box_ap50`, `box_ap75` and, where every cell has a mask, `mask_ap`, ...: COCO average
      precision, of cells found down to a score of 0.05. `recall` and `precision` at IoU 0.5 of the cells
      found that pass the detector's own threshold. `count_error`: mean over images of |found - known| /
      max(known, 1).
    - Points: `recall`, the share of points that lie in the box of a cell found that no other point has.
      Nothing else, since not every cell need have a point.
    - Both: `recall_CLASS` of every class, if the known cells are of several (cell_label, or COCO categories).

    With `inner`, cells that touch the image border (come within 2 pixels of it) do not count, for sets that
    do not annotate cut cells: a known one is no loss if missed, one found is no false alarm. All cells found
    and known are matched first. Then known cells at the border are left out, with the found ones matched to
    them; found ones matched to other known cells stay, wherever they lie; found ones matched to none stay
    unless they touch the border. All numbers are of what stays; the matching is done for the cells above the
    threshold and, for average precision, for all. Of points, those within 2 pixels of the border are left
    out.

    Raises CellsError for files and images that cannot be used.
    """
    sets = read_image_sets(files, categories=categories, only=only, limit=limit)
    detector = open_detector(settings)
    return [_block(one, detector, inner, settings.seed, talk) for one in sets]


def _block(one: ImageSet, detector: "CellFinder", inner: bool, seed: int, talk: Talk) -> dict[str, Any]:
    if one.crowds:
        talk.say(
            f"{one.path}: {one.crowds} crowd annotations, which stand for many cells at once, are left out"
        )
    tallies = list(_tallies(one, detector, inner, talk))
    return {
        "file": str(one.path),
        "images": len(tallies),
        "cells": sum(len(tally.hits) for tally in tallies),
        "classes": dict(sorted(Counter(name for tally in tallies for name in tally.labels if name).items())),
        "inner": inner,
        "scores": detector_scores(tallies, seed=seed),
    }


def _tallies(one: ImageSet, detector: "CellFinder", inner: bool, talk: Talk) -> "Iterator[Tally]":
    """What was found of every image, one image in memory at a time."""
    from hemomil.detect.evaluate import LOWEST_SCORE

    least = detector.settings.score_threshold
    lowest = min(least, LOWEST_SCORE)
    eager = detector.with_settings(detector.settings.model_copy(update={"score_threshold": lowest}))
    for name, path, rows in talk.track(one.cells(), f"scoring {one.path.name}", len(one.images)):
        image = read_image(path)
        shape = (image.shape[0], image.shape[1])
        yield _tally(one, name, rows, eager.detect(image), shape, least, inner)


def _tally(
    one: ImageSet,
    name: str,
    rows: pd.DataFrame,
    found: Detections,
    shape: tuple[int, int],
    least: float,
    inner: bool,
) -> "Tally":
    from hemomil.detect.tally import Known, tally_cells, tally_points

    places, labels = rows[one.places].to_numpy(dtype=float), tuple(rows["cell_label"])
    if one.places == POINT:
        return tally_points(found, places, labels, shape, least=least, inner=inner)
    known = Known(boxes=places, labels=labels, masks=_masks(one, name, rows, shape))
    return tally_cells(found, known, shape, least=least, inner=inner)


def _masks(
    one: ImageSet, name: str, rows: pd.DataFrame, shape: tuple[int, int]
) -> "tuple[RunLengths, ...] | None":
    """Masks of the known cells of an image; None unless all have one."""
    if rows["segmentation"].isna().any():
        return None
    masks = tuple(run_lengths(drawn, shape) for drawn in rows["segmentation"])
    if any(tuple(mask["size"]) != shape for mask in masks):
        raise CellsError(
            f"{one.path}: a mask of image {name!r} is not of its size, {shape[1]}x{shape[0]} pixels",
            hint="bring the images that were annotated, or leave the segmentations out",
        )
    return masks


def detector_scores(tallies: "Sequence[Tally]", *, seed: int) -> dict[str, dict[str, Any]]:
    """Every number that the tallies of an image set allow, as `detect_evaluate` describes them."""
    from hemomil.detect.tally import average_precisions

    draws = patient_draws(len(tallies), DRAWS, seed=seed)
    values = average_precisions(tallies, np.ones((1, len(tallies)), dtype=np.int64))
    drawn = average_precisions(tallies, draws)
    curves = {
        name: Resampled(value=float(value[0]), draws=drawn[name], n=len(tallies))
        for name, value in values.items()
    }
    scores = curves | _counts(tallies, draws) | _recall_by_class(tallies, draws)
    return {name: estimate_dict(_over_images(score)) for name, score in scores.items()}


def _counts(tallies: "Sequence[Tally]", draws: Int[np.ndarray, "B I"]) -> dict[str, Resampled]:
    hits, known = _each(t.hits.sum() for t in tallies), _each(len(t.hits) for t in tallies)
    recall = {"recall": _ratio(hits, known, draws)}
    if any(tally.found is None for tally in tallies):
        return recall
    found = _each(tally.found for tally in tallies)
    error = np.abs(found - known) / np.maximum(known, 1)
    return recall | {
        "precision": _ratio(hits, found, draws),
        "count_error": _ratio(error, np.ones(len(error)), draws),
    }


def _recall_by_class(tallies: "Sequence[Tally]", draws: Int[np.ndarray, "B I"]) -> dict[str, Resampled]:
    """Recall of the known cells of each class, if there are several."""
    classes = sorted({label for tally in tallies for label in tally.labels if label})
    of_class = {
        name: [tally.hits[np.array(tally.labels, dtype=object) == name] for tally in tallies]
        for name in classes
    }
    return {
        f"recall_{name}": _ratio(_each(h.sum() for h in hits), _each(len(h) for h in hits), draws)
        for name, hits in of_class.items()
        if len(classes) > 1
    }


def _each(values: Any) -> Float[np.ndarray, "I"]:
    return np.array(list(values), dtype=np.float64)


def _ratio(
    part: Float[np.ndarray, "I"], whole: Float[np.ndarray, "I"], draws: Int[np.ndarray, "B I"]
) -> Resampled:
    """The sum of the parts over the sum of the wholes; it rests on the images that have a whole."""
    every = np.concatenate([np.ones((1, len(part)), dtype=draws.dtype), draws])
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN: not estimable
        ratios = (every @ part) / (every @ whole)
    return Resampled(value=float(ratios[0]), draws=ratios[1:], n=int(np.count_nonzero(whole)))


def _over_images(score: Resampled) -> Estimate:
    made = replace(estimate(score), unit="images")
    return replace(made, low=None, high=None) if score.n < MIN_IMAGES else made
