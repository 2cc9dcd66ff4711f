"""Put what is known of one sample into sentences: error rates, cells, the check of its explanation."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from hemomil.report.words import flagged_text, novelty_text, runs_text

CELL_VERDICTS = ("abnormal", "undecided", "normal")


def doubts(row: Mapping[str, Any], cells: pd.DataFrame, control: str) -> str:
    """How sure the reading of a sample is: agreement of trainings, novelty, bounds, cells that stand out."""
    said = (
        runs_text(row["agreeing"], row["reads"]),
        novelty_text(row["novelty_p"], floor_of(row)),
        conformal_sentence(row, control),
        decided_sentence(cells),
        abnormal_sentence(row),
        flagged_text(cells["anomaly_q"]),
    )
    return " ".join(filter(None, said))


def floor_of(row: Mapping[str, Any]) -> float:
    """The smallest novelty p that there can be, where samples.csv tells it."""
    value = pd.to_numeric(row.get("novelty_floor", math.nan), errors="coerce")
    return float(value) if pd.notna(value) and value > 0 else math.nan


def abnormal_sentence(row: Mapping[str, Any]) -> str:
    """The least share of abnormal cells that is certain, where samples.csv has `abnormal_low`."""
    low = pd.to_numeric(row.get("abnormal_low", math.nan), errors="coerce")
    if pd.isna(low):
        return ""
    if low <= 0:
        return "No share of abnormal cells is certain: it may be 0 % (95 % bound)."
    return f"At least {100 * low:.1f} % of the cells are abnormal (95 % bound)."


def conformal_sentence(row: Mapping[str, Any], control: str) -> str:
    """Which classes cannot be excluded, where samples.csv has `conformal_set`; empty: none of those known."""
    if "conformal_set" not in row or not row["predicted"]:
        return ""
    classes = [name for name in str(row["conformal_set"]).split("|") if name]
    if not classes:
        return f"None of the known classes fits: all of them can be excluded{_healthy_like(row)}."
    if len(classes) == 1:
        return f"All classes but {classes[0]} can be excluded."
    excluded = " Health cannot be excluded." if control in classes else ""
    return f"Not to be told apart: {', '.join(classes)}.{excluded}"


def _healthy_like(row: Mapping[str, Any]) -> str:
    """How few control patients look as little like one, where samples.csv has `healthy_like`."""
    share = pd.to_numeric(row.get("healthy_like", math.nan), errors="coerce")
    return "" if pd.isna(share) else f" ({100 * share:.2g} % healthy-like)"


def decided_sentence(cells: pd.DataFrame) -> str:
    """How many cells are called abnormal, undecided and normal, where cells.parquet has `verdict`."""
    counts = {name: int((cells["verdict"] == name).sum()) for name in CELL_VERDICTS}
    if not sum(counts.values()):
        return ""
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"Cells, judged one by one: {said}."


def deletion_sentence(rows: pd.DataFrame | None) -> str:
    """What the probability loses without the cells said to count, at the most that were taken out."""
    if rows is None:
        return ""
    most = rows.sort_values("k").iloc[-1]
    if pd.isna(most["without_top"]):
        return ""
    k = int(most["k"])
    cells, others = ("cell", "one random cell") if k == 1 else (f"{k} cells", f"{k} random cells")
    lost = most["probability"] - most["without_top"]
    beyond = lost - (most["probability"] - most["without_random"])
    verb = "goes" if abs(lost) < 0.005 else "falls" if lost > 0 else "rises"
    verdict = (
        "So these cells do count for the model."
        if beyond >= 0.05
        else "So these cells count little more than any others."
    )
    return (
        f"Without the {cells} said to count most, the probability of {most['predicted']} {verb} from "
        f"{most['probability']:.2f} to {most['without_top']:.2f}; without {others}, to "
        f"{most['without_random']:.2f}. {verdict}"
    )


def healthy_sentence(above: int, cells: int, low: int, high: int, donors: int, *, taught: bool) -> str:
    """How many cells are stranger than nineteen in twenty of healthy donors, and how many these have."""
    span = f"{low}" if low == high else f"{low} to {high}"
    been = " The model learned from these donors what is healthy." if taught else ""
    return (
        f"{above} of {cells} cells are stranger than 95 % of the cells of healthy donors; among as many "
        f"cells, each of {donors} healthy donors has {span}.{been}"
    )
