"""Say why a cell is strange: its named shape features that lie farthest from control cells.

Axes: N cells, F features.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from hemomil.report.tables import RunTables
from hemomil.report.vocabulary import NOT_OF_THE_CELL, family, plain_words

MAD_TO_SD = 1.4826
LEAST_DEVIATIONS = 2.0
"""Nearer than this to the middle control cell, a feature is no reason."""
MOST_REFERENCE = 50_000
LEAST_REFERENCE = 20
"""Fewer reference cells give no usable middle and spread."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One feature of a cell that is far from where control cells are."""

    feature: str
    deviations: float
    """Robust standard deviations from the middle reference cell; negative: below it."""

    @property
    def words(self) -> str:
        """For a reader: `much more elongated`."""
        size = abs(self.deviations)
        degree = "far " if size >= 8 else "much " if size >= 4 else ""
        return degree + plain_words(self.feature, higher=self.deviations > 0)

    @property
    def measure(self) -> str:
        """For who wants to check: `eccentricity +4.2`."""
        sign = "+" if self.deviations > 0 else "−"
        return f"{self.feature.replace('_', ' ')} {sign}{abs(self.deviations):.1f}"


def reasons(tables: RunTables, cell_ids: list[str], count: int = 3) -> tuple[dict[str, list[Reason]], str]:
    """The `count` features of each cell farthest from the reference cells, and what these were.

    Nothing, and a sentence that says so, where the run folder has no shape features.
    """
    shape = _read_shape(tables.folder / "cells.zarr")
    if shape is None:
        return {}, "This run has no shape features, so the page cannot say why a cell is strange."
    reference, said = _reference(tables, shape)
    if len(reference) < LEAST_REFERENCE:
        return {}, f"Only {len(reference)} cells to compare with: too few to say why a cell is strange."
    wanted = shape.reindex([cell_id for cell_id in cell_ids if cell_id in shape.index])
    deviations = _deviations(wanted.astype(float), reference.astype(float))
    return {str(cell_id): _largest(row, count) for cell_id, row in deviations.iterrows()}, said


def _deviations(wanted: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Robust standard deviations from the middle reference cell; NaN where a feature never varies there."""
    middle = reference.median()
    spread = MAD_TO_SD * (reference - middle).abs().median()
    # where most reference cells share one value the plain deviation serves; without any, there is no scale
    spread = spread.where(spread > 0, reference.std(ddof=0)).replace(0.0, np.nan)
    return (wanted - middle) / spread


def _read_shape(path: Path) -> pd.DataFrame | None:
    """Shape features, a row per cell id, a column per named feature."""
    if not path.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns of its own experimental string types
        store = zarr.open_group(path, mode="r")
        if "obsm/shape" not in store:
            return None
        ids = read_elem(store["obs"]).index.astype(str)
        values = read_elem(store["obsm/shape"])
        names = read_elem(store["var"]).index.astype(str)
    if isinstance(values, pd.DataFrame):  # a store of other make may name its columns itself
        return values.set_axis(ids)
    assert len(names) == values.shape[1], "the features of cells.zarr and their names in var are not aligned"
    return pd.DataFrame(np.asarray(values), index=ids, columns=names)


def _reference(tables: RunTables, shape: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The cells to compare with: of control samples, or of the whole run where no control is known."""
    control = tables.cells.loc[tables.cells["label"] == tables.control, "cell_id"]
    found = shape[shape.index.isin(set(control))]
    if len(found):
        return _thinned(found), f"compared with the {len(found):,} cells of samples labelled {tables.control}"
    return _thinned(
        shape
    ), f"compared with all {len(shape):,} cells of this run, as no sample is known healthy"


def _thinned(cells: pd.DataFrame) -> pd.DataFrame:
    """At most some tens of thousands of cells, evenly spaced: the middle and spread are the same."""
    return cells.iloc[:: max(1, -(-len(cells) // MOST_REFERENCE))]


def _largest(row: "pd.Series[float]", count: int) -> list[Reason]:
    """The farthest features that say different things."""
    far = row[row.abs() >= LEAST_DEVIATIONS]
    told: dict[str, Reason] = {}
    for name in far.abs().sort_values(ascending=False, kind="stable").index:
        if not NOT_OF_THE_CELL.fullmatch(str(name)):
            told.setdefault(family(str(name)), Reason(str(name), float(far[name])))
    return list(told.values())[:count]
