"""`study`: folds x runs x methods on one cohort, every method on the same folds.

A cell of the table is a job. A finished job is kept, so that a killed study goes on where it stopped;
jobs run side by side, each on one thread, with the same numbers wherever they run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from hemomil.cohort import fold_units, make_folds, select
from hemomil.commands.cells import detection_quality, prepare
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.fitting import fit, refuse_unlearnable
from hemomil.commands.page import write_page
from hemomil.commands.run_folder import RunFolder, open_run
from hemomil.commands.settings import Settings, jobs_or_cores
from hemomil.commands.source import Source, load_source, settings_for
from hemomil.commands.tables import blank_rows, cell_rows, sample_rows, write_cells, write_table
from hemomil.files import write_json, written_whole
from hemomil.novelty import donor_notices
from hemomil.stats import instance_metrics, study_metrics
from hemomil.streams import stream_seed
from hemomil.types import Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method on one fold of one run."""

    method: str
    run: int
    fold: int

    @property
    def name(self) -> str:
        """Also the folder that keeps its result."""
        return f"{self.method}__run{self.run}__fold{self.fold}"


def study(
    manifest: Path,
    output: Path,
    *,
    settings: Settings,
    cells: Path | None = None,
    truth: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Cross-validate methods side by side; returns what metrics.json says.

    Raises HemomilError before any long work where the input cannot carry the study.
    """
    source = load_source(manifest, settings, cells=cells, truth=truth)
    settings = settings_for(source, settings)
    splits, notices = split(source, settings)
    evaluated = evaluated_samples(source, settings)
    run = open_run(output, "study", settings, source.inputs, force=force)
    run.notices.extend((*notices, *_few_donors(source, splits, settings)))
    with run.filling():
        store = prepare(source, run, talk, jobs=jobs_or_cores(jobs))
        with run.timed("study"):
            samples, cell_table = _run_jobs(store, splits, run, talk, jobs_or_cores(jobs))
        samples = _with_blanks(samples, source, splits, settings)
        metrics = _metrics(store, samples, cell_table, source, evaluated, settings)
        write_table(run.path / "splits.csv", splits)
        write_table(run.path / "samples.csv", samples)
        write_cells(run.path / "cells.parquet", cell_table)
        write_json(run.path / "metrics.json", metrics)
        run.facts.update(
            classes=source.cohort.classes, control=settings.control, methods=settings.study.methods
        )
        with run.timed("report"):
            write_page(run)
    return metrics


def split(source: Source, settings: Settings) -> tuple[pd.DataFrame, tuple[Notice, ...]]:
    """sample, patient, fold, run for every run; no patient is in two folds of a run."""
    refuse_unlearnable(source.cohort, settings)
    rows = fold_units(source.cohort, settings.study.group)
    patients = [s.patient for s in source.cohort.samples]
    tables: list[pd.DataFrame] = []
    notices: list[Notice] = []
    for run in range(settings.study.runs):
        folds = make_folds(
            rows, settings.study.folds, seed=settings.seed, run=run, group=settings.study.group
        )
        tables.append(
            pd.DataFrame(
                {"sample": [r[0] for r in rows], "patient": patients, "fold": folds.fold, "run": run}
            )
        )
        notices.extend(n for n in folds.notices if n not in notices)
    return pd.concat(tables, ignore_index=True), tuple(notices)


def evaluated_samples(source: Source, settings: Settings) -> frozenset[str] | None:
    """Names of the samples that the metrics are restricted to; None: all of them."""
    if not settings.study.evaluate_on:
        return None
    return frozenset(s.sample for s in select(source.cohort, settings.study.evaluate_on).samples)


def _few_donors(source: Source, splits: pd.DataFrame, settings: Settings) -> tuple[Notice, ...]:
    """A warning where the training part with fewest control donors cannot give small p-values."""
    donors = {s.patient for s in source.cohort.samples if s.label == settings.control}
    held = splits[splits["patient"].isin(donors)].groupby(["run", "fold"])["patient"].nunique()
    return donor_notices(len(donors) - int(held.max()))


def _jobs_of(settings: Settings) -> list[Job]:
    return [
        Job(method=method, run=run, fold=fold)
        for run in range(settings.study.runs)
        for fold in range(settings.study.folds)
        for method in settings.study.methods
    ]


def _run_jobs(
    store: Path, splits: pd.DataFrame, run: RunFolder, talk: Talk, jobs: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All jobs, those of an earlier, killed run read from disk; in the order methods, runs, folds."""
    table = _jobs_of(run.settings)
    todo = [job for job in table if not _finished(run.work / "jobs" / job.name)]
    work = (
        delayed(run_job)(store, _fold_of(splits, job), job, run.settings, run.work / "jobs") for job in todo
    )
    done = Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")(work)
    for _ in talk.track(done, "training", len(todo)):
        pass
    parts = [_read_job(run.work / "jobs" / job.name) for job in sorted(table, key=lambda j: _order(j, run))]
    return (
        pd.concat([samples for samples, _ in parts], ignore_index=True),
        pd.concat([cells for _, cells in parts], ignore_index=True),
    )


def _order(job: Job, run: RunFolder) -> tuple[int, int, int]:
    return run.settings.study.methods.index(job.method), job.run, job.fold


def _fold_of(splits: pd.DataFrame, job: Job) -> dict[str, bool]:
    """sample -> is it in the test fold of this job?"""
    of_run = splits[splits["run"] == job.run]
    return dict(zip(of_run["sample"], of_run["fold"] == job.fold, strict=True))


def run_job(store: Path, in_test: dict[str, bool], job: Job, settings: Settings, keep: Path) -> None:
    """Fit on the training folds, predict the test fold, keep both tables."""
    import torch

    from hemomil.describe import read_bags, read_obs

    torch.set_num_threads(1)
    bags = [bag for bag in read_bags(store, settings.features) if bag.sample in in_test]
    train = [bag for bag in bags if not in_test[bag.sample]]
    test = [bag for bag in bags if in_test[bag.sample]]
    seed = stream_seed(settings.seed, job.method, f"run-{job.run}", f"fold-{job.fold}")
    model, calibration = fit(train, job.method, settings, seed=seed)
    predictions = model.predict_cells(test)
    told: dict[str, Any] = {"method": job.method, "run": job.run, "fold": job.fold}
    samples = sample_rows(test, predictions, calibration, **told)
    cells = cell_rows(test, predictions, calibration, read_obs(store), **told)
    with written_whole(keep / job.name / "samples.parquet") as part:
        samples.to_parquet(part, index=False)
    write_cells(keep / job.name / "cells.parquet", cells)


def _finished(folder: Path) -> bool:
    return (folder / "cells.parquet").exists()  # written last


def _read_job(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "samples.parquet"), pd.read_parquet(folder / "cells.parquet")


def _with_blanks(
    samples: pd.DataFrame, source: Source, splits: pd.DataFrame, settings: Settings
) -> pd.DataFrame:
    """Samples in which no cell was found stay in the table, with nothing predicted."""
    seen = set(samples["sample"])
    lost = {s.sample: s for s in source.cohort.samples if s.sample not in seen}
    missing = splits[splits["sample"].isin(lost)]
    blanks = [
        blank_rows([lost[sample]], source.cohort.classes, method=method, run=run, fold=fold)
        for sample, run, fold in zip(missing["sample"], missing["run"], missing["fold"], strict=True)
        for method in settings.study.methods
    ]
    return pd.concat([samples, *blanks], ignore_index=True) if blanks else samples


def _metrics(
    store: Path,
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    source: Source,
    evaluated: frozenset[str] | None,
    settings: Settings,
) -> dict[str, Any]:
    """What metrics.json says: bag and cell level, on all samples and on those evaluated."""
    from hemomil.describe import read_obs

    def measured(names: frozenset[str] | None) -> dict[str, Any]:
        rows = samples[samples["predicted"].notna()]
        rows = rows if names is None else rows[rows["sample"].isin(names)]
        return study_metrics(
            rows,
            source.cohort.classes,
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
        chosen = cells if evaluated is None else cells[cells["sample"].isin(evaluated)]
        metrics["instances"] = instance_metrics(
            chosen, control=settings.control, seed=settings.seed, n_boot=settings.study.bootstrap // 2
        )
    if source.truth_cells is not None and source.cells is None:
        metrics["detection"] = detection_quality(
            read_obs(store), source.truth_cells, seed=settings.seed, n_boot=settings.study.bootstrap
        )
    return metrics
