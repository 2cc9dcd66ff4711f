"""The three figures of a run: methods with intervals, scores per class, confusion of the shown method.

Axes: K classes.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.figure import Figure

from hemomil.files import written_whole
from hemomil.report.tables import RunTables
from hemomil.report.words import metric_title

INK, QUIET, FILL, ACCENT = "#1b2733", "#6b7885", "#b9d3e6", "#1f5f8b"
HEADLINE = ("accuracy", "macro_f1", "macro_auroc", "macro_auprc")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "hemomil",  # ids in the SVG, and so its bytes, are the same every time
    "svg.fonttype": "path",
}


def write_figures(tables: RunTables) -> dict[str, bytes]:
    """Write every figure that this run has into `figures/` as SVG and PNG; the SVG by name."""
    with matplotlib.rc_context(STYLE):
        made = dict(_figures(tables))
        return {name: _save(figure, tables.folder / "figures", name) for name, figure in made.items()}


def headline_metrics(estimates: pd.DataFrame) -> list[str]:
    """The metrics that lead: the usual ones of those there are, else the first four."""
    there = list(dict.fromkeys(estimates.loc[estimates["score"] == "", "metric"]))
    usual = [name for name in HEADLINE if name in there]
    return usual or there[:4]


def confusion(tables: RunTables) -> pd.DataFrame:
    """Samples by known class (rows) and predicted class (columns)."""
    known = tables.samples[(tables.samples["label"] != "") & (tables.samples["predicted"] != "")]
    rows = [name for name in tables.classes if (known["label"] == name).any()]
    counts = pd.crosstab(known["label"], known["predicted"])
    return counts.reindex(index=rows, columns=list(tables.classes), fill_value=0)


def _figures(tables: RunTables) -> Iterator[tuple[str, Figure]]:
    if len(tables.estimates):
        yield "methods", _methods(tables.estimates, tables.method)
    if tables.labelled:
        yield "confusion", _confusion(confusion(tables))
    for name, title in (
        ("anomaly", "anomaly: distance to healthy cells"),
        ("attention_ratio", "attention: × average cell"),
    ):
        if tables.cells[name].notna().any():
            yield f"{name.removesuffix('_ratio')}-by-class", _distributions(tables, name, title)


def _methods(estimates: pd.DataFrame, shown: str) -> Figure:
    """A dot and its interval per method, a panel per headline metric."""
    metrics = headline_metrics(estimates)
    methods = list(dict.fromkeys(estimates["method"]))
    figure = Figure(figsize=(2.4 + 2.3 * len(metrics), 1.1 + 0.34 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        chosen = estimates[(estimates["metric"] == metric) & (estimates["score"] == "")].set_index("method")
        _dots(panel, chosen.reindex(methods), shown)
        panel.set_title(metric_title(metric), loc="left", fontsize=10)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    return figure


def _dots(panel: Any, rows: pd.DataFrame, shown: str) -> None:
    positions = np.arange(len(rows))
    colours = [ACCENT if method == shown else QUIET for method in rows.index]
    panel.hlines(positions, rows["low"], rows["high"], colors=colours, linewidth=2)
    panel.scatter(rows["value"], positions, c=colours, s=34, zorder=3)
    for position, value in zip(positions, rows["value"], strict=True):
        label = "not estimable" if np.isnan(value) else f"{value:.2f}"
        where = 0.5 if np.isnan(value) else value
        panel.annotate(label, (where, position), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    panel.set_xlim(min(0.4, float(np.nanmin([0.4, rows["low"].min()]))), 1.02)
    panel.set_ylim(-0.7, len(rows) - 0.4)
    panel.grid(axis="x", color="#e3e8ec")
    panel.tick_params(axis="y", length=0)


def _confusion(counts: pd.DataFrame) -> Figure:
    """Shares of each known class as shades, numbers of samples as text."""
    values: Int[np.ndarray, "K K"] = counts.to_numpy()
    share = values / values.sum(axis=1, keepdims=True).clip(1)
    figure = Figure(figsize=(6.4, 1.5 + 0.4 * len(counts)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, str(value), ha="center", va="center", color=ink)
    axes.set_xticks(range(counts.shape[1]), counts.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(counts)), counts.index)
    axes.set_xlabel("predicted")
    axes.set_ylabel("known class")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _distributions(tables: RunTables, score: str, title: str) -> Figure:
    """A histogram per class on one axis, with its median and its strangest twentieth named."""
    by = "label" if tables.labelled else "predicted"
    of_sample = tables.samples.set_index("sample")[by]
    groups = tables.cells[score].groupby(tables.cells["sample"].map(of_sample))
    names = [name for name in tables.classes if name in groups.groups]
    high = float(tables.cells[score].quantile(0.995))
    low = min(0.0, float(tables.cells[score].min()))
    figure = Figure(figsize=(6.4, 0.9 + 0.62 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        _ridge(axes, groups.get_group(name).dropna(), row, np.linspace(low, high, 61))
    axes.set_yticks(
        np.arange(len(names)) - 0.25, [f"{name}\n{len(groups.get_group(name)):,} cells" for name in names]
    )
    axes.set_ylim(len(names) - 0.85, -0.95)
    axes.set_xlabel(title)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _ridge(axes: Any, values: "pd.Series[float]", row: int, edges: np.ndarray) -> None:
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    heights = 0.6 * counts / max(counts.max(), 1)
    axes.stairs(row - heights, edges, baseline=row, fill=True, color=FILL)
    axes.stairs(row - heights, edges, baseline=row, color=ACCENT, linewidth=0.8)
    for share, label in ((0.5, "median"), (0.95, "top 5 %")):
        if len(values):
            at = float(values.quantile(share))
            axes.vlines(at, row - 0.72, row, color=INK, linewidth=1, linestyle="-" if share == 0.5 else ":")
            axes.annotate(
                f"{label} {at:.1f}", (at, row - 0.72), (3, -3), textcoords="offset points", fontsize=8
            )


def _save(figure: Figure, folder: Path, name: str) -> bytes:
    for kind, options in (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": 150, "metadata": {"Software": None}}),
    ):
        with written_whole(folder / f"{name}.{kind}") as part:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            part.write_bytes(buffer.getvalue())
    return (folder / f"{name}.svg").read_bytes()
