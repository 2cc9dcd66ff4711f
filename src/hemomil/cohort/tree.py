"""Write a manifest for a folder tree label/patient/sample/images."""

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hemomil.cohort.manifest import read_manifest
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.errors import ManifestError
from hemomil.files import written_whole
from hemomil.types import Cohort

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
OTHERS = (".bmp", ".gif", ".webp", ".heic", ".svs", ".ndpi", ".czi", ".nd2", ".lif", ".mrxs", ".scn")
"""Images that are not read: refused rather than passed over."""
SHAPE = "arrange them as label/patient/sample/image, for example control/P01/P01_slide1/field1.png"

Place = tuple[str, str, str]
"""label, patient, folder of the sample."""


def init_manifest(tree: Path, output: Path) -> Cohort:
    """Write `output` with a row per image of label/patient/sample/*.png (jpg, tif), and read it.

    Paths are relative to `output`. A sample is named by its folder; by patient_folder, or
    label_patient_folder, if folders of one name occur more than once. Hidden files are passed over.
    Raises ManifestError for an empty tree, images at another depth, and other image formats.
    """
    if not tree.is_dir():
        raise ManifestError(f"there is no folder {tree}", hint=f"name a folder; {SHAPE}")
    files = list(_files(tree))
    images = [path for path in files if path.suffix.lower() in IMAGES]
    refuse_if_any(_problems(tree, files), ManifestError, tree)
    if not images:
        raise ManifestError(f"{tree} holds no PNG, JPEG or TIFF image", hint=SHAPE)
    _write(output, tree, images)
    return read_manifest(output, labels_needed=False)


def _files(tree: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(tree):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _problems(tree: Path, files: list[Path]) -> list[Problem]:
    problems = []
    for path in files:
        inside = path.relative_to(tree)
        depth = len(inside.parts) - 1
        if path.suffix.lower() in OTHERS:
            problems.append(
                Problem(None, f"{inside}", "is not PNG, JPEG or TIFF", "convert it, or move it away")
            )
        elif path.suffix.lower() in IMAGES and depth != 3:
            folders = "1 folder" if depth == 1 else f"{depth} folders"
            problems.append(Problem(None, f"{inside}", f"lies {folders} deep, not 3", SHAPE))
    return problems


def _write(output: Path, tree: Path, images: list[Path]) -> None:
    places = {path: _place(tree, path) for path in images}
    name = _naming(set(places.values()))
    folder = output.parent.resolve()
    with written_whole(output) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "sample", "patient", "label"])
        for path, (label, patient, sample) in places.items():
            relative = Path(os.path.relpath(path.resolve(), folder)).as_posix()
            writer.writerow([relative, name((label, patient, sample)), patient, label])


def _place(tree: Path, path: Path) -> Place:
    label, patient, sample, _ = path.relative_to(tree).parts
    return label, patient, sample


def _naming(places: set[Place]) -> Callable[[Place], str]:
    """The shortest way to name samples by which no two are named alike."""
    ways: list[Callable[[Place], str]] = [
        lambda place: place[2],
        lambda place: f"{place[1]}_{place[2]}",
        lambda place: f"{place[0]}_{place[1]}_{place[2]}",
        lambda place: "/".join(place),
    ]
    return next(way for way in ways if len({way(place) for place in places}) == len(places))
