"""`explain`: the cells that made each diagnosis, and beside them the healthy cells most like them.

The scores are those of the run; nothing is predicted anew. Axes: N cells, F features.
"""

import difflib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from hemomil.commands.console import SILENT, Talk
from hemomil.commands.marked import open_marks, score_marks
from hemomil.commands.run_folder import load_record
from hemomil.commands.tables import write_cells, write_table
from hemomil.commands.top_cells import how_chosen, top_cells, top_table, with_crops
from hemomil.errors import RunFolderError, SettingsError
from hemomil.explain.neighbours import Neighbours, nearest_healthy
from hemomil.explain.ranks import with_ranks
from hemomil.files import write_json
from hemomil.report.tables import RunTables, read_run
from hemomil.types import Notice

MARK = "explain.json"
FILES = {MARK, "cells.parquet", "top.csv", "crops", "marks.json"}


def explain(
    run: Path,
    output: Path,
    *,
    top: int = 50,
    marks: Path | None = None,
    samples: Sequence[str] = (),
    method: str | None = None,
    crops: bool = True,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Write cells.parquet, top.csv, crops/, explain.json and, with `marks`, marks.json; returns explain.json.

    `samples` says of which samples the top cells are shown; cells.parquet always has all cells of the
    method (`default`, or the last, unless `method` names another) and, of a study, of its first run.

    Raises RunFolderError where the run is not finished or `output` is taken, SettingsError for an unknown
    sample, CellsError for marks that cannot be read.
    """
    load_record(run, "samples.csv", "cells.parquet", "cells.zarr")
    if top < 1:
        raise SettingsError(f"top {top} shows no cell", hint="give 1 or more")
    tables = read_run(run, method)
    _refuse_unknown(samples, tables)
    verdicts = open_marks(marks) if marks is not None else None
    with _written_whole(output, force=force) as part:
        cells, neighbours, notices = _explained(tables)
        write_cells(part / "cells.parquet", cells)
        shown = top_cells(cells, tables, samples, top)
        if crops:
            shown, unreadable = with_crops(shown, cells, tables, part, talk)
            notices += unreadable
        write_table(part / "top.csv", top_table(shown))
        if verdicts is not None:
            scored, told = score_marks(verdicts, cells, shown, tables)
            notices += told
            write_json(part / "marks.json", scored)
        record = {
            "command": "explain",
            "version": version("hemomil"),
            "run": str(run.resolve()),
            "method": tables.method,
            "run_shown": tables.run,
            "control": tables.control,
            "samples": len(tables.samples),
            "cells": len(cells),
            "top": top,
            "samples_chosen": list(samples),
            "how_chosen": how_chosen(samples, tables, top),
            "cells_shown": len(shown),
            "crops": int((shown["file"] != "").sum()),
            "features": list(tables.about["settings"]["features"]),
            "healthy_cells": neighbours.n_healthy,
            "deletion_check": _deletion(tables, samples),
            "marks": "marks.json" if marks is not None else None,
            "notices": [asdict(notice) for notice in notices],
        }
        write_json(part / MARK, record)
    return record


@contextmanager
def _written_whole(output: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place on success.

    With `force` an earlier explanation is replaced, unless the folder holds anything else: marks, perhaps.
    """
    if output.is_file():
        raise RunFolderError(f"{output} is a file", hint="choose a folder with -o")
    held = {path.name for path in output.iterdir()} if output.exists() else set()
    if held - FILES or (held and MARK not in held):
        raise RunFolderError(
            f"{output} holds {min(held - FILES or held)}, which is not of an explanation alone",
            hint="choose another folder with -o",
        )
    if held and not force:
        raise RunFolderError(
            f"{output} holds an explanation", hint="choose another folder with -o, or give --force"
        )
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if output.exists():
            shutil.rmtree(output)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_unknown(samples: Sequence[str], tables: RunTables) -> None:
    known = tables.samples["sample"].tolist()
    unknown = [name for name in samples if name not in set(known)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise SettingsError(
            f"the run has no sample {', '.join(map(repr, unknown))}",
            hint=f"did you mean {near[0]!r}?" if near else "samples.csv of the run lists them",
        )


def _explained(tables: RunTables) -> tuple[pd.DataFrame, Neighbours, list[Notice]]:
    """The cells of the shown method and run, as the run has them, and what this command adds."""
    where: list[tuple[str, str, Any]] = [("method", "==", tables.method)]
    if tables.run is not None:
        where.append(("run", "==", tables.run))
    cells = pd.read_parquet(tables.folder / "cells.parquet", filters=where)
    features = vectors_of(
        tables.folder / "cells.zarr", tables.about["settings"]["features"], pd.Index(cells["cell_id"])
    )
    healthy = (cells["label"] == tables.control).to_numpy(dtype=bool)
    found = nearest_healthy(features, cells["patient"].to_numpy(dtype=object), healthy)
    ids = cells["cell_id"].to_numpy(dtype=object)
    cells = with_ranks(cells).assign(
        nearest_healthy=_lists(ids[found.rows], found, cells.index),
        nearest_healthy_distance=_lists(found.distances, found, cells.index),
    )
    return cells, found, list(_healthy_notices(tables, healthy, found))


def _lists(values: Shaped[np.ndarray, "N K"], found: Neighbours, index: pd.Index) -> "pd.Series[Any]":
    """Of each row, the values of those neighbours that are there."""
    rows = zip(values, found.rows >= 0, strict=True)
    return pd.Series([row[known].tolist() for row, known in rows], index=index, dtype=object)


def _healthy_notices(
    tables: RunTables, healthy: Bool[np.ndarray, "N"], found: Neighbours
) -> Iterator[Notice]:
    count = int(healthy.sum())
    if not count:
        text = f"no sample of the run is labelled {tables.control}: no cell has a nearest healthy one"
        yield Notice(kind="no-control-cells", subject=tables.control, text=text)
    if count > found.n_healthy:
        text = f"nearest healthy cells are sought among {found.n_healthy} of {count} control cells"
        yield Notice(kind="control-cells-thinned", subject=tables.control, text=text)


def vectors_of(store: Path, kinds: Sequence[str], cell_ids: pd.Index) -> Float[np.ndarray, "N F"]:
    """What the model saw of each cell, as one vector.

    Raises RunFolderError for a cell that the store has not, FeaturesError for a store without these features.
    """
    from hemomil.describe import read_bags

    bags = read_bags(store, kinds)
    places = pd.Index([name for bag in bags for name in bag.cell_ids]).get_indexer(cell_ids)
    if (places < 0).any():
        lost = cell_ids[places < 0][0]
        raise RunFolderError(
            f"{store} has no cell {lost}, which cells.parquet has",
            hint="the two are not of one run: copy the run folder again",
        )
    values: np.ndarray = np.concatenate([_vectors(bag.features) for bag in bags])[places]
    return values


def _vectors(features: Float[np.ndarray, "M ..."]) -> Float[np.ndarray, "M F"]:
    """Vectors as they are; of RoI maps, mean and maximum of each channel, as joined with other features."""
    if features.ndim == 2:
        return features
    parts = features.mean(axis=(2, 3), dtype=np.float32), features.max(axis=(2, 3)).astype(np.float32)
    return np.concatenate(parts, axis=1)


def _deletion(tables: RunTables, samples: Sequence[str]) -> dict[str, Any] | None:
    """What the run found when it took out the cells said to count; None where it did not."""
    path = tables.folder / "deletion.csv"
    if not path.is_file():
        check: dict[str, Any] | None = tables.about.get("explanation_check")
        return check
    rows = pd.read_csv(path, dtype={"sample": str, "method": str}, keep_default_na=False)
    rows = rows[(rows["method"] == tables.method) & (rows["run"] == tables.run)]
    rows = rows[rows["sample"].isin(samples)] if samples else rows
    points = rows.groupby("k").agg(
        samples=("sample", "nunique"),
        probability=("probability", "mean"),
        without_top=("without_top", "mean"),
        without_random=("without_random", "mean"),
    )
    metrics = json.loads((tables.folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "all_samples_and_runs": metrics.get("deletion", {}).get(tables.method),
        "shown": points.reset_index().to_dict("records"),
    }
