"""Read a CSV table as text, with the row numbers that a spreadsheet shows, and find its columns by name."""

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hemomil.cohort.problems import Problem
from hemomil.errors import HemomilError

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx and .xls, which get saved under the name .csv."""
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
RENAME = "rename one of the columns"


def read_table(path: Path, error: type[HemomilError]) -> tuple[pd.DataFrame, list[Problem]]:
    """Every value of a CSV as stripped text; the index is the row number, the header being row 1.

    Comma, semicolon and tab are understood, with or without a byte-order mark. `NA` and `None` stay
    text and `007` keeps its zeros. Wholly blank lines are not rows. Problems: rows with too many
    values, columns without a name or with the same name. Raises `error` where there is no table.
    """
    records = _records(path, error)
    header = records[0][1] if records else []
    problems = _header_problems(header, records[1:]) + _ragged_problems(header, records[1:])
    width = max((k + 1 for k, name in enumerate(header) if name), default=0)
    rows = [(row, values[:width] + [""] * (width - len(values))) for row, values in records[1:]]
    if not rows:
        raise error(f"{path} has a header but no rows", hint="add one row per image or cell")
    names = [name or f"column {k + 1}" for k, name in enumerate(header[:width])]
    return pd.DataFrame(
        [v for _, v in rows], index=[r for r, _ in rows], columns=names, dtype=object
    ), problems


def _records(path: Path, error: type[HemomilError]) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, with their numbers."""
    text = _text(path, error)
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        numbered = [(row, [value.strip() for value in values]) for row, values in enumerate(reader, 1)]
    except csv.Error as cause:
        raise error(
            f"{path} is not a CSV table: {cause} (line {reader.line_num})",
            hint="look for an unclosed quotation mark there, or save the table again as CSV UTF-8",
        ) from cause
    return [(row, values) for row, values in numbered if any(values)]


def _text(path: Path, error: type[HemomilError]) -> str:
    data = _bytes(path, error)
    try:
        text = data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as cause:
        row = data.count(b"\n", 0, cause.start) + 1
        raise error(
            f"{path} is not UTF-8 text: byte 0x{data[cause.start]:02x} in row {row}",
            hint="save the table as CSV UTF-8",
        ) from cause
    if "\0" in text:
        raise error(f"{path} is not a CSV table: it holds binary data", hint="save the table as CSV UTF-8")
    return text


def _bytes(path: Path, error: type[HemomilError]) -> bytes:
    if path.is_dir():
        raise error(
            f"{path} is a folder, not a table",
            hint="`hemomil init` writes a manifest for a folder tree label/patient/sample/images",
        )
    if not path.is_file():
        raise error(f"there is no file {path}", hint="correct the path")
    data = path.read_bytes()
    if not data.strip():
        raise error(f"{path} is empty", hint="it needs a header and one row per image or cell")
    if data.startswith(WORKBOOKS):
        raise error(f"{path} is a spreadsheet workbook, not a CSV table", hint="save it as CSV UTF-8")
    return data


def _header_problems(header: Sequence[str], records: Sequence[tuple[int, list[str]]]) -> list[Problem]:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    unnamed = [
        k for k, name in enumerate(header) if not name and any(len(v) > k and v[k] for _, v in records)
    ]
    return [Problem(1, f"column {name!r}", "is there more than once", RENAME) for name in twice] + [
        Problem(1, f"column number {k + 1}", "has values but no name", "name it, or empty it")
        for k in unnamed
    ]


def _ragged_problems(header: Sequence[str], records: Sequence[tuple[int, list[str]]]) -> list[Problem]:
    return [
        Problem(
            row,
            "the row",
            f"has {len(values)} values for {len(header)} columns",
            "put quotation marks round a value that holds the separator",
        )
        for row, values in records
        if any(values[len(header) :])
    ]


def find_columns(
    header: Sequence[str], aliases: Mapping[str, tuple[str, ...]], required: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """Which column of the table stands for which name, case-blind; the name itself wins over its aliases."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for name, others in aliases.items():
        same = [h for h in header if normal(h) == name] or [h for h in header if normal(h) in others]
        if len(same) > 1:
            problems.append(
                Problem(1, f"columns {_quoted(same)}", f"both mean {name!r}", f"name the right one {name!r}")
            )
        if same:
            found[name] = same[0]
    missing = [name for name in required if name not in found]
    free = [h for h in header if h not in found.values()]
    return found, problems + [_missing(name, aliases[name], free, header) for name in missing]


def normal(name: str) -> str:
    """A column name without regard to case, blanks, dots and hyphens."""
    return re.sub(r"[\s.\-]+", "_", name.strip().casefold())


def _missing(name: str, others: tuple[str, ...], free: list[str], header: Sequence[str]) -> Problem:
    meant = resembling(free, (name, *others))
    if meant:
        remedy = f"did you mean {meant!r}? rename it to {name!r}"
    else:
        remedy = f"add it, or rename the column that holds it to {name!r}"
    return Problem(1, f"column {name!r}", f"is missing; there are {_quoted(header)}", remedy)


def resembling(names: Sequence[str], wanted: Sequence[str], cutoff: float = 0.7) -> str | None:
    """The one of `names` most like one of `wanted`, if any is like it at all."""
    by_normal = {normal(name): name for name in names}
    close = [m for want in wanted for m in difflib.get_close_matches(want, by_normal, n=1, cutoff=cutoff)]
    return by_normal[close[0]] if close else None


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no columns"
