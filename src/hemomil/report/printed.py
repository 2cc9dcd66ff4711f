"""How figures are printed: widths of columns, sizes of type, colours that the colour-blind tell apart."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hemomil.files import written_whole

MM = 1 / 25.4
SINGLE, DOUBLE = 85 * MM, 180 * MM
"""Widths of one and of two columns, in inches."""
SMALL, TEXT = 7, 8
"""Points; nothing is smaller."""
DPI = 300

INK, QUIET, GRID, FILL = "#1b2733", "#6b7885", "#e3e8ec", "#b9d3e6"
BLUE, ORANGE = "#0072B2", "#E69F00"
"""Of Okabe and Ito's palette; what they tell apart also differs in mark, hatch or place."""

STYLE: dict[Any, Any] = {
    "font.size": SMALL,
    "font.family": "DejaVu Sans",
    "axes.titlesize": TEXT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "hemomil",  # ids in the SVG, and so its bytes, are the same every time
    "svg.fonttype": "path",
}


def blank(width: float, height: float) -> Figure:
    """A figure of this size in inches that keeps its labels inside."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` panels, row by row, at most `columns` in a row."""
    columns = min(columns, count)
    found: list[Axes] = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for spare in found[count:]:
        spare.remove()
    return found[:count]


def wrapped(name: str, width: int = 18) -> str:
    """A long name on several lines."""
    return "\n".join(textwrap.wrap(name, width, break_long_words=True)) or name


def _settle(figure: Figure) -> None:
    """Lay the figure out once, on round numbers."""
    # the solver's last digits vary from time to time, and SVG names its clip paths by them
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel in figure.axes:
        x0, y0, width, height = (round(value, 6) for value in panel.get_position(original=True).bounds)
        panel.set_position((x0, y0, width, height))


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write the figure as SVG and PNG; returns the SVG."""
    _settle(figure)
    for kind, options in (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": DPI, "metadata": {"Software": None}}),
    ):
        with written_whole(folder / f"{name}.{kind}") as part:
            figure.savefig(part, format=kind, **options)
    return (folder / f"{name}.svg").read_bytes()
