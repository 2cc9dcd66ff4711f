"""`view`: a web page of a run on this machine, however large, where an expert can mark cells. No torch."""

import asyncio
import math
import re
import secrets
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from hemomil.cohort import read_image
from hemomil.commands.console import SILENT, Talk
from hemomil.commands.marks import Mark, MarkKind, append_mark, read_marks
from hemomil.commands.run_folder import load_record
from hemomil.errors import SettingsError
from hemomil.report.choose import in_class_order
from hemomil.report.class_marks import EXPLANATION, class_marks, with_class
from hemomil.report.ranks import COUNTED, IGNORED, TOP, counted_key, quantiles, with_ranks
from hemomil.report.sample_words import doubts
from hemomil.report.scales import scales
from hemomil.report.tables import read_samples, records
from hemomil.report.words import CAVEATS, GLOSSARY, verdict
from hemomil.view import (
    SENT,
    Cells,
    MarkBook,
    Pictures,
    Shown,
    Site,
    Viewer,
    by_row,
    is_loopback,
    open_viewer,
    read_shown,
)

PORT = 8123
TOKEN = re.compile(r"[A-Za-z0-9_-]{12,}")


def view(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    blind: bool = False,
    marks: Path | None = None,
    method: str | None = None,
    open_browser: bool = True,
    talk: Talk = SILENT,
) -> None:
    """Show a run in the browser until Ctrl-C; what an expert marks goes to `marks`, or marks.csv of the run.

    Raises RunFolderError where there is no finished run, SettingsError where the port is taken.
    """
    viewer = make_server(run, host=host, port=port, token=token, blind=blind, marks=marks, method=method)
    talk.say(f"{viewer.url}\nEnd with Ctrl-C.")
    if open_browser:
        webbrowser.open(viewer.url)
    try:
        asyncio.run(viewer.serve())
    except KeyboardInterrupt:
        talk.say("The viewer has ended; marks are saved.")


def make_server(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    blind: bool = False,
    marks: Path | None = None,
    method: str | None = None,
) -> Viewer:
    """Read a run and take the port (0: a free one), ready to `serve`.

    A host that others can reach is served only to who has the token; without one, one is made.
    """
    if token is not None and not TOKEN.fullmatch(token):
        raise SettingsError(
            "the token is too short or has characters that an address cannot hold",
            hint="at least 12 letters, digits, - or _; or leave --token out where --host needs one",
        )
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    site = _site(run, blind=blind, marks=marks or run / "marks.csv", method=method)
    return open_viewer(site, host=host, port=port, token=token)


def _site(run: Path, *, blind: bool, marks: Path, method: str | None) -> Site:
    about = load_record(run, "samples.csv", "cells.parquet")
    # a blind reader must not learn a class from the order
    in_order = _by_name if blind else in_class_order
    known = read_samples(run, about, method)
    shown = read_shown(
        run,
        about,
        in_order(known.samples, known.classes),
        method=known.method,
        run=known.run,
        classes=known.classes,
        control=known.control,
    )
    scored = _scored(shown)
    folder = shown.manifest.parent if shown.manifest else None
    return Site(
        shown=replace(shown, samples=_with_words(shown), cells=_with_ranks(shown, scored)),
        pictures=Pictures(shown.cells.images.names, folder, read_image),
        marks=_mark_book(shown, marks),
        blind=blind,
        about=_words(shown, scored),
        key=secrets.token_hex(4),
    )


def _by_name(samples: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    return samples.sort_values("sample")


def _with_words(shown: Shown) -> pd.DataFrame:
    """The samples with what is said of each: `verdict` and `remarks`."""
    rows = records(shown.samples)
    said = [_verdict(row, shown.classes) for row in rows]
    remarks = [doubts(row, _tested(shown, i), shown.control) for i, row in enumerate(rows)]
    return shown.samples.assign(verdict=said, remarks=remarks)


def _verdict(row: Mapping[str, Any], classes: Sequence[str]) -> str:
    known = {name: row.get(f"prob_{name}", math.nan) for name in classes}
    return verdict({name: p for name, p in known.items() if not math.isnan(p)})


def _tested(shown: Shown, sample: int) -> pd.DataFrame:
    """Of the cells of one sample, what was tested of each."""
    cells, rows = shown.cells, shown.cells.of_sample(sample)
    return pd.DataFrame({"anomaly_q": cells.numbers["anomaly_q"][rows], "verdict": cells.verdicts.text(rows)})


def _scored(shown: Shown) -> pd.DataFrame:
    """The numbers of all cells, as the report's rooms take them."""
    cells = shown.cells
    sample_N = np.repeat(np.arange(len(shown.samples)), np.diff(cells.starts))
    fold_N = pd.factorize(shown.samples["fold"])[0][sample_N]
    return pd.DataFrame({**cells.numbers, "sample": sample_N, "fold": fold_N})


def _with_ranks(shown: Shown, scored: pd.DataFrame) -> Cells:
    """The cells with what the page draws: the class each looks like, and quantiles as the report has them."""
    table = with_ranks(with_class(scored, shown.classes))
    for key in ("attention_ratio", "contribution", "looks_sure"):
        table[f"q_{key}"] = quantiles(table, key)
    return replace(shown.cells, numbers={name: table[name].to_numpy(np.float32) for name in SENT})


def _words(shown: Shown, scored: pd.DataFrame) -> dict[str, Any]:
    """What the page says and how it colours, from the report, so that both speak alike."""
    counted, manifest = counted_key(scored), shown.manifest
    return {
        "title": manifest.parent.name if manifest else shown.folder.resolve().name,
        "control": shown.control,
        "caveat": CAVEATS.get(shown.command, ""),
        "glossary": GLOSSARY,
        "scales": [asdict(scale) for scale in scales(scored)],
        "class_marks": [asdict(mark) for mark in class_marks(shown.classes)],
        "class_explanation": EXPLANATION,
        "counted_by": counted,
        "counted": COUNTED[counted] if counted else "",
        "top": TOP,
        "ignored": IGNORED,
    }


def _mark_book(shown: Shown, path: Path) -> MarkBook:
    def append(cell_id: str, mark: str, label: str, note: str) -> dict[str, str]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Mark(cell_id, cast(MarkKind, mark), label=label, note=note, time=now)
        append_mark(path, made)
        return asdict(made)

    held = {cell_id: asdict(mark) for cell_id, mark in read_marks(path).items()}
    return MarkBook(path=path, held=by_row(shown.cells, held), append=append)
