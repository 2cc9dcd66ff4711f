"""The commands' roots, to which the modules beside this one add theirs."""

from typing import Any

import typer
from typer.core import TyperGroup

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

export_app = typer.Typer(no_args_is_help=True, help="A run in the formats of other tools.")
