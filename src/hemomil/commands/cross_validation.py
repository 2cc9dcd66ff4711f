"""`study`: folds x runs x methods on one cohort, every method on the same folds.

A cell of the table is a job. A finished job is kept, so that a killed study goes on where it stopped;
jobs run side by side, each on one thread, with the same numbers wherever they run.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from hemomil.cohort import select
from hemomil.commands.cells import detection_quality, prepare
from hemomil.commands.confounders import gather_facts
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.curves import write_curves
from hemomil.commands.energy import metered
from hemomil.commands.fitting import fit, predict, without
from hemomil.commands.inner_folds import inner_folds
from hemomil.commands.page import write_page
from hemomil.commands.protocol import Job, Protocol, protocol
from hemomil.commands.run_folder import RunFolder, open_run
from hemomil.commands.settings import Settings, jobs_or_cores
from hemomil.commands.source import Source, load_source, settings_for
from hemomil.commands.table1 import write_table1
from hemomil.commands.tables import (
    blank_rows,
    cell_rows,
    deletion_rows,
    sample_rows,
    write_cells,
    write_table,
)
from hemomil.commands.workers import workers
from hemomil.explain import deletion_curve
from hemomil.files import write_json, written_whole
from hemomil.report.tables import shown_method
from hemomil.stats import (
    confounder_notices,
    confounder_predictions,
    deletion_metrics,
    instance_metrics,
    study_metrics,
    unseen_metrics,
)
from hemomil.streams import stream_seed


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
    where = workers(cluster)
    run = open_run(output, "study", settings, source.inputs, force=force)
    run.notices.extend(plan.notices)
    n_jobs = jobs_or_cores(jobs)
    with run.filling():
        with metered(run.facts, settings.country):
            store = prepare(source, run, talk, jobs=n_jobs)
            with run.timed("study"), where:
                _run_jobs(store, plan, run, talk, n_jobs)
        samples, cell_table, deleted = _read_jobs(plan, run)
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


def _run_jobs(store: Path, plan: Protocol, run: RunFolder, talk: Talk, jobs: int) -> None:
    """All jobs but those that an earlier, killed run has finished."""
    todo = [
        job for job in plan.jobs(run.settings.study.methods) if not _finished(run.work / "jobs" / job.name)
    ]
    work = (delayed(run_job)(store, job, run.settings, run.work / "jobs") for job in todo)
    done = Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")(work)
    for _ in talk.track(done, "training", len(todo)):
        pass


def run_job(store: Path, job: Job, settings: Settings, keep: Path) -> None:
    """Fit on the training samples, predict the test samples, check their explanations, keep the tables."""
    import torch

    from hemomil.describe import read_bags, read_obs

    torch.set_num_threads(1)
    bags = {bag.sample: bag for bag in read_bags(store, settings.features)}
    train, test = ([bags[name] for name in names if name in bags] for names in (job.train, job.test))
    left_out = (f"without-{job.left_out}",) if job.left_out else ()
    seed = stream_seed(settings.seed, job.method, f"run-{job.run}", f"fold-{job.fold}", *left_out)
    n_inner = inner_folds(train, settings) if settings.inner_folds else 0
    model, jury = fit(train, job.method, settings, seed=seed, n_inner=n_inner)
    predictions, flags = predict(model, jury, test)
    told: dict[str, Any] = {"method": job.method, "run": job.run, "fold": job.fold}
    samples = sample_rows(test, predictions, flags, jury, **told)
    cells = cell_rows(test, predictions, flags, read_obs(store), **told)
    curves = [
        deletion_curve(without(model, jury), bag, said, seed=settings.seed)
        for bag, said in zip(test, predictions, strict=True)
    ]
    deleted = deletion_rows(test, predictions, curves, **told)
    for name, table in (("samples", samples), ("deletion", deleted)):
        with written_whole(keep / job.name / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)
    write_cells(keep / job.name / "cells.parquet", cells)


def _finished(folder: Path) -> bool:
    return (folder / "cells.parquet").exists()  # written last


def _read_jobs(plan: Protocol, run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Samples, cells, deletion curves of all jobs, by method, run, fold; `left_out`: the class left out."""
    methods = run.settings.study.methods
    jobs = sorted(plan.jobs(methods), key=lambda job: (methods.index(job.method), job.run, job.fold))
    folders = [(run.work / "jobs" / job.name, job.left_out) for job in jobs]
    samples, cells, deleted = (
        pd.concat([pd.read_parquet(f / name).assign(left_out=c) for f, c in folders], ignore_index=True)
        for name in ("samples.parquet", "cells.parquet", "deletion.parquet")
    )
    return samples, cells, deleted


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
