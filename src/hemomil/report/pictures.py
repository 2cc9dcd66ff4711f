"""Cut pictures of fields and cells out of the images, as data that the page carries in itself.

Axes: H W pixels, N cells.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from hemomil.errors import HemomilError

ReadImage = Callable[[Path], np.ndarray]
"""Gives an image of shape H W 3, uint8."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A part of an image, ready for the page."""

    uri: str
    x0: int
    y0: int
    width: int
    height: int
    """Of the part, in pixels of the image: what the boxes are drawn in."""


class Pictures:
    """Reads the images of a manifest and remembers which could not be shown, and why."""

    def __init__(self, manifest: Path | None, read_image: ReadImage) -> None:
        self.problems: dict[str, str] = {}
        self._manifest = manifest
        self._read_image = read_image
        # neighbours on the page lie in the same few images
        self._read = lru_cache(maxsize=8)(self._read_uncached)

    def field(self, image: str, boxes: Float[np.ndarray, "N 4"], widest: int) -> Picture | None:
        """The part of the image that holds the boxes, with a margin, at most `widest` pixels wide."""
        found = self.part(image, boxes)
        if found is None:
            return None
        pixels, x0, y0 = found
        part = Image.fromarray(pixels)
        if part.width > widest:
            part = part.resize(
                (widest, max(1, round(part.height * widest / part.width))), Image.Resampling.LANCZOS
            )
        return Picture(uri=_jpeg(part), x0=x0, y0=y0, width=pixels.shape[1], height=pixels.shape[0])

    def part(
        self, image: str, boxes: Float[np.ndarray, "N 4"]
    ) -> tuple[UInt8[np.ndarray, "H W 3"], int, int] | None:
        """The part of the image that holds the boxes, with a margin, and its left and upper edge."""
        pixels = self._read(image)
        if pixels is None:
            return None
        x0, y0, x1, y1 = _around(boxes, pixels.shape[0], pixels.shape[1])
        return pixels[y0:y1, x0:x1], x0, y0

    def cell(self, image: str, box: Box, side: int) -> str | None:
        """The cell in the middle of a square that keeps its shape, as a data URI."""
        pixels = self.square(image, box, side)
        return None if pixels is None else _jpeg(Image.fromarray(pixels))

    def square(self, image: str, box: Box, side: int) -> UInt8[np.ndarray, "side side 3"] | None:
        """The same as pixels."""
        pixels = self._read(image)
        if pixels is None or not np.isfinite(box).all():
            return None
        centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        half = max(box[2] - box[0], box[3] - box[1], 2.0) * 0.6
        square = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
        padded, shift = _padded(pixels, square)
        x0, y0, x1, y1 = (value + shift for value in square)
        part = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
        return np.asarray(part)

    def _read_uncached(self, image: str) -> UInt8[np.ndarray, "H W 3"] | None:
        if not image:
            return None
        if self._manifest is None:
            self.problems[image] = "run.json names no manifest to find images by"
            return None
        try:
            return self._read_image(self._manifest.parent / image)
        except (OSError, HemomilError) as error:
            self.problems[image] = _short(error)
            return None


def _short(error: Exception) -> str:
    """The first line of an error, without the folder that the reader's computer has it in."""
    if isinstance(error, FileNotFoundError):
        return "the file is not there"
    return (getattr(error, "message", "") or str(error)).splitlines()[0]


def _around(boxes: Float[np.ndarray, "N 4"], height: int, width: int) -> tuple[int, int, int, int]:
    """The rectangle of all boxes and half a cell more, inside the image; the whole image without boxes."""
    known = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(known):
        return 0, 0, width, height
    margin = 0.5 * float(np.median(known[:, 2:] - known[:, :2]))
    x0, y0 = np.floor(known[:, :2].min(axis=0) - margin).clip(0).astype(int)
    x1, y1 = np.ceil(known[:, 2:].max(axis=0) + margin).clip(1, [width, height]).astype(int)
    return min(int(x0), int(x1) - 1), min(int(y0), int(y1) - 1), int(x1), int(y1)


def _padded(pixels: UInt8[np.ndarray, "H W 3"], square: Box) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The image with a margin as wide as `square` reaches over it, and how wide that is."""
    height, width = pixels.shape[:2]
    over = max(-square[0], -square[1], square[2] - width, square[3] - height, 0.0)
    shift = int(np.ceil(over))
    if not shift:
        return pixels, 0
    # a quiet margin in the colour of the border: neither a black edge nor streaks that look like cells
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    padded = np.empty((height + 2 * shift, width + 2 * shift, 3), np.uint8)
    padded[:] = np.median(border, axis=0).astype(np.uint8)
    padded[shift : shift + height, shift : shift + width] = pixels
    return padded, shift


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=82, optimize=True)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Content that a page carries in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
