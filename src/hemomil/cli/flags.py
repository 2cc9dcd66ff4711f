"""Flags that several commands share, and how a result is printed."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
Run = Annotated[Path, typer.Argument(help="Finished run folder of train, predict or study.")]
ShownMethod = Annotated[
    str | None, typer.Option(help="Method to show, of a study (default: `default`, or the last).")
]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML); flags win over it.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="Any setting: mil.epochs=5; repeatable.")]
Jobs = Annotated[int | None, typer.Option(help="Processes side by side (default: one per core).", min=1)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an earlier run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def listed(text: str | None) -> tuple[str, ...] | None:
    """What a flag lists, joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text is not None else None


def print_json(value: Any) -> None:
    """What `--json` prints."""
    typer.echo(json.dumps(value, indent=2, default=str))


def show_study(metrics: dict[str, Any], run: Path, as_json: bool) -> None:
    """What `study` and `demo` print: the methods with their intervals, and how to open the rest."""
    if as_json:
        print_json(metrics)
        return
    from hemomil.commands.console import methods_table

    typer.echo(methods_table(metrics))
    called = "hemomil" if shutil.which("hemomil") else sys.argv[0]
    typer.echo(f"\npage     {run / 'report.html'}   (open it in a browser)")
    typer.echo(f"viewer   {shlex.join([called, 'view', str(run)])}   (every sample and cell)")
    typer.echo(f"tables   {run / 'samples.csv'}, {run / 'cells.parquet'}, {run / 'metrics.json'}")
