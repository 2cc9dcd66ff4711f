"""The truth of simulated images as one COCO document: boxes and run-length masks of everything drawn."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from hemomil.segmentation import encode
from hemomil.simulate.field import Field

RED_CELL = "red blood cell"
CATEGORIES = (RED_CELL, "white_cell", "platelet", "artefact")
HEALTHY = "control"
"""What a healthy cell is called in the truth, as in every cohort whose cells are known."""


def cell_label(kind: str) -> str:
    """The known class of a red cell: its kind, or `control` for the ordinary discocyte."""
    return HEALTHY if kind == "discocyte" else kind


class CocoTruth:
    """Collects images one by one; `document()` is the COCO JSON."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: str, field: Field) -> None:
        """Add an image under the name it has in the manifest; red cells come first, in the field's order."""
        height, width = field.image.shape[:2]
        self._images.append(
            {"id": len(self._images) + 1, "file_name": image, "width": width, "height": height}
        )
        for box, mask, label in zip(field.boxes, field.masks, field.labels, strict=True):
            annotation = self._annotate(RED_CELL, box, mask, (height, width))
            annotation["attributes"] = {"cell_label": cell_label(label)}
        others = zip(field.distractor_boxes, field.distractor_masks, field.distractor_labels, strict=True)
        for box, mask, label in others:
            self._annotate(label, box, mask, (height, width))

    def _annotate(
        self, category: str, box: Float[np.ndarray, "4"], mask: Bool[np.ndarray, "_ _"], size: tuple[int, int]
    ) -> dict[str, Any]:
        x0, y0, x1, y1 = (int(v) for v in box)
        full = np.zeros(size, bool, order="F")
        full[y0:y1, x0:x1] = mask
        encoded = encode(full)
        annotation = {
            "id": len(self._annotations) + 1,
            "image_id": len(self._images),
            "category_id": CATEGORIES.index(category) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(size), "counts": encoded["counts"].decode("ascii")},
        }
        self._annotations.append(annotation)
        return annotation

    def document(self) -> dict[str, Any]:
        """The COCO document so far."""
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
        return {"images": self._images, "annotations": self._annotations, "categories": categories}
