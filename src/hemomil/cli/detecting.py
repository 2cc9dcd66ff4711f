"""`detect` and its sub-commands."""

from pathlib import Path
from typing import Annotated

import typer

from hemomil import commands
from hemomil.cli.app import detect_app
from hemomil.cli.flags import (
    Assign,
    Category,
    Config,
    Detector,
    Force,
    Json,
    Manifest,
    Output,
    Quiet,
    Skip,
    print_json,
)
from hemomil.commands.console import Talk


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
    print_json(made) if as_json else typer.echo(f"wrote {output}")


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
        print_json(blocks)
        return
    from hemomil.commands.console import detector_table

    typer.echo("\n\n".join(detector_table(block) for block in blocks))
