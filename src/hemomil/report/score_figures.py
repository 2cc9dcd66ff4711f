"""Figures 4 and 5: how the scores of cells are distributed, per class, and in classes left out of training.

Axes: N cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hemomil.report import printed
from hemomil.report.evidence import Evidence
from hemomil.report.printed import BLUE, GRID, INK, MM, ORANGE, QUIET, SMALL
from hemomil.report.tables import RunTables
from hemomil.report.words import estimate_text

Side = Literal["both", "low", "high"]

MOST_CELLS = 20_000
"""Of one violin: more draw the same outline, slower."""
MANY = 40
"""Patients of a class from which on their points are smaller."""
TAIL = 0.95
CAPTION = (
    "Violin: all cells; line: their median.  Point: a patient, at the value that one in twenty of its cells "
    "exceeds.\nWhat lies beyond an axis is drawn at its end."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreAxis:
    """A score of cells and the range in which it is drawn; what lies outside is drawn at the rim."""

    key: str
    title: str
    low: float
    high: float
    log: bool = False

    def place(self, values: "pd.Series[float]") -> Float[np.ndarray, "N"]:
        """Where on the axis the values lie; on a ratio's axis in powers of ten."""
        inside = values.dropna().clip(self.low, self.high).to_numpy(np.float64)
        return np.log10(inside) if self.log else inside


def score_axes(cells: pd.DataFrame) -> list[ScoreAxis]:
    """Anomaly, and attention or, for methods without attention, the contribution; as far as there."""
    second = "attention_ratio" if cells["attention_ratio"].notna().any() else "contribution"
    return [_axis(key, cells[key]) for key in ("anomaly", second) if cells[key].notna().any()]


def _axis(key: str, values: "pd.Series[float]") -> ScoreAxis:
    known = values[np.isfinite(values)]
    low, high = (float(value) for value in known.quantile([0.002, 0.998]))
    if key == "anomaly":
        title, low = "anomaly: how unlike healthy cells", min(0.0, low)
    elif key == "contribution":
        high = float(known.abs().quantile(0.99))
        low = -high
        title = "contribution (log-odds of the class called)"
    else:
        low, high = max(low, 1e-3), max(high, 2e-3)
        return ScoreAxis(key=key, title="attention: × average cell", low=low, high=high, log=True)
    return ScoreAxis(key=key, title=title, low=low, high=high if high > low else low + 1)


# --- figure 4


def score_figure(tables: RunTables) -> Figure | None:
    """A violin of cells per class, the healthy class first, and a point per patient; None without scores."""
    scores = score_axes(tables.cells)
    cells = _with_class(tables)
    names = [name for name in tables.classes if (cells["class"] == name).any()]
    if not scores or not names:
        return None
    figure = printed.blank(printed.DOUBLE, (21 + 12 * len(names)) * MM)
    drawn = figure.subplots(1, len(scores), squeeze=False)[0]
    for panel, score in zip(drawn, scores, strict=True):
        for row, name in enumerate(names):
            own, healthy = cells[cells["class"] == name], name == tables.control
            violin(panel, score, own[score.key], row, healthy=healthy)
            _patients(panel, score, own, row + 0.34, healthy=healthy)
        _finish(panel, score, len(names))
        panel.set_yticks([])
    drawn[0].set_yticks(range(len(names)), _with_counts(cells, names))
    figure.supxlabel(CAPTION, fontsize=SMALL, x=0.01, ha="left")
    return figure


def _with_class(tables: RunTables) -> pd.DataFrame:
    by = tables.samples.set_index("sample")
    known = by["label"] if tables.labelled else by["predicted"]
    cells = tables.cells
    return cells.assign(
        **{"class": cells["sample"].map(known), "patient": cells["sample"].map(by["patient"])}
    )


def _with_counts(cells: pd.DataFrame, names: list[str]) -> list[str]:
    return [f"{printed.wrapped(name)}\n{int((cells['class'] == name).sum()):,} cells" for name in names]


def violin(
    panel: Axes,
    score: ScoreAxis,
    values: "pd.Series[float]",
    row: int | float,
    *,
    healthy: bool,
    side: Side = "both",
) -> None:
    """The outline of all cells, hatched unless healthy, and a line at the median."""
    places = score.place(values)
    if not len(places):
        return
    thinned = np.sort(places)[:: max(1, -(-len(places) // MOST_CELLS))]
    parts = panel.violinplot(
        [thinned], [row], orientation="horizontal", side=side, widths=0.62, points=150, showextrema=False
    )
    for body in cast("list[PolyCollection]", parts["bodies"]):
        body.set(facecolor=BLUE if healthy else ORANGE, edgecolor=INK, alpha=0.75, linewidth=0.5)
        body.set_hatch("" if healthy else "////")
    reach = {"both": (-0.26, 0.26), "low": (-0.26, 0), "high": (0, 0.26)}[side]
    panel.vlines(np.median(places), row + reach[0], row + reach[1], color=INK, linewidth=1.4)


def _patients(panel: Axes, score: ScoreAxis, cells: pd.DataFrame, row: int | float, *, healthy: bool) -> None:
    tails = cells[cells["patient"] != ""].groupby("patient")[score.key].quantile(TAIL)
    places = score.place(tails)
    # patients of one class lie on two close lines in turn, so that neighbours do not hide each other
    lines = row + 0.05 * (np.arange(len(places)) % 2)
    order = np.argsort(places, kind="stable")
    panel.scatter(
        places[order],
        lines,
        s=7 if len(places) <= MANY else 3,
        marker="o" if healthy else "D",
        facecolors="none",
        edgecolors=BLUE if healthy else INK,
        linewidths=0.6,
        clip_on=False,
        zorder=3,
    )


def _finish(panel: Axes, score: ScoreAxis, rows: int) -> None:
    ends = score.place(pd.Series([score.low, score.high]))
    margin = 0.02 * float(ends[1] - ends[0])
    panel.set_xlim(float(ends[0]) - margin, float(ends[1]) + margin)
    panel.set_ylim(rows - 0.45, -0.5)
    panel.set_xlabel(score.title, labelpad=1)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x", color=GRID, linewidth=0.5)
    panel.set_axisbelow(True)
    if score.log:
        _ratio_ticks(panel, score)
    if score.key != "anomaly":
        panel.axvline(0, color=QUIET, linewidth=0.7, linestyle="--")


def _ratio_ticks(panel: Axes, score: ScoreAxis) -> None:
    ratios = [r for r in (0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 100) if score.low <= r <= score.high]
    if len(ratios) > 6:
        ratios = [r for r in ratios if r not in (0.3, 3, 30)]
    panel.set_xticks(np.log10(ratios), [f"{r:g}×" for r in ratios])


# --- figure 5


def unseen_figure(tables: RunTables, evidence: Evidence) -> Figure | None:
    """A pair of half violins per class left out of training, and how well it is told from the controls."""
    cells = evidence.unseen_cells
    names = [name for name in evidence.unseen if (cells["label"] == name).any()]
    scores = score_axes(cells) if len(cells) else []
    if not names or not scores:
        return None
    figure = printed.blank(printed.DOUBLE, (20 + 18 * len(names)) * MM)
    *drawn, told = figure.subplots(1, len(scores) + 1, width_ratios=[*[1] * len(scores), 0.95])
    for panel, score in zip(drawn, scores, strict=True):
        for row, name in enumerate(names):
            _pair(panel, score, cells, name, tables.control, row)
        _finish(panel, score, len(names))
        panel.set_yticks([])
    drawn[0].set_yticks(range(len(names)), [_named(cells, name) for name in names])
    _areas(told, [areas(evidence.unseen[name], scores) for name in names])
    figure.legend(
        handles=_key(tables.control), loc="outside lower left", ncols=3, frameon=False, fontsize=SMALL
    )
    return figure


def _pair(panel: Axes, score: ScoreAxis, cells: pd.DataFrame, name: str, control: str, row: int) -> None:
    """Both as the models saw them that had not been trained on the class."""
    own = cells[cells["label"] == name]
    same = cells[(cells["label"] == control) & cells["left_out"].isin(own["left_out"].unique())]
    # the axis points down: the low side is the upper one
    violin(panel, score, same[score.key], row - 0.02, healthy=True, side="low")
    violin(panel, score, own[score.key], row + 0.02, healthy=False, side="high")


def _named(cells: pd.DataFrame, name: str) -> str:
    own = cells[cells["label"] == name]
    return f"{printed.wrapped(name)}\n{own['patient'].nunique()} patients\n{len(own):,} cells"


def _key(control: str) -> list[Patch]:
    style: dict[str, Any] = {"edgecolor": INK, "alpha": 0.75, "linewidth": 0.5}
    return [
        Patch(facecolor=BLUE, label=f"above: cells of {control}", **style),
        Patch(facecolor=ORANGE, hatch="////", label="below: cells of the unseen class", **style),
    ]


def areas(unseen: Mapping[str, Any], scores: Sequence[ScoreAxis]) -> list[str]:
    """The AUROCs of an unseen class as lines of text: of its cells, and of its patients against controls."""
    instances = unseen.get("instances") or {}
    names = [score.key.removesuffix("_ratio") for score in scores]
    estimates = [
        *((f"cells, {name}", (instances.get(name) or {}).get("auroc")) for name in names),
        ("patients, novelty", unseen.get("auroc_novelty_patient")),
        ("patients, P(any disease)", unseen.get("auroc_abnormal_probability_patient")),
    ]
    there = [(title, value) for title, value in estimates if value is not None]
    if all(value["value"] is None for _, value in there):
        return ["not estimable"]
    return [f"{title}: {_text(value)}" for title, value in there]


def _text(value: Mapping[str, Any]) -> str:
    numbers = {key: np.nan if value[key] is None else value[key] for key in ("value", "low", "high")}
    return estimate_text(numbers)


def _areas(panel: Axes, lines: list[list[str]]) -> None:
    for row, text in enumerate(lines):
        panel.text(0, row, "\n".join(text), va="center", linespacing=1.35)
    panel.set_ylim(len(lines) - 0.45, -0.5)
    panel.set_title("AUROC [95 % interval]", loc="left", fontsize=SMALL)
    panel.set_axis_off()
