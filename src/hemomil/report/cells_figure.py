"""Figure 3: one sample of each class, its cells framed by two scores side by side.

The sample is chosen by rule, not by looks: of those of a class that were called rightly, the one whose
probability is the median; of its images, the one with most cells. Where images are single cells, or hold
only a few, the cells are shown by falling score instead.

Axes: H W pixels, N cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hemomil.report import printed
from hemomil.report.pictures import Pictures
from hemomil.report.printed import INK, MM, SMALL
from hemomil.report.scales import Scale, scales
from hemomil.report.tables import RunTables
from hemomil.report.views import BOX, one_cell_per_image

WIDEST = 1000
"""Pixels of a field: 85 mm at 300 dpi."""
THUMB, GAP = 64, 10
"""Pixels of a cell in a contact sheet, and between two."""
ACROSS, DOWN, LINES = 8, 5, 15
"""Cells of a contact sheet, at most, and lines of all sheets together: what a page holds."""
LEAST = 10
"""Cells of the image with most, in the middle one of the samples chosen: fewer are not worth a field."""
FEW = 3
"""Up to so many classes each have a line of their own; fields of more share one by twos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """A picture and its cells: where their frames lie in it, and their scores."""

    pixels: UInt8[np.ndarray, "H W 3"]
    frames: Float[np.ndarray, "N 4"]
    """x0 y0 x1 y1, in pixels of the picture."""
    values: Float[np.ndarray, "N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What is shown of one class: the same sample, framed by one score and by the other."""

    title: str
    pair: tuple[Framed, ...]


def cells_figure(tables: RunTables, pictures: Pictures) -> Figure | None:
    """One sample per class, by the rule above; None where there are no images or no scores."""
    shown = figure_scales(tables)
    chosen = [(name, row) for name in tables.classes if (row := typical_sample(tables, name)) is not None]
    if not shown or not chosen:
        return None
    pictured = tables.cells[tables.cells["image"] != ""]
    own = [pictured[pictured["sample"] == row["sample"]] for _, row in chosen]
    fields = bool(np.median([_most_in_one(cells) for cells in own]) >= LEAST)
    few = len(own) <= FEW
    down = min(DOWN, max(2, LINES // len(own)))
    pairs = [
        [_field(pictures, cells, s) if fields else _sheet(pictures, cells, s, down) for s in shown]
        for cells in own
    ]
    examples = [
        Example(
            title=f"{name}\n{_said(row)}, {_counted(len(found[0].values), len(cells), fields)}", pair=found
        )
        for (name, row), cells, pair in zip(chosen, own, pairs, strict=True)
        if len(found := tuple(framed for framed in pair if framed is not None)) == len(shown)
    ]
    return _drawn(examples, shown, 1 if few or not fields else 2) if examples else None


def figure_scales(tables: RunTables) -> list[Scale]:
    """Anomaly, and attention or, for methods without attention, contribution."""
    made = {scale.key: scale for scale in scales(tables.cells)}
    second = "attention_ratio" if "attention_ratio" in made else "contribution"
    return [made[key] for key in ("anomaly", second) if key in made]


def typical_sample(tables: RunTables, name: str) -> dict[str, Any] | None:
    """Of the samples of a class that have images, rightly called if any is, that of median probability.

    Of an even number the less probable of the middle two; ties go by name.
    """
    pictured = set(tables.cells.loc[tables.cells["image"] != "", "sample"])
    key = "label" if tables.labelled else "predicted"
    own = tables.samples[(tables.samples[key] == name) & tables.samples["sample"].isin(pictured)]
    right = own[own["predicted"] == name]
    by = f"prob_{name}" if f"prob_{name}" in own else "probability"
    ranked = (right if len(right) else own).sort_values([by, "sample"])
    if ranked.empty:
        return None
    return {str(k): value for k, value in ranked.iloc[(len(ranked) - 1) // 2].items()}


def _most_in_one(cells: pd.DataFrame) -> int:
    """How many cells of a sample lie in the one image that has most."""
    return 0 if one_cell_per_image(cells) else int(cells.groupby("image").size().max())


def _said(row: dict[str, Any]) -> str:
    called = f"called {row['predicted']} ({row['probability']:.2f})" if row["predicted"] else "nothing called"
    return f"{row['sample']}, {called}"


def _counted(shown: int, cells: int, fields: bool) -> str:
    if shown == cells:
        return f"{cells} cells"
    if fields:
        return f"{shown} of {cells} cells"
    return f"of {cells} cells the {shown - ACROSS} highest and the {ACROSS} lowest"


# --- a field


def _field(pictures: Pictures, cells: pd.DataFrame, scale: Scale) -> Framed | None:
    """The image with most cells, cut to them."""
    boxed = cells[cells[BOX].notna().all(axis=1)]
    if boxed.empty:
        return None
    counts = boxed.groupby("image").size()
    image = str(counts.idxmax())
    own = boxed[boxed["image"] == image].sort_values(scale.key, na_position="first", kind="stable")
    frames = own[BOX].to_numpy(np.float64)
    part = pictures.part(image, frames)
    if part is None:
        return None
    pixels, x0, y0 = part
    shrink = min(1.0, WIDEST / pixels.shape[1])
    size = max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    frames = (frames - [x0, y0, x0, y0]) * shrink
    return Framed(pixels=small, frames=frames, values=own[scale.key].to_numpy(np.float64))


# --- a contact sheet of single cells


def _sheet(pictures: Pictures, cells: pd.DataFrame, scale: Scale, down: int) -> Framed | None:
    """The cells by falling score, line by line; where not all have room, the last line has the lowest."""
    order = cells.sort_values([scale.key, "cell_id"], ascending=[False, True], na_position="last")
    gap = GAP if len(order) > ACROSS * down else 0
    if gap:
        order = pd.concat([order.head(ACROSS * (down - 1)), order.tail(ACROSS)])
    lines = -(-len(order) // ACROSS)
    step = THUMB + GAP
    pixels = np.full((lines * step + GAP + gap, ACROSS * step + GAP, 3), 255, np.uint8)
    frames = []
    for place, (_, cell) in enumerate(order.iterrows()):
        thumb = pictures.square(cell["image"], tuple(cell[BOX]), THUMB)
        if thumb is None:
            return None
        x, y = GAP + step * (place % ACROSS), GAP + step * (place // ACROSS)
        y += gap * (place // ACROSS == lines - 1)
        pixels[y : y + THUMB, x : x + THUMB] = thumb
        frames.append((x - 2, y - 2, x + THUMB + 1, y + THUMB + 1))
    values = order[scale.key].to_numpy(np.float64)
    return Framed(pixels=pixels, frames=np.array(frames, dtype=np.float64), values=values)


# --- drawing


def _drawn(examples: Sequence[Example], shown: Sequence[Scale], beside: int) -> Figure:
    columns = beside * len(shown)
    width = printed.DOUBLE if columns > 1 else printed.SINGLE
    heights = [
        max(_height(example, width / columns) for example in examples[first : first + beside])
        for first in range(0, len(examples), beside)
    ]
    figure = printed.blank(width, sum(heights) + len(heights) * 8.5 * MM + 13 * MM)
    grid = figure.add_gridspec(len(heights) + 1, columns, height_ratios=[*heights, 2.5 * MM])
    for place, example in enumerate(examples):
        row, column = divmod(place, beside)
        for part, (framed, scale) in enumerate(zip(example.pair, shown, strict=True)):
            panel = figure.add_subplot(grid[row, column * len(shown) + part])
            _framed(panel, framed, scale, thin=beside > 1)
            panel.set_title(example.title if part == 0 else "", loc="left", fontsize=SMALL)
    for part, scale in enumerate(shown):
        # the keys share the last line, each under its half
        _key(
            figure, figure.add_subplot(grid[-1, part * beside : (part + 1) * beside]), scale, part, len(shown)
        )
    return figure


def _height(example: Example, width: float) -> float:
    """Inches that the tallest of its pictures takes at this width; no more than a square."""
    shapes = [framed.pixels.shape for framed in example.pair]
    tallest = max(height / across for height, across, _ in shapes)
    return float(min(1.0, tallest)) * width


def _framed(panel: Axes, framed: Framed, scale: Scale, *, thin: bool) -> None:
    panel.imshow(framed.pixels, interpolation="none")
    steps = scale.steps(framed.values)
    colours = [scale.colours[step] if step >= 0 else "#9aa5ae" for step in steps]
    widths = np.array([scale.widths[step] if step >= 0 else 1 for step in steps]) * (0.3 if thin else 0.45)
    patches = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in framed.frames]
    # what is near the middle of a scale with two sides is pale: it needs a dark rim
    rim = INK if scale.key == "contribution" else "white"
    for edge, extra in ((rim, 0.5), (colours, 0.0)):
        panel.add_collection(
            PatchCollection(patches, facecolor="none", edgecolor=edge, linewidths=widths + extra)
        )
    panel.set_axis_off()


def _key(figure: Figure, panel: Axes, scale: Scale, part: int, parts: int) -> None:
    """The colours of a score, with its name and on which side it is."""
    norm = Normalize(scale.low, scale.high)
    colours = ScalarMappable(norm, ListedColormap(list(scale.colours)))
    bar = figure.colorbar(colours, cax=panel, orientation="horizontal")
    side = "" if parts == 1 else "left: " if part == 0 else "right: "
    bar.set_label(f"{side}{_score_title(scale)}", labelpad=1)
    bar.outline.set_visible(False)


def _score_title(scale: Scale) -> str:
    return {
        "anomaly": "anomaly (how unlike healthy cells)",
        "attention_ratio": "attention (× average cell)",
        "contribution": "contribution to the class called (log-odds)",
    }[scale.key]
