"""The command line: flags in, results on standard output, progress on standard error.

Exit code 0: done; 2: the user can put it right; 1: our bug. Nothing here imports torch.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hemomil import commands
from hemomil.commands.console import Talk
from hemomil.errors import HemomilError

app = typer.Typer(
    help="Find the few cells that explain a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


class _DetectGroup(TyperGroup):
    """`detect MANIFEST` finds cells; `detect train` and `detect evaluate` are commands of their own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["cells", *args]
        return super().parse_args(ctx, args)


detect_app = typer.Typer(
    cls=_DetectGroup, no_args_is_help=True, help="Find red cells in images: detect MANIFEST -o OUT."
)
app.add_typer(detect_app, name="detect")

Manifest = Annotated[Path, typer.Argument(help="manifest.csv, or features brought along (.h5ad, .zarr).")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
CellsFile = Annotated[
    Path | None,
    typer.Option(
        "--cells",
        help="Known cells instead of the detector: cells.csv, COCO JSON, or a folder with a QuPath GeoJSON "
        "or label image (Cellpose, StarDist) for each image.",
    ),
]
Preset = Annotated[str | None, typer.Option(help="default, or paper: Kazeminia et al. 2022.")]
Features = Annotated[
    str | None, typer.Option(help="What describes a cell: shape, roi, crop, embedding; joined by commas.")
]
Control = Annotated[str | None, typer.Option(help="Name of the healthy class (default: control).")]
Exclude = Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: samples to set aside; repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random stream (default: 0).")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training bags.")]
Skip = Annotated[
    bool | None, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and say so.")
]
Category = Annotated[
    list[str] | None, typer.Option(help="COCO category that is a red cell; repeatable (default: all).")
]
Detector = Annotated[
    str | None,
    typer.Option(
        "--detector",
        "--backbone",
        help="Detector: small, resnet50, threshold (no network), or a file of `detect train`.",
    ),
]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML); flags win over it.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="Any setting: mil.epochs=5; repeatable.")]
Jobs = Annotated[int | None, typer.Option(help="Processes side by side (default: one per core).", min=1)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an earlier run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _list(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text is not None else None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


@app.command()
def demo(
    output: Output = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the cohort and of the study.")] = 0,
    jobs: Jobs = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The whole pipeline on a simulated cohort: smears, cells, three methods, a report."""
    metrics = commands.demo(output, seed=seed, jobs=jobs, force=force, talk=Talk(quiet=quiet))
    _show_study(metrics, output / "run", as_json)


@app.command()
def simulate(
    output: Output,
    seed: Seed = None,
    patients: Annotated[str | None, typer.Option(help="Patients per class: control=6,scd=3,…")] = None,
    samples: Annotated[str | None, typer.Option(help="Samples per patient: N, or control=2,scd=4,…")] = None,
    images: Annotated[int | None, typer.Option(help="Images per sample.", min=1)] = None,
    quiet: Quiet = False,
) -> None:
    """Draw blood smears from a physical model, with the truth of every cell."""
    commands.simulate(
        output, settings=commands.simulation(seed, patients, samples, images), talk=Talk(quiet=quiet)
    )


@app.command()
def init(
    tree: Annotated[Path, typer.Argument(help="Folder tree label/patient/sample/*.png.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Manifest to write (default: in the tree).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a folder tree of images into a manifest."""
    commands.init(tree, output=output, talk=Talk(quiet=quiet))


@app.command()
def check(
    manifest: Manifest,
    cells: CellsFile = None,
    control: Annotated[str, typer.Option(help="Name of the healthy class.")] = "control",
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Examine a manifest and its images: counts per class, and every problem with its row."""
    counts, problems = commands.check(manifest, cells=cells, control=control, leave_out=tuple(exclude or ()))
    if as_json:
        _print_json(
            {"counts": counts.reset_index().to_dict("records"), "problems": [_problem(p) for p in problems]}
        )
    else:
        typer.echo(counts.to_string())
        told = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "no problems"
        typer.echo(f"\n{told}")
        for problem in problems:
            typer.echo(f"  row {problem.row}: {problem.subject}: {problem.text}; {problem.remedy}")
    raise typer.Exit(2 if problems else 0)


def _problem(problem: Any) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("row", "subject", "text", "remedy")}


@detect_app.command("cells", hidden=True)
def detect_cells(
    manifest: Manifest,
    output: Output,
    detector: Detector = None,
    skip_unreadable: Skip = None,
    config: Config = None,
    assign: Assign = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Find the cells of every image; writes OUT/cells.csv, to look at, edit, and give back with --cells."""
    flags = {"detector": detector, "skip_unreadable": skip_unreadable}
    settings = commands.resolve_settings(config=config, assignments=assign or (), flags=flags)
    commands.detect(manifest, output, settings=settings, force=force, talk=Talk(quiet=quiet))


@detect_app.command("train")
def detect_train(
    output: Annotated[Path, typer.Option("-o", "--output", help="Detector file to write (.safetensors).")],
    coco: Annotated[
        list[Path] | None, typer.Option(help="COCO JSON of annotated images; repeatable.")
    ] = None,
    category: Category = None,
    images: Annotated[
        int | None, typer.Option(help="Only so many images of each file, drawn at random.", min=1)
    ] = None,
    simulated: Annotated[int, typer.Option(help="Simulated fields to draw.", min=0)] = 0,
    start: Annotated[
        str | None, typer.Option("--from", help="Start from this detector: shipped, or a file.")
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="Let that detector draw what is not annotated: masks, unboxed cells."
        ),
    ] = False,
    backbone: Annotated[str | None, typer.Option(help="small (default), or resnet50 (the paper's).")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    average: Annotated[
        float | None,
        typer.Option(help="Share of the first weights in the result, 0 to 1: forgets less (default: 0)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream (default: 0).")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a detector on annotated images, on simulated smears, or on both."""
    flags = {
        "backbone": backbone,
        "steps": steps,
        "learning_rate": learning_rate,
        "average": average,
        "seed": seed,
    }
    made = commands.detect_train(
        output,
        coco=coco or (),
        categories=category,
        images=images,
        simulated=simulated,
        start=start,
        complete=complete,
        settings={name: value for name, value in flags.items() if value is not None},
        talk=Talk(quiet=quiet),
    )
    _print_json(made) if as_json else typer.echo(f"wrote {output}")


@detect_app.command("evaluate")
def detect_evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Image sets whose cells are known: COCO JSON, cells.csv, or a CSV of points (image, x, y).",
        ),
    ],
    category: Category = None,
    only: Annotated[
        Path | None,
        typer.Option(help="CSV whose column `image` lists the images to use, suffix or not (default: all)."),
    ] = None,
    inner: Annotated[
        bool,
        typer.Option(
            "--inner", help="Leave out cells that touch the image border: some sets do not box them."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first images of each set.", min=1)] = None,
    detector: Detector = None,
    config: Config = None,
    assign: Assign = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a detector on images whose cells are known: COCO AP, recall, precision, with intervals."""
    settings = commands.resolve_settings(
        config=config, assignments=assign or (), flags={"detector": detector}
    )
    blocks = commands.detect_evaluate(
        files,
        settings=settings,
        categories=category,
        only=only,
        inner=inner,
        limit=limit,
        talk=Talk(quiet=quiet),
    )
    if as_json:
        _print_json(blocks)
        return
    from hemomil.commands.console import detector_table

    typer.echo("\n\n".join(detector_table(block) for block in blocks))


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
        "features": _list(features),
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
    _print_json(told) if as_json else typer.echo(
        f"model in {output / 'model'}; page {output / 'report.html'}"
    )


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
    _print_json(told) if as_json else typer.echo(
        f"wrote {output / 'samples.csv'}; page {output / 'report.html'}"
    )


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
        "study.methods": _list(methods),
        "features": _list(features),
        "study.folds": folds,
        "study.runs": runs,
        "study.group": group,
        "study.leave_out": _list(leave_out),
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
    _show_study(metrics, output, as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Finished run folder.")],
    quiet: Quiet = False,
) -> None:
    """Draw the figures and the page of a run again."""
    commands.report(run, talk=Talk(quiet=quiet))


@app.command()
def info(
    run: Annotated[Path | None, typer.Argument(help="Run folder; without it, what is installed.")] = None,
    as_json: Json = False,
) -> None:
    """What is installed, or what a run was and what it found."""
    told = commands.info(run)
    if as_json:
        _print_json(told)
    else:
        for name, value in told.items():
            typer.echo(f"{name:14} {value}")


def _show_study(metrics: dict[str, Any], run: Path, as_json: bool) -> None:
    if as_json:
        _print_json(metrics)
        return
    from hemomil.commands.console import methods_table

    typer.echo(methods_table(metrics))
    typer.echo(f"\npage     {run / 'report.html'}")
    typer.echo(f"tables   {run / 'samples.csv'}, {run / 'cells.parquet'}, {run / 'metrics.json'}")


def main() -> None:
    """Run a command; a problem of the user's ends with its message, its remedy and exit code 2."""
    run: Callable[[], Any] = app
    try:
        run()
    except HemomilError as error:
        typer.secho(f"error: {error.message}", err=True, fg="red")
        if error.hint:
            typer.echo(f"  {error.hint}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
