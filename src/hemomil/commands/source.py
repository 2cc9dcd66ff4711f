"""What goes into a run, read and checked before any long work: samples, known cells, truth."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hemomil.cohort import (
    BroughtFeatures,
    KnownCells,
    check_images,
    exclude,
    listing,
    read_features,
    read_known_cells,
    read_manifest,
    read_truth,
    whole_image_cells,
    without_images,
)
from hemomil.commands.settings import Settings
from hemomil.errors import ImageError, ManifestError
from hemomil.types import Cells, Cohort, Notice

FEATURE_FILES = {".h5ad", ".zarr"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A cohort ready to be worked on. Exactly one of `cells`, `brought` or detection gives the cells."""

    cohort: Cohort
    inputs: dict[str, Path | None]
    cells: Cells | None = None
    """None: every cell has to be detected."""
    brought: BroughtFeatures | None = None
    truth: pd.DataFrame | None = None
    """Known cells that only score: image, box, cell_label."""
    truth_cells: Cells | None = None
    """The same, assigned to samples."""
    notices: tuple[Notice, ...] = ()


def load_source(
    manifest: Path,
    settings: Settings,
    *,
    cells: Path | None = None,
    truth: Path | None = None,
    labels_needed: bool = True,
) -> Source:
    """Read manifest (or brought features), known cells and truth; open every image once.

    Raises ManifestError, CellsError, ImageError or FeaturesError with every problem found.
    """
    inputs = {"manifest": manifest, "cells": cells, "truth": truth}
    for name, path in inputs.items():
        if path and not path.exists():
            raise ManifestError(f"{name} {path} does not exist", hint="give a path that exists")
    if manifest.suffix.lower() in FEATURE_FILES or settings.features == ("embedding",):
        return _load_brought(manifest, settings, inputs, labels_needed)
    cohort = read_manifest(manifest, control=settings.control, labels_needed=labels_needed)
    cohort = _without(cohort, settings)
    cohort, notices = _readable(cohort, skip=settings.skip_unreadable)
    keep_cut = settings.detect.border == "keep"
    known = _known_cells(cohort, cells, keep_cut)
    return Source(
        cohort=cohort,
        inputs=inputs,
        cells=known.cells if known else None,
        truth=read_truth(truth, cohort) if truth else None,
        truth_cells=read_known_cells(truth, cohort).cells if truth else None,
        notices=(*notices, *(known.notices if known else ())),
    )


def _load_brought(
    path: Path, settings: Settings, inputs: dict[str, Path | None], labels_needed: bool
) -> Source:
    """Vectors of an AnnData file, or of the per-slide HDF5 files that a manifest names."""
    one_file = path.suffix.lower() in FEATURE_FILES
    features = read_features(
        path if one_file else path.parent,
        manifest=None if one_file else path,
        key=settings.features_key or None,
        control=settings.control,
        labels_needed=labels_needed,
    )
    cohort = _without(features.cohort, settings)
    kept = {sample.sample for sample in cohort.samples}
    return Source(
        cohort=cohort,
        inputs=inputs,
        brought=replace(features, bags=[bag for bag in features.bags if bag.sample in kept], cohort=cohort),
    )


def _without(cohort: Cohort, settings: Settings) -> Cohort:
    for condition in settings.exclude:
        cohort = exclude(cohort, condition)
    return cohort


def _known_cells(cohort: Cohort, cells: Path | None, keep_cut: bool) -> KnownCells | None:
    """Cells of the file, and images that are one cell; None where the detector has to find them."""
    kinds = {image.kind for sample in cohort.samples for image in sample.images}
    if cells:
        return read_known_cells(cells, cohort, keep_cut=keep_cut)
    if kinds == {"cell"}:
        return KnownCells(cells=whole_image_cells(cohort), notices=())
    return None


def _readable(cohort: Cohort, *, skip: bool) -> tuple[Cohort, tuple[Notice, ...]]:
    """The cohort without unreadable images, or an error that lists them all."""
    problems = check_images(cohort)
    if not problems:
        return cohort, ()
    if not skip:
        raise ImageError(
            f"{len(problems)} image{'s' * (len(problems) > 1)} cannot be used:\n{listing(problems)}",
            hint="mend or remove them, or leave them out with --skip-unreadable",
        )
    bad = {problem.row for problem in problems}
    images = {i.image for sample in cohort.samples for i in sample.images if i.row in bad}
    kept, notices = without_images(cohort, images)
    if not kept.samples:
        raise ImageError(
            f"no image of the manifest can be read:\n{listing(problems)}", hint="mend the images"
        )
    return kept, notices


def settings_for(source: Source, settings: Settings) -> Settings:
    """The settings, with the features that this source has: vectors brought along are not described again."""
    return (
        settings.model_copy(update={"features": ("embedding",)}) if source.brought is not None else settings
    )
