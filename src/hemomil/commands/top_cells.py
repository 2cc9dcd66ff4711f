"""The cells that an explanation shows: which, their pictures, and the table that lists them, top.csv."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hemomil.cohort import read_image
from hemomil.commands.console import Talk
from hemomil.explain.neighbours import NEIGHBOURS
from hemomil.explain.ranks import foremost
from hemomil.explain.strips import file_name, same_scale, strip
from hemomil.report.choose import strangest
from hemomil.report.pictures import Pictures
from hemomil.report.tables import RunTables
from hemomil.types import Notice

SIDE = 128
"""Pixels of a cell's picture."""
BOX = ("x0", "y0", "x1", "y1")
TOP_COLUMNS = (
    *("rank", "cell_id", "sample", "patient", "label", "predicted", "chosen_by", "contribution"),
    *("rank_in_sample", "attention", "attention_percentile", "anomaly", "anomaly_p"),
)


def top_cells(cells: pd.DataFrame, tables: RunTables, samples: Sequence[str], top: int) -> pd.DataFrame:
    """The `top` cells of highest contribution, then the `top` strangest that are not among them.

    Of these samples only, if any are named. `rank` is the place in the list, `file` still blank.
    """
    wanted = cells[cells["sample"].isin(samples)] if samples else cells
    counted = wanted[wanted["contribution"].notna()]
    counted = counted.sort_values(["contribution", "cell_id"], ascending=[False, True])
    shown = foremost(counted, strangest(wanted, top), top).rename(columns={"rank": "rank_in_sample"})
    called = tables.samples.set_index("sample")["predicted"]
    return shown.assign(rank=np.arange(1, len(shown) + 1), predicted=shown["sample"].map(called), file="")


def how_chosen(samples: Sequence[str], tables: RunTables, top: int) -> str:
    """One sentence that says which cells are shown."""
    of = f"{len(samples)} chosen" if samples else f"all {len(tables.samples)}"
    return (
        f"the {top} cells of highest contribution to the class predicted, of {of} samples together, "
        f"then those of the {top} least like healthy cells that are not among them"
    )


def with_crops(
    shown: pd.DataFrame, cells: pd.DataFrame, tables: RunTables, output: Path, talk: Talk
) -> tuple[pd.DataFrame, list[Notice]]:
    """A picture of each cell beside its nearest healthy ones; `file` names it, where there is one."""
    pictures = Pictures(tables.manifest, read_image)
    seen = {*shown["cell_id"], *shown["nearest_healthy"].explode()}
    places = cells.loc[cells["cell_id"].isin(seen), ["cell_id", "image", *BOX]]
    places = places.set_index("cell_id")
    (output / "crops").mkdir()
    rows = zip(shown["rank"], shown["sample"], shown["cell_id"], shown["nearest_healthy"], strict=True)
    files = []
    for rank, sample, cell_id, nearest in talk.track(rows, "cutting cells", len(shown)):
        picture = _strip(pictures, places.loc[[cell_id, *nearest]])
        files.append("" if picture is None else f"crops/{file_name(rank, sample, cell_id)}")
        if picture is not None:
            picture.save(output / files[-1])
    notices = [
        Notice(kind="image-unreadable", subject=image, text=f"{image}: {why}")
        for image, why in sorted(pictures.problems.items())
    ]
    if not shown["image"].astype(bool).all():
        text = "features were brought along: there are no images to cut cells from"
        notices.append(Notice(kind="no-images", subject="the cells", text=text))
    return shown.assign(file=files), notices


def _strip(pictures: Pictures, places: pd.DataFrame) -> Image.Image | None:
    """The first cell and the others beside it; None where there is no picture of the first."""
    squares = same_scale(places[list(BOX)].to_numpy(dtype=np.float64))
    tiles = [
        pictures.square(image, (x0, y0, x1, y1), SIDE)
        for image, (x0, y0, x1, y1) in zip(places["image"], squares.tolist(), strict=True)
    ]
    return None if tiles[0] is None else Image.fromarray(strip(tiles, SIDE))


def top_table(shown: pd.DataFrame) -> pd.DataFrame:
    """top.csv: `shown` with a column for each neighbour and its distance."""
    chances = [str(name) for name in shown if str(name).startswith("prob_")]
    table = shown[[*TOP_COLUMNS, *chances]].copy()
    for name in ("nearest_healthy", "nearest_healthy_distance"):
        for place in range(NEIGHBOURS):
            table[f"{name}_{place + 1}"] = shown[name].str.get(place)
    return table.assign(file=shown["file"])
