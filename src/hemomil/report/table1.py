"""Table 1 of a study: every method with both kinds of spread, and its difference to a reference method.

The CSV has the numbers; text, LaTeX and HTML have the same table as a person reads it.
"""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hemomil.report.tables import records
from hemomil.report.words import metric_title

LEVELS = ("sample", "patient")
COLUMNS = (
    *("level", "method", "metric", "value", "sd_runs", "low", "high", "n"),
    *("difference", "difference_low", "difference_high", "p", "p_adjusted", "best"),
)
NOT_ESTIMABLE = "not estimable"
CAPTION = "Methods side by side"
TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": "$<$", ">": "$>$", "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$"},
    }
)
CSS = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#1b2733;margin:2em}p{max-width:65em}"
    "table{border-collapse:collapse;border:solid;border-width:2px 0}thead{border-bottom:1px solid}"
    "td,th{padding:.25em .8em;text-align:left;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "tbody th{font-weight:normal}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table1:
    """The numbers of Table 1, and what its note has to say."""

    rows: pd.DataFrame
    """A row per level (`LEVELS`), method and metric: `COLUMNS`; NaN where not estimable or not compared.

    `best`: the highest value, and different from that of every other method at an adjusted p below 0.05."""
    reference: str | None
    """The method that the differences are to; None where there is nothing to compare."""
    runs: int
    patients: int
    small: Mapping[str, int]
    """Classes with fewer than 5 patients, and how many they have."""
    evaluated_on: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the table; one without cells is a heading of those that follow."""

    name: str
    cells: tuple[str, ...] = ()
    best: tuple[bool, ...] = ()


def table1_files(table: Table1) -> dict[str, str]:
    """The contents of table1.csv, .txt, .tex and .html, by suffix."""
    return {
        "csv": table.rows.to_csv(index=False),
        "txt": f"{_text_frame(table).to_string()}\n\n{note(table, 'With *')}\n",
        "tex": _tex(table),
        "html": _html(table),
    }


# --- what is said


def lines(table: Table1) -> Iterator[Line]:
    """Per level: a line per method, then, under the name of the reference, a line per difference."""
    for level in [level for level in LEVELS if (table.rows["level"] == level).any()]:
        rows = table.rows[table.rows["level"] == level]
        yield Line(name=f"by {level}")
        yield from _method_lines(rows, _value)
        if table.reference is not None:
            yield Line(name=f"by {level}, minus {table.reference}")
            yield from _method_lines(rows[rows["method"] != table.reference], _difference)


def metrics(table: Table1) -> list[str]:
    """The metrics, in the order of the columns."""
    return list(dict.fromkeys(table.rows["metric"]))


def _method_lines(rows: pd.DataFrame, say: Callable[[Mapping[str, Any]], str]) -> Iterator[Line]:
    for method, own in rows.groupby("method", sort=False):
        cells = records(own)
        best = tuple(say is _value and bool(cell["best"]) for cell in cells)
        yield Line(name=str(method), cells=tuple(say(cell) for cell in cells), best=best)


def _value(cell: Mapping[str, Any]) -> str:
    """`0.787 ± 0.015 [0.68, 0.87]`; an interval is not known to a third digit."""
    if pd.isna(cell["value"]):
        return NOT_ESTIMABLE
    spread = "" if pd.isna(cell["sd_runs"]) else f" ± {cell['sd_runs']:.3f}"
    return f"{cell['value']:.3f}{spread} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _difference(cell: Mapping[str, Any]) -> str:
    """`+0.020 [−0.01, +0.05] p 0.034`."""
    if pd.isna(cell["difference"]):
        return NOT_ESTIMABLE
    low, high = (f"{cell[f'difference_{end}']:+.2f}" for end in ("low", "high"))
    p = "< 0.001" if cell["p_adjusted"] < 0.001 else f"{cell['p_adjusted']:.3f}"
    return f"{cell['difference']:+.3f} [{low}, {high}] p {p}".replace("-", "−")


def note(table: Table1, best: str = "Bold") -> str:
    """What the numbers are, how many patients they rest on, and what they cannot say."""
    parts = [
        _spread(table),
        f"[ ]: 95 % interval over {table.patients} patients, drawn whole with replacement.",
    ]
    if table.evaluated_on:
        parts.append(f"Only samples with {table.evaluated_on} count.")
    if table.reference is not None:
        parts.append(
            "Differences are paired, on the same patients; p: patients permuted between the two methods, "
            f"adjusted (Holm) for as many methods as are compared with {table.reference}. "
            f"{best}: the highest, and different from every other method at an adjusted p below 0.05."
        )
    if not (table.rows["level"] == "patient").any():
        parts.append("Not by patient, as some patients have samples of more than one class.")
    return " ".join([*parts, _few(table.small)])


def _spread(table: Table1) -> str:
    if table.runs == 1:
        return "One run, so without a spread over runs."
    return f"Mean ± standard deviation over {table.runs} runs: other seeds and folds, the same patients."


def _few(small: Mapping[str, int]) -> str:
    rule = "The own numbers of a class with fewer than 5 patients are not estimable"
    if not small:
        return f"{rule}; none here has so few."
    named = ", ".join(f"{name} ({count})" for name, count in small.items())
    return f"{rule} (here {named}); averages over classes include it."


# --- how it is written


def _text_frame(table: Table1) -> pd.DataFrame:
    return _frame(table, lambda text: text, bold="{} *", heading="{}")


def _frame(table: Table1, escape: Callable[[str], str], *, bold: str, heading: str) -> pd.DataFrame:
    """The table as pandas writes it, with everything escaped."""
    titles = [escape(metric_title(metric)) for metric in metrics(table)]
    names, body = [], []
    for line in lines(table):
        names.append(escape(line.name) if line.cells else heading.format(escape(line.name)))
        body.append(_cells(line, len(titles), escape, bold))
    return pd.DataFrame(body, index=names, columns=titles)


def _cells(line: Line, count: int, escape: Callable[[str], str], bold: str) -> Sequence[str]:
    marked = zip(line.cells, line.best, strict=True)
    return [bold.format(escape(text)) if best else escape(text) for text, best in marked] or [""] * count


def _tex(table: Table1) -> str:
    frame = _frame(table, escape_tex, bold=r"\textbf{{{}}}", heading=r"\addlinespace \textit{{{}}}")
    tabular = frame.to_latex(escape=False, column_format="l" * (frame.shape[1] + 1))
    return (
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"
        "\\begin{table*}\n\\centering\n"
        f"\\caption{{{CAPTION}}}\n\\label{{tab:methods}}\n"
        f"\\resizebox{{\\textwidth}}{{!}}{{%\n{tabular.rstrip()}%\n}}\n"
        f"\\par\\smallskip\\raggedright\\footnotesize {escape_tex(note(table))}\n\\end{{table*}}\n"
    )


def escape_tex(text: str) -> str:
    """The text as LaTeX prints it."""
    return text.translate(TEX)


def _html(table: Table1) -> str:
    frame = _frame(table, html.escape, bold="<b>{}</b>", heading="<i>{}</i>")
    body = frame.to_html(escape=False, border=0, justify="left")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{CAPTION}</title>'
        f"<style>{CSS}</style></head>\n<body>\n<h1>{CAPTION}</h1>\n{body}\n<p>{html.escape(note(table))}</p>\n"
        "</body>\n</html>\n"
    )
