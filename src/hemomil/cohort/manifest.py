"""Read manifest.csv, a row per image, into a cohort; every problem is reported at once, with its row."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import pandas as pd

from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.cohort.samples import ALIASES as SAMPLE_ALIASES
from hemomil.cohort.samples import blank_problems, numbered, sample_problems, shared_metadata
from hemomil.cohort.table import find_columns, read_table, resembling
from hemomil.errors import ManifestError
from hemomil.types import Cohort, ImageRow, Region, Sample

ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image_path", "filename", "file_name", "filepath", "file", "path"),
    **SAMPLE_ALIASES,
    "kind": (),
    "region": (),
    "site": (),
    "cell_label": (),
}
"""Every column with a meaning, and the other names accepted for it, case-blind."""
KINDS = ("field", "cell")


def read_manifest(path: Path, *, control: str = "control", labels_needed: bool = True) -> Cohort:
    """Read and check a manifest (DESIGN §2).

    Ids are text: `007` keeps its zeros, `NA` is a name. Image paths are relative to the manifest.
    Columns without a meaning of their own become metadata. `labels_needed=False` allows a missing
    or blank label (prediction). Raises ManifestError, listing every problem with its row.
    """
    return manifest_cohort(
        path, control, labels_needed=labels_needed, find=lambda name: _find(path.parent, name)
    )


def manifest_cohort(path: Path, control: str, *, labels_needed: bool, find: Callable[[str], Path]) -> Cohort:
    """`read_manifest` with a rule of its own for where the file named in `image` lies."""
    raw, problems = read_table(path, ManifestError)
    required = ["image", "sample", "patient", *(["label"] if labels_needed else [])]
    found, column_problems = find_columns(list(raw.columns), ALIASES, required)
    problems += column_problems + _misspelt(list(raw.columns), found)
    # a doubled or missing column makes every row wrong: say so once and stop there
    refuse_if_any(problems, ManifestError, path)
    table, metadata = _named(raw, found)
    paths = {str(name): find(str(name)) for name in table["image"].unique() if name}
    problems = _row_problems(table, paths)
    problems += sample_problems(table, control, labels_needed=labels_needed)
    refuse_if_any(sorted(problems, key=lambda p: p.row or 0), ManifestError, path)
    return Cohort(samples=_samples(table, paths, metadata), control=control)


def _find(folder: Path, name: str) -> Path:
    path = folder / name
    # a manifest written on Windows, read elsewhere
    return path if path.is_file() or "\\" not in name else folder / name.replace("\\", "/")


def _misspelt(header: list[str], found: dict[str, str]) -> list[Problem]:
    """An optional column under nearly its name would be taken for metadata, and cells for fields."""
    problems = []
    for name in ("kind", "region", "cell_label"):
        free = [h for h in header if h not in found.values()]
        meant = None if name in found else resembling(free, (name,), cutoff=0.8)
        if meant:
            remedy = f"rename it to {name!r}, or give it a name that cannot be mistaken"
            problems.append(Problem(1, f"column {meant!r}", f"looks like {name!r}", remedy))
    return problems


def _named(raw: pd.DataFrame, found: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Columns under their own names, absent ones blank; and the names of the metadata columns."""
    metadata = [str(h) for h in raw.columns if h not in found.values()]
    known = {name: raw[found[name]] if name in found else "" for name in ALIASES}
    table = pd.DataFrame({**known, **{f"metadata {h}": raw[h] for h in metadata}}, index=raw.index)
    table["kind"] = table["kind"].str.casefold().replace("", "field")
    return table, metadata


def _row_problems(table: pd.DataFrame, paths: dict[str, Path]) -> list[Problem]:
    return [
        *blank_problems(table, "image"),
        *_file_problems(table, paths),
        *_kind_problems(table),
        *_region_problems(table),
        *_repeat_problems(table),
    ]


def _file_problems(table: pd.DataFrame, paths: dict[str, Path]) -> list[Problem]:
    missing = {name for name, path in paths.items() if not path.is_file()}
    folder = next((paths[name].parent for name in missing if not paths[name].parent.is_dir()), None)
    remedy = "correct the path (it is relative to the manifest), or bring the image there"
    if folder is not None:
        remedy += f"; there is no folder {folder}"
    gone = table["image"][table["image"].isin(missing)]
    return [Problem(row, f"image {name!r}", "is not there", remedy) for row, name in numbered(gone)]


def _kind_problems(table: pd.DataFrame) -> list[Problem]:
    unknown = table["kind"][~table["kind"].isin(KINDS)]
    labelled = table["cell_label"][(table["cell_label"] != "") & (table["kind"] == "field")]
    return [
        Problem(row, f"kind {kind!r}", "is unknown", "write 'field' (many cells) or 'cell' (one cell)")
        for row, kind in numbered(unknown)
    ] + [
        Problem(
            row,
            f"cell_label {label!r}",
            "is given to an image of kind 'field'",
            "cell_label is for kind=cell; labels of cells in fields go into cells.csv",
        )
        for row, label in numbered(labelled)
    ]


def _region_problems(table: pd.DataFrame) -> list[Problem]:
    given = table["region"][table["region"] != ""]
    remedy = "write x0 y0 x1 y1 in whole pixels, 0 <= x0 < x1 and 0 <= y0 < y1"
    return [
        Problem(row, f"region {text!r}", "is not a region", remedy)
        for row, text in numbered(given)
        if _region(text) is None
    ]


def _region(text: str) -> Region | None:
    try:
        x0, y0, x1, y1 = (int(part) for part in re.split(r"[\s,;]+", text.strip()))
    except ValueError:
        return None
    return (x0, y0, x1, y1) if 0 <= x0 < x1 and 0 <= y0 < y1 else None


def _repeat_problems(table: pd.DataFrame) -> list[Problem]:
    named = table[(table["image"] != "") & (table["sample"] != "")]
    files = [os.path.normpath(name) for name in named["image"]]
    regions = named["region"].str.split().str.join(" ")
    rows = named.index.to_series()
    first = rows.groupby([files, named["sample"], regions]).transform("first")
    repeats = named.assign(row=rows, first=first)[rows != first]
    return [
        Problem(
            record["row"],
            f"image {record['image']!r}",
            f"of sample {record['sample']!r} is already in row {record['first']}",
            "remove one of the rows, or give each its own region",
        )
        for record in repeats.to_dict("records")
    ]


def _samples(table: pd.DataFrame, paths: dict[str, Path], metadata: list[str]) -> tuple[Sample, ...]:
    shared = shared_metadata(table.rename(columns=lambda c: c.removeprefix("metadata ")), [*metadata, "site"])
    images = _images(table, paths, metadata)
    parts = table.groupby("sample", sort=False)[["patient", "label"]].max()  # a blank is less than any label
    return tuple(
        Sample(
            sample=str(sample),
            patient=str(patient),
            label=str(label) or None,
            images=tuple(images[str(sample)]),
            metadata=shared[str(sample)],
        )
        for sample, patient, label in zip(parts.index, parts["patient"], parts["label"], strict=True)
    )


def _images(table: pd.DataFrame, paths: dict[str, Path], metadata: list[str]) -> dict[str, list[ImageRow]]:
    by_sample: dict[str, list[ImageRow]] = {}
    extras = table[[f"metadata {name}" for name in metadata]].to_numpy()
    for row, record, extra in zip(table.index, table.to_dict("records"), extras, strict=True):
        values = {name: value for name, value in zip(metadata, extra, strict=True) if value}
        image = _image(int(row), cast(dict[str, Any], record), paths, values)
        by_sample.setdefault(str(record["sample"]), []).append(image)
    return by_sample


def _image(row: int, record: dict[str, Any], paths: dict[str, Path], metadata: dict[str, str]) -> ImageRow:
    return ImageRow(
        image=record["image"],
        path=paths[record["image"]],
        row=row,
        kind=cast(Literal["field", "cell"], record["kind"]),
        region=_region(record["region"]) if record["region"] else None,
        site=record["site"] or None,
        cell_label=record["cell_label"] or None,
        metadata=MappingProxyType(metadata),
    )
