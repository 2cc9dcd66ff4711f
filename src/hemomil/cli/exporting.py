"""`export`: a run in the formats of other tools."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hemomil import commands
from hemomil.cli.app import export_app
from hemomil.cli.flags import Force, Quiet, Run, ShownMethod
from hemomil.commands.console import Talk

Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write, a file for each image.")]
ToFile = Annotated[Path, typer.Option("-o", "--output", help="File to write.")]


@export_app.command("geojson")
def export_geojson(
    run: Run, output: Folder, method: ShownMethod = None, force: Force = False, quiet: Quiet = False
) -> None:
    """Cells with outlines and scores as GeoJSON, for QuPath."""
    _export(commands.export_geojson, run, output, method, force, quiet)


@export_app.command("labels")
def export_labels(
    run: Run, output: Folder, method: ShownMethod = None, force: Force = False, quiet: Quiet = False
) -> None:
    """Cells as label images (OME-TIFF), with a table of their scores."""
    _export(commands.export_labels, run, output, method, force, quiet)


@export_app.command("anndata")
def export_anndata(
    run: Run, output: ToFile, method: ShownMethod = None, force: Force = False, quiet: Quiet = False
) -> None:
    """Features and scores as AnnData (.h5ad, .zarr), for scanpy and its relatives."""
    _export(commands.export_anndata, run, output, method, force, quiet)


@export_app.command("csv")
def export_csv(
    run: Run, output: ToFile, method: ShownMethod = None, force: Force = False, quiet: Quiet = False
) -> None:
    """Cells and, beside them, samples as CSV, for R."""
    _export(commands.export_csv, run, output, method, force, quiet)


@export_app.command("onnx")
def export_onnx(run: Run, output: ToFile, force: Force = False, quiet: Quiet = False) -> None:
    """The model of a `train` run as ONNX, compared with the original before it is left there."""
    typer.echo(f"wrote {commands.export_onnx(run, output, force=force, talk=Talk(quiet=quiet))}")


def _export(
    write: Callable[..., Path], run: Path, output: Path, method: str | None, force: bool, quiet: bool
) -> None:
    typer.echo(f"wrote {write(run, output, method=method, force=force, talk=Talk(quiet=quiet))}")
