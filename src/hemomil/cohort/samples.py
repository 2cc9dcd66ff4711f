"""Check what makes rows into samples: one patient, one label, and a control class to compare with."""

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

from hemomil.cohort.problems import Problem, row_ranges

ALIASES: dict[str, tuple[str, ...]] = {
    "sample": ("sample_id", "slide_id", "slide", "bag", "bag_id"),
    "patient": ("patient_id", "case_id", "case", "subject", "subject_id", "donor", "donor_id"),
    "label": ("class", "diagnosis", "disorder"),
}
"""Names under which other programs keep these columns, lower case."""


def sample_problems(table: pd.DataFrame, control: str, *, labels_needed: bool) -> list[Problem]:
    """Problems of the columns sample, patient and label; the index of `table` is the row number."""
    problems = blank_problems(table, "sample") + blank_problems(table, "patient")
    problems += conflict_problems(
        table, "patient", "a sample belongs to one patient; split it or correct one"
    )
    problems += conflict_problems(table, "label", "a sample has one label; split it or correct one")
    problems += _spelling_problems(table)
    if labels_needed:
        problems += blank_problems(table, "label") + _control_problems(table, control)
    return problems


def numbered(values: pd.Series) -> list[tuple[int, str]]:
    """Row number and text of each value."""
    return [(int(row), str(value)) for row, value in zip(values.index.to_numpy(), values, strict=True)]


def blank_problems(table: pd.DataFrame, column: str) -> list[Problem]:
    """Rows in which a column that is needed is blank."""
    rows = table.index[table[column] == ""]
    return [
        Problem(int(row), f"the {column}", "is blank", f"fill in the {column} of every row") for row in rows
    ]


def conflict_problems(table: pd.DataFrame, column: str, remedy: str) -> list[Problem]:
    """Samples with two values where there can be only one."""
    filled = table[(table[column] != "") & (table["sample"] != "")]
    counts = filled.groupby("sample", sort=False)[column].nunique()
    return [_conflict(filled, str(sample), column, remedy) for sample in counts.index[counts > 1]]


def _conflict(table: pd.DataFrame, sample: str, column: str, remedy: str) -> Problem:
    rows = table[table["sample"] == sample]
    values = [
        f"{value!r} ({row_ranges(int(r) for r in part.index)})"
        for value, part in rows.groupby(column, sort=False)
    ]
    first = int(rows.index[0])
    return Problem(first, f"sample {sample!r}", f"has {len(values)} {column}s: {', '.join(values)}", remedy)


def _spelling_problems(table: pd.DataFrame) -> list[Problem]:
    labels = table.loc[table["label"] != "", "label"].drop_duplicates()
    folded = labels.str.casefold()
    return [
        Problem(
            int(part.index[0]),
            "labels " + " and ".join(repr(name) for name in part),
            "differ only in capital letters",
            "write a label in one way",
        )
        for _, part in labels.groupby(folded)
        if len(part) > 1
    ]


def _control_problems(table: pd.DataFrame, control: str) -> list[Problem]:
    labels = sorted(set(table["label"]) - {""})
    if control in labels or not labels:
        return []
    found = ", ".join(repr(label) for label in labels)
    remedy = "name the healthy class by --control NAME, or add healthy samples"
    return [Problem(None, "no sample", f"is labelled {control!r}; there are {found}", remedy)]


def shared_metadata(table: pd.DataFrame, columns: list[str]) -> Mapping[str, Mapping[str, str]]:
    """For each sample, the columns on which all its rows agree and their value; blanks are left out."""
    if not columns:
        return {str(sample): MappingProxyType({}) for sample in table["sample"].unique()}
    groups = table.groupby("sample", sort=False)[columns]
    agreed = groups.first().where(groups.nunique() == 1, "")  # noqa: PD101 - per sample
    return {
        str(sample): MappingProxyType({str(name): str(value) for name, value in values.items() if value})
        for sample, values in agreed.to_dict("index").items()
    }
