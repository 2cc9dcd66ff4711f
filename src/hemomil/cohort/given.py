"""Read known cells as they stand in a file: cells.csv, COCO JSON, or the outlines of other tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from hemomil.cohort.elsewhere import READERS, read_elsewhere
from hemomil.cohort.outlines import is_geojson, read_json
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.cohort.samples import ALIASES as SAMPLE_ALIASES
from hemomil.cohort.table import find_columns, read_table
from hemomil.errors import CellsError
from hemomil.files import written_whole
from hemomil.types import Cells, Cohort, ImageRow, Notice

BOX = ["x0", "y0", "x1", "y1"]
ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image_path", "filename", "file_name", "filepath", "file", "path"),
    **dict.fromkeys(BOX, ()),
    "sample": SAMPLE_ALIASES["sample"],
    "cell_label": (),
    "det_score": ("score",),
    "border": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenCells:
    """Boxes as a file gives them; the index of `table` is the row, COCO annotation id, or running number."""

    path: Path
    word: str
    """What the index counts: row, annotation or cell."""
    table: pd.DataFrame
    """Columns image, sample ("" if not said), x0 y0 x1 y1, det_score, cell_label ("" if not known), and
    border (the file marks the cell as cut)."""
    shapes: Mapping[int, Any]
    """By index, what masks are made from: COCO segmentations, `Polygons`, or masks cut to their boxes."""
    sizes: Mapping[str, tuple[int, int]]
    """Width and height of the images that were annotated, where the file says so."""
    crowds: int = 0
    """Annotations left out because they stand for many cells at once."""
    notices: tuple[Notice, ...] = ()
    """What else was left aside."""


def read_given(path: Path, rows: Sequence[ImageRow] = ()) -> GivenCells:
    """Read cells.csv, COCO JSON, or what other tools drew for the images of `rows` (`read_elsewhere`).

    Raises CellsError listing every bad box.
    """
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in {*READERS, ".npy"} - {".json"}:
        return _read_outlines(path, rows)
    if suffix != ".json":
        return _read_csv(path)
    if not path.is_file():
        raise CellsError(f"there is no file {path}", hint="correct the path")
    data = read_json(path)
    return _read_outlines(path, rows) if is_geojson(data) else _read_coco(path, data)


def image_rows(cohort: Cohort) -> list[ImageRow]:
    """All image rows of a cohort."""
    return [row for sample in cohort.samples for row in sample.images]


def read_truth(path: Path, cohort: Cohort | None = None) -> pd.DataFrame:
    """Known cells to compare with: image, x0, y0, x1, y1, cell_label ("" if not known), sample ("").

    Images are named as the file names them; `match_truth` finds them by name. The outlines of other
    tools name no image, and need the `cohort` whose images they are of. Raises CellsError.
    """
    given = read_given(path, image_rows(cohort) if cohort else ())
    return given.table[["image", *BOX, "cell_label", "sample"]].reset_index(drop=True)


def write_cells_csv(path: Path, cells: Cells, *, cut: Bool[np.ndarray, "N"] | None = None) -> None:
    """Write cells as `read_cells` reads them, with sample and `det_score`; whole or not at all.

    `cut`: which of them the border of their image cuts, written as `border` 1 or 0.
    """
    boxes = pd.DataFrame(np.asarray(cells.boxes, dtype=float), columns=BOX)
    table = pd.DataFrame({"image": cells.images, "sample": cells.samples}).join(boxes)
    table["cell_label"] = pd.Series([label or "" for label in cells.cell_labels], dtype=object)
    table["det_score"] = np.asarray(cells.scores, dtype=float)
    if cut is not None:
        table["border"] = cut.astype(int)
    with written_whole(path) as part:
        table.to_csv(part, index=False, float_format="%.6g")


def _read_csv(path: Path) -> GivenCells:
    raw, problems = read_table(path, CellsError)
    found, column_problems = find_columns(list(raw.columns), ALIASES, ["image", *BOX])
    refuse_if_any(problems + column_problems, CellsError, path)
    table = pd.DataFrame({name: raw[found[name]] if name in found else "" for name in ALIASES})
    numbers = table[[*BOX, "det_score"]].apply(pd.to_numeric, errors="coerce")
    problems = _score_problems(table["det_score"], numbers["det_score"])
    problems += _border_problems(table["border"])
    table[[*BOX, "det_score"]] = numbers.astype(float)
    table["det_score"] = table["det_score"].fillna(1.0)
    table["border"] = table["border"] == "1"
    refuse_if_any(problems + _box_problems(table, "row"), CellsError, path)
    return GivenCells(path=path, word="row", table=table, shapes={}, sizes={})


def _score_problems(texts: pd.Series, scores: pd.Series) -> list[Problem]:
    bad = texts[(texts != "") & ~np.isfinite(scores)]
    return [
        Problem(int(row), f"det_score {text!r}", "is not a number", "write a number, or leave it blank")
        for row, text in bad.items()
    ]


def _border_problems(texts: pd.Series) -> list[Problem]:
    return [
        Problem(int(row), f"border {text!r}", "is neither 1 nor 0", "write 1 for a cell that is cut, else 0")
        for row, text in zip(texts.index, texts, strict=True)
        if text not in ("", "0", "1")
    ]


def _box_problems(table: pd.DataFrame, word: str) -> list[Problem]:
    boxes = table[BOX].to_numpy(dtype=float)
    finite = np.isfinite(boxes).all(axis=1)
    flat = finite & ((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
    nameless = (table["image"] == "").to_numpy()
    problems = []
    for bad, text, remedy in (
        (nameless, "names no image", "fill in the image"),
        (~finite, "has a coordinate that is missing or not a number", "x0 y0 x1 y1 are pixels: numbers only"),
        (flat, "has no area", "x0 < x1 and y0 < y1: left, top, right, bottom (not x y width height)"),
    ):
        problems += [box_problem(table, int(k), word, text, remedy) for k in np.flatnonzero(bad)]
    return problems


def box_problem(table: pd.DataFrame, k: int, word: str, text: str, remedy: str) -> Problem:
    """A problem of the k-th box, by its row, annotation id or number; `word` says which."""
    row = int(table.index[k])
    image, *box = table.iloc[k][["image", *BOX]]
    subject = f"box {' '.join(f'{value:g}' for value in box)} of image {image!r}"
    if word == "row":
        return Problem(row, subject, text, remedy)
    return Problem(None, f"{word} {row}: {subject}", text, remedy)


def _read_outlines(path: Path, rows: Sequence[ImageRow]) -> GivenCells:
    found = read_elsewhere(path, rows)
    boxes = np.concatenate([outlines.boxes for outlines in found.outlines.values()])
    index = np.arange(1, len(boxes) + 1)
    images = [image for image, outlines in found.outlines.items() for _ in outlines.labels]
    labels = [label for outlines in found.outlines.values() for label in outlines.labels]
    shapes = [shape for outlines in found.outlines.values() for shape in outlines.shapes]
    table = pd.DataFrame(boxes, columns=BOX, index=index)
    table["image"] = pd.Series(images, index, dtype=object)
    table["sample"] = ""
    table["cell_label"] = pd.Series(labels, index, dtype=object)
    table["det_score"] = 1.0
    table["border"] = False
    refuse_if_any(_box_problems(table, "cell"), CellsError, path)
    return GivenCells(
        path=path,
        word="cell",
        table=table,
        shapes=dict(enumerate(shapes, start=1)),
        sizes={image: outlines.size for image, outlines in found.outlines.items() if outlines.size},
        notices=found.notices,
    )


def _read_coco(path: Path, data: Any) -> GivenCells:
    _refuse_no_coco(path, data)
    images = {image["id"]: image for image in data["images"]}
    single = [a for a in data["annotations"] if not a.get("iscrowd")]
    _refuse_loose(single, images, path)
    names = {category["id"]: str(category["name"]) for category in data.get("categories", [])}
    # one category says only that it is a cell: no class is known
    labels = names if len(names) > 1 else {}
    index = [int(a["id"]) for a in single]
    boxes = np.array([a["bbox"] for a in single], dtype=float).reshape(-1, 4)
    table = pd.DataFrame(boxes, columns=BOX, index=index)
    table[["x1", "y1"]] += table[["x0", "y0"]].to_numpy()
    table["image"] = pd.Series([str(images[a["image_id"]]["file_name"]) for a in single], index, dtype=object)
    table["sample"] = ""
    table["cell_label"] = pd.Series(
        [labels.get(a.get("category_id"), "") for a in single], index, dtype=object
    )
    table["det_score"] = np.array([float(a.get("score", 1.0)) for a in single])
    table["border"] = False
    refuse_if_any(_box_problems(table, "annotation"), CellsError, path)
    return GivenCells(
        path=path,
        word="annotation",
        table=table,
        shapes={int(a["id"]): a["segmentation"] for a in single if a.get("segmentation")},
        sizes={str(i["file_name"]): (i["width"], i["height"]) for i in images.values() if i.get("width")},
        crowds=len(data["annotations"]) - len(single),
    )


def _refuse_no_coco(path: Path, data: Any) -> None:
    if not isinstance(data, dict) or not {"images", "annotations"} <= set(data):
        raise CellsError(
            f"{path} is not COCO: no lists 'images' and 'annotations'", hint="export it as COCO JSON"
        )


def _refuse_loose(annotations: list[dict[str, Any]], images: Mapping[Any, Any], path: Path) -> None:
    """Annotations without box or image, and ids that repeat."""
    problems = []
    seen: set[Any] = set()
    for number, annotation in enumerate(annotations):
        name = f"annotation {annotation.get('id', f'number {number}')}"
        if annotation.get("id") in seen or not isinstance(annotation.get("id"), int):
            problems.append(
                Problem(None, name, "has no id of its own", "give each annotation its own whole number")
            )
        if annotation.get("image_id") not in images:
            problems.append(Problem(None, name, "belongs to no image of the file", "correct its image_id"))
        if len(annotation.get("bbox") or ()) != 4:
            problems.append(Problem(None, name, "has no box", "give bbox: [x, y, width, height]"))
        seen.add(annotation.get("id"))
    refuse_if_any(problems, CellsError, path)
