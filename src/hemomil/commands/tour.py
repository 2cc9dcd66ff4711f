"""`demo`: the whole pipeline on a simulated cohort, from drawn smears to a report."""

import shutil
from pathlib import Path
from typing import Any

from hemomil.commands.cohorts import simulate
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.cross_validation import study
from hemomil.commands.settings import resolve_settings
from hemomil.errors import RunFolderError
from hemomil.simulate import SimulateSettings

METHODS = ("att", "anomaly+att+sic", "default")


def demo(
    output: Path, *, seed: int = 0, jobs: int | None = None, force: bool = False, talk: Talk = SILENT
) -> dict[str, Any]:
    """Simulate a small cohort, find its cells with the shipped detector, compare three methods by patient.

    Leaves `output/cohort` (what a lab would bring) and `output/run` (what it would get). A killed demo
    goes on where it stopped.
    """
    if force:
        _clear(output)
    manifest = output / "cohort" / "manifest.csv"
    if not manifest.exists():
        talk.say("drawing a cohort of simulated blood smears")
        simulate(manifest.parent, settings=SimulateSettings.demo(seed=seed))
    settings = resolve_settings(flags={"seed": seed, "study.methods": METHODS, "study.runs": 1})
    truth = manifest.parent / "cells.csv"
    return study(manifest, output / "run", settings=settings, truth=truth, jobs=jobs, talk=talk)


def _clear(output: Path) -> None:
    """Remove an earlier demo; a folder that is none is left alone."""
    if not output.exists() or not any(output.iterdir()):
        return
    strangers = sorted(
        p.name for p in output.iterdir() if p.name not in {"cohort", "run"} and not p.name.startswith(".")
    )
    if strangers:
        raise RunFolderError(
            f"{output} holds {strangers[0]}, which no demo wrote", hint="choose another folder with -o"
        )
    shutil.rmtree(output)
