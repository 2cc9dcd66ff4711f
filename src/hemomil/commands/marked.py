"""Score explanations by an expert's marks: are the cells marked abnormal those that the scores put first?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hemomil.commands.marks import MarkTable, read_mark_table
from hemomil.errors import CellsError
from hemomil.report.tables import RunTables
from hemomil.stats import MIN_PATIENTS, instance_metrics
from hemomil.types import Notice

SCORES = ("attention", "anomaly", "contribution", "abnormal_probability")
METRICS = ("auroc", "ap")


def open_marks(path: Path) -> MarkTable:
    """The marks of a file; CellsError where there is no such file, or a row cannot be used."""
    if not path.is_file():
        raise CellsError(
            f"there is no file {path}", hint="`hemomil view` writes marks.csv into the run folder"
        )
    return read_mark_table(path)


def score_marks(
    table: MarkTable, cells: pd.DataFrame, shown: pd.DataFrame, tables: RunTables
) -> tuple[dict[str, Any], list[Notice]]:
    """What marks.json says, and notices: marks of cells that the run has not, classes that it has not.

    `cells` are those of the shown method and run, `shown` the rows of top.csv. Cells marked with a class
    count, whatever sample they are of: abnormal is every class but the control. Artefacts and cells marked
    unsure are counted and left out. Intervals are over the patients whose cells are marked; with fewer than
    5 of them a number is null.
    """
    ids = set(cells["cell_id"])
    known = {name: mark for name, mark in table.marks.items() if name in ids}
    kinds: pd.Series[str] = pd.Series({name: str(mark.mark) for name, mark in known.items()}, dtype=object)
    labels = pd.Series(
        {name: mark.label for name, mark in known.items() if mark.mark == "class"}, dtype=object
    )
    unknown = [{"cell_id": n, "row": table.rows[n]} for n in table.marks if n not in known]
    classified = cells[cells["cell_id"].isin(labels.index)]
    scored = {
        "marked": len(known),
        "counts": {kind: int((kinds == kind).sum()) for kind in ("class", "artefact", "unsure")},
        "classes": {str(name): int(count) for name, count in labels.value_counts(sort=False).items()},
        "patients": int(classified["patient"].nunique()),
        "unknown": unknown,
        "scores": _scores(classified, labels, tables),
        "artefacts_among_top": {
            order: _artefacts(shown[shown["chosen_by"].str.contains(order)], kinds)
            for order in ("contribution", "anomaly")
        },
    }
    return scored, [*table.notices, *_notices(table, scored, tables)]


def _scores(classified: pd.DataFrame, labels: "pd.Series[str]", tables: RunTables) -> dict[str, Any]:
    """AUROC and AP of each score, as metrics.json has them of known cells."""
    # without labels of samples, those of control samples count as well
    told = classified.assign(cell_label=classified["cell_id"].map(labels), label="", run=0)
    settings = tables.about["settings"]
    found = instance_metrics(
        told, control=tables.control, seed=settings["seed"], n_boot=settings["study"]["bootstrap"] // 2
    )
    of_method = found.get(tables.method)
    if of_method is None:
        return {}
    return {score: {metric: of_method[score][metric] for metric in METRICS} for score in SCORES}


def _artefacts(top: pd.DataFrame, kinds: "pd.Series[str]") -> dict[str, Any]:
    """How many of the top cells are marked as no cells; the share is of those that are marked at all."""
    marked = top["cell_id"].map(kinds).dropna()
    artefacts = int((marked == "artefact").sum())
    return {
        "cells": len(top),
        "marked": len(marked),
        "artefacts": artefacts,
        "share": artefacts / len(marked) if len(marked) else None,
    }


def _notices(table: MarkTable, scored: dict[str, Any], tables: RunTables) -> Iterator[Notice]:
    for mark in scored["unknown"]:
        text = f"row {mark['row']}: the run has no cell {mark['cell_id']}"
        yield Notice(kind="mark-of-unknown-cell", subject=mark["cell_id"], text=text)
    for name in scored["classes"]:
        if name not in tables.classes:
            rows = [table.rows[n] for n, mark in table.marks.items() if mark.label == name]
            text = (
                f"class {name!r} is none of the run's; its cells count as abnormal (first in row {min(rows)})"
            )
            yield Notice(kind="mark-of-other-class", subject=name, text=text)
    if scored["patients"] < MIN_PATIENTS:
        text = f"cells of {scored['patients']} patients are marked with a class: with fewer than 5, no number"
        yield Notice(kind="few-patients", subject="marks", text=text)
