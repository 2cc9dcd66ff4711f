"""What a person sees of a run: report, view, explain, info."""

from pathlib import Path
from typing import Annotated

import typer

from hemomil import commands
from hemomil.cli.app import app, export_app
from hemomil.cli.flags import Force, Json, Output, Quiet, Run, ShownMethod, print_json
from hemomil.commands.console import Talk


@app.command()
def report(
    run: Run,
    figures: Annotated[
        bool, typer.Option("--figures", help="Only the figures, in print size (SVG and PNG).")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Draw the figures and the page of a run again."""
    commands.report(run, figures_only=figures, talk=Talk(quiet=quiet))


@app.command()
def view(
    run: Run,
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8123,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that others reach asks for a token.")
    ] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="Token to ask for (default: drawn, and printed).")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Hide scores, predictions, classes.")] = False,
    marks: Annotated[Path | None, typer.Option(help="Where marks are kept (default: RUN/marks.csv).")] = None,
    method: ShownMethod = None,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Look at a run, of any size, in the browser, and mark cells; nothing leaves this machine."""
    commands.view(
        run,
        host=host,
        port=port,
        token=token,
        blind=blind,
        marks=marks,
        method=method,
        open_browser=browser,
        talk=Talk(),
    )


@app.command()
def explain(
    run: Run,
    output: Output,
    top: Annotated[
        int, typer.Option(help="Cells to show: so many by contribution, as many by anomaly.", min=1)
    ] = 50,
    marks: Annotated[
        Path | None, typer.Option(help="marks.csv of `hemomil view`: scores the explanations by an expert.")
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(help="Show cells of this sample only; repeatable.")
    ] = None,
    method: ShownMethod = None,
    crops: Annotated[
        bool, typer.Option(help="Cut the cells out, each beside its nearest healthy ones.")
    ] = True,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say which cells made each diagnosis: ranks, nearest healthy cells, pictures, and whether it holds."""
    told = commands.explain(
        run,
        output,
        top=top,
        marks=marks,
        samples=sample or (),
        method=method,
        crops=crops,
        force=force,
        talk=Talk(quiet=quiet),
    )
    print_json(told) if as_json else typer.echo(f"wrote {output / 'top.csv'} and {output / 'cells.parquet'}")


app.add_typer(export_app, name="export")


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
