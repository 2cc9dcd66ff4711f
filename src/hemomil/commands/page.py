"""`report`: figures/ and report.html of a run, or the figures only. What draws is imported when it draws."""

from pathlib import Path

from hemomil.cohort import read_image
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.run_folder import RunFolder, load_record


def write_page(run: RunFolder) -> None:
    """Figures and page of a run that is about to finish, before run.json marks it as done."""
    from hemomil.report import write_report

    write_report(run.path, read_image=read_image, about=run.record())


def report(run: Path, *, figures_only: bool = False, talk: Talk = SILENT) -> Path:
    """Draw the figures and the page of a run again, or the figures only: returns their path."""
    load_record(run, "samples.csv", "cells.parquet")
    from hemomil.report import write_figures_only, write_report

    write = write_figures_only if figures_only else write_report
    written: Path = write(run, read_image=read_image)
    talk.say(f"wrote {written}")
    return written
