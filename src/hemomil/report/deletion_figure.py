"""Deletion curves: what a diagnosis loses without the cells said to count, and without random ones."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hemomil.report import printed
from hemomil.report.evidence import Curve
from hemomil.report.printed import BLUE, FILL, GRID, INK, MM, QUIET, SMALL
from hemomil.report.tables import RunTables, records
from hemomil.report.words import estimate_text

COLUMNS = 4
SIDE = 43 * MM
LEAST_RANGE = 0.1
"""Of probability: a smaller difference does not fill the axis."""
CAPTION = (
    "Samples of more than {most} cells.  Band: 95 % interval over patients.\n"
    "Gain: mean distance of the lines, over all samples."
)


def deletion_figure(tables: RunTables, curves: Mapping[str, tuple[Curve, Curve]]) -> Figure | None:
    """Probability of the class called against cells taken out, a panel per method; None without a value."""
    shown = {name: pair for name, pair in curves.items() if np.isfinite(pair[0].value).all()}
    if not shown:
        return None
    rows = -(-len(shown) // COLUMNS)
    columns = -(-len(shown) // rows)
    width = max(columns * SIDE, printed.SINGLE)
    figure = printed.blank(width, rows * 46 * MM + 20 * MM)
    low, high = _range(shown)
    for number, (panel, name) in enumerate(
        zip(printed.panels(figure, len(shown), columns), shown, strict=True)
    ):
        _panel(panel, *shown[name])
        panel.set_ylim(low, high)
        panel.set_title(f"{name}\n{_gain(tables, name)}", loc="left", fontsize=SMALL)
        panel.set_ylabel("probability of\nthe class called" if number % columns == 0 else "", labelpad=1)
    most = int(next(iter(shown.values()))[0].x[-1])
    figure.supxlabel(CAPTION.format(most=most), fontsize=SMALL, x=0.01, ha="left")
    figure.legend(handles=_key(), loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def _range(curves: Mapping[str, tuple[Curve, Curve]]) -> tuple[float, float]:
    """Of all panels: what the bands need, within 0 to 1."""
    low = min(float(curve.low.min()) for pair in curves.values() for curve in pair)
    high = max(float(curve.high.max()) for pair in curves.values() for curve in pair)
    spare = max(0.0, LEAST_RANGE - (high - low)) / 2 + 0.02
    return max(0.0, low - spare), min(1.0, high + spare)


def _panel(panel: Axes, top: Curve, random: Curve) -> None:
    panel.fill_between(random.x, random.low, random.high, color=GRID, linewidth=0)
    panel.fill_between(top.x, top.low, top.high, color=FILL, alpha=0.6, linewidth=0)
    panel.plot(random.x, random.value, color=INK, linewidth=1, linestyle="--")
    panel.plot(top.x, top.value, color=BLUE, linewidth=1.2, marker="o", markersize=2.5)
    panel.set_xlim(-0.2, float(top.x[-1]) + 0.2)
    panel.set_xticks(top.x, [f"{int(k)}" for k in top.x])
    panel.set_xlabel("cells taken out", labelpad=1)
    panel.grid(axis="y", color=QUIET, alpha=0.3, linewidth=0.5)
    panel.set_axisbelow(True)


def _gain(tables: RunTables, method: str) -> str:
    """`gain 0.12 [0.05, 0.20]` of metrics.json."""
    found = tables.others.get("deletion")
    if found is None:
        return ""
    rows = found[(found["score"] == method) & (found["metric"] == "deletion_gain")]
    return f"gain {estimate_text(records(rows)[0])}" if len(rows) else ""


def _key() -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=BLUE,
            linewidth=1.2,
            marker="o",
            markersize=2.5,
            label="cells of highest contribution",
        ),
        Line2D([], [], color=INK, linewidth=1, linestyle="--", label="as many random cells"),
    ]
