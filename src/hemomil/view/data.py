"""What the viewer shows: one method and one run of a run folder, its cells as arrays sorted by sample.

Axes: S samples, N cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.dataset
from jaxtyping import Float32, Int32, Int64

from hemomil.errors import RunFolderError

BOX = ("x0", "y0", "x1", "y1")
SCORES = (
    "anomaly",
    "attention",
    "weight",
    "contribution",
    "anomaly_p",
    "anomaly_q",
    "anomaly_low",
    "anomaly_high",
)
CODED = ("image", "cell_label", "verdict")
STRANGEST = 0.95
"""Quantile of a sample's anomalies that says how strange its strangest cells are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A column of text: cell i has names[codes[i]]; -1 where it is blank."""

    codes: Int32[np.ndarray, "N"]
    names: tuple[str, ...]

    def text(self, rows: slice) -> list[str]:
        """The text of some cells; blank where there is none."""
        return [self.names[code] if code >= 0 else "" for code in self.codes[rows].tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of one method and run; those of sample i are the rows starts[i] to starts[i + 1]."""

    starts: Int64[np.ndarray, "S1"]
    ids: pyarrow.Array
    images: Coded
    labels: Coded
    """Known class of the cell."""
    verdicts: Coded
    numbers: Mapping[str, Float32[np.ndarray, "N"]]
    """Box, scores and prob_<class>, and attention_ratio (1: the sample's average cell); NaN where missing."""

    def of_sample(self, sample: int) -> slice:
        """The rows of one sample."""
        return slice(int(self.starts[sample]), int(self.starts[sample + 1]))

    def box(self, row: int) -> tuple[float, float, float, float]:
        """The box of one cell, in pixels of its image."""
        x0, y0, x1, y1 = (float(self.numbers[name][row]) for name in BOX)
        return x0, y0, x1, y1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One method and one run of a run folder."""

    folder: Path
    command: str
    method: str
    run: int | None
    """None outside a study."""
    classes: tuple[str, ...]
    control: str
    manifest: Path | None
    """What images are relative to, if run.json names it."""
    samples: pd.DataFrame
    """S rows: samples.csv plus probability (the highest), cells, strange, reads, agreeing; blanks are ''."""
    cells: Cells


def read_shown(
    folder: Path,
    about: Mapping[str, Any],
    samples: pd.DataFrame,
    *,
    method: str,
    run: int | None,
    classes: tuple[str, ...],
    control: str,
) -> Shown:
    """Read the cells of these samples, by one method and run; `about` is run.json.

    The samples, in the order in which they are shown, have all columns of `Shown` but cells and strange.
    Raises RunFolderError where a column is missing.
    """
    samples = samples.reset_index(drop=True)
    cells = _read_cells(folder / "cells.parquet", method, run, samples["sample"])
    manifest = (about.get("data") or {}).get("manifest")
    return Shown(
        folder=folder,
        command=str(about.get("command") or ""),
        method=method,
        run=run,
        classes=classes,
        control=control,
        manifest=Path(manifest) if manifest else None,
        samples=samples.assign(cells=np.diff(cells.starts), strange=_strangest(cells)),
        cells=cells,
    )


def probability_columns(names: Sequence[str]) -> list[str]:
    """The columns prob_<class>."""
    return [name for name in names if name.startswith("prob_")]


def _require(found: Sequence[str], names: Sequence[str], path: Path) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise RunFolderError(f"{path} has no column {', '.join(missing)}", hint="was it edited by hand?")


def _read_cells(path: Path, method: str, run: int | None, samples: "pd.Series[str]") -> Cells:
    """The cells of the shown method and run, whose samples are in samples.csv; none without the file."""
    table = _read_table(path, method, run) if path.is_file() else pyarrow.table({"cell_id": [], "sample": []})
    _require(table.column_names, ("cell_id", "sample"), path)
    of_sample = pyarrow.compute.index_in(_text(table, "sample"), pyarrow.array(samples, pyarrow.string()))
    place_N = of_sample.fill_null(-1).to_numpy(zero_copy_only=False)
    order_N = np.argsort(place_N, kind="stable")
    order_N = order_N[np.searchsorted(place_N[order_N], 0) :]
    starts = np.searchsorted(place_N[order_N], np.arange(len(samples) + 1)).astype(np.int64)
    numbers = {
        name: _floats(table, name)[order_N]
        for name in [*BOX, *SCORES, *probability_columns(table.column_names)]
    }
    sizes_N = np.repeat(np.diff(starts), np.diff(starts)).astype(np.float32)
    order = pyarrow.array(order_N)
    images, labels, verdicts = (_coded(_text(table, name).take(order)) for name in CODED)
    ids = _text(table, "cell_id").take(order)
    del table
    pyarrow.default_memory_pool().release_unused()
    return Cells(
        starts=starts,
        ids=ids,
        images=images,
        labels=labels,
        verdicts=verdicts,
        numbers=numbers | {"attention_ratio": numbers["attention"] * sizes_N},
    )


def _read_table(path: Path, method: str, run: int | None) -> pyarrow.Table:
    """What is shown of cells.parquet: a study has cells x methods x runs."""
    dataset = pyarrow.dataset.dataset(path)
    names = dataset.schema.names
    chosen = None
    for name, value in {"method": method, "run": run}.items():
        if value is not None and name in names:
            same = pyarrow.compute.field(name) == value
            chosen = same if chosen is None else chosen & same
    kept = {"cell_id", "sample", *CODED, *BOX, *SCORES, *probability_columns(names)}
    wanted = [name for name in names if name in kept]
    return dataset.to_table(columns=wanted, filter=chosen)


def _text(table: pyarrow.Table, name: str) -> pyarrow.Array:
    """A column as text; blank where it or its value is missing."""
    if name not in table.column_names:
        return pyarrow.repeat(pyarrow.scalar(""), table.num_rows)
    column = table[name].cast(pyarrow.string()).fill_null("").combine_chunks()
    return pyarrow.concat_arrays(column.chunks) if isinstance(column, pyarrow.ChunkedArray) else column


def _floats(table: pyarrow.Table, name: str) -> Float32[np.ndarray, "N"]:
    """A column as numbers; NaN where it or its value is missing."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    return np.asarray(table[name].cast(pyarrow.float64()).to_numpy(), np.float32)


def _coded(text: pyarrow.Array) -> Coded:
    names = text.unique()
    names = names.filter(pyarrow.compute.not_equal(names, ""))
    codes = pyarrow.compute.index_in(text, names).fill_null(-1).to_numpy(zero_copy_only=False)
    return Coded(codes=codes.astype(np.int32), names=tuple(names.to_pylist()))


def _strangest(cells: Cells) -> list[float]:
    """For each sample the anomaly that one of twenty cells exceeds; NaN where it has none."""
    anomalies = np.split(cells.numbers["anomaly"], cells.starts[1:-1])
    known = [values[~np.isnan(values)] for values in anomalies]
    return [float(np.quantile(values, STRANGEST)) if len(values) else np.nan for values in known]
