"""The laws of the focus score: it rises with defocus, and with nothing else."""

import numpy as np
import pytest

from hemomil.detect import ThresholdDetector, edge_width
from hemomil.simulate import Camera, FieldSettings, Light, Optics, Stain, draw_field
from hemomil.streams import stream
from hemomil.types import Detections


def field(defocus=2.0, scale=1.0, seed=0, **settings):
    """A field with a blur of `defocus` pixels, everything `scale` times as large."""
    size = (round(480 * scale), round(640 * scale))
    optics = Optics(defocus=defocus * scale, halo_width=3 * scale)
    return draw_field(
        stream(seed, "focus"), FieldSettings(size=size, diameter=62 * scale, optics=optics, **settings)
    )


def known(drawn, masks=True):
    scores = np.ones(len(drawn.boxes), np.float32)
    return Detections(boxes=drawn.boxes, scores=scores, masks=drawn.masks if masks else None)


def width(drawn, masks=True):
    return edge_width(drawn.image, known(drawn, masks))


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes only"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_edge_widens_with_every_step_of_defocus(seed, masks):
    widths = [
        width(field(defocus, seed=seed), masks) for defocus in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    ]
    assert (np.diff(widths) > 0.003).all()
    assert widths[-1] > 4 * widths[0]


def test_the_width_is_that_of_the_blur():
    """A sharp disc blurred by a Gaussian has an edge of 2.5 standard deviations."""
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:200, :200] + 0.5
    disc = ((x - 100) ** 2 + (y - 100) ** 2 < 40**2).astype(float)
    for sigma in (2.0, 4.0, 6.0):
        grey = (220 - 120 * gaussian_filter(disc, sigma)).round().astype(np.uint8)
        found = Detections(boxes=np.array([[60.0, 60, 140, 140]], np.float32), scores=np.ones(1, np.float32))
        expected = np.sqrt(2 * np.pi) * sigma / 80
        assert edge_width(np.repeat(grey[..., None], 3, axis=2), found) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"stain": Stain(concentration=0.5)},
        {"stain": Stain(concentration=2.0)},
        {"stain": Stain(hemoglobin=(0.6, 0.3, 0.25))},
        {"light": Light(tilt=0.4, vignette=0.4)},
        {"light": Light(background=(0.6, 0.55, 0.5))},
        {"camera": Camera(electrons=1000, read_noise=0.01)},
        {"camera": Camera(gamma=1.0)},
        {"camera": Camera(gamma=2.2)},
        {"camera": Camera(jpeg_quality=50)},
        {"cells": 60},
        {"scale": 0.5},
        {"scale": 2.0},
    ],
    ids=str,
)
def test_stain_light_camera_crowding_and_magnification_hardly_change_it(settings):
    sharper, same, blurred = (width(field(defocus)) for defocus in (1.0, 2.0, 4.0))
    assert width(field(**settings)) == pytest.approx(same, rel=0.15)
    assert sharper < 0.85 * same < 0.85**2 * blurred


def test_found_outlines_serve_as_well_as_true_ones():
    drawn = field()
    found = ThresholdDetector().detect(drawn.image)
    assert edge_width(drawn.image, found) == pytest.approx(width(drawn), rel=0.1)


def test_cells_at_the_border_or_beside_others_do_not_decide():
    drawn = field(touching=0.0, cells=12)
    cells = known(drawn)
    spoilt = np.array([[0.0, 0, 62, 62], [300, 478, 360, 480], [0, 0, 640, 5]], np.float32)
    more = Detections(
        boxes=np.concatenate([drawn.boxes, spoilt]), scores=np.ones(len(drawn.boxes) + 3, np.float32)
    )
    free = [
        row
        for row, box in enumerate(drawn.boxes)
        if box[0] > 75 and box[1] > 15 and box[3] < 465 and box[2] < 639
    ]
    only = Detections(boxes=drawn.boxes[free], scores=np.ones(len(free), np.float32))
    assert edge_width(drawn.image, more) == pytest.approx(edge_width(drawn.image, only), rel=0.1)
    assert len(cells.boxes) > len(free) > 3


def test_a_crowd_in_which_no_cell_lies_free_still_has_a_width():
    drawn = field(cells=8)
    twice = Detections(
        boxes=np.concatenate([drawn.boxes, drawn.boxes]), scores=np.ones(2 * len(drawn.boxes), np.float32)
    )
    assert edge_width(drawn.image, twice) == pytest.approx(width(drawn, masks=False), rel=0.15)


def test_without_cells_or_contrast_there_is_no_width():
    blank = np.full((50, 60, 3), 200, np.uint8)
    none = Detections(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), masks=())
    some = Detections(
        boxes=np.array([[10.0, 10, 30, 30], [0, 0, 60, 50]], np.float32), scores=np.ones(2, np.float32)
    )
    assert np.isnan(edge_width(blank, none))
    assert np.isnan(edge_width(blank, some))
    assert np.isnan(
        edge_width(
            blank[:1, :1],
            Detections(boxes=np.array([[0.0, 0, 1, 1]], np.float32), scores=np.ones(1, np.float32)),
        )
    )
