"""Colour scales for scores of cells: ten steps, safe for the colour-blind, one scale for the whole page.

Axes: N cells.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.colors import to_hex

STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How one score of the cells becomes a colour."""

    key: str
    """Column of the cells."""
    letter: str
    """CSS class prefix: a cell of step 7 has the class `a7`."""
    title: str
    explanation: str
    low: float
    high: float
    colours: tuple[str, ...]
    widths: tuple[float, ...]
    low_text: str
    high_text: str

    def steps(self, values: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The step 0..9 of each value; -1 where there is none."""
        span = max(self.high - self.low, 1e-12)
        # NaN has no step: it is replaced before the cast and masked after it
        steps = np.nan_to_num((values - self.low) / span * STEPS).clip(0, STEPS - 1).astype(int)
        return np.where(np.isnan(values), -1, steps)


def scales(cells: pd.DataFrame) -> tuple[Scale, ...]:
    """The scales of the scores that these cells have."""
    made = (_anomaly(cells), _attention(cells), _contribution(cells))
    return tuple(scale for scale in made if cells[scale.key].notna().any())


def _anomaly(cells: pd.DataFrame) -> Scale:
    low, high = _span(cells["anomaly"])
    return Scale(
        key="anomaly",
        letter="a",
        title="anomaly",
        explanation="How unlike healthy cells the cell is: its distance to the healthy reference.",
        low=low,
        high=high,
        colours=_colours("viridis_r"),
        widths=_rising(),
        low_text=f"{low:.1f} like healthy",
        high_text=f"{high:.1f} or more, strange",
    )


def _attention(cells: pd.DataFrame) -> Scale:
    _, high = _span(cells["attention_ratio"])
    return Scale(
        key="attention_ratio",
        letter="t",
        title="attention",
        explanation="How much the model looked at the cell; 1× is the average cell of the sample.",
        low=0.0,
        high=high,
        colours=_colours("viridis_r"),
        widths=_rising(),
        low_text="0× ignored",
        high_text=f"{high:.1f}× the average cell or more",
    )


def _contribution(cells: pd.DataFrame) -> Scale:
    _, high = _span(cells["contribution"].abs())
    return Scale(
        key="contribution",
        letter="c",
        title="contribution",
        explanation="How far the cell moved the sample towards (+) or away from (−) the predicted class.",
        low=-high,
        high=high,
        colours=_colours("PuOr_r"),
        widths=_both_ways(),
        low_text=f"−{high:.2g} against the prediction",
        high_text=f"+{high:.2g} for it",
    )


def _span(values: "pd.Series[float]") -> tuple[float, float]:
    """The range without its outermost hundredth, so that one artefact does not bleach all other cells."""
    known = values[np.isfinite(values)]
    if known.empty:
        return 0.0, 1.0
    low, high = (float(value) for value in known.quantile([0.01, 0.99]))
    return (low, high) if high > low else (low, low + 1.0)


def _colours(name: str) -> tuple[str, ...]:
    return tuple(to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0.02, 1, STEPS)))


def _rising() -> tuple[float, ...]:
    return tuple(round(float(width), 2) for width in np.linspace(1, 4, STEPS))


def _both_ways() -> tuple[float, ...]:
    return tuple(round(float(width), 2) for width in 1 + 3 * np.abs(np.linspace(-1, 1, STEPS)))
