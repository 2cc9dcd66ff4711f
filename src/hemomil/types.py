"""The values that travel between rooms: frozen, aligned, checked once at birth.

Axes: N cells, K classes, H W pixels. Row i is the same cell in every array of a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Region = tuple[int, int, int, int]
"""x0 y0 x1 y1 in pixels, half-open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One row of the manifest: an image (or a region of one) of a sample."""

    image: str
    """As it stands in the manifest."""
    path: Path
    row: int
    """Row number in the manifest; the header is row 1."""
    kind: Literal["field", "cell"] = "field"
    region: Region | None = None
    site: str | None = None
    cell_label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One blood sample (the bag): all its images, its patient and, if known, its class."""

    sample: str
    patient: str
    label: str | None
    images: tuple[ImageRow, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Unknown columns, and `site`, where every row of the sample agrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Samples of patients, read from a manifest and checked."""

    samples: tuple[Sample, ...]
    control: str = "control"

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels present: the control class first, then by name."""
        return class_order([s.label for s in self.samples if s.label is not None], self.control)


def class_order(labels: list[str], control: str) -> tuple[str, ...]:
    """Distinct labels, the control class first, then by name."""
    return tuple(sorted(set(labels), key=lambda name: (name != control, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """Cells found in one image."""

    boxes: Float[np.ndarray, "N 4"]
    """x0 y0 x1 y1 in pixels, half-open."""
    scores: Float[np.ndarray, "N"]
    masks: Sequence[Bool[np.ndarray, "_ _"]] | None = None
    """Each cut to its box rounded outwards: shape (ceil(y1) - floor(y0), ceil(x1) - floor(x0))."""
    diameter: float | None = None
    """The usual diameter of a cell, in pixels, that the image was searched for, if the detector says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Cells assigned to samples: what is described and bagged."""

    cell_ids: tuple[str, ...]
    """`sample/0007`: unique, in the order of the manifest."""
    samples: tuple[str, ...]
    images: tuple[str, ...]
    """As they stand in the manifest."""
    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, "N"]
    """Detection scores; 1 for cells that were given."""
    masks: Sequence[Bool[np.ndarray, "_ _"] | None]
    cell_labels: tuple[str | None, ...]

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__slots__}
        assert len(lengths) == 1, f"cells are not aligned: {lengths}"
        assert len(set(self.cell_ids)) == len(self.cell_ids), "cell ids repeat"

    def __len__(self) -> int:
        return len(self.cell_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """The cells of one blood sample, as numbers; row i is cell_ids[i]."""

    sample: str
    patient: str
    label: str | None
    features: Float[np.ndarray, "N ..."]
    """Vectors N F (float32) or RoI maps N 256 14 14 (float16)."""
    cell_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.cell_ids), "features and cell ids are not aligned"

    def __len__(self) -> int:
        return len(self.cell_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says of one sample, and of each of its cells."""

    sample: str
    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "K"]
    cell_ids: tuple[str, ...]
    attention: Float[np.ndarray, "N"]
    """Share of the learned attention, sums to 1; NaN where the method has none."""
    anomaly: Float[np.ndarray, "N"]
    """Distance to the healthy reference; larger is stranger."""
    weight: Float[np.ndarray, "N"]
    """Weight of the cell in the pooled vector or logit."""
    contribution: Float[np.ndarray, "N"]
    """Log-odds of the predicted class with the cell minus without it; 0 in a bag of one."""
    cell_probabilities: Float[np.ndarray, "N K"]
    """Class probabilities of the cell alone."""

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.classes[int(np.argmax(self.probabilities))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval and the number of units it rests on."""

    value: float | None
    """None: not estimable."""
    low: float | None
    high: float | None
    n: int
    unit: str = "patients"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that was left out or is in doubt: counted, named and shown, never silent."""

    kind: str
    """For example `image-skipped`, `no-cells`, `few-patients`."""
    subject: str
    """The image, sample or class."""
    text: str
