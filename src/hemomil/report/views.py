"""Arrange what the page shows of samples and cells; the template only lays it out.

Axes: N cells.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hemomil.report.choose import choose_samples, most_typical, strangest
from hemomil.report.class_marks import with_class
from hemomil.report.healthy import against_healthy
from hemomil.report.parts import BoxView, CellView, FieldView, PlaneView, SampleView
from hemomil.report.pictures import Pictures
from hemomil.report.plane import plane_item, shown_points
from hemomil.report.ranks import (
    counted_and_strange,
    counted_key,
    percent_text,
    quantiles,
    strange_but_ignored,
    with_ranks,
)
from hemomil.report.reasons import Reason
from hemomil.report.sample_words import deletion_sentence, doubts
from hemomil.report.scales import Scale
from hemomil.report.settings import ReportSettings
from hemomil.report.tables import RunTables, records
from hemomil.report.words import cell_text, verdict

BOX = ["x0", "y0", "x1", "y1"]


class Views:
    """Makes the views of one run: the tables, where its pictures come from, and its colour scales."""

    def __init__(
        self,
        tables: RunTables,
        pictures: Pictures,
        scales: Sequence[Scale],
        reasons: dict[str, list[Reason]],
        deletion: pd.DataFrame,
        settings: ReportSettings,
    ) -> None:
        self._tables = tables
        self._pictures = pictures
        self._reasons = reasons
        self._deletion = dict(iter(deletion.groupby("sample")))
        self._settings = settings
        self._scores = [scale.key for scale in scales]
        self._counted = counted_key(tables.cells)
        cells = with_ranks(with_class(tables.cells, tables.classes))
        if cells["looks_sure"].notna().any():
            self._scores.append("looks_sure")
        ranks = {f"q_{key}": quantiles(cells, key) for key in self._scores}
        numbers = cells.groupby("sample").cumcount()
        self._cells = cells.assign(number=numbers, steps=step_classes(cells, scales), **ranks)
        self._with_image = self._cells[self._cells["image"] != ""]

    @property
    def has_classes(self) -> bool:
        """Whether any cell was given a class of its own."""
        return "looks_sure" in self._scores

    def gallery(self) -> tuple[CellView, ...]:
        """The strangest cells of the whole run."""
        return self._pictured(
            strangest(self._with_image, self._settings.gallery, self._settings.gallery_per_sample)
        )

    def typical(self) -> tuple[CellView, ...]:
        """The most ordinary cells of healthy donors, as many as there are strangest ones."""
        healthy = self._with_image[self._with_image["label"] == self._tables.control]
        return self._pictured(
            most_typical(healthy, self._settings.gallery, self._settings.gallery_per_sample)
        )

    def samples(self) -> Iterator[SampleView]:
        """The chosen samples, in the order shown."""
        by_sample = dict(iter(self._cells.groupby("sample")))
        none = self._cells.iloc[:0]
        for number, row in enumerate(records(choose_samples(self._tables, self._settings))):
            yield self._sample(f"s{number}", row, by_sample.get(row["sample"], none))

    def _sample(self, anchor: str, row: dict[str, Any], cells: pd.DataFrame) -> SampleView:
        probabilities = self._probabilities(row)
        single = one_cell_per_image(cells)
        images = [] if single else _images_by_strangeness(cells)
        fields = tuple(
            self._field(str(image), cells[cells["image"] == image])
            for image in images[: self._settings.images]
        )
        mosaic = self._pictured(_strangest_first(cells, self._settings.mosaic if single else 0))
        drawn = {box.number for field in fields for box in field.boxes} | {cell.number for cell in mosaic}
        return SampleView(
            anchor=anchor,
            page=page_name(row["sample"]),
            sample=row["sample"],
            patient=row["patient"],
            label=row["label"],
            predicted=row["predicted"],
            why=row["why"],
            verdict=verdict(dict(probabilities)),
            doubts=doubts(row, cells, self._tables.control),
            deletion=deletion_sentence(self._deletion.get(row["sample"])),
            probabilities=probabilities,
            cells=len(cells),
            fields=fields,
            hidden_images=len(images) - len(fields),
            mosaic=mosaic,
            hidden_cells=len(cells) - len(mosaic) if single else 0,
            strange=self._pictured(strangest(cells[cells["image"] != ""], self._settings.sample_gallery)),
            plane=self._plane(anchor, cells, drawn),
            healthy=against_healthy(self._tables, row, cells),
        )

    def _probabilities(self, row: dict[str, Any]) -> tuple[tuple[str, float], ...]:
        known = [(name, row.get(f"prob_{name}")) for name in self._tables.classes]
        return tuple((name, float(p)) for name, p in known if p is not None and pd.notna(p))

    def _plane(self, anchor: str, cells: pd.DataFrame, drawn: set[int]) -> PlaneView | None:
        points = shown_points(cells, self._settings.plane)
        if self._counted is None or points.empty:
            return None
        counted, ignored = counted_and_strange(cells), strange_but_ignored(cells)
        listed = [
            part[part["image"] != ""].head(self._settings.sample_gallery) for part in (counted, ignored)
        ]
        elsewhere = drawn.union(*(part["number"] for part in listed))
        unseen = points[~points["number"].isin(elsewhere)]
        texts = {str(cell["number"]): self._text(cell) for cell in records(unseen)}
        return PlaneView(
            item=plane_item(points, self._counted, anchor),
            texts=json.dumps(texts, ensure_ascii=False, separators=(",", ":")),
            left_out=len(cells) - len(points),
            counted=self._pictured(listed[0]),
            n_counted=len(counted),
            ignored=self._pictured(listed[1]),
            n_ignored=len(ignored),
        )

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
            number=cell["number"],
            steps=cell["steps"],
            percents=self._percents(cell),
            text=self._text(cell),
        )

    def _pictured(self, cells: pd.DataFrame) -> tuple[CellView, ...]:
        return tuple(self._cell(cell) for cell in records(cells))

    def _cell(self, cell: dict[str, Any]) -> CellView:
        box = (cell["x0"], cell["y0"], cell["x1"], cell["y1"])
        return CellView(
            cell_id=cell["cell_id"],
            sample=cell["sample"],
            label=cell["label"],
            anomaly=cell["anomaly"],
            uri=self._pictures.cell(cell["image"], box, self._settings.cell_size),
            number=cell["number"],
            steps=cell["steps"],
            percents=self._percents(cell),
            text=self._text(cell),
            why=tuple(self._reasons.get(cell["cell_id"], [])),
        )

    def _text(self, cell: Mapping[str, Any]) -> str:
        return cell_text(cell, self._tables.classes)

    def _percents(self, cell: Mapping[str, Any]) -> str:
        return percent_text(cell, [f"q_{key}" for key in self._scores])


def page_name(sample: str) -> str:
    """The file of a sample that has a page of its own: readable, safe as a name, and never another's."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", sample).strip("-")[:40]
    return f"{readable or 'sample'}-{hashlib.sha256(sample.encode()).hexdigest()[:8]}.html"


def cells_with_reasons(tables: RunTables, settings: ReportSettings) -> list[str]:
    """The ids of all cells that appear in a gallery."""
    overall = strangest(tables.cells, settings.gallery, settings.gallery_per_sample)
    of_shown = tables.cells[tables.cells["sample"].isin(set(choose_samples(tables, settings)["sample"]))]
    each = strangest(of_shown, len(of_shown), settings.sample_gallery)
    return list(dict.fromkeys([*overall["cell_id"], *each["cell_id"]]))


def step_classes(cells: pd.DataFrame, scales: Sequence[Scale]) -> "pd.Series[str]":
    """For each cell the CSS classes of its steps, such as `a7 t3 c5 k1`; `ax` where the score is missing."""
    classes = pd.Series("", index=cells.index, dtype=object)
    for scale in scales:
        steps = pd.Series(scale.steps(cells[scale.key].to_numpy(dtype=np.float64)), index=cells.index)
        classes = classes + " " + scale.letter + steps.astype(str).where(steps >= 0, "x")
    if (cells["looks_like"] >= 0).any():
        classes = classes + " k" + cells["looks_like"].astype(str).where(cells["looks_like"] >= 0, "x")
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
