"""`study`: folds x runs x methods on one cohort, every method on the same folds.

A cell of the table is a job, see `jobs.py`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hemomil.cohort import select
from hemomil.commands.cells import detection_quality, prepare
from hemomil.commands.confounders import gather_facts
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.curves import write_curves
from hemomil.commands.energy import metered
from hemomil.commands.jobs import is_side_by_side, read_jobs, run_jobs
from hemomil.commands.page import write_page
from hemomil.commands.protocol import Protocol, protocol
from hemomil.commands.run_folder import RunFolder, open_run
from hemomil.commands.settings import Settings, jobs_or_cores
from hemomil.commands.source import Source, load_source, settings_for
from hemomil.commands.table1 import write_table1
from hemomil.commands.tables import blank_rows, write_cells, write_table
from hemomil.commands.workers import learning_processes, workers
from hemomil.files import write_json
from hemomil.report.tables import shown_method
from hemomil.stats import (
    confounder_notices,
    confounder_predictions,
    deletion_metrics,
    instance_metrics,
    study_metrics,
    unseen_metrics,
)


def study(
    manifest: Path,
    output: Path,
    *,
    settings: Settings,
    cells: Path | None = None,
    truth: Path | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Cross-validate methods side by side; returns what metrics.json says.

    `jobs`: processes on this machine. `cluster`: address of a Dask scheduler whose workers do the jobs.

    Raises HemomilError before any long work where the input cannot carry the study.
    """
    source = load_source(manifest, settings, cells=cells, truth=truth)
    settings = settings_for(source, settings)
    plan = protocol(source.cohort, settings)
    evaluated = evaluated_samples(source, settings)
    side_by_side = is_side_by_side(settings, here=cluster is None)
    where = workers(cluster)
    run = open_run(output, "study", settings, source.inputs, force=force)
    run.notices.extend(plan.notices)
    n_jobs = jobs_or_cores(jobs)
    with run.filling(), learning_processes():
        with metered(run.facts, settings.country):
            store = prepare(source, run, talk, jobs=n_jobs)
            with run.timed("study"), where:
                run_jobs(store, plan, run, talk, n_jobs, side_by_side=side_by_side)
        tables = _tables(source, plan, run)
        with run.timed("confounders"):
            confounded = _confounders(source, store, plan, run, talk, n_jobs)
        metrics = _metrics(store, tables, confounded, source, plan, settings)
        shown = shown_method(settings.study.methods)
        run.notices.extend(confounder_notices(metrics["methods"], metrics["confounders"], shown))
        _write_tables(run.path, tables, confounded, plan)
        write_json(run.path / "metrics.json", metrics)
        told, deleted = _told(tables.samples, evaluated), _chosen(tables.deleted, evaluated)
        write_curves(run.path, told, deleted, plan.classes, seed=settings.seed)
        write_table1(run.path, told, plan.classes, metrics["methods"], settings)
        run.facts.update(classes=plan.classes, control=settings.control, methods=settings.study.methods)
        with run.timed("report"):
            write_page(run)
    return metrics


class _Tables(NamedTuple):
    """What the jobs said; unseen: of classes that were not learned, and of the controls beside them."""

    samples: pd.DataFrame
    cells: pd.DataFrame
    deleted: pd.DataFrame
    unseen: pd.DataFrame
    unseen_cells: pd.DataFrame


def _tables(source: Source, plan: Protocol, run: RunFolder) -> _Tables:
    samples, cells, deleted = read_jobs(plan, run)
    samples, unseen = _apart(_with_blanks(samples, source, plan, run.settings), plan)
    cells, unseen_cells = _apart(cells, plan)
    deleted, _ = _apart(deleted, plan)
    return _Tables(samples, cells, deleted, unseen, unseen_cells)


def _write_tables(run: Path, tables: _Tables, confounded: pd.DataFrame, plan: Protocol) -> None:
    write_table(run / "confounders.csv", confounded)
    write_table(run / "splits.csv", plan.splits)
    write_table(run / "samples.csv", tables.samples.drop(columns="left_out"))
    write_cells(run / "cells.parquet", tables.cells.drop(columns="left_out"))
    write_table(run / "deletion.csv", tables.deleted.drop(columns="left_out"))
    if len(tables.unseen):
        write_table(run / "unseen.csv", tables.unseen)
        write_cells(run / "unseen_cells.parquet", tables.unseen_cells)


def _confounders(
    source: Source, store: Path, plan: Protocol, run: RunFolder, talk: Talk, jobs: int
) -> pd.DataFrame:
    """What classifiers say that see no cell's shape, on the same folds; columns of samples.csv."""
    facts = gather_facts(source, store, run, talk, jobs=jobs)
    run.facts["confounders_left_out"] = facts.left_out
    learned = {sample: label for sample, label in plan.labels.items() if label not in plan.never}
    splits = plan.splits[plan.splits["sample"].isin(learned)]
    return confounder_predictions(facts.table, learned, splits, plan.classes, seed=run.settings.seed)


def _confounder_metrics(
    samples: pd.DataFrame, plan: Protocol, evaluated: frozenset[str] | None, settings: Settings
) -> dict[str, Any]:
    rows = _chosen(samples, evaluated)
    if not len(rows):
        return {}
    return study_metrics(
        rows, plan.classes, control=settings.control, seed=settings.seed, n_boot=settings.study.bootstrap
    )


def evaluated_samples(source: Source, settings: Settings) -> frozenset[str] | None:
    """Names of the samples that the metrics are restricted to; None: all of them."""
    if not settings.study.evaluate_on:
        return None
    return frozenset(s.sample for s in select(source.cohort, settings.study.evaluate_on).samples)


def _apart(table: pd.DataFrame, plan: Protocol) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the study proper, and those that say what becomes of unseen classes: theirs and the controls'.

    In the second, `left_out` names the classes that the model was not trained on.
    """
    own = table["left_out"].isna()
    never = table["label"].isin(plan.never)
    beside = table[own & (never | ((table["label"] == plan.classes[0]) & bool(plan.never)))]
    unseen = pd.concat([beside.assign(left_out=", ".join(plan.never)), table[~own]], ignore_index=True)
    return table[own & ~never].reset_index(drop=True), unseen


def _told(samples: pd.DataFrame, names: frozenset[str] | None) -> pd.DataFrame:
    """Rows that predict something, of these samples only if they are named."""
    return _chosen(samples[samples["predicted"].notna()], names)


def _chosen(table: pd.DataFrame, names: frozenset[str] | None) -> pd.DataFrame:
    """Rows of these samples only, if they are named."""
    return table if names is None else table[table["sample"].isin(names)]


def _with_blanks(samples: pd.DataFrame, source: Source, plan: Protocol, settings: Settings) -> pd.DataFrame:
    """Samples in which no cell was found stay in the table, with nothing predicted."""
    seen = set(samples["sample"])
    lost = {s.sample: s for s in source.cohort.samples if s.sample not in seen}
    missing = plan.splits[plan.splits["sample"].isin(lost)]
    blanks = [
        blank_rows([lost[sample]], plan.classes, method=method, run=run, fold=fold)
        for sample, run, fold in zip(missing["sample"], missing["run"], missing["fold"], strict=True)
        for method in settings.study.methods
    ]
    return pd.concat([samples, *blanks], ignore_index=True) if blanks else samples


def _metrics(
    store: Path,
    tables: _Tables,
    confounded: pd.DataFrame,
    source: Source,
    plan: Protocol,
    settings: Settings,
) -> dict[str, Any]:
    """What metrics.json says: bag and cell level, on all samples and on those evaluated."""
    from hemomil.describe import read_obs

    evaluated, seed, n_boot = evaluated_samples(source, settings), settings.seed, settings.study.bootstrap

    def measured(names: frozenset[str] | None) -> dict[str, Any]:
        rows = _told(tables.samples, names)
        return study_metrics(rows, plan.classes, control=settings.control, seed=seed, n_boot=n_boot)

    metrics: dict[str, Any] = {
        "evaluated_on": settings.study.evaluate_on or None,
        "methods": measured(evaluated),
    }
    if evaluated is not None:
        metrics["methods_on_all_samples"] = measured(None)
    cells = tables.cells
    if "cell_label" in cells and cells["cell_label"].notna().any():
        known = _chosen(cells, evaluated)
        metrics["instances"] = instance_metrics(
            known, control=settings.control, seed=seed, n_boot=n_boot // 2
        )
    if source.truth_cells is not None and source.cells is None:
        metrics["detection"] = detection_quality(
            read_obs(store), source.truth_cells, seed=seed, n_boot=n_boot
        )
    deleted = _chosen(tables.deleted, evaluated)
    metrics["deletion"] = deletion_metrics(deleted, seed=seed, n_boot=n_boot)
    metrics["confounders"] = _confounder_metrics(confounded, plan, evaluated, settings)
    if len(tables.unseen):
        metrics["unseen"] = unseen_metrics(
            tables.unseen, tables.unseen_cells, control=settings.control, seed=seed, n_boot=n_boot
        )
    return metrics
