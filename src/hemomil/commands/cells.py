"""From images to described cells: the store `cells.zarr` of a run folder.

Detection is kept image by image under `.work/`, so that a killed run goes on where it stopped.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from joblib import Parallel, delayed

from hemomil.cohort import BroughtFeatures, assign, match_truth, read_image, without_cut
from hemomil.commands.console import Talk
from hemomil.commands.run_folder import RunFolder
from hemomil.commands.settings import THRESHOLD, Settings
from hemomil.commands.source import Source
from hemomil.errors import SettingsError
from hemomil.files import write_json, written_whole
from hemomil.segmentation import Masks
from hemomil.stats import Resampled, estimate, estimate_dict, patient_draws
from hemomil.types import Cells, Cohort, Detections, Notice

if TYPE_CHECKING:
    from hemomil.detect import CellFinder

FEW_CELLS = 1000
"""So many are described, at 7 ms each, while two processes would begin, which takes each of them 4 s."""


def image_paths(cohort: Cohort, *kinds: str) -> dict[str, Path]:
    """Every image (of these kinds, if any are named) once: its name in the manifest and its file."""
    rows = [image for sample in cohort.samples for image in sample.images]
    return {image.image: image.path for image in rows if not kinds or image.kind in kinds}


def open_detector(settings: Settings) -> "CellFinder":
    """The detector that the settings name: shipped, with COCO weights, without a network, or a file."""
    from hemomil.detect import Detector, ThresholdDetector

    if settings.detector == THRESHOLD:
        return ThresholdDetector(settings=settings.detect)
    if settings.detector == "resnet50":
        return Detector.coco(settings=settings.detect)
    if settings.detector == "small":
        return Detector.shipped(settings=settings.detect)
    return Detector.load(Path(settings.detector), settings=settings.detect)


def detect_all(
    paths: Mapping[str, Path], detector: "CellFinder", work: Path, talk: Talk
) -> dict[str, Detections]:
    """Cells of every image; what an earlier, killed run had found is not looked for again."""
    found = {}
    for k, (image, path) in enumerate(talk.track(paths.items(), "finding cells", len(paths))):
        kept = work / "found" / f"{k:06d}.npz"
        if not kept.exists():
            _keep(kept, detector.detect(read_image(path)))
        found[image] = _kept(kept)
    return found


def _keep(path: Path, found: Detections) -> None:
    with written_whole(path) as part:
        np.savez_compressed(
            part,
            boxes=found.boxes,
            scores=found.scores,
            masks=np.array(Masks.of(found.masks or ()).texts, dtype=str),
            masked=found.masks is not None,
            diameter=np.nan if found.diameter is None else found.diameter,
        )


def _kept(path: Path) -> Detections:
    with np.load(path) as arrays:
        masks: Any = Masks(arrays["masks"].tolist()) if arrays["masked"] else None
        diameter = float(arrays["diameter"])
        return Detections(
            boxes=arrays["boxes"],
            scores=arrays["scores"],
            masks=masks,
            diameter=None if np.isnan(diameter) else diameter,
        )


def prepare(source: Source, run: RunFolder, talk: Talk, *, jobs: int) -> Path:
    """Fill `cells.zarr` of the run folder, unless an earlier run of the same command did."""
    store = run.path / "cells.zarr"
    run.notices.extend(notice for notice in source.notices if notice.kind != "no-cells")
    if not store.exists():
        _fill(store, source, run, talk, jobs)
    run.notices.extend(_left_out(run))
    run.notices.extend(_samples_without_cells(source, store))
    return store


def _fill(store: Path, source: Source, run: RunFolder, talk: Talk, jobs: int) -> None:
    from hemomil.describe import StoreWriter

    if source.brought is not None:
        brought, values = _brought_cells(source.brought)
        names = {"embedding": source.brought.names}
        with StoreWriter(store, brought, source.cohort, ("embedding",), names=names) as writer:
            writer.write(slice(None), "embedding", values)
        return
    cells, detector, diameters = source.cells, None, {}
    if cells is None or "roi" in run.settings.kinds:
        detector = open_detector(run.settings)
    if cells is None:
        assert detector is not None
        with run.timed("detect"):
            fields = image_paths(source.cohort, "field")
            detected = detect_all(fields, detector, run.work, talk)
        diameters = {image: found.diameter for image, found in detected.items()}
        cells = assign(source.cohort, detected)
        cells = _seen_whole(cells, source.cohort, run)
    if source.truth is not None:
        cells = with_truth(cells, source)
    if not len(cells):
        raise SettingsError(
            "no cell was found in any image", hint="lower detect.score_threshold, or give --cells"
        )
    with run.timed("describe"):
        _describe(store, cells, source, run, talk, jobs, detector, diameters)


def _seen_whole(cells: Cells, cohort: Cohort, run: RunFolder) -> Cells:
    """The cells without those that the border cuts, if settings say so; what was left out is noted on disk.

    A run that goes on after a kill finds the note there, and ends with the same notices.
    """
    if run.settings.detect.border == "keep":
        return cells
    whole, notices = without_cut(cells, cohort)
    write_json(run.work / "left-out.json", [notice.text for notice in notices])
    return whole


def _left_out(run: RunFolder) -> list[Notice]:
    note = run.work / "left-out.json"
    texts = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    return [Notice(kind="cells-cut-by-border", subject="the images", text=text) for text in texts]


def _brought_cells(features: BroughtFeatures) -> tuple[Cells, Float[np.ndarray, "N F"]]:
    """Vectors brought along as cells without image or box."""
    bags, known = features.bags, features.cell_labels
    ids = tuple(name for bag in bags for name in bag.cell_ids)
    cells = Cells(
        cell_ids=ids,
        samples=tuple(bag.sample for bag in bags for _ in bag.cell_ids),
        images=("",) * len(ids),
        boxes=np.full((len(ids), 4), np.nan),
        scores=np.ones(len(ids)),
        masks=(None,) * len(ids),
        cell_labels=tuple(
            label for bag in bags for label in known.get(bag.sample, (None,) * len(bag.cell_ids))
        ),
    )
    return cells, np.concatenate([bag.features for bag in bags])


def with_truth(cells: Cells, source: Source) -> Cells:
    """The same cells with the known class of each, where a known cell lies under it."""
    assert source.truth is not None
    return dataclasses.replace(cells, cell_labels=match_truth(cells, source.truth))


def _describe(
    store: Path,
    cells: Cells,
    source: Source,
    run: RunFolder,
    talk: Talk,
    jobs: int,
    detector: "CellFinder | None",
    diameters: Mapping[str, float | None],
) -> None:
    """Measure every cell, image by image, into the store.

    `diameters`: usual diameter of the cells of images that were searched already, pixels.
    """
    from hemomil.describe import StoreWriter

    kinds = run.settings.kinds
    paths, versions = image_paths(source.cohort), {"roi": detector.fingerprint} if detector else {}
    with StoreWriter(store, cells, source.cohort, kinds, versions=versions, resume=True) as writer:
        fast = tuple(kind for kind in kinds if kind in ("shape", "crop"))
        missing = [~writer.done(kind) for kind in fast]
        rows = _rows_by_image(cells, np.any([*missing, np.zeros(len(cells), bool)], axis=0))
        work = (
            delayed(_measure)(
                paths[image], cells.boxes[at], [cells.masks[i] for i in at.tolist()], fast, run.settings
            )
            for image, at in rows.items()
        )
        few = sum(map(len, rows.values())) < FEW_CELLS
        measured = Parallel(n_jobs=1 if few else jobs, return_as="generator")(work)
        for at, values in talk.track(
            zip(rows.values(), measured, strict=True), "describing cells", len(rows)
        ):
            for kind, array in values.items():
                writer.write(at, kind, array)
        if "roi" in kinds:
            from hemomil.detect import Detector

            assert isinstance(detector, Detector)  # the settings refuse RoI maps without a network
            rows = _rows_by_image(cells, ~writer.done("roi"))
            for image, at in talk.track(rows.items(), "RoI maps", len(rows)):
                known = diameters.get(image)
                maps = detector.roi_maps(read_image(paths[image]), cells.boxes[at], diameter=known)
                writer.write(at, "roi", maps)


def _rows_by_image(cells: Cells, wanted: Bool[np.ndarray, "N"]) -> dict[str, np.ndarray]:
    """The wanted rows of each image, images in the order in which they first appear."""
    images = pd.Series(cells.images)[wanted]
    return {str(name): part.index.to_numpy() for name, part in images.groupby(images, sort=False)}


def _measure(
    path: Path,
    boxes: Float[np.ndarray, "N 4"],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    kinds: Sequence[str],
    settings: Settings,
) -> dict[str, np.ndarray]:
    """All kinds of description that need no network, for the cells of one image."""
    from hemomil.describe import crops, measure

    image, told = read_image(path), settings.describe
    values = {}
    if "shape" in kinds:
        values["shape"] = measure(image, boxes, masks)
    if "crop" in kinds:
        values["crop"] = crops(image, boxes, size=told.crop_size, context=told.crop_context)
    return values


def _samples_without_cells(source: Source, store: Path) -> list[Notice]:
    from hemomil.describe import read_obs

    seen = set(read_obs(store)["sample"])
    lost = [sample.sample for sample in source.cohort.samples if sample.sample not in seen]
    text = "no cell was found in sample {}: nothing is predicted for it"
    return [Notice(kind="no-cells", subject=sample, text=text.format(sample)) for sample in lost]


def detection_quality(obs: pd.DataFrame, truth: Cells, *, seed: int, n_boot: int) -> dict[str, Any]:
    """Recall and precision of the bags by the known cells (IoU at least 0.5), intervals over patients.

    `obs` is the store's table of cells: `cell_label` is filled where a known cell lies under the box. Known
    cells left out because the border cuts them count as lost; `detect evaluate` judges the detector.
    """
    owner = dict(zip(obs["sample"], obs["patient"], strict=True))
    known = pd.Series([owner[sample] for sample in truth.samples if sample in owner]).value_counts()
    found = obs["patient"].value_counts()
    matched = obs.loc[obs["cell_label"].notna(), "patient"].value_counts()
    counts = pd.DataFrame({"known": known, "found": found, "matched": matched}).fillna(0).sort_index()
    draws = patient_draws(len(counts), n_boot, seed=seed)
    return {
        "recall": estimate_dict(estimate(_ratio(counts["matched"], counts["known"], draws))),
        "precision": estimate_dict(estimate(_ratio(counts["matched"], counts["found"], draws))),
    }


def _ratio(part: pd.Series, whole: pd.Series, draws: np.ndarray) -> Resampled:
    top, bottom = part.to_numpy(np.float64), whole.to_numpy(np.float64)
    return Resampled(value=top.sum() / bottom.sum(), draws=(draws @ top) / (draws @ bottom), n=len(top))
