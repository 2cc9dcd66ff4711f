"""`detect` finds cells and writes cells.csv; `detect train` and `detect evaluate` make and judge one."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemomil.cohort import assign, write_cells_csv
from hemomil.commands.cells import detect_all, image_paths, open_detector
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.run_folder import open_run
from hemomil.commands.settings import Settings
from hemomil.commands.source import load_source
from hemomil.errors import RunFolderError, SettingsError
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream
from hemomil.types import Notice

if TYPE_CHECKING:
    from hemomil.detect import Example

FIELD_SIZE = (512, 512)
"""Height and width of the simulated fields that a detector learns from, pixels."""


def detect(
    manifest: Path, output: Path, *, settings: Settings, force: bool = False, talk: Talk = SILENT
) -> dict[str, Any]:
    """Find the cells of every image and write `output/cells.csv`; returns counts.

    Images in which nothing is found are named in run.json. A killed run goes on where it stopped.
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
            cells = assign(source.cohort, detect_all(fields, detector, run.work, talk))
        found = Counter(cells.images)
        empty = [image for image in fields if not found[image]]
        text = "no cell was found in {}"
        run.notices.extend(Notice(kind="no-cells", subject=i, text=text.format(i)) for i in empty)
        write_cells_csv(run.path / "cells.csv", cells)
        run.facts.update(detector=detector.fingerprint, cells=len(cells), images_without_cells=len(empty))
    talk.say(f"{len(cells)} cells in {len(found)} images; none in {len(empty)}: {run.path / 'cells.csv'}")
    return {"cells": len(cells), "images": len(found), "images_without_cells": empty}


def detect_train(
    output: Path,
    *,
    coco: Path | None = None,
    categories: Sequence[str] | None = None,
    simulated: int = 0,
    backbone: str = "small",
    steps: int | None = None,
    seed: int = 0,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Train a detector on annotated images, simulated fields, or both; writes it to the file `output`."""
    from hemomil.detect import TrainSettings, read_coco_examples, train_detector

    if coco is None and not simulated:
        raise SettingsError("nothing to learn from", hint="give --coco FILE, --simulated N, or both")
    if output.exists():
        raise RunFolderError(f"{output} exists", hint="choose another file with -o")
    settings = TrainSettings.model_validate(
        {"backbone": backbone, "seed": seed, **({"steps": steps} if steps else {})}
    )
    examples = list(talk.track(simulated_examples(simulated, seed), "drawing fields", simulated))
    if coco is not None:
        examples += list(read_coco_examples(coco, categories=categories))
    detector = train_detector(
        examples, settings, progress=lambda step, told: talk.say(f"step {step}: {_numbers(told)}")
    )
    detector.save(output)
    return {
        "detector": str(output),
        "fingerprint": detector.fingerprint,
        "settings": settings.model_dump(mode="json"),
    }


def _numbers(told: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in told.items())


def simulated_examples(n: int, seed: int) -> "Iterator[Example]":
    """Fields of every stain, scale, light and density that the simulator knows, with boxes and masks."""
    from hemomil.detect import Example

    for k in range(n):
        rng = stream(seed, "detector-field", k)
        field = draw_field(rng, random_field_settings(rng, size=FIELD_SIZE))
        yield Example(image=field.image, boxes=field.boxes, masks=field.masks)


def detect_evaluate(
    coco: Path, *, settings: Settings, categories: Sequence[str] | None = None, talk: Talk = SILENT
) -> dict[str, float]:
    """COCO AP of boxes and masks, recall and precision at IoU 0.5, on annotated images.

    `categories` names the kinds of object that are red cells; None: all of them.
    """
    from hemomil.detect import evaluate_detector, read_coco_examples

    examples = list(read_coco_examples(coco, categories=categories))
    scores: dict[str, float] = evaluate_detector(
        open_detector(settings), talk.track(examples, "scoring images", len(examples))
    )
    return scores
