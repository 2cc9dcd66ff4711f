"""Image sets whose cells are known, to score a detector by: COCO JSON, cells.csv, or a CSV of points."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from hemomil.cohort.given import ALIASES, BOX, read_given
from hemomil.cohort.images import image_sizes
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.cohort.table import find_columns, normal, read_table
from hemomil.errors import CellsError, ImageError

POINT = ["x", "y"]
POINT_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ALIASES["image"],
    **dict.fromkeys(POINT, ()),
    "cell_label": (),
}
PIXELS = "positions are pixels of the image as it is displayed; correct or remove it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images and the cells that are known in them."""

    path: Path
    """The file that says so."""
    table: pd.DataFrame
    """A row per cell: image, x0 y0 x1 y1 or x y in pixels, cell_label ("" if not known), segmentation
    (COCO's, or None). The index is the row of the CSV, or the annotation id."""
    images: Mapping[str, Path]
    """File of each image by its name in the file, in that order; an image may have no cell."""
    sizes: Mapping[str, tuple[int, int]]
    """Width and height of images, where the file says so."""
    crowds: int = 0
    """Annotations left out because they stand for many cells at once."""

    @property
    def places(self) -> list[str]:
        """The columns that say where a cell is: a box, or a point."""
        return BOX if "x0" in self.table else POINT

    def cells(self) -> Iterator[tuple[str, Path, pd.DataFrame]]:
        """Name, file and known cells of every image."""
        rows = self.table.groupby("image").indices
        for name, path in self.images.items():
            yield name, path, self.table.iloc[rows.get(name, np.zeros(0, dtype=np.int64))]


def read_image_sets(
    paths: Sequence[Path],
    *,
    categories: Sequence[str] | None = None,
    only: Path | None = None,
    limit: int | None = None,
) -> tuple[ImageSet, ...]:
    """Read sets of images with known cells, and check them before any long work.

    By its suffix .json, a file is COCO: its images lie beside it, or in `images/` beside it, and
    `categories` names what in it is a red cell (all if not given). A CSV with columns x and y has points,
    any other is a cells.csv; images are relative to it, and a place that it repeats (once per sample) counts
    once. `only` is a CSV whose column `image` lists the images to use, of every set: by name, by file name,
    or by file name without suffix. `limit` keeps the first images of each set.

    Raises CellsError, with rows, for files that cannot be used, images that are missing, unreadable or of
    another size than the file says, cells outside their image, and listed images that no set has.
    """
    sets = [_read(path, categories) for path in paths]
    if only is not None:
        sets = _listed(sets, only)
    sets = [_part(one, set(list(one.images)[:limit])) for one in sets]
    for one in sets:
        refuse_if_any(_problems(one), CellsError, one.path)
    return tuple(sets)


def _read(path: Path, categories: Sequence[str] | None) -> ImageSet:
    if path.suffix.lower() == ".json":
        return _read_coco(path, categories)
    raw, problems = read_table(path, CellsError)
    if {normal(name) for name in raw.columns} >= set(POINT):
        table, places = _points(path, raw, problems), POINT
    else:
        table, places = read_given(path).table, BOX
    table = table.drop_duplicates(["image", *places]).assign(segmentation=None)
    images = {str(name): path.parent / str(name) for name in table["image"].unique()}
    return ImageSet(path=path, table=table, images=images, sizes={})


def _points(path: Path, raw: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    found, column_problems = find_columns(list(raw.columns), POINT_COLUMNS, ["image", *POINT])
    refuse_if_any(problems + column_problems, CellsError, path)
    table = pd.DataFrame({name: raw[found[name]] if name in found else "" for name in POINT_COLUMNS})
    table[POINT] = table[POINT].apply(pd.to_numeric, errors="coerce").astype(float)
    nowhere = ~np.isfinite(table[POINT].to_numpy()).all(axis=1)
    bad = [(row, "names no image", "fill in the image") for row in table.index[table["image"] == ""]]
    text = "has a coordinate that is missing or not a number"
    bad += [(row, text, "x and y are pixels: numbers only") for row in table.index[nowhere]]
    refuse_if_any([Problem(int(row), "the point", *why) for row, *why in bad], CellsError, path)
    return table


def _read_coco(path: Path, categories: Sequence[str] | None) -> ImageSet:
    given = read_given(path)
    document = json.loads(path.read_bytes())
    kinds = [str(category["name"]) for category in document.get("categories", [])]
    unknown = sorted(set(categories or ()) - set(kinds))
    if unknown:
        raise CellsError(f"{path} has no category {', '.join(unknown)}", hint=f"it has: {', '.join(kinds)}")
    shapes = [given.shapes.get(int(row)) for row in given.table.index]
    table = given.table.assign(segmentation=pd.Series(shapes, given.table.index, dtype=object))
    if categories and len(kinds) > 1:  # of a single kind the table does not say which
        table = table[table["cell_label"].isin(categories)]
    names = [str(image["file_name"]) for image in document["images"]]
    images = {name: _beside(path, name) for name in names}
    return ImageSet(path=path, table=table, images=images, sizes=given.sizes, crowds=given.crowds)


def _beside(path: Path, name: str) -> Path:
    inner = path.parent / "images" / name
    return inner if inner.is_file() else path.parent / name


# Which images


def _listed(sets: Sequence[ImageSet], only: Path) -> list[ImageSet]:
    raw, problems = read_table(only, CellsError)
    found, column_problems = find_columns(list(raw.columns), {"image": ALIASES["image"]}, ["image"])
    refuse_if_any(problems + column_problems, CellsError, only)
    listed = raw[found["image"]]
    there = set().union(*(_names(name) for one in sets for name in one.images))
    strangers = [
        Problem(row, f"image {name!r}", "is in none of the sets", "correct or remove the row")
        for row, name in zip(listed.index.tolist(), listed, strict=True)
        if name not in there
    ]
    refuse_if_any(strangers, CellsError, only)
    wanted = set(listed)
    chosen = [_part(one, {name for name in one.images if _names(name) & wanted}) for one in sets]
    for one in chosen:
        if not one.images:
            raise CellsError(f"{only} lists no image of {one.path}", hint="evaluate it without --only")
    return chosen


def _names(image: str) -> set[str]:
    """What an image may be called: its name, its file name, and that without suffix."""
    path = PurePosixPath(image.replace("\\", "/"))
    return {image, path.name, path.stem}


def _part(one: ImageSet, names: Set[str]) -> ImageSet:
    images = {name: path for name, path in one.images.items() if name in names}
    return replace(one, table=one.table[one.table["image"].isin(names)], images=images)


# Checks


def _problems(one: ImageSet) -> list[Problem]:
    """Images that cannot be used, and cells outside of theirs."""
    if not one.images:
        return [Problem(None, "the file", "has no image", "give a file of at least one image")]
    sizes = image_sizes(one.images.values())
    return [
        problem for name, path, rows in one.cells() for problem in _of_image(one, name, rows, sizes[path])
    ]


def _of_image(
    one: ImageSet, name: str, rows: pd.DataFrame, size: tuple[int, int] | ImageError
) -> list[Problem]:
    is_csv = one.path.suffix.lower() != ".json"
    if isinstance(size, ImageError):
        text = size.message.removeprefix(f"image {one.images[name]}").strip()
        return [Problem(int(rows.index[0]) if is_csv else None, f"image {name!r}", text, size.hint)]
    said = one.sizes.get(name, size)
    if said != size:
        text = f"was annotated at {said[0]}x{said[1]} pixels, but is {size[0]}x{size[1]}"
        return [Problem(None, f"image {name!r}", text, "bring the images that were annotated")]
    text = f"lies outside its image {name!r} of {size[0]}x{size[1]} pixels"
    return [
        Problem(row, f"the cell at {where}", text, PIXELS)
        if is_csv
        else Problem(None, f"annotation {row}: the cell at {where}", text, PIXELS)
        for row, where in _outside(rows[one.places], size).items()
    ]


def _outside(places: pd.DataFrame, size: tuple[int, int]) -> dict[int, str]:
    """The boxes or points that lie outside an image of this width and height, as text, by row."""
    values = places.to_numpy(dtype=float)
    outside = np.flatnonzero(((values[:, -2:] < 0) | (values[:, :2] >= size)).any(axis=1))
    return {
        row: " ".join(f"{value:g}" for value in place)
        for row, place in zip(places.index[outside].tolist(), values[outside], strict=True)
    }
