"""`train` fits one method on a whole cohort; `predict` applies it to samples without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemomil.commands import fitting
from hemomil.commands.cells import prepare
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.fitting import fit, refuse_unlearnable
from hemomil.commands.inner_folds import few_patients, inner_folds
from hemomil.commands.model_folder import TrainedModel, load_model, refuse_other_features, save_model
from hemomil.commands.page import write_page
from hemomil.commands.run_folder import RunFolder, load_record, open_run
from hemomil.commands.settings import Settings, jobs_or_cores
from hemomil.commands.source import Source, load_source, settings_for
from hemomil.commands.tables import blank_rows, cell_rows, sample_rows, write_cells, write_table
from hemomil.commands.team import team, wait_for_all
from hemomil.commands.workers import on_one_thread
from hemomil.explain import deletion_check
from hemomil.types import Bag, Prediction

DELETED = 3
"""Cells taken out of a sample when its explanation is checked."""
CHECKED_SAMPLES = 12


def train(
    manifest: Path,
    output: Path,
    *,
    settings: Settings,
    cells: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Fit `settings.method` on every labelled sample and save the model in `output/model`.

    samples.csv and cells.parquet then hold what the model says of its own training samples: they show that
    `predict` repeats it, and are no measure of how good it is (that is `study`).

    Under `torchrun` the processes share out the cells of each training step; the first one does all else,
    and only to it anything is returned.
    """
    source = load_source(manifest, settings, cells=cells)
    settings = settings_for(source, settings)
    refuse_unlearnable(source.cohort.classes, settings.control)
    with team() as rank:
        if rank > 0:
            wait_for_all()
            bags, _ = _read(output / "cells.zarr", settings.features)
            fit(bags, settings.method, settings, seed=settings.seed, n_inner=inner_folds(bags, settings))
            return {}
        return _train(source, output, settings, jobs=jobs_or_cores(jobs), force=force, talk=talk)


def _train(
    source: Source, output: Path, settings: Settings, *, jobs: int, force: bool, talk: Talk
) -> dict[str, Any]:
    run = open_run(output, "train", settings, source.inputs, force=force)
    with run.filling():
        store = prepare(source, run, talk, jobs=jobs)
        wait_for_all()
        bags, fingerprint = _read(store, settings.features)
        talk.say(f"training {settings.method} on {len(bags)} samples")
        with run.timed("train"):
            n_inner = inner_folds(bags, settings)
            model, jury = fit(bags, settings.method, settings, seed=settings.seed, n_inner=n_inner)
        if n_inner == 0 and settings.inner_folds != 0 and bags[0].features.ndim == 2:
            run.notices.append(few_patients(bags))
        run.notices.extend((*model.notices_, *jury.notices))
        trained = TrainedModel(model=model, jury=jury, settings=settings, fingerprint=fingerprint)
        save_model(run.path / "model", trained)
        run.facts["evaluation"] = "none: these are the model's own training samples"
        return _tell(run, source, bags, trained, store)


def predict(
    manifest: Path,
    output: Path,
    *,
    model: Path,
    cells: Path | None = None,
    skip_unreadable: bool = False,
    jobs: int | None = None,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Apply a trained model; labels are never needed, nor the data it was trained on."""
    load_record(model, "model/model.json")
    trained = load_model(model / "model")
    settings = trained.settings.model_copy(update={"skip_unreadable": skip_unreadable, "exclude": ()})
    source = load_source(manifest, settings, cells=cells, labels_needed=False)
    settings = settings_for(source, settings)
    inputs = {**source.inputs, "model": model / "model" / "model.safetensors"}
    run = open_run(output, "predict", settings, inputs, force=force)
    with run.filling():
        store = prepare(source, run, talk, jobs=jobs_or_cores(jobs))
        bags, fingerprint = _read(store, settings.features)
        refuse_other_features(trained.fingerprint, fingerprint)
        return _tell(run, source, bags, trained, store)


def _read(store: Path, features: Sequence[str]) -> tuple[list[Bag], dict[str, Any]]:
    from hemomil.describe import fingerprint, read_bags

    return read_bags(store, features), fingerprint(store, features)


def _tell(
    run: RunFolder, source: Source, bags: list[Bag], trained: TrainedModel, store: Path
) -> dict[str, Any]:
    """Predict the bags, write the tables, the page and run.json; returns counts for the console."""
    from hemomil.describe import read_obs

    with run.timed("predict"), on_one_thread():
        predictions, flags = fitting.predict(trained.model, trained.jury, bags)
    classes = tuple(trained.model.classes_)
    told: dict[str, Any] = {"method": trained.model.method, "run": None, "fold": None}
    seen = {bag.sample for bag in bags}
    lost = [sample for sample in source.cohort.samples if sample.sample not in seen]
    samples = sample_rows(bags, predictions, flags, trained.jury, **told)
    samples = pd.concat([samples, blank_rows(lost, classes, **told)], ignore_index=True)
    write_table(run.path / "samples.csv", samples)
    write_cells(run.path / "cells.parquet", cell_rows(bags, predictions, flags, read_obs(store), **told))
    run.facts.update(classes=classes, control=trained.settings.control, methods=[trained.model.method])
    with run.timed("explanation check"):
        run.facts["explanation_check"] = check_explanations(trained, bags, predictions)
    with run.timed("report"):
        write_page(run)
    return {"samples": len(samples), "predicted": samples["predicted"].value_counts().to_dict()}


def check_explanations(
    trained: TrainedModel, bags: Sequence[Bag], predictions: Sequence[Prediction]
) -> dict[str, float | int] | None:
    """Do the cells that are said to count really count? Means over a few samples called ill, for run.json.

    `fall` is what the probability of the predicted class loses without the 3 cells of highest contribution,
    `random_fall` without 3 random ones. None where no sample of more than 3 cells is called ill.
    """
    ill = [
        (bag, said)
        for bag, said in zip(bags, predictions, strict=True)
        if said.predicted != trained.settings.control and len(bag) > DELETED
    ][:CHECKED_SAMPLES]
    checks = [
        deletion_check(
            fitting.without(trained.model, trained.jury),
            bag,
            said.contribution,
            k=DELETED,
            seed=trained.settings.seed,
        )
        for bag, said in ill
    ]
    if not checks:
        return None
    return {
        "samples": len(checks),
        "cells_deleted": DELETED,
        "fall": float(np.mean([check.fall for check in checks])),
        "random_fall": float(np.mean([check.random_fall for check in checks])),
    }
