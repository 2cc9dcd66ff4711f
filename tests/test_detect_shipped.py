"""The weights in the package: small enough, and good enough to find cells nobody showed them."""

import json

import numpy as np
import pytest

from hemomil.detect import Detector, DetectSettings, Example, evaluate_detector, read_coco_examples
from hemomil.detect.stored import shipped_path
from hemomil.detect.tally import pairs
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream


@pytest.fixture(scope="module")
def detector():
    return Detector.shipped(settings=DetectSettings(threads=1))


def plain_field(seed):
    """A plain field of 30-pixel cells, 200 x 260."""
    rng = stream(seed, "shipped-test")
    settings = random_field_settings(rng, size=(200, 260), diameter=(30.0, 31.0))
    plain = settings.model_copy(update={"cells": 22, "overlap": 0.0, "white_cells": 0.0, "artefacts": 0.0})
    drawn = draw_field(rng, plain)
    return Example(image=drawn.image, boxes=drawn.boxes, masks=drawn.masks)


@pytest.fixture(scope="module")
def field():
    return plain_field(11)


@pytest.fixture(scope="module")
def fields(field):
    """Enough of them that one cell on the edge of being found does not matter."""
    return [field, *map(plain_field, range(12, 17))]


def agreement(found, expected):
    """Share of cells that both have, of all that either has, over images."""
    both = sum(len(pairs(*boxes, 0.7)[0]) for boxes in zip(found, expected, strict=True))
    return both / (sum(map(len, found)) + sum(map(len, expected)) - both)


def test_the_weights_are_small_and_say_how_they_were_made():
    assert shipped_path("small").stat().st_size <= 20_000_000
    told = json.loads(shipped_path("small").with_suffix(".json").read_text())
    assert told["fingerprint"] == Detector.shipped().fingerprint
    assert {"settings", "commands", "measured", "trained_on"} <= set(told)


def test_cells_of_a_simulated_field_are_found(detector, field):
    scores = evaluate_detector(detector, [field])
    assert scores["recall"] >= 0.9
    assert scores["precision"] >= 0.9
    assert scores["mask_ap50"] >= 0.85


def test_a_turned_image_has_the_same_cells_turned(detector, field):
    found = detector.detect(field.image).boxes
    turned = detector.detect(np.ascontiguousarray(np.rot90(field.image))).boxes
    x0, y0, x1, y1 = turned.T
    width = field.image.shape[1]
    back = np.stack([width - y1, x0, width - y0, x1], axis=1)
    assert agreement([back], [found]) >= 0.9


def test_an_image_in_tiles_has_the_same_cells_as_the_whole(fields):
    size = {"threads": 1, "diameter": 30.0}
    whole = Detector.shipped(settings=DetectSettings(**size))
    tiled = Detector.shipped(settings=DetectSettings(tile=192, overlap=96, **size))
    found, expected = ([each.detect(field.image).boxes for field in fields] for each in (tiled, whole))
    assert agreement(found, expected) >= 0.95


def test_an_enlarged_image_has_the_same_cells_enlarged(detector, fields):
    larger = [field.image.repeat(3, axis=0).repeat(3, axis=1) for field in fields]
    found = [detector.detect(image).boxes / 3 for image in larger]
    assert agreement(found, [detector.detect(field.image).boxes for field in fields]) >= 0.9


def test_a_mask_fills_the_box_it_belongs_to(detector, field):
    found = detector.detect(field.image)
    for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert np.ptp(rows) >= 0.7 * (y1 - y0) - 2
        assert np.ptp(columns) >= 0.7 * (x1 - x0) - 2


@pytest.mark.parametrize("grey", [0, 120, 235, 255])
def test_a_blank_image_has_no_cells(detector, grey):
    found = detector.detect(np.full((120, 150, 3), grey, dtype=np.uint8))
    assert found.boxes.shape == (0, 4)
    assert found.masks == ()


def test_the_same_image_gives_the_same_cells(detector, field):
    first, second = detector.detect(field.image), detector.detect(field.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_the_scale_of_roi_maps_is_the_images_not_the_boxes(detector, field):
    together = detector.roi_maps(field.image, field.boxes)
    alone = detector.roi_maps(field.image, field.boxes[3:4])
    np.testing.assert_array_equal(alone[0], together[3])


@pytest.mark.parametrize("tile", [192, 1024])
def test_roi_maps_of_known_boxes_are_those_of_the_cells_found(field, tile):
    detector = Detector.shipped(settings=DetectSettings(threads=1, tile=tile, overlap=96))
    found, maps = detector.detect_with_roi(field.image)
    again = detector.roi_maps(field.image, found.boxes)
    # the few cells whose centre lies between two tiles may be seen in the other
    same = np.isclose(again, maps, rtol=5e-3, atol=5e-3).all(axis=(1, 2, 3))
    assert same.mean() > 0.7 if tile == 192 else same.all()


@pytest.fixture(scope="module")
def rough():
    return Detector.shipped(settings=DetectSettings(threads=1, bfloat16=True))


def test_searching_in_bfloat16_finds_the_same_cells_a_little_elsewhere(detector, rough, field):
    exact, found = detector.detect(field.image), rough.detect(field.image)
    ours, theirs = pairs(found.boxes, exact.boxes, 0.9)
    assert len(ours) == len(exact.boxes) == len(found.boxes)
    apart = np.abs(found.boxes[ours] - exact.boxes[theirs])
    assert 0 < apart.max() < 1
    np.testing.assert_allclose(found.scores[ours], exact.scores[theirs], atol=0.02)
    assert found.scores.dtype == exact.scores.dtype


def test_roi_maps_stay_in_single_precision_when_the_search_does_not(detector, rough, field):
    found, maps = rough.detect_with_roi(field.image)
    np.testing.assert_array_equal(maps, detector.roi_maps(field.image, found.boxes, diameter=found.diameter))


def test_who_searches_in_bfloat16_shares_the_weights(rough):
    before = list(rough.net.parameters())
    assert all(a is b for a, b in zip(before, rough._searching.parameters(), strict=True))
    assert rough.fingerprint == Detector.shipped().fingerprint


@pytest.mark.slow
def test_cells_of_cameras_never_trained_on_are_found(detector, real_data):
    bbbc = list(read_coco_examples(real_data / "bbbc041seg" / "test.json", limit=3))
    assert evaluate_detector(detector, bbbc)["mask_ap50"] >= 0.85
    iml = list(read_coco_examples(real_data / "iml_malaria" / "coco.json", limit=3))
    assert evaluate_detector(detector, iml)["recall"] >= 0.9


def test_detections_know_the_diameter_that_saves_roi_maps_a_search(detector, field):
    found = detector.detect(field.image)
    assert found.diameter == detector.diameter(field.image)
    np.testing.assert_array_equal(
        detector.roi_maps(field.image, found.boxes, diameter=found.diameter),
        detector.roi_maps(field.image, found.boxes),
    )
