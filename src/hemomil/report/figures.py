"""The figures of a run, as SVG and PNG at the size at which they are printed.

`methods`, `confusion`: here. `classes` (the paper's Figure 2), `cells` (3), `scores` (4), `unseen` (5), and
`roc`, `precision-recall`, `reliability`, `deletion`: in the files named so. What a run lacks is not drawn.

Axes: K classes.
"""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.figure import Figure

from hemomil.report import printed
from hemomil.report.cells_figure import cells_figure
from hemomil.report.class_figures import class_figure, spread_bars
from hemomil.report.curve_figures import precision_recall_figure, reliability_figure, roc_figure
from hemomil.report.deletion_figure import deletion_figure
from hemomil.report.evidence import Evidence, read_evidence
from hemomil.report.pictures import Pictures
from hemomil.report.printed import BLUE, INK, MM, QUIET, SMALL
from hemomil.report.score_figures import score_figure, unseen_figure
from hemomil.report.tables import RunTables
from hemomil.report.words import metric_title

HEADLINE = ("accuracy", "macro_f1", "macro_auroc", "macro_auprc")


def write_figures(tables: RunTables, pictures: Pictures) -> dict[str, bytes]:
    """Write every figure that this run has into `figures/` as SVG and PNG; the SVG by name."""
    folder = tables.folder / "figures"
    with matplotlib.rc_context(printed.STYLE):
        made = {name: figure for name, figure in _figures(tables, pictures) if figure is not None}
        return {name: printed.save(figure, folder, name) for name, figure in made.items()}


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


def _figures(tables: RunTables, pictures: Pictures) -> Iterator[tuple[str, Figure | None]]:
    evidence = read_evidence(tables)
    yield "methods", _methods(tables.estimates, tables.method) if len(tables.estimates) else None
    yield "classes", class_figure(tables, _shares(tables, evidence))
    yield "roc", roc_figure(tables, evidence.roc)
    yield "precision-recall", precision_recall_figure(tables, evidence.precision_recall)
    yield "reliability", reliability_figure(tables, evidence.calibration)
    yield "deletion", deletion_figure(tables, evidence.deletion)
    yield "confusion", _confusion(confusion(tables)) if tables.labelled else None
    yield "cells", cells_figure(tables, pictures)
    yield "scores", score_figure(tables)
    yield "unseen", unseen_figure(tables, evidence)


def _shares(tables: RunTables, evidence: Evidence) -> dict[str, float]:
    """Share of each class among the samples that the metrics are of; nothing where that is not known."""
    if evidence.precision_recall:
        return {name: curve.share for name, curve in evidence.precision_recall.items()}
    known = tables.samples[tables.samples["label"] != ""]
    return {} if tables.evaluated_on else dict(known["label"].value_counts(normalize=True))


def _methods(estimates: pd.DataFrame, shown: str) -> Figure:
    """A dot and its two spreads per method, a panel per headline metric."""
    metrics = headline_metrics(estimates)
    methods = list(dict.fromkeys(estimates["method"]))
    figure = printed.blank(printed.DOUBLE, (14 + 6.5 * len(methods)) * MM)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        chosen = estimates[(estimates["metric"] == metric) & (estimates["score"] == "")].set_index("method")
        _dots(panel, chosen.reindex(methods), shown)
        panel.set_title(metric_title(metric), loc="left")
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.5, -0.75)
    return figure


def _dots(panel: Any, rows: pd.DataFrame, shown: str) -> None:
    places = np.arange(len(rows))
    spread_bars(panel, rows, places, [BLUE if method == shown else QUIET for method in rows.index])
    for place, value in zip(places, rows["value"], strict=True):
        label = "not estimable" if np.isnan(value) else f"{value:.2f}"
        where = 0.7 if np.isnan(value) else value
        panel.annotate(label, (where, place), (0, 4), textcoords="offset points", ha="center", fontsize=SMALL)
    panel.set_xlim(min(0.4, float(np.nanmin([0.4, rows["low"].min() - 0.06]))), 1.05)


def _confusion(counts: pd.DataFrame) -> Figure:
    """Shares of each known class as shades, numbers of samples as text."""
    values: Int[np.ndarray, "K K"] = counts.to_numpy()
    share = values / values.sum(axis=1, keepdims=True).clip(1)
    width = printed.SINGLE if len(counts) <= 6 else printed.DOUBLE
    longest = max(len(name) for name in counts.columns)
    figure = printed.blank(width, (14 + longest + 7.5 * len(counts)) * MM)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, str(value), ha="center", va="center", color=ink)
    axes.set_xticks(range(counts.shape[1]), counts.columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(counts)), [printed.wrapped(name) for name in counts.index])
    axes.set_xlabel("predicted")
    axes.set_ylabel("known class")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
