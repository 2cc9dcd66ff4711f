"""Read one image file as RGB, 8 bit; and check all images of a cohort without holding them.

How other kinds become RGB, the same for every image so that colours stay comparable:
grey is repeated, alpha is laid on white (an empty slide is white), CMYK, palette and YCbCr are
converted without a colour profile, EXIF and TIFF orientation are obeyed. 16-bit values are divided by
2**(bits - 8) and rounded down, where bits is what the file declares (BitsPerSample, OME SignificantBits)
or 16: never by the image's own range.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from tifffile import COMPRESSION, PHOTOMETRIC

from hemomil.cohort.problems import Problem, row_ranges
from hemomil.errors import ImageError
from hemomil.types import Cohort, ImageRow

SMALLEST = 8
"""Pixels a side under which nothing can be a cell."""
LARGEST = 2**29
"""Pixels; above it, an image is a whole slide and takes more than 1.5 GB."""
SIGNIFICANT = re.compile(r'SignificantBits="(\d+)"')
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PLAIN = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
"""TIFF colour kinds whose numbers are the picture; the others are left to Pillow."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""TIFF and EXIF orientation, as the turn that undoes it."""
BROKEN = "open it in an image viewer; copy or export it again, or remove its rows"
WORKERS = 4

# Pillow warns of a stitched field of 10,000 pixels a side, and refuses a quarter of what is let in here
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, 2 * LARGEST)

# what tifffile has to say of a damaged file is in our error, not on the screen
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read a PNG, JPEG, TIFF or OME-TIFF image, 8 or 16 bit, as RGB (rules at the top of this file).

    Raises ImageError, naming file and remedy: missing, empty, truncated or damaged files, other
    formats, float and signed pixels, several pages or planes other than three colours, fewer than
    8 pixels a side, undeclared 10- to 14-bit cameras (nothing above a quarter of the range).
    """
    with _naming(path):
        rgb = _tiff_rgb(path) if _is_tiff(path) else _pillow_file_rgb(path)
        _refuse_size(rgb.shape[1], rgb.shape[0])
    return rgb


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as `read_image` gives them, from the header alone. Raises ImageError."""
    with _naming(path):
        width, height = _tiff_size(path) if _is_tiff(path) else _pillow_size(path)
        _refuse_size(width, height)
    return width, height


def image_sizes(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | ImageError]:
    """`image_size` of many files side by side; an unreadable one has its error in place of a size."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(distinct, pool.map(_size_or_error, distinct), strict=True))


def check_images(cohort: Cohort) -> list[Problem]:
    """Problems of all image files of a cohort, and of regions that leave their image, with rows.

    Finds what `read_image` would refuse, except damage inside strips of an 8-bit TIFF that look
    complete: PNG by its checksums, JPEG by decoding at one eighth of its size, 8-bit TIFF by its
    structure, 16-bit images by reading them. A file that several rows name is one problem.
    """
    rows: dict[Path, list[ImageRow]] = {}
    for sample in cohort.samples:
        for image in sample.images:
            rows.setdefault(image.path, []).append(image)
    with ThreadPoolExecutor(WORKERS) as pool:
        checked = dict(zip(rows, pool.map(_check_or_error, rows), strict=True))
    problems = [p for path, size in checked.items() for p in _file_problems(rows[path], size)]
    return sorted(problems, key=lambda problem: problem.row or 0)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """What is wrong with an image and what to do, before the file is named."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong with it."""
    try:
        _refuse_hopeless(path)
        yield
    except _Refused as refused:
        raise ImageError(f"image {path} {refused.text}", hint=refused.remedy) from refused.__cause__
    except MemoryError:
        raise
    except Exception as cause:  # a decoder fed damaged bytes raises anything
        raise ImageError(
            f"image {path} cannot be read: {cause or type(cause).__name__}", hint=BROKEN
        ) from cause


def _refuse_hopeless(path: Path) -> None:
    if path.is_dir():
        raise _Refused("is a folder", "name an image file")
    if not path.is_file():
        raise _Refused("is not there", "correct the path, or bring the image there")
    if path.stat().st_size == 0:
        raise _Refused("is empty (0 bytes)", "copy or export it again, or remove its rows")


def _refuse_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST:
        raise _Refused(
            f"is {width}x{height} pixels: too small to hold a cell",
            f"give an image of at least {SMALLEST}x{SMALLEST} pixels, or remove its rows",
        )
    if width * height > LARGEST:
        raise _Refused(f"is {width}x{height} pixels: a whole slide", "cut it into fields first")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MARKS


# PNG and JPEG: Pillow


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        picture = Image.open(path, formats=("PNG", "JPEG"))
    except UnidentifiedImageError as cause:
        raise _Refused("is not a PNG, JPEG or TIFF image", "convert it to one of these") from cause
    except Image.DecompressionBombError as cause:
        raise _Refused("has more pixels than a field: a whole slide", "cut it into fields first") from cause
    with picture:
        _refuse_size(*picture.size)  # before it is unpacked
        # a second frame of a JPEG is the preview that telephones add; of a PNG, an animation
        if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
            raise _Refused("is an animation", "save one frame as its own image")
        yield picture


def _pillow_size(path: Path) -> tuple[int, int]:
    with _opened(path) as picture:
        return _turned(picture.size, picture.getexif().get(0x0112, 1))


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size


def _pillow_file_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    with _opened(path) as picture:
        return _pillow_rgb(picture)


def _pillow_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    # of a large field, no copy is made that can be saved
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        return _three_channels(_eight_bit(np.asarray(picture), bits=16)[..., None])
    if picture.mode in ("I", "F"):
        raise _Refused(f"has {picture.mode!r} pixels, not 8 or 16 bit", "save it as 8-bit RGB")
    if picture.has_transparency_data:
        return _three_channels(np.asarray(picture.convert("RGBA")))
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _three_channels(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Grey or RGB, with or without alpha, to RGB; alpha is laid on white."""
    n_colours = 1 if pixels.shape[2] < 3 else 3
    colours = pixels[..., :n_colours]
    if pixels.shape[2] > n_colours:
        alpha = pixels[..., n_colours : n_colours + 1].astype(np.uint16)
        colours = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(colours, 3, axis=2) if n_colours == 1 else np.ascontiguousarray(colours)


def _eight_bit(values: np.ndarray, bits: int) -> UInt8[np.ndarray, "..."]:
    """8 or 16-bit values to 8 bit by a fixed rule: divided by 2**(bits - 8), rounded down."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values
    if values.dtype != np.uint16:
        raise _Refused(
            f"has {values.dtype} pixels, not 8 or 16 bit without sign",
            "save it as 8-bit RGB, or 16-bit without sign",
        )
    highest = int(values.max(initial=0))
    if bits == 16 and 0 < highest < 2**14:
        raise _Refused(
            f"has 16-bit pixels of which none is above {highest}: a camera of {highest.bit_length()} bits?",
            "declare the bits (OME-TIFF SignificantBits), or multiply all images so that they fill 16 bits",
        )
    return np.asarray(np.minimum(values >> (bits - 8), 255), dtype=np.uint8)


# TIFF and OME-TIFF: tifffile


def _tiff_size(path: Path) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        series = _only_picture(tiff)
        _refuse_truncated(series, path.stat().st_size)
        sizes = dict(zip(series.axes, series.shape, strict=True))
        return _turned((sizes["X"], sizes["Y"]), _orientation(series))


def _tiff_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    with tifffile.TiffFile(path) as tiff:
        series = _only_picture(tiff)
        _refuse_truncated(series, path.stat().st_size)
        _refuse_size(*(dict(zip(series.axes, series.shape, strict=True))[axis] for axis in "XY"))
        if not _is_plain(series):
            with Image.open(path, formats=("TIFF",)) as picture:
                return _pillow_rgb(picture)
        pixels = _eight_bit(_channels_last(series), _significant_bits(tiff, series))
        if series.keyframe.photometric == PHOTOMETRIC.MINISWHITE:
            pixels = np.bitwise_not(pixels)
        turn = TURNS.get(_orientation(series))
    rgb = _three_channels(pixels)
    return rgb if turn is None else np.array(Image.fromarray(rgb).transpose(turn))


def _only_picture(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one image that the file holds; refused if it holds more, or planes that are not colours."""
    pictures = [s for s in tiff.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)]
    if not pictures:
        raise _Refused("is damaged: it has no page", BROKEN)
    if len(pictures) > 1:
        raise _Refused(f"holds {len(pictures)} images", "save each as its own file, with its own row")
    axes = _axes(pictures[0])
    planes = {axis: n for axis, n in axes.items() if axis not in "YXS"}
    three_colours = list(planes.values()) == [3] and "S" not in axes and not set(planes) & set("ZT")
    if not {"Y", "X"} <= set(axes) or (planes and not three_colours):
        found = ", ".join(f"{n} along {axis}" for axis, n in planes.items()) or "no picture"
        raise _Refused(
            f"has several pages or planes ({found})", "save one plane as an 8- or 16-bit RGB or grey image"
        )
    return pictures[0]


def _axes(series: tifffile.TiffPageSeries) -> dict[str, int]:
    """Axis letters of tifffile and their lengths, without those of length 1 other than Y and X."""
    return {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 or axis in "YX"}


def _refuse_truncated(series: tifffile.TiffPageSeries, file_size: int) -> None:
    # tifffile fills what is missing with zeros: black cells, not an error
    needed = max(
        (
            offset + count
            for page in series.pages
            if page is not None
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ),
        default=0,
    )
    if needed > file_size:
        raise _Refused(
            f"is truncated: {file_size} of {needed} bytes", "copy or export it again, or remove its rows"
        )


def _orientation(series: tifffile.TiffPageSeries) -> int:
    return int(series.keyframe.tags.valueof(274, default=1))


def _is_plain(series: tifffile.TiffPageSeries) -> bool:
    page = series.keyframe
    return page.photometric in PLAIN or page.compression == COMPRESSION.JPEG


def _significant_bits(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> int:
    declared = SIGNIFICANT.search(tiff.ome_metadata or "")
    bits = int(declared[1]) if declared else int(series.keyframe.bitspersample)
    return bits if 8 <= bits <= 16 else 16


def _channels_last(series: tifffile.TiffPageSeries) -> np.ndarray:
    """The pixels as H W C, whichever way the file orders them."""
    axes = _axes(series)
    pixels = series.asarray().reshape(tuple(axes.values()))
    order = [list(axes).index(axis) for axis in ("Y", "X", *(axis for axis in axes if axis not in "YX"))]
    pixels = pixels.transpose(order)
    return pixels if pixels.ndim == 3 else pixels[..., None]


# Checking


def _size_or_error(path: Path) -> tuple[int, int] | ImageError:
    try:
        return image_size(path)
    except ImageError as error:
        return error


def _check_or_error(path: Path) -> tuple[int, int] | ImageError:
    try:
        size = image_size(path)
        with _naming(path):
            deep = _is_deep_tiff(path) if _is_tiff(path) else _is_deep_or_verified(path)
        if deep:
            read_image(path)
    except ImageError as error:
        return error
    return size


def _is_deep_tiff(path: Path) -> bool:
    with tifffile.TiffFile(path) as tiff:
        return bool(_only_picture(tiff).dtype != np.uint8)


def _is_deep_or_verified(path: Path) -> bool:
    """Whether a PNG or JPEG has more than 8 bits; if not, its data are checked to their end."""
    with _opened(path) as picture:
        if picture.mode.startswith("I"):
            return True
        if picture.format == "PNG":
            picture.verify()
        else:
            picture.draft("RGB", (1, 1))  # an eighth of the size; the data are still read to their end
            picture.load()
    return False


def _file_problems(rows: list[ImageRow], size: tuple[int, int] | ImageError) -> list[Problem]:
    if not isinstance(size, ImageError):
        return [p for image in rows for p in _region_problems(image, size)]
    text = size.message.partition(str(rows[0].path))[2].strip()
    others = f" (also {row_ranges(image.row for image in rows[1:])})" if rows[1:] else ""
    return [Problem(rows[0].row, f"image {rows[0].image!r}", text + others, size.hint)]


def _region_problems(image: ImageRow, size: tuple[int, int]) -> list[Problem]:
    if image.region is None or (image.region[2] <= size[0] and image.region[3] <= size[1]):
        return []
    region = " ".join(map(str, image.region))
    remedy = "correct the region; it is x0 y0 x1 y1 in pixels"
    text = f"leaves its image {image.image!r} of {size[0]}x{size[1]} pixels"
    return [Problem(image.row, f"region {region}", text, remedy)]
