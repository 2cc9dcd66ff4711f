"""How cells rank among those that the same model judged: what the threshold and the plane are made from.

Axes: N cells.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

COUNTED = {
    "attention_ratio": "attention",
    "weight": "weight",
    "contribution": "contribution (for or against)",
}
"""What says how much a cell counted, in words; the first of these that a method gives is used."""
TOP = 0.9
"""Of the cells that one model judged: strange, or counted, from this quantile on."""
IGNORED = 0.5
"""Counted less than this quantile: ignored."""


def quantiles(cells: pd.DataFrame, key: str) -> "pd.Series[float]":
    """Share of the cells of the same model that have less of a score, ties in the middle; NaN without it."""
    known = cells[key].groupby(cells["fold"])
    ranked: pd.Series[float] = (known.rank() - 0.5) / known.transform("count")
    return ranked


def counted_key(cells: pd.DataFrame) -> str | None:
    """The first column of `COUNTED` that tells the cells of a sample apart; None where none does."""
    return next((key for key in COUNTED if _tells_apart(cells, key)), None)


def _tells_apart(cells: pd.DataFrame, key: str) -> bool:
    """A mean over the sample gives each of its cells the same weight: that says nothing of a cell."""
    ends = cells.groupby("sample")[key].agg(["min", "max"])
    return bool((ends["max"] - ends["min"] > 1e-6 * ends["max"].abs()).any())


def with_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with `strange` and `counted`, their quantiles, and `group`, what an expert calls them."""
    key = counted_key(cells)
    strange = quantiles(cells, "anomaly")
    # a cell that speaks against the prediction was not ignored
    size = cells[key].abs() if key else pd.Series(np.nan, index=cells.index)
    counted = quantiles(cells.assign(size=size), "size")
    group = np.select(
        [(strange >= TOP) & (counted >= TOP), (strange >= TOP) & (counted < IGNORED)],
        ["counted", "ignored"],
        default="",
    )
    return cells.assign(strange=strange, counted=counted, group=group)


def counted_and_strange(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells high in both, by the lower of their two ranks."""
    found = cells[cells["group"] == "counted"]
    joint = found[["strange", "counted"]].min(axis=1)
    return _ordered(found.assign(_by=joint))


def strange_but_ignored(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells that are strange and hardly counted, by the distance of their two ranks."""
    found = cells[cells["group"] == "ignored"]
    return _ordered(found.assign(_by=found["strange"] - found["counted"]))


def _ordered(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.sort_values(["_by", "cell_id"], ascending=[False, True]).drop(columns="_by")


def percent_text(cell: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The quantiles of one cell in whole per cent, such as `97 12 88`; `x` where the score is missing."""
    shares = [cell[key] for key in keys]
    return " ".join("x" if math.isnan(share) else str(int(100 * share)) for share in shares)
