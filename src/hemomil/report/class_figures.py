"""Figure 2: how well every method tells each class from the rest, with both kinds of spread."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hemomil.report import printed
from hemomil.report.printed import BLUE, GRID, INK, MM, QUIET, SMALL
from hemomil.report.tables import RunTables

METRICS = (("auprc", "AUPRC"), ("auroc", "AUROC"))
COLUMNS = 6


def class_figure(tables: RunTables, shares: Mapping[str, float]) -> Figure | None:
    """A panel per class and metric, a row per method; None without class-wise metrics.

    `shares`: of the samples, by class, as far as known; what guessing reaches."""
    shown = [(key, title, name) for key, title in METRICS for name in _measured(tables, key)]
    if not shown:
        return None
    methods = list(dict.fromkeys(tables.estimates["method"]))
    columns = _columns([[name for k, _, name in shown if k == key] for key, _ in METRICS])
    lines = -(-len(shown) // columns)
    figure = printed.blank(printed.DOUBLE, lines * (16 + 4.2 * len(methods)) * MM + 6 * MM)
    axes = printed.panels(figure, len(shown), columns)
    lowest = {
        "auprc": 0.0,
        "auroc": _lowest(tables.estimates, [name for k, _, name in shown if k == "auroc"]),
    }
    for number, (panel, (key, title, name)) in enumerate(zip(axes, shown, strict=True)):
        rows = tables.estimates[tables.estimates["metric"] == f"{key}_{name}"].set_index("method")
        _panel(panel, rows.reindex(methods), tables.method, lowest[key], named=number % columns == 0)
        panel.set_xlabel(title, labelpad=1)
        panel.set_title(printed.wrapped(name, 60 // columns + 8), loc="left")
        _chance(panel, shares.get(name, np.nan) if key == "auprc" else 0.5)
    figure.supxlabel(_caption(tables.estimates), fontsize=SMALL, x=0.01, ha="left")
    return figure


def _measured(tables: RunTables, key: str) -> list[str]:
    """The classes that have this metric, in their order."""
    there = set(tables.estimates["metric"])
    return [name for name in tables.classes if f"{key}_{name}" in there]


def _columns(classes: Sequence[Sequence[str]]) -> int:
    """Panels in a row: both metrics if they fit, else one metric, else an even part of one."""
    count = max(len(names) for names in classes)
    if sum(len(names) for names in classes) <= COLUMNS:
        return sum(len(names) for names in classes)
    return -(-count // -(-count // COLUMNS))


def _caption(estimates: pd.DataFrame) -> str:
    spread = "  Bar: ± SD over runs." if estimates["sd_runs"].notna().any() else ""
    return f"Dot: mean of the runs.  Line: 95 % interval over patients.{spread}  Dotted: guessing."


def _panel(panel: Axes, rows: pd.DataFrame, shown: str, lowest: float, *, named: bool) -> None:
    places = np.arange(len(rows))
    spread_bars(panel, rows, places, [BLUE if method == shown else QUIET for method in rows.index])
    panel.set_yticks(places, list(rows.index) if named else [])
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == shown else "normal")
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(lowest, 1.02)
    panel.set_xticks([0, 0.5, 1] if lowest < 0.3 else [0.5, 0.75, 1])
    if rows["value"].isna().all():
        few = "" if rows["n"].isna().all() else f"\n({int(rows['n'].max())} patients)"
        panel.text(0.5, 0.5, f"not\nestimable{few}", transform=panel.transAxes, ha="center", va="center")


def _lowest(estimates: pd.DataFrame, classes: Sequence[str]) -> float:
    """Where the axis of AUROC begins, the same for all classes."""
    rows = estimates[estimates["metric"].isin([f"auroc_{name}" for name in classes])]
    return float(np.nanmin([0.4, *(rows["low"] - 0.02), *(rows["value"] - 0.02)]))


def spread_bars(panel: Axes, rows: pd.DataFrame, places: Any, colours: Sequence[str]) -> None:
    """A dot per row, its interval over patients as a thin line, its spread over runs as a bar."""
    panel.hlines(places, rows["low"], rows["high"], colors=colours, linewidth=1)
    panel.barh(
        places,
        2 * rows["sd_runs"].fillna(0),
        left=rows["value"] - rows["sd_runs"].fillna(0),
        height=0.34,
        color=colours,
        alpha=0.35,
        linewidth=0,
    )
    panel.scatter(rows["value"], places, c=colours, s=12, zorder=3, linewidths=0)
    panel.grid(axis="x", color=GRID, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)


def _chance(panel: Axes, value: float) -> None:
    if np.isfinite(value):
        panel.axvline(value, color=INK, linewidth=0.7, linestyle=":")
