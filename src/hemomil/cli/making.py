"""Cohorts made and examined: demo, simulate, init, check."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hemomil import commands
from hemomil.cli.app import app
from hemomil.cli.flags import (
    CellsFile,
    Exclude,
    Force,
    Jobs,
    Json,
    Manifest,
    Output,
    Quiet,
    Seed,
    print_json,
    show_study,
)
from hemomil.commands.console import Talk


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
    show_study(metrics, output / "run", as_json)


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
        print_json(
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
