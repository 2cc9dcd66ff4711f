"""`report`: figures/ and report.html of a run."""

from pathlib import Path

from hemomil.cohort import read_image
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.run_folder import RunFolder, load_record
from hemomil.report import write_report


def write_page(run: RunFolder) -> None:
    """Figures and page of a run that is about to finish, before run.json marks it as done."""
    write_report(run.path, read_image=read_image, about=run.record())


def report(run: Path, *, talk: Talk = SILENT) -> Path:
    """Draw the figures and the page of a run again; returns the page."""
    load_record(run, "samples.csv", "cells.parquet")
    page: Path = write_report(run, read_image=read_image)
    talk.say(f"wrote {page}")
    return page
