"""What a person sees of a run: report, info."""

from pathlib import Path
from typing import Annotated

import typer

from hemomil import commands
from hemomil.cli.app import app
from hemomil.cli.flags import Json, Quiet, print_json
from hemomil.commands.console import Talk


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
        print_json(told)
    else:
        for name, value in told.items():
            typer.echo(f"{name:14} {value}")
