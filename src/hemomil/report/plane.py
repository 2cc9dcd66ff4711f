"""The plane of one sample: how strange each cell is against how much it counted, drawn by Bokeh.

Both axes say how rare a cell is among those that the same model judged: 1 is one in ten, 2 one in a hundred.
"""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Plot, Range1d
from bokeh.models.annotations import BoxAnnotation, Label, Span
from bokeh.plotting import figure
from bokeh.resources import Resources

from hemomil.report.printed import INK, QUIET
from hemomil.report.ranks import COUNTED, IGNORED, TOP

HEIGHT = 400
MARKS = {
    "": ("circle", "#0072b2"),
    "ignored": ("diamond", "#e69f00"),
    "counted": ("triangle", "#d55e00"),
}
"""Marker and colour of each group of cells."""
TICKS: dict[Any, Any] = {
    float(-np.log10(0.5)): "half",
    1.0: "top 10 %",
    2.0: "top 1 %",
    3.0: "top 0.1 %",
    4.0: "top 0.01 %",
}
MODEL_ID = re.compile(r'"(p\d+)"')


def bokeh_js() -> str:
    """BokehJS without its widgets, to be carried by the page."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def shown_points(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    """The cells that have both ranks; of too many, those that are highest in either."""
    known = cells[cells["strange"].notna() & cells["counted"].notna()]
    highest = known[["strange", "counted"]].max(axis=1)
    order = known.assign(_by=highest).sort_values(["_by", "cell_id"], ascending=[False, True])
    return order.drop(columns="_by").head(most)


def plane_item(points: pd.DataFrame, key: str, prefix: str) -> str:
    """What `Bokeh.embed.embed_item` draws, as JSON with ids that begin with `prefix` and never change."""
    plot = _plot(points, COUNTED[key])
    text = json.dumps(json_item(plot), separators=(",", ":"))
    # Bokeh counts its models through the life of the process: numbered anew, a page is the same every time
    numbers: dict[str, str] = {}
    return MODEL_ID.sub(lambda found: f'"{numbers.setdefault(found[1], f"{prefix}-{len(numbers)}")}"', text)


def _plot(points: pd.DataFrame, counted: str) -> Plot:
    across, up = _rarity(points["strange"]), _rarity(points["counted"])
    limits = [max(2.2, float(values.max()) + 0.15) for values in (across, up)]
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_range=Range1d(start=-0.08, end=limits[0]),
        y_range=Range1d(start=-0.08, end=limits[1]),
        x_axis_label="anomaly: how strange →",
        y_axis_label=f"{counted}: how much it counted →",
        tools=[HoverTool(tooltips=None)],
        toolbar_location=None,
        output_backend="canvas",
    )
    _name_corners(plot, limits)
    for group, (marker, colour) in MARKS.items():
        own = (points["group"] == group).to_numpy()
        if own.any():
            source = ColumnDataSource(
                {
                    "x": across[own].astype(np.float32),
                    "y": up[own].astype(np.float32),
                    "n": points["number"].to_numpy(np.int32)[own],
                }
            )
            look: dict[str, Any] = {"fill_color": colour, "line_color": "white", "size": 11 if group else 7}
            plot.scatter("x", "y", source=source, marker=marker, fill_alpha=0.8, **look)
    return _dressed(plot)


def _rarity(quantile: "pd.Series[float]") -> np.ndarray:
    """0 for the last of all cells, 1 for one in ten, 2 for one in a hundred."""
    return np.round(-np.log10(1 - quantile.to_numpy(dtype=np.float64)), 4)


def _name_corners(plot: Plot, limits: list[float]) -> None:
    strange, counted, ignored = (float(-np.log10(1 - share)) for share in (TOP, TOP, IGNORED))
    corners = (
        ("counted and strange", counted, limits[1], MARKS["counted"][1]),
        ("strange but ignored", -0.08, ignored, MARKS["ignored"][1]),
    )
    for name, bottom, top, colour in corners:
        plot.add_layout(
            BoxAnnotation(left=strange, bottom=bottom, top=top, fill_color=colour, fill_alpha=0.08)
        )
        plot.add_layout(
            Label(
                x=limits[0],
                y=top,
                text=name,
                text_align="right",
                text_baseline="top",
                x_offset=-6,
                y_offset=-4,
                text_font_size="12px",
                text_font_style="bold",
                text_color=INK,
            )
        )
    look: dict[str, Any] = {"line_color": QUIET, "line_dash": [4, 4]}
    plot.add_layout(Span(location=strange, dimension="height", **look))
    plot.add_layout(Span(location=counted, dimension="width", **look))
    plot.add_layout(Span(location=ignored, dimension="width", **look))


def _dressed(plot: Plot) -> Plot:
    """Ticks in words, quiet lines, text that can be read."""
    for axis in plot.axis:
        axis.ticker = FixedTicker(ticks=list(TICKS))
        axis.major_label_overrides = TICKS
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_color = axis.axis_label_text_color = INK
    plot.grid.visible = False
    plot.outline_line_color = None
    return plot
