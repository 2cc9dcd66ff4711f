"""What goes into a run, read and checked before any long work: samples, known cells, truth."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hemomil.cohort import (
    Problem,
    check_images,
    exclude,
    read_cells,
    read_features,
    read_manifest,
    read_truth,
    whole_image_cells,
)
from hemomil.commands.settings import Settings
from hemomil.errors import ImageError, ManifestError
from hemomil.types import Bag, Cells, Cohort, Notice, Sample

FEATURE_FILES = {".h5ad", ".zarr"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A cohort ready to be worked on. Exactly one of `cells`, `brought` or detection gives the cells."""

    cohort: Cohort
    inputs: dict[str, Path | None]
    cells: Cells | None = None
    """None: every cell has to be detected."""
    brought: tuple[Bag, ...] | None = None
    brought_names: tuple[str, ...] = ()
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
            raise ManifestError(f"{name} {path} does not exist", hint="give the path of an existing file")
    if manifest.suffix.lower() in FEATURE_FILES:
        return _load_brought(manifest, settings, inputs)
    cohort = read_manifest(manifest, control=settings.control, labels_needed=labels_needed)
    cohort = _without(cohort, settings)
    cohort, notices = _readable(cohort, skip=settings.skip_unreadable)
    return Source(
        cohort=cohort,
        inputs=inputs,
        cells=_known_cells(cohort, cells),
        truth=read_truth(truth) if truth else None,
        truth_cells=read_cells(truth, cohort) if truth else None,
        notices=notices,
    )


def _load_brought(path: Path, settings: Settings, inputs: dict[str, Path | None]) -> Source:
    features = read_features(path, key=settings.features_key or None, control=settings.control)
    cohort = _without(features.cohort, settings)
    kept = {sample.sample for sample in cohort.samples}
    return Source(
        cohort=cohort,
        inputs=inputs,
        brought=tuple(bag for bag in features.bags if bag.sample in kept),
        brought_names=features.names,
    )


def _without(cohort: Cohort, settings: Settings) -> Cohort:
    for condition in settings.exclude:
        cohort = exclude(cohort, condition)
    return cohort


def _known_cells(cohort: Cohort, cells: Path | None) -> Cells | None:
    kinds = {image.kind for sample in cohort.samples for image in sample.images}
    if kinds == {"cell"}:
        return whole_image_cells(cohort)
    if "cell" in kinds:
        raise ManifestError(
            "the manifest mixes kind=field and kind=cell", hint="put whole fields and single cells into two manifests"
        )
    return read_cells(cells, cohort) if cells else None


def _readable(cohort: Cohort, *, skip: bool) -> tuple[Cohort, tuple[Notice, ...]]:
    """The cohort without unreadable images, or an error that lists them all."""
    problems = check_images(cohort)
    if not problems:
        return cohort, ()
    if not skip:
        raise ImageError(
            f"{len(problems)} images cannot be used:\n  " + "\n  ".join(_line(p) for p in problems),
            hint="mend or remove them, or leave them out with --skip-unreadable",
        )
    bad = {problem.row for problem in problems}
    samples = [_without_rows(sample, bad) for sample in cohort.samples]
    notices = tuple(Notice(kind="image-skipped", subject=p.subject, text=_line(p)) for p in problems)
    lost = tuple(
        Notice(kind="sample-skipped", subject=s.sample, text=f"sample {s.sample}: no image of it can be read")
        for s in samples
        if not s.images
    )
    kept = tuple(sample for sample in samples if sample.images)
    if not kept:
        raise ImageError("no image of the manifest can be read", hint=_line(problems[0]))
    return dataclasses.replace(cohort, samples=kept), notices + lost


def _without_rows(sample: Sample, rows: set[int | None]) -> Sample:
    return dataclasses.replace(sample, images=tuple(i for i in sample.images if i.row not in rows))


def _line(problem: Problem) -> str:
    return f"row {problem.row}: {problem.subject}: {problem.text}; {problem.remedy}"
