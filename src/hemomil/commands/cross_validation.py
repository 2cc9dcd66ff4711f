"""`study`: folds x runs x methods on one cohort, every method on the same folds.

A cell of the table is a job, see `jobs.py`.
"""

from pathlib import Path
from typing import Any

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
        samples, cell_table, deleted = read_jobs(plan, run)
        samples = _with_blanks(samples, source, plan, settings)
        seen, unseen = _apart(samples, plan)
        seen_cells, unseen_cells = _apart(cell_table, plan)
        deleted, _ = _apart(deleted, plan)
        told_deleted = _chosen(deleted, evaluated)
        metrics = _metrics(store, seen, seen_cells, source, plan, evaluated, settings)
        metrics["deletion"] = deletion_metrics(
            told_deleted, seed=settings.seed, n_boot=settings.study.bootstrap
        )
        with run.timed("confounders"):
            confounded = _confounders(source, store, plan, run, talk, n_jobs)
        metrics["confounders"] = _confounder_metrics(confounded, plan, evaluated, settings)
        shown = shown_method(settings.study.methods)
        run.notices.extend(confounder_notices(metrics["methods"], metrics["confounders"], shown))
        write_table(run.path / "confounders.csv", confounded)
        write_table(run.path / "splits.csv", plan.splits)
        write_table(run.path / "samples.csv", seen.drop(columns="left_out"))
        write_cells(run.path / "cells.parquet", seen_cells.drop(columns="left_out"))
        write_table(run.path / "deletion.csv", deleted.drop(columns="left_out"))
        if len(unseen):
            metrics["unseen"] = unseen_metrics(
                unseen,
                unseen_cells,
                control=settings.control,
                seed=settings.seed,
                n_boot=settings.study.bootstrap,
            )
            write_table(run.path / "unseen.csv", unseen)
            write_cells(run.path / "unseen_cells.parquet", unseen_cells)
        write_json(run.path / "metrics.json", metrics)
        told = _told(seen, evaluated)
        write_curves(run.path, told, told_deleted, plan.classes, seed=settings.seed)
        write_table1(run.path, told, plan.classes, metrics["methods"], settings)
        run.facts.update(classes=plan.classes, control=settings.control, methods=settings.study.methods)
        with run.timed("report"):
            write_page(run)
    return metrics


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
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    source: Source,
    plan: Protocol,
    evaluated: frozenset[str] | None,
    settings: Settings,
) -> dict[str, Any]:
    """What metrics.json says: bag and cell level, on all samples and on those evaluated."""
    from hemomil.describe import read_obs

    def measured(names: frozenset[str] | None) -> dict[str, Any]:
        return study_metrics(
            _told(samples, names),
            plan.classes,
            control=settings.control,
            seed=settings.seed,
            n_boot=settings.study.bootstrap,
        )

    metrics: dict[str, Any] = {
        "evaluated_on": settings.study.evaluate_on or None,
        "methods": measured(evaluated),
    }
    if evaluated is not None:
        metrics["methods_on_all_samples"] = measured(None)
    if "cell_label" in cells and cells["cell_label"].notna().any():
        metrics["instances"] = instance_metrics(
            _chosen(cells, evaluated),
            control=settings.control,
            seed=settings.seed,
            n_boot=settings.study.bootstrap // 2,
        )
    if source.truth_cells is not None and source.cells is None:
        metrics["detection"] = detection_quality(
            read_obs(store), source.truth_cells, seed=settings.seed, n_boot=settings.study.bootstrap
        )
    return metrics
