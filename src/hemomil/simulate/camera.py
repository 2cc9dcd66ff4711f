"""From absorbance to a photograph: Beer-Lambert, blur, light, sensor noise, gamma, JPEG.

Axes: H W pixels, colour channels red green blue.
"""

import io

import numpy as np
import scipy.ndimage as ndi
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from hemomil.simulate.settings import Camera, Light, Optics


def transmittance(absorbance: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Share of the light that passes (Beer-Lambert, natural logarithm)."""
    return np.asarray(np.exp(-absorbance))


def focus(light: Float[np.ndarray, "H W 3"], optics: Optics) -> Float[np.ndarray, "H W 3"]:
    """Blur by defocus, with a ring beside edges (difference of Gaussians) and red shifted against blue."""
    blurred = (
        ndi.gaussian_filter(light, (optics.defocus, optics.defocus, 0), truncate=3)
        if optics.defocus
        else light
    )
    if optics.halo:
        grey = blurred.mean(axis=2)
        ring = grey - _wide_blur(grey, optics.halo_width)
        blurred = blurred + np.float32(optics.halo) * ring[..., None]
    shift = round(optics.chromatic_shift)
    if shift:
        blurred = blurred.copy()
        blurred[shift:, :, 0] = blurred[:-shift, :, 0].copy()
        blurred[:-shift, :, 2] = blurred[shift:, :, 2].copy()
    return np.asarray(np.clip(blurred, 0, None))


def _wide_blur(grey: Float[np.ndarray, "H W"], sigma: float) -> Float[np.ndarray, "H W"]:
    """A Gaussian as three passes of a running mean: time does not grow with its width."""
    width = max(3, round(sigma * 2) | 1)
    for _ in range(3):
        grey = ndi.uniform_filter(grey, width)
    return grey


def illumination(size: tuple[int, int], light: Light) -> Float[np.ndarray, "H W"]:
    """Brightness of the empty field, 1 at its brightest place."""
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :]
    along = x * np.float32(np.cos(light.angle)) + y * np.float32(np.sin(light.angle))
    field = (1 - light.tilt * (along + 1.42) / 2.84) * (1 - light.vignette * (x * x + y * y) / 2)
    return np.asarray(field / field.max(), dtype=np.float32)


def field_stop(size: tuple[int, int], light: Light) -> Bool[np.ndarray, "H W"]:
    """Where light reaches the sensor."""
    y = (np.arange(size[0]) + 0.5 - size[0] / 2)[:, None]
    x = (np.arange(size[1]) + 0.5 - size[1] / 2)[None, :]
    if light.stop == "round":
        return np.asarray(np.hypot(x, y) < 0.52 * max(size))
    if light.stop == "bars":
        return np.asarray((np.abs(y) < 0.44 * size[0]) & (np.abs(x) < size[1]))
    return np.ones(size, dtype=bool)


def photograph(
    rng: np.random.Generator, passed: Float[np.ndarray, "H W 3"], light: Light, camera: Camera
) -> UInt8[np.ndarray, "H W 3"]:
    """What the camera stores of `passed`, the focused transmittance."""
    size = passed.shape[:2]
    white = (np.asarray(light.background) ** camera.gamma * np.asarray(camera.gain)).astype(np.float32)
    seen = passed * white * illumination(size, light)[..., None]
    seen *= field_stop(size, light)[..., None]
    spread = np.sqrt(np.clip(seen, 0, None) / np.float32(camera.electrons) + np.float32(camera.read_noise**2))
    seen += spread * rng.standard_normal(seen.shape, dtype=np.float32)
    shown = np.clip(seen, 0, 1) ** np.float32(1 / camera.gamma)
    picture = (shown * 255 + 0.5).astype(np.uint8)
    if camera.scale_bar:
        _burn_scale_bar(rng, picture)
    return picture if camera.jpeg_quality is None else _through_jpeg(picture, camera.jpeg_quality)


def _burn_scale_bar(rng: np.random.Generator, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Draw a bar with ends and a line of unreadable figures into the lower right corner, in place."""
    height, width = picture.shape[:2]
    colour = np.asarray([(0, 0, 0), (20, 230, 40), (255, 255, 255)][int(rng.integers(3))], np.uint8)
    y, length = height - max(8, height // 18), max(16, width // 9)
    x = width - length - max(8, width // 24)
    picture[y : y + 2, x : x + length] = colour
    picture[y - 3 : y + 5, x : x + 2] = colour
    picture[y - 3 : y + 5, x + length - 2 : x + length] = colour
    figures = ndi.zoom(rng.random((3, 6)) < 0.55, (3, 4), order=0)
    below = picture[y + 7 : y + 7 + figures.shape[0], x : x + figures.shape[1]]
    below[figures[: below.shape[0], : below.shape[1]]] = colour


def _through_jpeg(picture: UInt8[np.ndarray, "H W 3"], quality: int) -> UInt8[np.ndarray, "H W 3"]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))
