"""`recalibrate`: what is healthy is learned anew from a site's own controls; the networks stay."""

from pathlib import Path
from typing import Any

from hemomil.cohort import Problem, listing
from hemomil.commands.cells import prepare
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.drift import Site, drift_notices, drift_record, moved_features
from hemomil.commands.fitting import jury_of_site, predict
from hemomil.commands.model_folder import TrainedModel, load_model, refuse_other_features, save_model
from hemomil.commands.run_folder import RunFolder, load_record, open_run
from hemomil.commands.settings import jobs_or_cores
from hemomil.commands.source import load_source, settings_for
from hemomil.commands.tables import write_table
from hemomil.errors import ManifestError, RunFolderError, SettingsError
from hemomil.files import write_json
from hemomil.novelty import donors_needed
from hemomil.types import Bag, Cohort

MIN_DONORS = 2
"""Scores of a donor come from a reference made without them."""


def recalibrate(
    model: Path,
    controls: Path,
    output: Path,
    *,
    cells: Path | None = None,
    level: float = 0.05,
    skip_unreadable: bool = False,
    jobs: int | None = None,
    force: bool = False,
    talk: Talk = SILENT,
) -> dict[str, Any]:
    """Fit healthy reference and calibration of a trained model to a site's own controls; returns drift.json.

    `output/model` gives the same diagnoses as `model` to the last bit; anomaly and p-values are those of the
    site. `controls` is a manifest whose samples are all of the control class, or unlabelled. `level`: the
    error rate at which the calibration is to be certified, for which too few donors do not suffice.

    Raises ManifestError for samples of another label, SettingsError for fewer than 2 donors.
    """
    load_record(model, "model/model.json")
    _refuse(model, output, level)
    trained = load_model(model / "model")
    settings = trained.settings.model_copy(update={"skip_unreadable": skip_unreadable, "exclude": ()})
    source = load_source(controls, settings, cells=cells, labels_needed=False)
    _refuse_ill(source.cohort, controls)
    _refuse_few({sample.patient for sample in source.cohort.samples}, level)
    settings = settings_for(source, settings)
    inputs = {**source.inputs, "model": model / "model" / "model.safetensors"}
    run = open_run(output, "recalibrate", settings, inputs, force=force)
    with run.filling():
        store = prepare(source, run, talk, jobs=jobs_or_cores(jobs))
        return _recalibrate(run, store, trained, level, talk)


def _recalibrate(
    run: RunFolder, store: Path, trained: TrainedModel, level: float, talk: Talk
) -> dict[str, Any]:
    from hemomil.describe import fingerprint, read_bags

    features = run.settings.features
    refuse_other_features(trained.fingerprint, fingerprint(store, features))
    bags = read_bags(store, features)
    _refuse_few({bag.patient for bag in bags}, level)
    talk.say(f"recalibrating {trained.model.method} on {len(bags)} samples")
    with run.timed("recalibrate"):
        new = refitted(trained, bags)
        save_model(run.path / "model", new)
    with run.timed("drift"):
        predictions, flags = predict(trained.model, trained.jury, bags)
        site = Site(bags=bags, old=trained, new=new, predictions=predictions, flags=flags)
        moved = moved_features(site)
        drift = drift_record(site, moved, level)
    write_table(run.path / "drift.csv", moved)
    write_json(run.path / "drift.json", drift)
    run.notices.extend((*drift_notices(drift), *(new.jury.notices if drift["certified"] else ())))
    run.facts.update(
        classes=tuple(new.model.classes_), control=run.settings.control, methods=[new.model.method]
    )
    return drift


def refitted(trained: TrainedModel, controls: list[Bag]) -> TrainedModel:
    """The model with another healthy reference and calibration, both made of these bags."""
    model = trained.model.recalibrated(controls)
    return TrainedModel(
        model=model,
        jury=jury_of_site(model, trained.jury, controls, trained.settings.seed),
        settings=trained.settings,
        fingerprint=trained.fingerprint,
    )


def _refuse(model: Path, output: Path, level: float) -> None:
    if not 0 < level < 1:
        raise SettingsError(
            f"level {level:g} is no error rate", hint="give one between 0 and 1, usually 0.05"
        )
    if model.resolve() == output.resolve():
        raise RunFolderError(
            f"{output} is the model that is to be recalibrated", hint="choose another folder with -o"
        )


def _refuse_ill(cohort: Cohort, manifest: Path) -> None:
    """Raise ManifestError, row by row, where a sample has a label other than the control class."""
    remedy = f"leave out these samples; healthy ones are labelled {cohort.control!r} or not at all"
    problems = [
        Problem(row, f"sample {sample.sample!r}", f"is labelled {sample.label!r}", remedy)
        for sample in cohort.samples
        if sample.label not in (None, cohort.control)
        for row in ([image.row for image in sample.images] if sample.images else [None])
    ]
    if problems:
        raise ManifestError(
            f"{manifest} has samples that are no controls\n{listing(problems)}",
            hint="a model is recalibrated on healthy samples only",
        )


def _refuse_few(donors: set[str], level: float) -> None:
    if len(donors) < MIN_DONORS:
        raise SettingsError(
            f"{len(donors)} control donor: a calibration needs {MIN_DONORS} at least, and at "
            f"{level:g} it takes {donors_needed(level)} to certify one",
            hint="bring samples of more healthy donors",
        )
