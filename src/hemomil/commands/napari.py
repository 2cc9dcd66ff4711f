"""The plugin that napari finds (napari.yaml): reads a run folder, shows a sample, image and score of it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from hemomil.cohort import read_image
from hemomil.commands.export import shown_run
from hemomil.errors import RunFolderError
from hemomil.export import LayerData, box_layer, image_layer, span_of
from hemomil.report.tables import RunTables

SCORES = ("anomaly", "attention", "contribution", "weight")


def tables_of(run: Path) -> RunTables:
    """A run, read once for all images that are looked at, and again when it was made anew."""
    return _tables(run, (run / "run.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _tables(run: Path, _made: int) -> RunTables:
    return shown_run(run, None)


def reader_of(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """What napari asks before it opens a path: a reader of run folders (or of a file in them), or None."""
    first = Path(path if isinstance(path, str) else path[0])
    run = first if first.is_dir() else first.parent
    if not all((run / name).is_file() for name in ("run.json", "samples.csv", "cells.parquet")):
        return None
    return lambda _: run_layers(run)


def run_layers(
    run: Path, sample: str | None = None, image: str | None = None, score: str | None = None
) -> list[LayerData]:
    """One image of a run and the boxes of its cells, coloured by a score; by default the first of each.

    Raises RunFolderError for a sample, image or score that the run has not, and ImageError.
    """
    tables = tables_of(run)
    sample = _choice("sample", sample, samples_of(tables))
    image = _choice("image", image, images_of(tables, sample))
    score = _choice("score", score, scores_of(tables))
    if tables.manifest is None:
        raise RunFolderError(f"run.json of {run} names no manifest", hint="was it edited by hand?")
    cells = tables.cells[(tables.cells["sample"] == sample) & (tables.cells["image"] == image)]
    span = span_of(tables.cells[score].to_numpy(float), score)
    return [
        image_layer(read_image(tables.manifest.parent / image), "image"),
        box_layer(cells, score, span, "cells"),
    ]


def samples_of(tables: RunTables) -> list[str]:
    """Samples with cells that lie in an image."""
    return list(tables.cells.loc[tables.cells["image"] != "", "sample"].unique())


def images_of(tables: RunTables, sample: str) -> list[str]:
    """Images with cells of the sample."""
    return list(tables.cells.loc[tables.cells["sample"] == sample, "image"].unique())


def scores_of(tables: RunTables) -> list[str]:
    """Scores that any cell has."""
    classes = [f"prob_{name}" for name in tables.classes]
    return [name for name in (*SCORES, *classes) if name in tables.cells and tables.cells[name].notna().any()]


def _choice(what: str, wanted: str | None, found: Sequence[str]) -> str:
    if not found:
        raise RunFolderError(
            f"this run has no {what} to show", hint="a run of features brought along has no images"
        )
    if wanted is not None and wanted not in found:
        raise RunFolderError(f"{what} {wanted!r} is not in this run", hint=f"it has {', '.join(found[:10])}")
    return wanted or found[0]


def show_layers(viewer: Any, layers: Sequence[LayerData]) -> None:
    """Put layers into a viewer, in place of those of the same names."""
    for data, told, kind in layers:
        if told["name"] in viewer.layers:
            viewer.layers.remove(told["name"])
        getattr(viewer, f"add_{kind}")(data, **told)


def picker() -> Any:
    """The widget (magicgui): choose a run folder, a sample, an image and a score; Show shows them."""
    gui = import_module("magicgui.widgets")
    run = gui.FileEdit(label="run folder", mode="d")
    sample, image, score = (gui.ComboBox(label=name, choices=[]) for name in ("sample", "image", "score"))
    button = gui.PushButton(text="Show")

    def offer_samples() -> None:
        tables = tables_of(run.value) if reader_of(str(run.value)) else None
        score.choices = scores_of(tables) if tables else []
        sample.choices = samples_of(tables) if tables else []
        offer_images()

    def offer_images() -> None:
        image.choices = images_of(tables_of(run.value), sample.value) if sample.value else []

    def show() -> None:
        layers = run_layers(run.value, sample.value, image.value, score.value)
        show_layers(import_module("napari").current_viewer(), layers)

    run.changed.connect(offer_samples)
    sample.changed.connect(offer_images)
    button.changed.connect(show)
    return gui.Container(widgets=[run, sample, image, score, button])
