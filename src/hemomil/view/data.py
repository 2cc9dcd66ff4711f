"""What the viewer shows: one method and one run of a run folder, its cells as arrays sorted by sample.

Axes: S samples, N cells.
"""

from collections.abc import Callable, Mapping, Sequence
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
BLANKS = {"patient": "", "label": "", "fold": "", "run": "", "novelty_p": ""}
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
    choose_method: Callable[[Sequence[str]], str],
    in_order: Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame],
) -> Shown:
    """Read one method of a run folder; `about` is its run.json, `choose_method` picks among those there.

    `in_order` sorts the samples, knowing the classes. A study's first run is shown.
    Raises RunFolderError where a column is missing.
    """
    table = _read_samples(folder / "samples.csv", about)
    method = choose_method(_in_order(table["method"], about.get("methods") or ()))
    of_method = table[table["method"] == method]
    known_runs = of_method["run"].dropna()
    run = None if known_runs.empty else int(known_runs.min())
    of_run = of_method if run is None else of_method[of_method["run"] == run]
    control = str(about.get("control") or "control")
    classes = _classes(table, about, control)
    samples = in_order(_with_agreement(of_run.drop_duplicates("sample"), of_method), classes)
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


# Samples


def _read_samples(path: Path, about: Mapping[str, Any]) -> pd.DataFrame:
    # ids and classes are text, also where they look like numbers or like "NA"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    _require(list(table.columns), ("sample", "predicted"), path)
    only = str((about.get("methods") or ["default"])[0])
    for name, value in (BLANKS | {"method": only}).items():
        if name not in table:
            table[name] = value
    probabilities = probability_columns(list(table.columns))
    for name in [*probabilities, "novelty_p", "run"]:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    if table.empty:
        raise RunFolderError(f"{path} has no rows", hint="there is nothing to show")
    return table.assign(probability=table[probabilities].max(axis=1) if probabilities else np.nan)


def _require(found: Sequence[str], names: Sequence[str], path: Path) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise RunFolderError(f"{path} has no column {', '.join(missing)}", hint="was it edited by hand?")


def _in_order(found: "pd.Series[str]", listed: Sequence[str]) -> list[str]:
    """The methods found, in the order in which run.json lists them."""
    known = [name for name in listed if name in set(found)]
    return list(dict.fromkeys([*known, *found]))


def _with_agreement(samples: pd.DataFrame, all_runs: pd.DataFrame) -> pd.DataFrame:
    """Add how many runs read the sample at all, and how many as the shown one does."""
    shown = all_runs["sample"].map(samples.set_index("sample")["predicted"])
    same = (all_runs["predicted"] == shown).groupby(all_runs["sample"])
    return samples.assign(
        reads=samples["sample"].map(same.size()), agreeing=samples["sample"].map(same.sum())
    )


def _classes(samples: pd.DataFrame, about: Mapping[str, Any], control: str) -> tuple[str, ...]:
    listed = [str(name) for name in about.get("classes") or []]
    columns = [name.removeprefix("prob_") for name in probability_columns(list(samples.columns))]
    others = {*columns, *samples["label"], *samples["predicted"]} - {""} - set(listed)
    return (*listed, *sorted(others, key=lambda name: (name != control, name)))


# Cells


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
