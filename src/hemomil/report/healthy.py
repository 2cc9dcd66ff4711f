"""Lay the cells of a sample beside those of healthy donors: how strange they are, quantile by quantile.

Axes: D donors, L quantile levels, N cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from hemomil.report.sample_words import healthy_sentence
from hemomil.report.tables import RunTables

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
STRANGE = 0.95
LEAST_DONORS = 2
LEFT, TOP, RIGHT, BOTTOM = 44.0, 8.0, 368.0, 122.0
"""The rectangle of the axes in the drawing, in its own units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyView:
    """A drawing of quantiles, and what it says."""

    text: str
    band: str
    """Points of the polygon between the lowest and the highest donor."""
    line: tuple[tuple[float, float], ...]
    """The sample's quantiles."""
    levels: tuple[tuple[float, str], ...]
    """Where on the horizontal axis, and what is written there."""
    ticks: tuple[tuple[float, str], ...]
    """The same of the vertical axis."""


def against_healthy(tables: RunTables, row: Mapping[str, Any], cells: pd.DataFrame) -> HealthyView | None:
    """The sample beside the other donors of the healthy class that the same model judged.

    None where there are fewer than two, or the sample has no scores.
    """
    own = cells["anomaly"].dropna().to_numpy(dtype=np.float64)
    donors = _donors(tables, row)
    if not len(own) or len(donors) < LEAST_DONORS:
        return None
    limit = _limit(donors)
    expected = [float((scores > limit).mean()) * len(own) for scores in donors]
    text = healthy_sentence(
        int((own > limit).sum()),
        len(own),
        round(min(expected)),
        round(max(expected)),
        len(donors),
        taught=tables.about.get("command") == "train",
    )
    return _drawn(np.quantile(own, LEVELS), np.stack([np.quantile(d, LEVELS) for d in donors]), text)


def _donors(tables: RunTables, row: Mapping[str, Any]) -> list[Float[np.ndarray, "_"]]:
    """Anomalies of the cells of each healthy donor but the sample's own, judged by the same model."""
    samples = tables.samples.set_index("sample")
    healthy = samples[(samples["label"] == tables.control) & (samples["fold"] == row["fold"])]
    donor = healthy["patient"].where(healthy["patient"] != "", healthy.index)
    donor = donor[(donor != row["patient"]) & (donor.index != row["sample"])]
    cells = tables.cells[tables.cells["sample"].isin(donor.index) & tables.cells["anomaly"].notna()]
    by_donor = cells["anomaly"].groupby(cells["sample"].map(donor))
    return [scores.to_numpy(dtype=np.float64) for _, scores in by_donor]


def _limit(donors: list[Float[np.ndarray, "_"]]) -> float:
    """What one healthy cell in twenty exceeds, where every donor counts the same."""
    scores = np.concatenate(donors)
    weights = np.concatenate([np.full(len(donor), 1 / len(donor)) for donor in donors])
    return float(np.quantile(scores, STRANGE, weights=weights, method="inverted_cdf"))


def _drawn(sample: Float[np.ndarray, "L"], donors: Float[np.ndarray, "D L"], text: str) -> HealthyView:
    low, high = donors.min(axis=0), donors.max(axis=0)
    bottom, top = float(min(low.min(), sample.min())), float(max(high.max(), sample.max()))
    span = max(top - bottom, 1e-9)
    across = np.linspace(LEFT, RIGHT, len(LEVELS))

    def points(values: Float[np.ndarray, "L"]) -> list[tuple[float, float]]:
        heights = BOTTOM - (values - bottom) / span * (BOTTOM - TOP)
        return [(round(float(x), 1), round(float(y), 1)) for x, y in zip(across, heights, strict=True)]

    band = [*points(high), *reversed(points(low))]
    ticks = ((TOP, f"{top:.3g}"), (BOTTOM, f"{bottom:.3g}"))
    return HealthyView(
        text=text,
        band=" ".join(f"{x},{y}" for x, y in band),
        line=tuple(points(sample)),
        levels=tuple((round(float(x), 1), f"{100 * q:.0f} %") for x, q in zip(across, LEVELS, strict=True)),
        ticks=ticks,
    )
