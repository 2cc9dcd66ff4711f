"""What a study's run folder has beside the tables of a run: curves, and the diseases left out of training.

Axes: N cells, G points of a curve.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from hemomil.report.tables import RunTables

CURVES = "curves.json"
DELETION = "deletion.csv"
NO_CELLS = ("left_out", "label", "patient", "anomaly", "attention_ratio", "contribution")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve with its band; NaN where it is not estimable."""

    x: Float[np.ndarray, "G"]
    value: Float[np.ndarray, "G"]
    low: Float[np.ndarray, "G"]
    high: Float[np.ndarray, "G"]
    n: int
    """Patients."""
    share: float
    """Of the samples that have the class: the precision of guessing; NaN where no class is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The points of a reliability diagram; NaN where a bin has too few patients."""

    confidence: Float[np.ndarray, "G"]
    accuracy: Float[np.ndarray, "G"]
    low: Float[np.ndarray, "G"]
    high: Float[np.ndarray, "G"]
    share: Float[np.ndarray, "G"]
    """Of the samples in each bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Of the method and run that are shown, unless it says otherwise; empty where there is no such file."""

    roc: Mapping[str, Curve] = field(default_factory=dict)
    """By class."""
    precision_recall: Mapping[str, Curve] = field(default_factory=dict)
    calibration: Calibration | None = None
    deletion: Mapping[str, tuple[Curve, Curve]] = field(default_factory=dict)
    """By method, of all: probability of the class called without the top cells, and without random ones."""
    unseen: Mapping[str, Any] = field(default_factory=dict)
    """Of metrics.json, by unseen class: estimates by name, and `instances`."""
    unseen_cells: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(NO_CELLS)))
    """Cells of the unseen classes and of controls: left_out, label, patient, anomaly, attention_ratio …"""


def read_evidence(tables: RunTables) -> Evidence:
    """Read `curves.json`, `unseen_cells.parquet` and the unseen classes of metrics.json, as far as there."""
    everything = _read(tables.folder / CURVES)
    curves = everything.get(tables.method, {})
    unseen = _read(tables.folder / "metrics.json").get("unseen") or {}
    return Evidence(
        roc={name: _curve(bands["roc"], bands["share"]) for name, bands in curves.get("classes", {}).items()},
        precision_recall={
            name: _curve(bands["precision_recall"], bands["share"])
            for name, bands in curves.get("classes", {}).items()
        },
        calibration=_calibration(curves.get("reliability")),
        deletion={
            method: (_curve(bands["without_top"], np.nan), _curve(bands["without_random"], np.nan))
            for method in tables.methods
            if (bands := everything.get(method, {}).get("deletion"))
        },
        unseen={name: methods[tables.method] for name, methods in unseen.items() if tables.method in methods},
        unseen_cells=_unseen_cells(tables),
    )


def read_deletion(tables: RunTables) -> pd.DataFrame:
    """deletion.csv of the shown method and run, a row per sample and number of cells; empty without it."""
    path = tables.folder / DELETION
    if not path.is_file():
        return pd.DataFrame({"sample": []}, dtype=str)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in ("run", "k", "probability", "without_top", "without_random"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    shown = rows["method"] == tables.method
    return rows[shown if tables.run is None else shown & (rows["run"] == tables.run)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _curve(band: Mapping[str, Any], share: float) -> Curve:
    arrays = {name: _numbers(band[name]) for name in ("x", "value", "low", "high")}
    return Curve(**arrays, n=int(band["n"]), share=share)


def _calibration(bins: Mapping[str, Any] | None) -> Calibration | None:
    if bins is None:
        return None
    names = ("confidence", "accuracy", "low", "high", "share")
    return Calibration(**{name: _numbers(bins[name]) for name in names})


def _numbers(values: list[float | None]) -> Float[np.ndarray, "G"]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _unseen_cells(tables: RunTables) -> pd.DataFrame:
    path = tables.folder / "unseen_cells.parquet"
    if not path.is_file():
        return pd.DataFrame(columns=list(NO_CELLS))
    cells = pd.read_parquet(path, filters=[("method", "==", tables.method), ("run", "==", tables.run)])
    counts = cells.groupby(["left_out", "sample"])["cell_id"].transform("size")
    return cells.assign(attention_ratio=cells["attention"] * counts)
