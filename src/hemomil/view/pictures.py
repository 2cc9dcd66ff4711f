"""Cut and scale pictures of fields and cells on demand; what was made last is kept, in bounded memory.

Axes: H W pixels.
"""

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hemomil.errors import HemomilError, ImageError

ReadImage = Callable[[Path], np.ndarray]
"""Gives an image of shape H W 3, uint8."""

Box = tuple[float, float, float, float]
Kept = TypeVar("Kept")

IMAGE_BYTES = 256 * 2**20
"""Decoded images that are kept; one larger than this is kept alone."""
PICTURE_BYTES = 64 * 2**20
WORKERS = 2
WIDEST = 4096
CELL_SIDE = 160
AROUND_CELL = 1.2
"""Side of a cell's picture, in longer sides of its box."""


class Cache(Generic[Kept]):
    """Values by key, those asked for last; together at most `limit` bytes, or one value."""

    def __init__(self, limit: int, weigh: Callable[[Kept], int]) -> None:
        self.bytes = 0
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[object, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, make: Callable[[], Kept]) -> Kept:
        """The value of `key`, made where it is not kept. What raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.bytes += self._weigh(value)
            while self.bytes > self._limit and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self.bytes -= self._weigh(dropped)
        return value


class Pictures:
    """Pictures of the images of a run, which are asked for by number and never by path."""

    def __init__(self, names: Sequence[str], folder: Path | None, read_image: ReadImage) -> None:
        self.images: Cache[np.ndarray] = Cache(IMAGE_BYTES, lambda pixels: int(pixels.nbytes))
        self.pictures: Cache[bytes] = Cache(PICTURE_BYTES, len)
        # few images are decoded side by side: a stitched field takes a gigabyte
        self.workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
        self._names = names
        self._folder = folder
        self._read_image = read_image

    def size(self, image: int) -> tuple[int, int]:
        """Width and height of an image. Raises ImageError."""
        height, width, _ = self._pixels(image).shape
        return width, height

    def part(self, image: int, box: tuple[int, int, int, int], width: int) -> bytes:
        """A part of an image as JPEG, at most `width` pixels wide and never enlarged. Raises ImageError."""
        return self.pictures.get((image, box, width), lambda: self._part(image, box, width))

    def cell(self, image: int, box: Box) -> bytes:
        """A cell in a square, as JPEG; the whole image where it has no box. Raises ImageError."""
        return self.pictures.get((image, box), lambda: self._cell(image, box))

    def _pixels(self, image: int) -> UInt8[np.ndarray, "H W 3"]:
        return self.images.get(image, lambda: self._read(image))

    def _read(self, image: int) -> UInt8[np.ndarray, "H W 3"]:
        name = self._names[image]
        if self._folder is None:
            raise ImageError("run.json names no manifest to find images by")
        try:
            return self._read_image(self._folder / name)
        except (OSError, HemomilError) as error:
            # the name as the table has it: the page need not know where this computer keeps its files
            said = str(getattr(error, "message", "") or error).splitlines()[0]
            raise ImageError(said.replace(str(self._folder / name), name)) from error

    def _part(self, image: int, box: tuple[int, int, int, int], width: int) -> bytes:
        pixels = self._pixels(image)
        height, right = pixels.shape[0], pixels.shape[1]
        x0, y0 = min(max(box[0], 0), right - 1), min(max(box[1], 0), height - 1)
        x1, y1 = min(max(box[2], x0 + 1), right), min(max(box[3], y0 + 1), height)
        shown = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
        shrink = max(1.0, shown.width / min(width, WIDEST), shown.height / WIDEST)
        size = max(1, round(shown.width / shrink)), max(1, round(shown.height / shrink))
        return _jpeg(shown.resize(size, Image.Resampling.LANCZOS, reducing_gap=3) if shrink > 1 else shown)

    def _cell(self, image: int, box: Box) -> bytes:
        pixels = self._pixels(image)
        height, width = pixels.shape[:2]
        if not np.isfinite(box).all():
            box = (0.0, 0.0, float(width), float(height))
        longer = min(max(box[2] - box[0], box[3] - box[1]), max(height, width))
        side = max(2, round(longer * AROUND_CELL))
        x0, y0 = round((box[0] + box[2] - side) / 2), round((box[1] + box[3] - side) / 2)
        inner = pixels[max(y0, 0) : max(y0 + side, 0), max(x0, 0) : max(x0 + side, 0)]
        square = np.empty((side, side, 3), np.uint8)
        square[:] = _quiet(inner)
        top, left = max(-y0, 0), max(-x0, 0)
        square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return _jpeg(Image.fromarray(square).resize((CELL_SIDE, CELL_SIDE), Image.Resampling.BICUBIC))


def _quiet(inner: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "3"]:
    """A colour for what lies beyond the image: neither a black edge nor streaks that look like cells."""
    if not inner.size:
        return np.full(3, 255, np.uint8)
    border = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    return np.asarray(np.median(border, axis=0), np.uint8)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
