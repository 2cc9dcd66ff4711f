"""Find the files of other tools that belong to images of a manifest, and read the cells of all of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from hemomil.cohort.outlines import Outlines, read_geojson, read_label_image
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.errors import CellsError
from hemomil.types import ImageRow, Notice

READERS: Mapping[str, Callable[[Path], Outlines]] = {
    **dict.fromkeys((".geojson", ".json"), read_geojson),
    **dict.fromkeys((".png", ".tif", ".tiff"), read_label_image),
}
ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", ".ome")
"""What other tools add to the name of an image."""
WORKERS = 4

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Cells that another tool outlined, by image of the manifest, and what was left aside."""

    outlines: Mapping[str, Outlines]
    notices: tuple[Notice, ...]


def read_elsewhere(path: Path, rows: Sequence[ImageRow]) -> Elsewhere:
    """Read label images and GeoJSON: a folder with a file per image, or one file.

    A file belongs to the image that has its name, its stem, or its stem without `ENDINGS`; of several
    such images or files, to the one in folders of the same names. One file may have any name where
    there is one image. Images of the manifest that lie in the folder are not taken for label images.

    Raises CellsError for an empty folder, a pickle of Cellpose, files that name no image, names that
    fit several, and with every file that cannot be read. Files of other images, field images
    without a file, and what is no cell, are left aside, each with a Notice.
    """
    files = _files(path, {row.path.resolve() for row in rows})
    paired = _paired(path, files, list(dict.fromkeys(row.image for row in rows)))
    outlines = _read(path, paired)
    bare = {row.image: None for row in rows if row.kind == "field" and row.image not in paired}
    strange = [file.name for file in files if file not in set(paired.values())]
    notices = (
        *_names_notice(path, "files-of-other-images", "files name no image of the manifest", strange),
        *_names_notice(path, "images-without-outlines", "images of the manifest have no file", bare),
        *_aside_notice(path, outlines.values()),
    )
    return Elsewhere(outlines=outlines, notices=notices)


# Which file belongs to which image


def _files(path: Path, images: set[Path]) -> list[Path]:
    """The files that can hold outlines; raises CellsError if there is none."""
    if not path.exists():
        raise CellsError(f"there is no file or folder {path}", hint="correct the path")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files = [file for file in files if not file.name.startswith(".") and file.resolve() not in images]
    kept = [file for file in files if file.suffix.lower() in READERS]
    if kept:
        return kept
    if pickles := [file for file in files if file.suffix.lower() == ".npy"]:
        raise CellsError(
            f"{pickles[0]} is a pickle, which may run any code and is not read",
            hint="save the masks as PNG or TIFF (Cellpose: --save_png or --save_tif), and give their folder",
        )
    found = f"{len(files)} files, the first {files[0].name!r}" if files else "nothing"
    raise CellsError(
        f"{path} holds no label image and no GeoJSON; it holds {found}",
        hint="give a folder with a .png, .tif or .geojson for each image, or a cells.csv or COCO JSON",
    )


def _paired(path: Path, files: Sequence[Path], images: Sequence[str]) -> dict[str, Path]:
    """The file of each image, in the order of the images; raises CellsError if none has one."""
    claims, problems = _claims(files, images)
    if not claims and not problems and path.is_file() and len(images) == 1:
        return {images[0]: path}
    if not claims and not problems:
        raise _nothing_named(path, files, images)
    paired = {}
    for image in images:
        if best := _best(claims.get(image, {})):
            paired[image] = best[0]
        if best[1:]:
            text = f"has {len(best)} files: {', '.join(map(str, best))}"
            problems.append(Problem(None, f"image {image!r}", text, "keep one of them"))
    refuse_if_any(problems, CellsError, path)
    return paired


def _claims(files: Sequence[Path], images: Sequence[str]) -> tuple[dict[str, dict[Path, int]], list[Problem]]:
    """By image, the files that name it and how many folders they share; and files that fit several."""
    by_name = _by_name(images)
    claims: dict[str, dict[Path, int]] = {}
    problems = []
    for file in files:
        named = next((by_name[name] for name in _names(file) if name in by_name), [])
        shared = {image: _shared_folders(file, image) for image in named}
        best = _best(shared)
        if best[1:]:
            text = f"names {len(best)} images: {', '.join(best)}"
            problems.append(Problem(None, f"file {file}", text, "put it in folders named like its image's"))
        elif best:
            claims.setdefault(best[0], {})[file] = shared[best[0]]
    return claims, problems


def _best(counts: Mapping[Thing, int]) -> list[Thing]:
    """All that have the highest count."""
    return [thing for thing, count in counts.items() if count == max(counts.values())]


def _by_name(images: Sequence[str]) -> dict[str, list[str]]:
    """Images by the names a file of theirs may have: with suffix, without it, without .ome."""
    by_name: dict[str, list[str]] = {}
    for image in images:
        path = _parts(image)
        for name in dict.fromkeys((path.name, path.stem, path.stem.removesuffix(".ome"))):
            by_name.setdefault(name, []).append(image)
    return by_name


def _names(file: Path) -> list[str]:
    """Names of an image that a file may belong to, the longest first."""
    names = [file.name, file.stem]
    while ending := next((e for e in ENDINGS if names[-1].endswith(e)), ""):
        names.append(names[-1].removesuffix(ending))
    return names


def _parts(image: str) -> PurePosixPath:
    return PurePosixPath(image.replace("\\", "/"))


def _shared_folders(file: Path, image: str) -> int:
    """How many folders, from the innermost outwards, have the same names."""
    pairs = zip(reversed(file.resolve().parts[:-1]), reversed(_parts(image).parts[:-1]), strict=False)
    same = [one == other for one, other in pairs]
    return same.index(False) if False in same else len(same)


def _nothing_named(path: Path, files: Sequence[Path], images: Sequence[str]) -> CellsError:
    image = images[0] if images else "image.png"
    stem = _parts(image).stem
    return CellsError(
        f"{path}: none of its {len(files)} files names an image of the manifest; the first file is "
        f"{files[0].name!r}, the first image {image!r}",
        hint=f"name files like their images, for example {stem}.geojson, {stem}.tif or {stem}_cp_masks.png",
    )


# Reading them


def _read(path: Path, paired: Mapping[str, Path]) -> dict[str, Outlines]:
    with ThreadPoolExecutor(WORKERS) as pool:
        read = dict(zip(paired, pool.map(_outlines_or_error, paired.values()), strict=True))
    errors = [found for found in read.values() if isinstance(found, CellsError)]
    refuse_if_any([Problem(None, "", e.message, e.hint) for e in errors], CellsError, path)
    return {image: found for image, found in read.items() if isinstance(found, Outlines)}


def _outlines_or_error(file: Path) -> Outlines | CellsError:
    try:
        return READERS[file.suffix.lower()](file)
    except CellsError as error:
        return error


# What was left aside


def _names_notice(path: Path, kind: str, text: str, names: Iterable[str]) -> list[Notice]:
    names = list(names)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [Notice(kind=kind, subject=str(path), text=f"{len(names)} {text}: {shown}")] if names else []


def _aside_notice(path: Path, outlines: Iterable[Outlines]) -> list[Notice]:
    aside = sum((Counter(found.aside) for found in outlines), Counter[str]())
    shown = ", ".join(f"{count} x {what}" for what, count in sorted(aside.items()))
    text = f"{aside.total()} features that are no cells were left aside: {shown}"
    return [Notice(kind="features-left-aside", subject=str(path), text=text)] if aside else []
