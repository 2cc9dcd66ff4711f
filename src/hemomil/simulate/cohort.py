"""Write a simulated cohort as a laboratory would bring it: images and a manifest, with the truth beside them.

OUTPUT/
  images/           what the camera saw
  manifest.csv      image, sample, patient, label, kind, site
  cells.csv         image, x0, y0, x1, y1, cell_label of every red cell
  masks/            16-bit PNG per image: 0 background, i the i-th red cell of that image in cells.csv
  coco.json         the same as COCO, with run-length masks, and platelets, white cells and artefacts
  simulation.json   settings, and each patient's share of every cell class
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from hemomil.errors import RunFolderError
from hemomil.files import write_json
from hemomil.simulate.coco import CocoTruth, cell_label
from hemomil.simulate.field import Field, draw_field
from hemomil.simulate.patients import Patient, draw_image_settings, draw_patient
from hemomil.simulate.settings import SimulateSettings
from hemomil.streams import stream


def simulate(
    output: Path, settings: SimulateSettings, progress: Callable[[int, int], None] | None = None
) -> None:
    """Draw a cohort into the folder `output`; `progress` is told images done and images in all.

    The same settings give the same bytes; adding patients changes nothing of the others.

    Raises RunFolderError where `output` holds something already. Nothing half-written is left behind.
    """
    with _new_folder(output) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        _write_cohort(folder, settings, progress)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, renamed to it on success and removed on failure."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RunFolderError(f"{output} is not empty", hint="choose another folder, or empty this one")
    part = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if output.exists():
            output.rmdir()
        part.replace(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_cohort(
    folder: Path, settings: SimulateSettings, progress: Callable[[int, int], None] | None
) -> None:
    # in the order of pseudonyms, so that row numbers say nothing of the disorder
    patients = sorted(
        (draw_patient(settings, label, i) for label, n in settings.patients.items() for i in range(n)),
        key=lambda patient: patient.patient,
    )
    rows: list[dict[str, str]] = []
    cells: list[pd.DataFrame] = []
    coco = CocoTruth()
    total = settings.images * sum(settings.samples[patient.label] for patient in patients)
    for row, field in _fields(patients, settings):
        _write_pictures(folder, row["image"], field, settings.jpeg_quality)
        coco.add(row["image"], field)
        rows.append(row)
        cells.append(_cell_rows(row["image"], field))
        if progress:
            progress(len(rows), total)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    pd.concat(cells).to_csv(folder / "cells.csv", index=False, lineterminator="\n")
    write_json(folder / "coco.json", coco.document())
    write_json(folder / "simulation.json", _record(patients, settings))


def _fields(patients: list[Patient], settings: SimulateSettings) -> Iterator[tuple[dict[str, str], Field]]:
    """Every image of the cohort with its row of the manifest."""
    suffix = "png" if settings.jpeg_quality is None else "jpg"
    for patient in patients:
        for sample in range(settings.samples[patient.label]):
            name = f"{patient.patient}-s{sample + 1}"
            for image in range(settings.images):
                names = (patient.label, f"patient-{patient.number}", f"sample-{sample}", f"image-{image}")
                field = draw_field(
                    stream(settings.seed, *names, "field"),
                    draw_image_settings(settings, patient, sample, image),
                )
                row = {
                    "image": f"images/{name}-{image + 1:02d}.{suffix}",
                    "sample": name,
                    "patient": patient.patient,
                    "label": patient.label,
                    "kind": "field",
                    "site": patient.site.name,
                }
                yield row, field


def _write_pictures(folder: Path, image: str, field: Field, quality: int | None) -> None:
    picture = Image.fromarray(field.image)
    if quality is None:
        picture.save(folder / image)
    else:
        picture.save(folder / image, quality=quality)
    ids = np.zeros(field.image.shape[:2], np.uint16)
    for i, (box, mask) in enumerate(zip(field.boxes.astype(int), field.masks, strict=True)):
        ids[box[1] : box[3], box[0] : box[2]][mask] = i + 1
    Image.fromarray(ids).save(folder / "masks" / f"{Path(image).stem}.png")


def _cell_rows(image: str, field: Field) -> pd.DataFrame:
    table = pd.DataFrame(field.boxes.astype(int), columns=["x0", "y0", "x1", "y1"])
    table.insert(0, "image", image)
    table["cell_label"] = [cell_label(kind) for kind in field.labels]
    return table


def _record(patients: list[Patient], settings: SimulateSettings) -> dict[str, Any]:
    people = {
        p.patient: {"label": p.label, "site": p.site.name, "prevalence": p.prevalence, "mix": p.mix}
        for p in patients
    }
    return {"settings": settings.model_dump(mode="json"), "patients": people}
