"""Assign cells to samples: known cells of a file, the detector's, and images that are one cell.

Axes: N cells, R rows of the cohort. A cell belongs to every sample that has a row for its image
whose region holds the cell's centre, or only to the sample that the file names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from hemomil.cohort.border import cut_notice
from hemomil.cohort.given import BOX, GivenCells, box_problem, image_rows, read_given
from hemomil.cohort.images import image_sizes
from hemomil.cohort.outlines import Polygons
from hemomil.cohort.problems import Problem, refuse_if_any, row_ranges
from hemomil.errors import CellsError, ImageError
from hemomil.segmentation import Masks, decode, run_lengths
from hemomil.types import Cells, Cohort, Detections, ImageRow, Notice

Mask = Bool[np.ndarray, "_ _"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCells:
    """Cells read from a file, and what of the file was left aside."""

    cells: Cells
    notices: tuple[Notice, ...]


def read_cells(path: Path, cohort: Cohort) -> Cells:
    """All cells of a cohort, those of kind=field images from a file: `read_known_cells` without notices."""
    return read_known_cells(path, cohort).cells


def read_known_cells(path: Path, cohort: Cohort, *, keep_cut: bool = False) -> KnownCells:
    """Read cells.csv, COCO JSON, or outlines of other tools (DESIGN §2), and assign the cells to samples.

    Images of kind=cell that the file does not mention are one cell each, as in `whole_image_cells`.
    A box partly outside its image is clipped. The label of a COCO cell is its category, if there
    are several. Label images and GeoJSON find their image as `read_elsewhere` says. Raises CellsError
    listing every bad box with its row, and if the file shares no image with the cohort. Boxes of
    images and samples that the cohort has not (it may be a part of what was annotated), boxes in no
    region and crowd annotations are left aside, each with a Notice; so are cells that the file marks as
    cut by the border (column `border`, as `detect` writes it), unless `keep_cut`.
    """
    given = read_given(path, image_rows(cohort))
    table, aside = _of_cohort(given, cohort)
    cut = table["border"].to_numpy(bool) & (not keep_cut)
    table = table[~cut]
    sizes = _sizes(cohort, set(table["image"]))
    refuse_if_any(_outside_problems(given, table, sizes), CellsError, path)
    table = _clipped(table, sizes)
    cells, lost = _assemble(cohort, table, _masks(given, table, sizes))
    notices = [
        *_crowd_notice(given),
        *given.notices,
        *aside,
        *cut_notice(cut, str(path)),
        *_lost_notice(given, lost),
        *_empty_notices(cohort, cells),
    ]
    return KnownCells(cells=cells, notices=tuple(notices))


def assign(cohort: Cohort, found: Mapping[str, Detections]) -> Cells:
    """Assign the cells that a detector found, by `image` as in the manifest; numbered `sample/0000` and on.

    Images of kind=cell that are not in `found` are one cell each, as in `whole_image_cells`.
    """
    kept = {image: cells for image, cells in found.items() if len(cells.boxes)}
    boxes = [np.asarray(cells.boxes, dtype=float) for cells in kept.values()]
    table = pd.DataFrame(np.concatenate(boxes) if boxes else np.zeros((0, 4)), columns=BOX)
    names = np.array(list(kept), dtype=object)
    table["image"] = np.repeat(names, [len(part) for part in boxes])
    table["sample"] = table["cell_label"] = ""
    table["det_score"] = np.concatenate(
        [np.asarray(c.scores, dtype=float) for c in kept.values()] or [np.zeros(0)]
    )
    parts = [Masks.of(cells.masks or (None,) * len(cells.boxes)) for cells in kept.values()]
    return _assemble(cohort, table, Masks(chain.from_iterable(part.texts for part in parts)))[0]


def whole_image_cells(cohort: Cohort) -> Cells:
    """The cells of kind=cell images: the whole image (or its region) is the box. Raises ImageError."""
    return assign(cohort, {})


def empty_samples(cohort: Cohort, cells: Cells) -> tuple[Notice, ...]:
    """A Notice for each sample of the cohort without a cell."""
    return tuple(_empty_notices(cohort, cells))


# Files: which rows belong to the cohort


def _of_cohort(given: GivenCells, cohort: Cohort) -> tuple[pd.DataFrame, list[Notice]]:
    """The rows for images and samples of the cohort, images renamed as in the manifest."""
    images = {row.image for sample in cohort.samples for row in sample.images}
    names = match_names(given.table["image"].unique(), images)
    table = given.table.assign(image=given.table["image"].map(names))
    strange_image = table["image"].isna()
    strange_sample = ~strange_image & ~table["sample"].isin(["", *(s.sample for s in cohort.samples)])
    kept = table[~strange_image & ~strange_sample]
    if not len(kept) and len(table):
        raise _nothing_shared(given, images)
    notices = []
    for kind, rows, column in (("image", strange_image, "image"), ("sample", strange_sample, "sample")):
        if rows.any():
            notices.append(_aside(given, rows, f"cells-of-other-{kind}s", column))
    return kept, notices


def match_names(names: Sequence[str] | np.ndarray, images: set[str]) -> dict[str, str]:
    """Images of the manifest by the name another file gives them: the same name, else the same last part.

    The last part of a path counts only if one image of each side has it.
    """
    exact = {str(name): str(name) for name in names if name in images}
    rest = [str(name) for name in names if name not in images]
    there, here = _by_last_part(images), _by_last_part(rest)
    return exact | {
        here[part][0]: there[part][0] for part in here if len(here[part]) == 1 == len(there.get(part, []))
    }


def _by_last_part(names: Sequence[str] | set[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(PurePosixPath(name.replace("\\", "/")).name, []).append(name)
    return parts


def _nothing_shared(given: GivenCells, images: set[str]) -> CellsError:
    first = given.table.iloc[0]
    return CellsError(
        f"{given.path}: none of its {len(given.table)} cells belongs to an image and a sample of the "
        f"manifest; the first is of image {first['image']!r}"
        + (f", sample {first['sample']!r}" if first["sample"] else ""),
        hint=f"name images as the manifest does, for example {min(images, default='')!r}",
    )


def _aside(given: GivenCells, rows: pd.Series, kind: str, column: str) -> Notice:
    names = given.table.loc[rows, column].unique()
    shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    text = f"{int(rows.sum())} cells of {len(names)} {column}s that are not in the manifest: {shown}"
    return Notice(
        kind=kind, subject=str(given.path), text=f"{text} ({row_ranges(map(int, rows.index[rows]))})"
    )


# Files: boxes and masks against the images


def _sizes(cohort: Cohort, images: set[str]) -> dict[str, tuple[int, int]]:
    """Width and height of images by name; ImageError if one cannot be read."""
    paths = {row.image: row.path for sample in cohort.samples for row in sample.images if row.image in images}
    sizes = image_sizes(paths.values())
    errors = {name: size for name, path in paths.items() if isinstance(size := sizes[path], ImageError)}
    problems = [Problem(None, "", error.message, error.hint) for error in errors.values()]
    refuse_if_any(problems, ImageError, "the cohort")
    return {name: size for name, path in paths.items() if not isinstance(size := sizes[path], ImageError)}


def _outside_problems(
    given: GivenCells, table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]]
) -> list[Problem]:
    limits = _limits(table, sizes)
    boxes = table[BOX].to_numpy()
    outside = (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= limits).any(axis=1)
    misfits = _size_problems(given, sizes)
    outside &= ~table["image"].isin(list(misfits)).to_numpy()
    return [*misfits.values()] + [
        box_problem(
            table,
            int(k),
            given.word,
            f"lies outside its image of {limits[k, 0]}x{limits[k, 1]} pixels",
            "correct or remove it; boxes are in pixels of the image as it is displayed",
        )
        for k in np.flatnonzero(outside)
    ]


def _size_problems(given: GivenCells, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Problem]:
    """By image, where it has another size than what was annotated."""
    problems = {}
    names = match_names(list(given.sizes), set(sizes))
    for name, image in names.items():
        if given.sizes[name] != sizes[image]:
            text = f"was annotated at {_by(given.sizes[name])} pixels, but is {_by(sizes[image])}"
            remedy = "annotate the images that the manifest names"
            problems[image] = Problem(None, f"image {image!r}", text, remedy)
    return problems


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _limits(table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]]) -> np.ndarray:
    return np.array([sizes[image] for image in table["image"]], dtype=int).reshape(-1, 2)


def _clipped(table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    limits = np.tile(_limits(table, sizes), 2)
    boxes = np.clip(table[BOX].to_numpy(), 0, limits)
    return table.assign(**dict(zip(BOX, boxes.T, strict=True)))


def _masks(given: GivenCells, table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]]) -> Masks:
    return Masks.of(
        _mask(given.shapes[row], sizes[image], box) if row in given.shapes else None
        for row, image, box in zip(table.index, table["image"], table[BOX].to_numpy(), strict=True)
    )


def _mask(shape: Any, size: tuple[int, int], box: np.ndarray) -> Mask:
    """A shape as a mask, cut to its box rounded outwards."""
    if isinstance(shape, np.ndarray):  # of a label image, and cut already
        return shape
    if isinstance(shape, Polygons):
        return shape.mask(box)
    width, height = size
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    return np.ascontiguousarray(decode(run_lengths(shape, (height, width)))[y0:y1, x0:x1])


# Cells to samples


def _assemble(cohort: Cohort, table: pd.DataFrame, masks: Masks) -> tuple[Cells, pd.DataFrame]:
    """The cells in the order of the cohort, and the rows of `table` that no region holds."""
    table = table.assign(index=np.arange(len(table))).reset_index(drop=True)
    rows = _cohort_rows(cohort)
    placed = _placed(table, rows)
    lost = table[~table["index"].isin(placed["index"])]
    cells = pd.concat([placed, _whole_images(cohort, rows[~rows["image"].isin(table["image"])])])
    cells = cells.sort_values(["order", "index"], kind="stable")
    numbers = cells.groupby("sample", sort=False).cumcount()
    return Cells(
        cell_ids=tuple(f"{sample}/{k:04d}" for sample, k in zip(cells["sample"], numbers, strict=True)),
        samples=tuple(cells["sample"]),
        images=tuple(cells["image"]),
        boxes=cells[BOX].to_numpy(dtype=float),
        scores=cells["det_score"].to_numpy(dtype=float),
        masks=Masks(masks.texts[k] if k >= 0 else "" for k in cells["index"]),
        cell_labels=tuple(label or None for label in cells["cell_label"]),
    ), lost


def _cohort_rows(cohort: Cohort) -> pd.DataFrame:
    """One row per image of each sample: R rows with their order, region (endless if none) and kind."""
    records = [
        (
            row.image,
            sample.sample,
            row.kind,
            row.cell_label or "",
            *(row.region or (-np.inf, -np.inf, np.inf, np.inf)),
        )
        for sample in cohort.samples
        for row in sample.images
    ]
    edges = ["left", "top", "right", "bottom"]
    rows = pd.DataFrame(records, columns=["image", "sample", "kind", "row_label", *edges])
    return rows.assign(order=np.arange(len(rows)))


def _placed(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Each cell once for every sample it belongs to, with the row of the cohort that holds it."""
    named = table[table["sample"] != ""].merge(rows, on=["image", "sample"])
    free = table[table["sample"] == ""].drop(columns="sample").merge(rows, on="image")
    x, y = (free["x0"] + free["x1"]) / 2, (free["y0"] + free["y1"]) / 2
    held = free[(x >= free["left"]) & (x < free["right"]) & (y >= free["top"]) & (y < free["bottom"])]
    placed = pd.concat([named, held]).sort_values("order", kind="stable")
    # regions of one sample may overlap: the first that holds the cell has it
    placed = placed.drop_duplicates(["sample", "index"])
    return placed.assign(
        cell_label=placed["cell_label"].where(placed["cell_label"] != "", placed["row_label"])
    )


def _whole_images(cohort: Cohort, rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["kind"] == "cell"]
    sizes = _sizes(cohort, set(rows["image"]))
    limits = np.tile(_limits(rows, sizes), 2)
    limits[:, :2] = 0
    region = rows[["left", "top", "right", "bottom"]].to_numpy()
    boxes = np.where(np.isfinite(region), region, limits)
    whole = rows.assign(**dict(zip(BOX, boxes.T, strict=True)), det_score=1.0, index=-1)
    return whole.assign(cell_label=whole["row_label"])


# What was left aside


def _crowd_notice(given: GivenCells) -> list[Notice]:
    text = f"{given.crowds} crowd annotations, which stand for many cells at once, were left aside"
    return [Notice(kind="crowd-annotations", subject=str(given.path), text=text)] if given.crowds else []


def _lost_notice(given: GivenCells, lost: pd.DataFrame) -> list[Notice]:
    text = f"{len(lost)} cells have their centre in no region of their image's samples"
    return [Notice(kind="cells-in-no-region", subject=str(given.path), text=text)] if len(lost) else []


def _empty_notices(cohort: Cohort, cells: Cells) -> list[Notice]:
    filled = set(cells.samples)
    return [
        Notice(
            kind="no-cells",
            subject=s.sample,
            text=f"sample {s.sample!r} has no cell in {_images_of(s.images)}",
        )
        for s in cohort.samples
        if s.sample not in filled
    ]


def _images_of(images: Sequence[ImageRow]) -> str:
    names = ", ".join(image.image for image in images[:3]) + (", ..." if len(images) > 3 else "")
    return f"its {len(images)} images ({names})"
