"""The command line: flags in, results on standard output, progress on standard error.

Exit code 0: done; 2: the user can put it right; 1: our bug. Nothing here imports torch.
"""

import sys
from collections.abc import Callable
from typing import Any

import typer

from hemomil.cli.app import app
from hemomil.errors import HemomilError

# isort: off
# they add their commands, in the order of --help
from hemomil.cli import making as making
from hemomil.cli import detecting as detecting
from hemomil.cli import learning as learning
from hemomil.cli import showing as showing
from hemomil.cli import exporting as exporting
# isort: on


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
