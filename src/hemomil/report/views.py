"""Arrange what the page shows of samples and cells; the template only lays it out.

Axes: N cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hemomil.report.choose import choose_samples, strangest
from hemomil.report.pictures import Picture, Pictures
from hemomil.report.reasons import Reason
from hemomil.report.scales import Scale
from hemomil.report.settings import ReportSettings
from hemomil.report.tables import RunTables, records
from hemomil.report.words import cell_text, flagged_text, novelty_text, runs_text, verdict

BOX = ["x0", "y0", "x1", "y1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """A cell as a framed picture."""

    cell_id: str
    sample: str
    label: str
    anomaly: float
    uri: str | None
    steps: str
    """CSS classes that give its colour under each score."""
    text: str
    why: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxView:
    """A cell as a box on its field, in pixels of the image."""

    x: float
    y: float
    width: float
    height: float
    steps: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldView:
    """An image with the boxes of its cells."""

    image: str
    picture: Picture | None
    problem: str
    boxes: tuple[BoxView, ...]
    hidden: int
    """Cells of this image without a box, as too many have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """One sample as the page shows it."""

    anchor: str
    sample: str
    patient: str
    label: str
    predicted: str
    why: str
    verdict: str
    novelty: str
    flagged: str
    runs: str
    probabilities: tuple[tuple[str, float], ...]
    cells: int
    fields: tuple[FieldView, ...]
    hidden_images: int
    mosaic: tuple[CellView, ...]
    hidden_cells: int
    strange: tuple[CellView, ...]


class Views:
    """Makes the views of one run: the tables, where its pictures come from, and its colour scales."""

    def __init__(
        self,
        tables: RunTables,
        pictures: Pictures,
        scales: Sequence[Scale],
        reasons: dict[str, list[Reason]],
        settings: ReportSettings,
    ) -> None:
        self._tables = tables
        self._pictures = pictures
        self._reasons = reasons
        self._settings = settings
        self._cells = tables.cells.assign(steps=step_classes(tables.cells, scales))
        self._with_image = self._cells[self._cells["image"] != ""]

    def gallery(self) -> tuple[CellView, ...]:
        """The strangest cells of the whole run."""
        found = strangest(self._with_image, self._settings.gallery, self._settings.gallery_per_sample)
        return tuple(self._cell(cell) for cell in records(found))

    def samples(self) -> Iterator[SampleView]:
        """The chosen samples, in the order shown."""
        by_sample = dict(iter(self._cells.groupby("sample")))
        none = self._cells.iloc[:0]
        for number, row in enumerate(records(choose_samples(self._tables, self._settings))):
            yield self._sample(number, row, by_sample.get(row["sample"], none))

    def _sample(self, number: int, row: dict[str, Any], cells: pd.DataFrame) -> SampleView:
        probabilities = self._probabilities(row)
        single = one_cell_per_image(cells)
        images = [] if single else _images_by_strangeness(cells)
        shown, mosaic = (
            images[: self._settings.images],
            _strangest_first(cells, self._settings.mosaic if single else 0),
        )
        return SampleView(
            anchor=f"s{number}",
            sample=row["sample"],
            patient=row["patient"],
            label=row["label"],
            predicted=row["predicted"],
            why=row["why"],
            verdict=verdict(dict(probabilities)),
            novelty=novelty_text(row["novelty_p"]),
            flagged=flagged_text(cells["anomaly_q"]),
            runs=runs_text(row["agreeing"], row["reads"]),
            probabilities=probabilities,
            cells=len(cells),
            fields=tuple(self._field(str(image), cells[cells["image"] == image]) for image in shown),
            hidden_images=len(images) - len(shown),
            mosaic=tuple(self._cell(cell) for cell in records(mosaic)),
            hidden_cells=len(cells) - len(mosaic) if single else 0,
            strange=tuple(
                self._cell(cell)
                for cell in records(strangest(cells[cells["image"] != ""], self._settings.sample_gallery))
            ),
        )

    def _probabilities(self, row: dict[str, Any]) -> tuple[tuple[str, float], ...]:
        known = [(name, row.get(f"prob_{name}")) for name in self._tables.classes]
        return tuple((name, float(p)) for name, p in known if p is not None and pd.notna(p))

    def _field(self, image: str, cells: pd.DataFrame) -> FieldView:
        boxed = cells[cells[BOX].notna().all(axis=1)]
        drawn = _strangest_first(boxed, self._settings.boxes)
        picture = self._pictures.field(
            image, boxed[BOX].to_numpy(dtype=np.float64), self._settings.field_width
        )
        return FieldView(
            image=image,
            picture=picture,
            problem=self._pictures.problems.get(image, ""),
            # the strangest last, so that it lies on top
            boxes=tuple(self._box(cell) for cell in records(drawn.iloc[::-1])),
            hidden=len(cells) - len(drawn),
        )

    def _box(self, cell: dict[str, Any]) -> BoxView:
        return BoxView(
            x=round(cell["x0"], 1),
            y=round(cell["y0"], 1),
            width=round(cell["x1"] - cell["x0"], 1),
            height=round(cell["y1"] - cell["y0"], 1),
            steps=cell["steps"],
            text=cell_text(cell, self._tables.classes),
        )

    def _cell(self, cell: dict[str, Any]) -> CellView:
        box = (cell["x0"], cell["y0"], cell["x1"], cell["y1"])
        return CellView(
            cell_id=cell["cell_id"],
            sample=cell["sample"],
            label=cell["label"],
            anomaly=cell["anomaly"],
            uri=self._pictures.cell(cell["image"], box, self._settings.cell_size),
            steps=cell["steps"],
            text=cell_text(cell, self._tables.classes),
            why=tuple(self._reasons.get(cell["cell_id"], [])),
        )


def cells_with_reasons(tables: RunTables, settings: ReportSettings) -> list[str]:
    """The ids of all cells that appear in a gallery."""
    overall = strangest(tables.cells, settings.gallery, settings.gallery_per_sample)
    of_shown = tables.cells[tables.cells["sample"].isin(set(choose_samples(tables, settings)["sample"]))]
    each = strangest(of_shown, len(of_shown), settings.sample_gallery)
    return list(dict.fromkeys([*overall["cell_id"], *each["cell_id"]]))


def step_classes(cells: pd.DataFrame, scales: Sequence[Scale]) -> "pd.Series[str]":
    """For each cell the CSS classes of its steps, such as `a7 t3 c5`; `a-` where the score is missing."""
    classes = pd.Series("", index=cells.index, dtype=object)
    for scale in scales:
        steps = pd.Series(scale.steps(cells[scale.key].to_numpy(dtype=np.float64)), index=cells.index)
        classes = classes + " " + scale.letter + steps.astype(str).where(steps >= 0, "x")
    return classes.str.strip()


def one_cell_per_image(cells: pd.DataFrame) -> bool:
    """Whether every image is one cell: then the sample is shown as a mosaic, not as fields."""
    if cells.empty or cells["image"].duplicated().any():
        return False
    return bool((cells["x0"] == 0).all() and (cells["y0"] == 0).all())


def _strangest_first(cells: pd.DataFrame, count: int) -> pd.DataFrame:
    """The strangest cells, then those without an anomaly score."""
    ranked = strangest(cells, count)
    return pd.concat([ranked, cells[cells["anomaly"].isna()]]).head(count)


def _images_by_strangeness(cells: pd.DataFrame) -> list[str]:
    """The images of a sample, that with the strangest cell first."""
    highest = cells[cells["image"] != ""].groupby("image", sort=True)["anomaly"].max()
    return [str(name) for name in highest.sort_values(ascending=False, kind="stable").index]
