"""Learn, diagnose, meet a new site, cross-validate: train, predict, recalibrate, study."""

from pathlib import Path
from typing import Annotated

import typer

from hemomil import commands
from hemomil.cli.app import app
from hemomil.cli.flags import (
    Assign,
    CellsFile,
    Config,
    Control,
    Detector,
    Epochs,
    Exclude,
    Features,
    Force,
    Jobs,
    Json,
    Manifest,
    Output,
    Preset,
    Quiet,
    Seed,
    Skip,
    listed,
    print_json,
    show_study,
)
from hemomil.commands.console import Talk


@app.command()
def train(
    manifest: Manifest,
    output: Output,
    cells: CellsFile = None,
    preset: Preset = None,
    method: Annotated[str | None, typer.Option(help="Method to fit (default: default).")] = None,
    features: Features = None,
    control: Control = None,
    exclude: Exclude = None,
    seed: Seed = None,
    epochs: Epochs = None,
    skip_unreadable: Skip = None,
    detector: Detector = None,
    config: Config = None,
    assign: Assign = None,
    jobs: Jobs = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn the diagnosis from a labelled cohort; writes RUN/model."""
    flags = {
        "preset": preset,
        "method": method,
        "features": listed(features),
        "control": control,
        "exclude": exclude,
        "seed": seed,
        "mil.epochs": epochs,
        "skip_unreadable": skip_unreadable,
        "detector": detector,
    }
    settings = commands.resolve_settings(config=config, assignments=assign or (), flags=flags)
    told = commands.train(
        manifest, output, settings=settings, cells=cells, jobs=jobs, force=force, talk=Talk(quiet=quiet)
    )
    if not told:  # another process of the team tells it
        return
    print_json(told) if as_json else typer.echo(f"model in {output / 'model'}; page {output / 'report.html'}")


@app.command()
def predict(
    manifest: Manifest,
    output: Output,
    model: Annotated[Path, typer.Option(help="Run folder of `hemomil train`.")],
    cells: CellsFile = None,
    skip_unreadable: Skip = None,
    jobs: Jobs = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Apply a trained model to new samples; labels are not needed."""
    told = commands.predict(
        manifest,
        output,
        model=model,
        cells=cells,
        skip_unreadable=bool(skip_unreadable),
        jobs=jobs,
        force=force,
        talk=Talk(quiet=quiet),
    )
    print_json(told) if as_json else typer.echo(
        f"wrote {output / 'samples.csv'}; page {output / 'report.html'}"
    )


@app.command()
def recalibrate(
    model: Annotated[Path, typer.Argument(help="Run folder of `hemomil train`.")],
    output: Output,
    controls: Annotated[Path, typer.Option(help="manifest.csv of the new site's own healthy samples.")],
    cells: CellsFile = None,
    level: Annotated[
        float, typer.Option(help="Error rate that the donors must be enough to certify.", min=0, max=1)
    ] = 0.05,
    skip_unreadable: Skip = None,
    jobs: Jobs = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit what is healthy anew on a site's own controls, leave the networks, and say what has drifted."""
    told = commands.recalibrate(
        model,
        controls,
        output,
        cells=cells,
        level=level,
        skip_unreadable=bool(skip_unreadable),
        jobs=jobs,
        force=force,
        talk=Talk(quiet=quiet),
    )
    if as_json:
        print_json(told)
        return
    from hemomil.commands.drift import drift_text

    typer.echo(drift_text(told))


@app.command()
def study(
    manifest: Manifest,
    output: Output,
    cells: CellsFile = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Known cells that score the detector and the explanations; never trained on."),
    ] = None,
    preset: Preset = None,
    methods: Annotated[str | None, typer.Option(help="Methods to compare, joined by commas.")] = None,
    features: Features = None,
    folds: Annotated[int | None, typer.Option(help="Folds of the cross-validation (default: 3).")] = None,
    runs: Annotated[
        int | None, typer.Option(help="Repeats with other folds and streams (default: 5).")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column that a split never separates (default: patient).")
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            help="Classes never trained on but scored, joined by commas; `each`: every disease in turn."
        ),
    ] = None,
    site_out: Annotated[
        bool | None, typer.Option("--site-out", help="Every site is a fold, tested by models of the others.")
    ] = None,
    control: Control = None,
    exclude: Exclude = None,
    evaluate_on: Annotated[
        str | None, typer.Option(help="COLUMN=VALUE: metrics over these samples only; training uses all.")
    ] = None,
    seed: Seed = None,
    epochs: Epochs = None,
    skip_unreadable: Skip = None,
    detector: Detector = None,
    config: Config = None,
    assign: Assign = None,
    jobs: Jobs = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers do the jobs.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate methods side by side, split by patient; writes tables, figures and a page."""
    flags = {
        "preset": preset,
        "study.methods": listed(methods),
        "features": listed(features),
        "study.folds": folds,
        "study.runs": runs,
        "study.group": group,
        "study.leave_out": listed(leave_out),
        "study.site_out": site_out,
        "control": control,
        "exclude": exclude,
        "study.evaluate_on": evaluate_on,
        "seed": seed,
        "mil.epochs": epochs,
        "skip_unreadable": skip_unreadable,
        "detector": detector,
    }
    settings = commands.resolve_settings(config=config, assignments=assign or (), flags=flags)
    metrics = commands.study(
        manifest,
        output,
        settings=settings,
        cells=cells,
        truth=truth,
        jobs=jobs,
        cluster=cluster,
        force=force,
        talk=Talk(quiet=quiet),
    )
    show_study(metrics, output, as_json)
