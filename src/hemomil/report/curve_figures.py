"""ROC and precision-recall curves with their bands, and the reliability diagram, of the shown method."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hemomil.report import printed
from hemomil.report.evidence import Calibration, Curve
from hemomil.report.printed import BLUE, FILL, GRID, INK, MM, QUIET, SMALL
from hemomil.report.tables import RunTables, records
from hemomil.report.words import estimate_text

COLUMNS = 4
SIDE = 43 * MM


def roc_figure(tables: RunTables, curves: Mapping[str, Curve]) -> Figure | None:
    """True against false positive rate, a panel per class; None without a curve that is estimable."""
    return _curves_figure(tables, curves, "auroc", ("false positive rate", "true positive rate"))


def precision_recall_figure(tables: RunTables, curves: Mapping[str, Curve]) -> Figure | None:
    """Precision against recall, a panel per class; None without a curve that is estimable."""
    return _curves_figure(tables, curves, "auprc", ("recall", "precision"))


def _curves_figure(
    tables: RunTables, curves: Mapping[str, Curve], metric: str, axes_names: tuple[str, str]
) -> Figure | None:
    names = [name for name in _told_apart(tables, curves) if np.isfinite(curves[name].value).any()]
    if not names:
        return None
    rows = -(-len(names) // COLUMNS)
    columns = -(-len(names) // rows)
    width = max(columns * SIDE, printed.SINGLE) if len(names) > 1 else printed.SINGLE
    figure = printed.blank(width, rows * (min(width / columns, 60 * MM) + 8 * MM))
    found = printed.panels(figure, len(names), columns)
    for number, (panel, name) in enumerate(zip(found, names, strict=True)):
        _curve(panel, curves[name], diagonal=metric == "auroc")
        area = _estimate(tables, f"{metric}_{name}")
        panel.set_title(f"{printed.wrapped(name, 24)}\n{metric.upper()} {area}", loc="left", fontsize=SMALL)
        panel.set_xlabel(axes_names[0], labelpad=1)
        panel.set_ylabel(axes_names[1] if number % columns == 0 else "", labelpad=1)
    return figure


def _told_apart(tables: RunTables, curves: Mapping[str, Curve]) -> list[str]:
    """All classes; of two only the disease, since the other curve is the same one turned round."""
    names = [name for name in tables.classes if name in curves]
    return [name for name in names if name != tables.control] if len(names) == 2 else names


def _estimate(tables: RunTables, metric: str) -> str:
    rows = tables.estimates[
        (tables.estimates["metric"] == metric) & (tables.estimates["method"] == tables.method)
    ]
    return estimate_text(records(rows)[0]) if len(rows) else ""


def _curve(panel: Axes, curve: Curve, *, diagonal: bool) -> None:
    panel.fill_between(curve.x, curve.low, curve.high, color=FILL, linewidth=0)
    panel.plot(curve.x, curve.value, color=BLUE, linewidth=1.2)
    chance = ([0, 1], [0, 1]) if diagonal else ([0, 1], [curve.share] * 2)
    panel.plot(*chance, color=INK, linewidth=0.7, linestyle=":")
    _square(panel)


def _square(panel: Axes) -> None:
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_aspect("equal")
    panel.grid(color=GRID, linewidth=0.5)
    panel.set_axisbelow(True)


def reliability_figure(tables: RunTables, calibration: Calibration | None) -> Figure | None:
    """How often the called class was right at each confidence, and how many samples have it."""
    if calibration is None or not np.isfinite(calibration.accuracy).any():
        return None
    figure = printed.blank(printed.SINGLE, 92 * MM)
    above, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    _points(above, calibration)
    above.set_title(_scores(tables), loc="left", fontsize=SMALL)
    edges = np.linspace(0, 1, len(calibration.share) + 1)
    below.stairs(calibration.share, edges, fill=True, color=FILL, edgecolor=QUIET, linewidth=0.6)
    below.set_ylabel("share of\nsamples")
    below.set_xlabel("probability of the class called")
    return figure


def _points(panel: Axes, calibration: Calibration) -> None:
    known = np.isfinite(calibration.accuracy)
    points = pd.DataFrame(
        {k: getattr(calibration, k)[known] for k in ("confidence", "accuracy", "low", "high")}
    )
    panel.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
    panel.vlines(points["confidence"], points["low"], points["high"], colors=BLUE, linewidth=1)
    panel.plot(
        points["confidence"], points["accuracy"], color=BLUE, marker="o", markersize=3.5, linewidth=0.8
    )
    panel.set_ylabel("share called rightly")
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    panel.grid(color=GRID, linewidth=0.5)


def _scores(tables: RunTables) -> str:
    told = [
        (title, _estimate(tables, metric)) for metric, title in (("ece", "ECE"), ("brier", "Brier score"))
    ]
    return "\n".join(f"{title} {text}" for title, text in told if text)
