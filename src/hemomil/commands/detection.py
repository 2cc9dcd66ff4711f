"""`detect` finds cells and writes cells.csv; `detect train` makes a detector."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from pydantic import ValidationError

from hemomil.cohort import assign, cut_by_border, read_image, write_cells_csv
from hemomil.commands.cells import detect_all, image_paths, open_detector
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.run_folder import open_run
from hemomil.commands.settings import Settings, explained
from hemomil.commands.source import load_source
from hemomil.commands.tables import write_table
from hemomil.errors import RunFolderError, SettingsError
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream
from hemomil.types import Cells, Detections, Notice

if TYPE_CHECKING:
    from hemomil.detect import Detector, Example, TrainSettings

FIELD_SIZE = (512, 512)
"""Height and width of the simulated fields that a detector learns from, pixels."""


def detect(
    manifest: Path, output: Path, *, settings: Settings, force: bool = False, talk: Talk = SILENT
) -> dict[str, Any]:
    """Find the cells of every image and write `output/cells.csv`; returns counts.

    Cells that the border cuts are in the file, marked by `border`, and left out of bags when it is given
    back. images.csv says of every image how many cells it has, how many of them are cut, how large they
    usually are and how sharp their outlines. Images in which nothing is found are named in run.json. A killed
    run goes on where it stopped.
    """
    source = load_source(manifest, settings, labels_needed=False)
    if source.cells is not None:
        raise SettingsError(
            f"{manifest} has kind=cell: every image is one cell already",
            hint="detect is for fields of many cells",
        )
    run = open_run(output, "detect", settings, source.inputs, force=force)
    run.notices.extend(source.notices)
    detector, fields = open_detector(settings), image_paths(source.cohort, "field")
    with run.filling():
        with run.timed("detect"):
            detected = detect_all(fields, detector, run.work, talk)
            cells = assign(source.cohort, detected)
        cut = cut_by_border(cells, source.cohort)
        found = Counter(cells.images)
        empty = [image for image in fields if not found[image]]
        text = "no cell was found in {}"
        run.notices.extend(Notice(kind="no-cells", subject=i, text=text.format(i)) for i in empty)
        write_cells_csv(run.path / "cells.csv", cells, cut=cut)
        write_table(run.path / "images.csv", _images(fields, detected, cells, cut, talk))
        run.facts.update(detector=detector.fingerprint, cells=len(cells), images_without_cells=len(empty))
    talk.say(f"{len(cells)} cells in {len(found)} images; none in {len(empty)}: {run.path / 'cells.csv'}")
    return {"cells": len(cells), "images": len(found), "images_without_cells": empty}


def _images(
    fields: Mapping[str, Path],
    detected: Mapping[str, Detections],
    cells: Cells,
    cut: Bool[np.ndarray, "N"],
    talk: Talk,
) -> pd.DataFrame:
    """A row per image: cells, those cut by the border, usual diameter (pixels), width of outlines."""
    from hemomil.detect import edge_width

    counts, cut_counts = Counter(cells.images), Counter(np.array(cells.images, dtype=object)[cut])
    rows = []
    for name, path in talk.track(fields.items(), "judging focus", len(fields)):
        boxes = detected[name].boxes
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        rows.append(
            {
                "image": name,
                "cells": counts[name],
                "border_cells": cut_counts[name],
                "diameter": float(np.median(sides)) if len(sides) else np.nan,
                "edge_width": edge_width(read_image(path), detected[name]),
            }
        )
    return pd.DataFrame(rows)


def detect_train(
    output: Path,
    *,
    coco: Sequence[Path] = (),
    categories: Sequence[str] | None = None,
    images: int | None = None,
    simulated: int = 0,
    start: str | None = None,
    complete: bool = False,
    settings: Mapping[str, Any] | None = None,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Train a detector on annotated images, simulated fields, or both; writes it to the file `output`.

    `start`: the detector to start from, `shipped` or a file. `complete`: that detector also draws what the
    annotations lack (`hemomil.detect.complete_example`). `images`: only so many of each file, at random.
    `settings`: changes to `TrainSettings`. A killed training goes on where it stopped when it is repeated.

    Raises SettingsError, CellsError or ModelError before any long work.
    """
    from hemomil.detect import train_detector

    told = _train_settings(settings or {})
    _refuse_training(output, coco, simulated, start, complete, told)
    first = _first_detector(start, told)
    examples = annotated_examples(coco, categories, images, told.seed)
    if complete and first is not None:
        examples = _completed(first, examples, talk)
    examples += list(talk.track(simulated_examples(simulated, told.seed), "drawing fields", simulated))
    asked = f"{told.model_dump_json()} {coco} {categories} {images} {simulated} {complete}"
    asked += first.fingerprint if first else ""
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    checkpoint = output.with_name(f".{output.stem}.{digest}.checkpoint.safetensors")
    with talk.counting("training") as count:
        detector = train_detector(
            examples,
            told,
            start=first,
            checkpoint=checkpoint,
            progress=lambda step, numbers: _tell(talk, count, told, step, numbers),
        )
    detector.save(output)
    checkpoint.unlink(missing_ok=True)
    return {
        "detector": str(output),
        "fingerprint": detector.fingerprint,
        "started_from": first.fingerprint if first else None,
        "images": len(examples),
        "settings": told.model_dump(mode="json"),
    }


def _train_settings(changes: Mapping[str, Any]) -> "TrainSettings":
    """The settings with these changes. Raises SettingsError that names each one out of bounds."""
    from hemomil.detect import TrainSettings

    try:
        return TrainSettings.model_validate(changes)
    except ValidationError as error:
        raise explained(error) from None


def _refuse_training(
    output: Path,
    coco: Sequence[Path],
    simulated: int,
    start: str | None,
    complete: bool,
    settings: "TrainSettings",
) -> None:
    """Raise for what cannot be trained, before anything is drawn or read."""
    if not coco and not simulated:
        raise SettingsError("nothing to learn from", hint="give --coco FILE, --simulated N, or both")
    if output.exists():
        raise RunFolderError(f"{output} exists", hint="choose another file with -o")
    if complete and start is None:
        raise SettingsError(
            "--complete needs a detector that draws what is missing", hint="add --from shipped"
        )
    if settings.average and start is None:
        raise SettingsError("--average needs weights to average with", hint="add --from shipped")


def _first_detector(start: str | None, settings: "TrainSettings") -> "Detector | None":
    """The detector to start from: shipped, a file, or none."""
    from hemomil.detect import Detector, DetectSettings, check_start

    if start is None:
        return None
    how = DetectSettings(device=settings.device)
    if start == "shipped":
        return Detector.shipped(settings.backbone, settings=how)
    detector = Detector.load(Path(start), settings=how)
    check_start(detector, settings)
    return detector


def annotated_examples(
    coco: Sequence[Path], categories: Sequence[str] | None, images: int | None, seed: int
) -> "list[Example]":
    """Annotated images of all files; `images` of each, drawn at random, if so many are asked for."""
    from hemomil.detect import read_coco_examples

    examples: list[Example] = []
    for path in coco:
        read = list(read_coco_examples(path, categories=categories, others=True))
        if images is not None:
            drawn = stream(seed, "detector-images").permutation(len(read))[:images]
            read = [read[row] for row in sorted(drawn.tolist())]
        examples += read
    return examples


def _completed(detector: "Detector", examples: "list[Example]", talk: Talk) -> "list[Example]":
    from hemomil.detect import complete_example

    work = talk.track(examples, "completing annotations", len(examples))
    return [complete_example(detector, example) for example in work]


def _tell(
    talk: Talk,
    count: Callable[[int, int], None],
    settings: "TrainSettings",
    step: int,
    numbers: Mapping[str, float],
) -> None:
    """The bar at every step, a line of numbers now and then."""
    count(step, settings.steps)
    if step % settings.every == 0 or step == settings.steps:
        talk.say(f"step {step}: {_numbers(numbers)}")


def _numbers(told: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in told.items())


def simulated_examples(n: int, seed: int) -> "Iterator[Example]":
    """Fields of every stain, scale, light and density that the simulator knows, with boxes and masks.

    Red cells, white cells and platelets are told apart; dust is background.
    """
    from hemomil.detect import CLASSES, Example

    kinds = {name.replace(" ", "_"): label for label, name in enumerate(CLASSES, start=1)}
    for k in range(n):
        rng = stream(seed, "detector-field", k)
        field = draw_field(rng, random_field_settings(rng, size=FIELD_SIZE))
        others = [row for row, name in enumerate(field.distractor_labels) if name in kinds]
        yield Example(
            image=field.image,
            boxes=np.concatenate([field.boxes, field.distractor_boxes[others]]),
            masks=field.masks + tuple(field.distractor_masks[row] for row in others),
            labels=(1,) * len(field.boxes) + tuple(kinds[field.distractor_labels[row]] for row in others),
        )
