"""What the viewer's addresses answer: values ready for JSON. Blind answers hold no score and no class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemomil.view.data import BOX, Shown
from hemomil.view.marks import MarkBook
from hemomil.view.pictures import Pictures

LISTED = ("sample", "patient", "label", "predicted", "probability", "novelty_p", "cells", "strange")
BLIND_LISTED = ("sample", "patient", "cells")
SENT = (
    *BOX,
    "anomaly",
    "attention_ratio",
    "contribution",
    "weight",
    "anomaly_p",
    "anomaly_q",
    "anomaly_low",
    "anomaly_high",
    "looks_like",
    "looks_sure",
    "strange",
    "counted",
    "q_attention_ratio",
    "q_contribution",
    "q_looks_sure",
)
"""Numbers of a cell that are sent. strange: quantile of its anomaly among the cells of the run that the same
model judged; counted, q_...: the same of what it counted by, and of other scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """All that is served."""

    shown: Shown
    """`shown.samples` also has the words of each sample: `verdict` and `remarks`."""
    pictures: Pictures
    marks: MarkBook
    blind: bool
    about: Mapping[str, Any]
    """Words and colour scales of the page: title, caveat, glossary, scales, class_marks."""
    key: str
    """In the addresses of pictures, which browsers keep: another at every start, so that none is stale."""


def to_json(value: Any) -> str:
    """JSON without NaN, which browsers refuse: null stands in its place. Floats keep six digits."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def run_answer(site: Site) -> dict[str, Any]:
    """What the page needs to know once."""
    shown = site.shown
    told = {} if site.blind else {"method": shown.method, "run": shown.run, **site.about}
    return {
        "title": site.about["title"],
        "command": shown.command,
        "blind": site.blind,
        "classes": shown.classes,
        "samples": len(shown.samples),
        "cells": len(shown.cells.ids),
        "marks_file": site.marks.path.name,
        "pictures": f"/pictures/{site.key}",
        **told,
    }


def list_answer(site: Site) -> dict[str, Any]:
    """All samples, column by column."""
    names = BLIND_LISTED if site.blind else LISTED
    columns = {name: site.shown.samples[name].tolist() for name in names}
    return columns | {"marks": site.marks.counts(site.shown.cells)}


def sample_answer(site: Site, sample: int) -> dict[str, Any]:
    """One sample: its words, its images, the ids and known classes of its cells, its marks."""
    shown, cells = site.shown, site.shown.cells
    rows = cells.of_sample(sample)
    row = shown.samples.iloc[sample]
    images, places = _images(cells.images.codes[rows])
    told = {} if site.blind else _told(shown, row, rows)
    return {
        "index": sample,
        "sample": row["sample"],
        "patient": row["patient"],
        "first": rows.start,
        "ids": cells.ids[rows].to_pylist(),
        "columns": sent_columns(site),
        "images": images,
        "image_names": _image_names(site, images),
        "image_of": places,
        "one_cell_per_image": one_cell_per_image(shown, sample),
        "marks": site.marks.of_sample(cells, sample),
        **told,
    }


def _image_names(site: Site, images: list[int]) -> list[str]:
    """As the table has them; folders are often named by the class, so a blind reader gets numbers."""
    if site.blind:
        return [f"image {i + 1}" for i in range(len(images))]
    return [site.shown.cells.images.names[image] for image in images]


def _told(shown: Shown, row: Any, rows: slice) -> dict[str, Any]:
    """What a blind reader must not see."""
    known = {name: row.get(f"prob_{name}", np.nan) for name in shown.classes}
    return {
        "label": row["label"],
        "predicted": row["predicted"],
        "probabilities": [[name, p] for name, p in known.items() if not np.isnan(p)],
        "verdict": row["verdict"],
        "remarks": row["remarks"],
        "labels": shown.cells.labels.text(rows),
        "verdicts": shown.cells.verdicts.text(rows),
    }


def sent_columns(site: Site) -> tuple[str, ...]:
    """The numbers of cells that are sent, in this order."""
    return BOX if site.blind else SENT


def numbers_answer(site: Site, sample: int) -> bytes:
    """`sent_columns` of one sample's cells, column after column, as little-endian 32-bit floats."""
    cells = site.shown.cells
    rows = cells.of_sample(sample)
    return b"".join(cells.numbers[name][rows].astype("<f4").tobytes() for name in sent_columns(site))


def one_cell_per_image(shown: Shown, sample: int) -> bool:
    """Whether every image is one cell: then the sample is shown as a mosaic, not as fields."""
    cells = shown.cells
    rows = cells.of_sample(sample)
    images = cells.images.codes[rows]
    if not len(images) or len(np.unique(images)) < len(images) or (images < 0).any():
        return False
    return bool((cells.numbers["x0"][rows] == 0).all() and (cells.numbers["y0"][rows] == 0).all())


def _images(images_N: np.ndarray) -> tuple[list[int], list[int]]:
    """The images of a sample in the order of its cells, and for each cell its place among them; -1: none."""
    distinct, first = np.unique(images_N[images_N >= 0], return_index=True)
    ordered = distinct[np.argsort(first)].tolist()
    places = {image: place for place, image in enumerate(ordered)}
    return ordered, [places.get(image, -1) for image in images_N.tolist()]
