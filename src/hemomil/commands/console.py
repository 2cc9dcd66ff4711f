"""What a command says while it works: progress bars and lines, or nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


class Talk:
    """Progress on standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, markup=False)

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Pass items through under a progress bar."""
        with self._bar() as progress:
            yield from progress.track(items, total=total, description=what)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar for work that reports itself: call what is given with (done, total)."""
        with self._bar() as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, disable=self.quiet)


SILENT = Talk(quiet=True)

SHOWN = {"accuracy": "accuracy", "macro_f1": "macro F1", "macro_auroc": "AUROC", "macro_auprc": "AUPRC"}


def methods_table(metrics: Mapping[str, Any]) -> str:
    """The methods side by side, as plain text: value [low, high]; the intervals are over patients."""
    rows = {
        name: {title: _cell(found.get(key)) for key, title in SHOWN.items()}
        for name, found in metrics["methods"].items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    n = max((entry["n"] for found in metrics["methods"].values() for entry in found.values()), default=0)
    where = f" of samples with {metrics['evaluated_on']}" if metrics.get("evaluated_on") else ""
    return f"{table.to_string()}\n\n[95 % interval over {n} patients{where}]"


def detector_table(block: Mapping[str, Any]) -> str:
    """What `detect evaluate` found on one image set, as plain text: a line per number, value [low, high]."""
    what = "known cells that do not touch the border" if block["inner"] else "known cells"
    width = max(len(name) for name in block["scores"])
    cells = {f"recall_{name}": f"  of {n} cells" for name, n in block["classes"].items()}
    lines = [
        f"{name:{width}}  {_cell(score)}{cells.get(name, '')}" for name, score in block["scores"].items()
    ]
    title = f"{block['file']}: {block['cells']} {what}, {block['images']} images"
    return "\n".join([title, *lines, "[95 % interval over images]"])


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return "not estimable"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
