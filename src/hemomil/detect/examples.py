"""Images with known cells, to learn from and to be scored on.

Axes: N cells, H W pixels.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from hemomil.errors import CellsError
from hemomil.segmentation import decode, run_lengths

Mask = Bool[np.ndarray, "_ _"]

CLASSES = ("red cell", "white cell", "platelet")
"""What a detector learns to tell apart; only red cells are what it is for."""
RED = 1
"""Label of a red cell: labels count from 1 in the order of CLASSES, 0 is background."""
WHITE = 2
"""Label of a white cell."""
_OTHERS = {
    r"white (blood )?cells?|wbcs?|leu[ck]ocytes?": WHITE,
    r"platelets?|thrombocytes?|plts?": CLASSES.index("platelet") + 1,
}
"""How annotators call what is not a red cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image and the cells in it."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "N 4"]
    """x0 y0 x1 y1 in pixels, half-open."""
    masks: tuple[Mask, ...] | None = None
    """Each cut to its box rounded outwards, as in `Detections`; None: only boxes are known."""
    labels: tuple[int, ...] | None = None
    """What each is, counted from 1 in the order of CLASSES; None: all are red cells."""

    def __post_init__(self) -> None:
        assert self.masks is None or len(self.masks) == len(self.boxes), "boxes and masks are not aligned"
        assert self.labels is None or len(self.labels) == len(self.boxes), "boxes and labels are not aligned"

    @property
    def kinds(self) -> Int64[np.ndarray, "N"]:
        """The label of each, also where all are red cells."""
        return np.full(len(self.boxes), RED) if self.labels is None else np.array(self.labels, dtype=np.int64)

    def of_kinds(self, n: int) -> "Example":
        """Without what a detector of the first `n` kinds does not know: to it, that is background."""
        kept = np.flatnonzero(self.kinds <= n)
        return Example(
            image=self.image,
            boxes=self.boxes[kept],
            masks=None if self.masks is None else tuple(self.masks[row] for row in kept),
            labels=tuple(self.kinds[kept].tolist()),
        )


def outer(boxes: Float[np.ndarray, "N 4"]) -> np.ndarray:
    """Boxes rounded outwards to whole pixels, int N 4."""
    corners = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    return corners.astype(np.int64)


def read_coco_examples(
    path: Path,
    *,
    categories: Sequence[str] | None = None,
    others: bool = False,
    limit: int | None = None,
) -> Iterator[Example]:
    """Examples of a COCO JSON, one by one; images lie beside it, or in `images/` beside it.

    `categories` names the kinds of object that are red cells here (all of them if not given). With `others`,
    objects whose category is a white cell or a platelet by one of their usual names are kept as such. Crowd
    annotations are left out. An image has masks if every one of its cells has a segmentation.

    Raises CellsError for a file that is no COCO JSON, lacks an image, or names none of `categories`.
    """
    document = _document(path)
    wanted = _labels_of_categories(path, document, categories, others)
    by_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        if annotation["category_id"] in wanted and not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    for entry in document["images"][:limit]:
        annotations = by_image[entry["id"]]
        labels = tuple(wanted[a["category_id"]] for a in annotations) if others else None
        yield _example(_image(path, entry["file_name"]), annotations, labels)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = {"images", "annotations", "categories"} - set(document)
    except (OSError, ValueError, TypeError) as error:
        raise CellsError(
            f"{path} cannot be read as COCO JSON: {error}", hint="give a COCO detection file"
        ) from error
    if missing:
        raise CellsError(f"{path} has no {', '.join(sorted(missing))}", hint="give a COCO detection file")
    return dict(document)


def _labels_of_categories(
    path: Path, document: dict[str, Any], names: Sequence[str] | None, others: bool
) -> dict[int, int]:
    """Label of every category of the file that counts."""
    known = {category["name"]: int(category["id"]) for category in document["categories"]}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise CellsError(f"{path} has no category {', '.join(unknown)}", hint=f"it has: {', '.join(known)}")
    kinds = {name: _other_kind(name) for name in known} if others else {}
    red = names or [name for name in known if not kinds.get(name)]
    rest = {known[name]: label for name, label in kinds.items() if label and name not in red}
    return {known[name]: RED for name in red} | rest


def _other_kind(category: str) -> int | None:
    """The label of a category that is no red cell by its name."""
    plain = category.strip().lower().replace("_", " ")
    return next((label for names, label in _OTHERS.items() if re.fullmatch(names, plain)), None)


def _image(path: Path, name: str) -> UInt8[np.ndarray, "H W 3"]:
    for candidate in (path.parent / name, path.parent / "images" / name):
        if candidate.is_file():
            with Image.open(candidate) as image:
                return np.asarray(image.convert("RGB"))
    raise CellsError(
        f"{path}: image {name} is not there", hint="images lie beside the JSON, or in images/ beside it"
    )


def _example(
    image: UInt8[np.ndarray, "H W 3"], annotations: list[dict[str, Any]], labels: tuple[int, ...] | None
) -> Example:
    corners = np.array([a["bbox"] for a in annotations], dtype=np.float32).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    if not all(annotation.get("segmentation") for annotation in annotations) or not annotations:
        return Example(image=image, boxes=boxes, labels=labels)
    windows, (height, width) = outer(boxes).clip(0), image.shape[:2]
    masks = tuple(  # copied: a view would keep a mask as large as the image for every cell
        decode(run_lengths(a["segmentation"], (height, width)))[y0:y1, x0:x1].copy()
        for a, (x0, y0, x1, y1) in zip(annotations, windows, strict=True)
    )
    return Example(image=image, boxes=boxes, masks=masks, labels=labels)
