"""Read a run folder: one method and one run of it in detail, the metrics of all methods.

Axes: S samples, N cells, K classes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from hemomil.errors import RunFolderError

CELL_COLUMNS = (
    "x0",
    "y0",
    "x1",
    "y1",
    "attention",
    "anomaly",
    "weight",
    "contribution",
    "anomaly_p",
    "anomaly_q",
    "anomaly_low",
    "anomaly_high",
)
KNOWN_METRICS = ("methods", "instances", "evaluated_on")
ESTIMATE_COLUMNS = ("method", "score", "metric", "value", "low", "high", "n", "unit", "sd_runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSamples:
    """Which method and run of a run folder is shown, and its samples."""

    samples: pd.DataFrame
    """S rows: samples.csv plus probability (the highest), reads, agreeing; blanks are ''."""
    method: str
    run: int | None
    """The run shown; None outside a study."""
    methods: tuple[str, ...]
    runs: tuple[int, ...]
    classes: tuple[str, ...]
    control: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTables(ShownSamples):
    """The tables of a run folder; `samples` and `cells` are of the shown method and run only.

    `samples` has two more columns, of their cells: cells, strange.
    """

    folder: Path
    about: Mapping[str, Any]
    """run.json"""
    cells: pd.DataFrame
    """N rows: cells.parquet plus the sample's label and fold, and attention_ratio (1: its average cell)."""
    estimates: pd.DataFrame
    """A row per method and metric: `ESTIMATE_COLUMNS`."""
    instances: pd.DataFrame
    """A row per method, cell score and metric."""
    others: Mapping[str, pd.DataFrame]
    """What else metrics.json has estimates of, such as the detection."""
    evaluated_on: str | None

    @property
    def labelled(self) -> bool:
        """Whether any sample has a known class."""
        return bool((self.samples["label"] != "").any())

    @property
    def manifest(self) -> Path | None:
        """The manifest that the images are relative to, if run.json names it."""
        name = (self.about.get("data") or {}).get("manifest")
        return Path(name) if name else None


def read_run(folder: Path, method: str | None = None, about: Mapping[str, Any] | None = None) -> RunTables:
    """Read the run folder; `method` chooses what is shown in detail; `about` stands in for run.json.

    Raises RunFolderError where a table is missing or has not the columns it should have.
    """
    about = _read_json(folder / "run.json") if about is None else about
    shown = read_samples(folder, about, method)
    cells = _read_cells(folder / "cells.parquet", shown.method, shown.run, shown.samples)
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    of_samples = {field.name: getattr(shown, field.name) for field in fields(shown)}
    of_samples["samples"] = _with_cells(shown.samples, cells)
    return RunTables(
        **of_samples,
        folder=folder,
        about=about,
        cells=cells,
        estimates=_estimates(metrics.get("methods") or {}),
        instances=_estimates(metrics.get("instances") or {}),
        others={name: _estimates({name: metrics[name]}) for name in metrics if name not in KNOWN_METRICS},
        evaluated_on=metrics.get("evaluated_on"),
    )


def read_samples(folder: Path, about: Mapping[str, Any], method: str | None = None) -> ShownSamples:
    """The samples of one method of a run folder, and of a study those of its first run.

    Raises RunFolderError where samples.csv is missing or has no such method.
    """
    everything = _read_samples(folder / "samples.csv", about)
    methods = _in_order(list(everything["method"].unique()), about.get("methods") or ())
    shown = _choose_method(methods, method)
    runs = tuple(sorted(int(run) for run in everything["run"].dropna().unique()))
    run = runs[0] if runs else None
    of_method = everything[everything["method"] == shown]
    of_run = of_method if run is None else of_method[of_method["run"] == run]
    control = str(about.get("control") or "control")
    return ShownSamples(
        samples=_with_agreement(of_run.drop_duplicates("sample").reset_index(drop=True), of_method),
        method=shown,
        run=run,
        methods=methods,
        runs=runs,
        classes=_classes(everything, about, control),
        control=control,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(
            f"{path} is missing", hint="name a folder that train, predict or study wrote"
        ) from None
    except ValueError as error:
        raise RunFolderError(
            f"{path} is not JSON: {error}", hint="run the command that wrote it again"
        ) from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} holds {type(value).__name__}", hint="it should hold one JSON object")
    return value


def _read_samples(path: Path, about: Mapping[str, Any]) -> pd.DataFrame:
    if not path.is_file():
        raise RunFolderError(f"{path} is missing", hint="name a folder that train, predict or study finished")
    # ids and classes are text, also where they look like numbers or like "NA"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    _require(frame, ("sample", "predicted"), path)
    defaults = {
        "patient": "",
        "label": "",
        "fold": "",
        "run": "",
        "novelty_p": "",
        "method": _only_method(about),
    }
    for name, value in defaults.items():
        if name not in frame:
            frame[name] = value
    probabilities = probability_columns(frame)
    for name in [*probabilities, "novelty_p"]:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    frame["run"] = pd.to_numeric(frame["run"], errors="coerce")
    frame["probability"] = frame[probabilities].max(axis=1) if probabilities else np.nan
    if frame.empty:
        raise RunFolderError(f"{path} has no rows", hint="there is nothing to report")
    return frame


def probability_columns(frame: pd.DataFrame) -> list[str]:
    """The columns prob_<class>."""
    return [str(name) for name in frame.columns if str(name).startswith("prob_")]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as mappings, for words and templates."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _only_method(about: Mapping[str, Any]) -> str:
    return str((about.get("methods") or ["default"])[0])


def _require(frame: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    missing = [name for name in names if name not in frame]
    if missing:
        raise RunFolderError(f"{path} has no column {', '.join(missing)}", hint="was it edited by hand?")


def _in_order(found: Sequence[str], listed: Sequence[str]) -> tuple[str, ...]:
    """The methods found, in the order in which run.json lists them."""
    known = [name for name in listed if name in set(found)]
    return tuple(dict.fromkeys([*known, *map(str, found)]))


def _choose_method(methods: tuple[str, ...], wanted: str | None) -> str:
    if wanted is not None and wanted not in methods:
        raise RunFolderError(f"method {wanted!r} is not in this run", hint=f"it has {', '.join(methods)}")
    return wanted or shown_method(methods)


def shown_method(methods: Sequence[str]) -> str:
    """The method that a page shows in detail where none is asked for."""
    return "default" if "default" in methods else methods[-1]


def _classes(samples: pd.DataFrame, about: Mapping[str, Any], control: str) -> tuple[str, ...]:
    columns = [name.removeprefix("prob_") for name in probability_columns(samples)]
    listed = [str(name) for name in about.get("classes") or []]
    others = {*columns, *samples["label"], *samples["predicted"]} - {""} - set(listed)
    return (*listed, *sorted(others, key=lambda name: (name != control, name)))


def _read_cells(path: Path, method: str, run: int | None, samples: pd.DataFrame) -> pd.DataFrame:
    """The cells of the shown method and run; empty if the run folder has none."""
    if not path.is_file():
        frame = pd.DataFrame({"cell_id": [], "sample": [], "image": []}, dtype=str)
    else:
        frame = pd.read_parquet(path, filters=_filters(path, method, run) or None)
    _require(frame, ("cell_id", "sample"), path)
    for name in CELL_COLUMNS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float) if name in frame else np.nan
    for name in ("cell_id", "sample", "image", "cell_label", "verdict"):
        frame[name] = _text(frame[name]) if name in frame else ""
    frame = frame.drop_duplicates("cell_id").reset_index(drop=True)
    for name in ("label", "fold"):
        frame[name] = frame["sample"].map(samples.set_index("sample")[name]).fillna("").astype(str)
    counts = frame.groupby("sample")["cell_id"].transform("size")
    frame["attention_ratio"] = frame["attention"] * counts
    return frame


def _filters(path: Path, method: str, run: int | None) -> list[tuple[str, str, str | int]]:
    """What of cells.parquet is read: a study has cells x methods x runs, and only one part is shown."""
    names = set(pyarrow.parquet.read_schema(path).names)
    wanted = {"method": method, "run": run}
    return [(name, "==", value) for name, value in wanted.items() if value is not None and name in names]


def _text(column: "pd.Series[Any]") -> "pd.Series[str]":
    return column.astype(object).where(column.notna(), "").astype(str)


def _with_agreement(samples: pd.DataFrame, all_runs: pd.DataFrame) -> pd.DataFrame:
    """Add how many runs read the sample at all, and how many as the shown one does."""
    said = all_runs[["sample", "predicted"]].merge(
        samples[["sample", "predicted"]], on="sample", suffixes=("", "_shown")
    )
    same = said["predicted"].eq(said["predicted_shown"]).groupby(said["sample"])
    return samples.assign(
        reads=samples["sample"].map(same.size()), agreeing=samples["sample"].map(same.sum())
    )


def _with_cells(samples: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Add how many cells a sample has, and how strange its strangest twentieth is."""
    by_sample = cells.groupby("sample")["anomaly"]
    counts = samples["sample"].map(by_sample.size()).fillna(0).astype(int)
    return samples.assign(cells=counts, strange=samples["sample"].map(by_sample.quantile(0.95)))


def _estimates(methods: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {"method": method, "score": " ".join(names[:-1]), "metric": names[-1], **estimate}
        for method, tree in methods.items()
        for names, estimate in _leaves(tree, ())
    ]
    frame = pd.DataFrame(rows, columns=list(ESTIMATE_COLUMNS))
    for name in ("value", "low", "high", "n", "sd_runs"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def _leaves(tree: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every estimate (a mapping with `value`) below `tree`, with the names that lead to it."""
    if not isinstance(tree, Mapping):
        return
    if "value" in tree:
        yield names, tree
        return
    for name, branch in tree.items():
        yield from _leaves(branch, (*names, str(name)))
