"""An expert's marks of single cells, marks.csv: a row is appended for each, and the last row of a cell holds.

Whatever a crash leaves of a row costs that row only.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hemomil.errors import CellsError
from hemomil.types import Notice

MarkKind = Literal["class", "artefact", "unsure", "none"]
MARKS: tuple[MarkKind, ...] = ("class", "artefact", "unsure", "none")
COLUMNS = ("cell_id", "mark", "class", "note", "time")
NEEDED = COLUMNS[:3]


@dataclass(frozen=True, slots=True)
class Mark:
    """What an expert says of one cell: its class, that it is no cell, or that it cannot be told."""

    cell_id: str
    mark: MarkKind
    """`none` takes an earlier mark back."""
    label: str = ""
    """The class, where the mark is `class`."""
    note: str = ""
    time: str = ""
    """When it was set, ISO 8601."""

    def __post_init__(self) -> None:
        assert self.mark in MARKS, f"unknown mark {self.mark!r}"
        if not self.cell_id:
            raise CellsError("a mark names no cell", hint="give its cell_id, as in cells.parquet")
        if self.mark == "class" and not self.label:
            raise CellsError(
                f"cell {self.cell_id} is marked with a class that has no name",
                hint="fill in the column class, or mark it unsure",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkTable:
    """The marks that hold, and what was left out."""

    marks: dict[str, Mark] = field(default_factory=dict)
    """By cell id; none that was taken back."""
    rows: dict[str, int] = field(default_factory=dict)
    """Row of each; the header is row 1."""
    notices: tuple[Notice, ...] = ()


def read_marks(path: Path) -> dict[str, Mark]:
    """The marks that hold, by cell id; empty where there is no file.

    Raises CellsError with every row that cannot be used. A last line that was cut is none of them: it is
    passed over (`read_mark_table` says so).
    """
    return read_mark_table(path).marks


def read_mark_table(path: Path) -> MarkTable:
    """The marks that hold, with their rows and a notice of a last line that was cut."""
    if not path.exists():
        return MarkTable()
    content = path.read_bytes()
    whole = _whole(content)
    numbered = _rows(_decoded(whole, path), path)
    header = numbered[0][1] if numbered else list(COLUMNS)
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise CellsError(
            f"{path} has no column {', '.join(missing)}", hint=f"its columns are {','.join(COLUMNS)}"
        )
    marks, rows = _last_of_each(
        [(row, dict(zip(header, values, strict=False))) for row, values in numbered[1:]], path
    )
    cut = content[len(whole) :].decode("utf-8", errors="replace")
    notice = Notice(
        kind="mark-cut", subject=path.name, text=f"the last line was cut and is passed over: {cut}"
    )
    return MarkTable(marks=marks, rows=rows, notices=(notice,) if cut else ())


def append_mark(path: Path, mark: Mark) -> None:
    """Add one row, on the disk before we return; a last line that was cut is removed first.

    Raises CellsError where the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        whole = _whole(file.read())
        _refuse_other_columns(whole, path)
        start = "" if whole.endswith(b"\n") else _line(COLUMNS) if not whole else "\n"
        # a note on several lines would be cut between two lines that look whole
        values = (mark.cell_id, mark.mark, mark.label, mark.note, mark.time)
        row = start + _line([" ".join(value.splitlines()) for value in values])
        file.truncate(len(whole))
        file.write(row.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _whole(content: bytes) -> bytes:
    """The content without a last line that was cut.

    A line without its end is whole if nothing but the time can be missing from it: an editor may have saved
    it so.
    """
    ended, end, last = content.rpartition(b"\n")
    if not end:
        return b""
    fields = next(csv.reader([last.decode("utf-8", errors="replace")]), [])
    return content if len(fields) == len(COLUMNS) else ended + end


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CellsError(f"{path} is not UTF-8: {error}", hint="save it as CSV in UTF-8") from None


def _refuse_other_columns(content: bytes, path: Path) -> None:
    """Raise CellsError unless the header, if there is one, is that of the rows we write."""
    header = next(csv.reader(_decoded(content, path).splitlines()), list(COLUMNS))
    if tuple(header) != COLUMNS:
        raise CellsError(
            f"{path} has the columns {','.join(header)}, not {','.join(COLUMNS)}",
            hint="keep the marks in another file",
        )


def _line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, with their numbers; spreadsheets may have put semicolons or tabs."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(row, values) for row, values in enumerate(reader, 1) if any(values)]
    except csv.Error as error:
        raise CellsError(
            f"{path} is not a CSV table: {error} (line {reader.line_num})",
            hint="look for an unclosed quotation mark there",
        ) from None


def _last_of_each(
    rows: Sequence[tuple[int, dict[str, str]]], path: Path
) -> tuple[dict[str, Mark], dict[str, int]]:
    """The last mark of each cell, and its row; CellsError with all rows that are wrong."""
    marks: dict[str, Mark] = {}
    numbers: dict[str, int] = {}
    problems = []
    for number, row in rows:
        try:
            mark = _mark(row)
        except CellsError as error:
            problems.append(f"row {number}: {error.message}")
            continue
        marks[mark.cell_id], numbers[mark.cell_id] = mark, number
    if problems:
        raise CellsError(
            f"{path} has marks that cannot be used:\n  " + "\n  ".join(problems),
            hint=f"mark is one of {', '.join(MARKS)}; with `class`, the column class says which",
        )
    held = {name: mark for name, mark in marks.items() if mark.mark != "none"}
    return held, {name: numbers[name] for name in held}


def _mark(row: dict[str, str]) -> Mark:
    kind, cell_id = row.get("mark", ""), row.get("cell_id", "")
    if kind not in MARKS:
        raise CellsError(f"mark {kind!r} of cell {cell_id} is unknown")
    return Mark(
        cell_id=cell_id,
        mark=kind,
        label=row.get("class", ""),
        note=row.get("note", ""),
        time=row.get("time", ""),
    )
