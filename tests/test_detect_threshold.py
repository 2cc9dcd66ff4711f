"""The laws of finding cells without a network."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemomil import commands
from hemomil.commands import resolve_settings
from hemomil.commands.cells import open_detector
from hemomil.detect import CellFinder, Detector, DetectSettings, ThresholdDetector
from hemomil.detect.threshold import _corrected
from hemomil.errors import SettingsError
from hemomil.simulate import Camera, FieldSettings, Light, Stain, draw_field
from hemomil.streams import stream

pytestmark = pytest.mark.usefixtures("no_pages")

SPARSE = {"cells": 20, "touching": 0.0, "platelets": 0.0, "white_cells": 0.0, "artefacts": 0.0}


def field(seed=0, **settings):
    return draw_field(stream(seed, "threshold"), FieldSettings(**settings))


def hits(found, known, least=0.7):
    """Known cells whose box a found one covers at this IoU."""
    low = np.maximum(found.boxes[:, None, :2], known[None, :, :2])
    high = np.minimum(found.boxes[:, None, 2:], known[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (found.boxes, known)]
    return int(((shared / (area[0][:, None] + area[1][None] - shared)).max(axis=0) > least).sum())


def test_both_detectors_have_one_face():
    assert isinstance(ThresholdDetector(), CellFinder)
    assert isinstance(Detector.untrained(), CellFinder)


def test_cells_that_lie_apart_are_all_found_and_nothing_else():
    drawn = field(1, **SPARSE)
    found = ThresholdDetector().detect(drawn.image)
    assert len(found.boxes) == len(drawn.boxes)
    assert hits(found, drawn.boxes) == len(drawn.boxes)


def test_a_cell_with_a_pale_middle_is_one_cell_without_a_hole():
    drawn = field(2, pallor=1.6, **SPARSE)
    found = ThresholdDetector().detect(drawn.image)
    assert hits(found, drawn.boxes) == len(drawn.boxes)
    middles = [mask[mask.shape[0] // 2, mask.shape[1] // 2] for mask in found.masks]
    assert all(middles)


@pytest.mark.parametrize(
    "settings",
    [
        {"diameter": 24.0, "size": (240, 320)},
        {"diameter": 110.0, "size": (900, 1200)},
        {"light": Light(tilt=0.4, vignette=0.5)},
        {"stain": Stain(hemoglobin=(0.6, 0.3, 0.25))},
        {"stain": Stain(concentration=0.5)},
        {"camera": Camera(electrons=800, jpeg_quality=50)},
        {"light": Light(stop="round")},
    ],
    ids=["small", "large", "uneven", "blue", "pale", "noisy", "stopped"],
)
def test_neither_scale_nor_light_nor_stain_nor_camera_decides_what_is_found(settings):
    drawn = field(3, **{**SPARSE, **settings})
    found = ThresholdDetector().detect(drawn.image)
    assert hits(found, drawn.boxes, 0.6) >= 0.85 * len(drawn.boxes)
    assert len(found.boxes) <= 1.2 * len(drawn.boxes)


def test_cells_that_touch_are_parted():
    drawn = field(4, cells=30, touching=0.8, overlap=0.05, platelets=0.0, white_cells=0.0, artefacts=0.0)
    found = ThresholdDetector().detect(drawn.image)
    assert hits(found, drawn.boxes, 0.5) >= 0.8 * len(drawn.boxes)


def test_platelets_are_no_cells():
    drawn = field(5, **{**SPARSE, "platelets": 12.0})
    assert len(drawn.distractor_boxes) > 5
    assert len(ThresholdDetector().detect(drawn.image).boxes) <= len(drawn.boxes) + 1


def test_cells_come_in_reading_order_with_masks_of_the_size_of_their_boxes():
    drawn = field(6)
    found = ThresholdDetector(settings=DetectSettings(score_threshold=0)).detect(drawn.image)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert (np.lexsort(found.boxes[:, :2].T) == np.arange(len(found.boxes))).all()
    for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes, strict=True):
        assert mask.shape == (y1 - y0, x1 - x0)
        assert mask.any(axis=0).all()
        assert mask.any(axis=1).all()


def test_tiles_change_nothing_where_cells_lie_apart():
    drawn = field(7, size=(700, 900), **SPARSE | {"cells": 60})
    whole = ThresholdDetector(settings=DetectSettings(diameter=62)).detect(drawn.image)
    tiled = ThresholdDetector(settings=DetectSettings(diameter=62, tile=128)).detect(drawn.image)
    assert len(whole.boxes) > 40
    assert np.array_equal(whole.boxes, tiled.boxes)
    assert np.allclose(whole.scores, tiled.scores, atol=1e-5)


def test_what_looks_more_like_a_cell_scores_higher():
    drawn = field(8, cells=40, touching=0.6, overlap=0.3, white_cells=1.0)
    found = ThresholdDetector(settings=DetectSettings(score_threshold=0)).detect(drawn.image)
    good = np.array(
        [hits(type(found)(boxes=box[None], scores=found.scores[:1]), drawn.boxes) > 0 for box in found.boxes]
    )
    assert found.scores[good].mean() > found.scores[~good].mean() + 0.1


@pytest.mark.parametrize("diameter", [None, 8.0, 40.0])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3), (1, 300, 3), (200, 260, 3)])
def test_where_nothing_lies_nothing_is_found(shape, diameter):
    rng = np.random.default_rng(0)
    detector = ThresholdDetector(settings=DetectSettings(diameter=diameter))
    images = [
        np.zeros(shape),
        np.full(shape, 230),
        np.full(shape, 255),
        rng.integers(0, 256, shape),
        rng.normal(200, 20, shape).clip(0, 255),
    ]
    for image in images:
        found = detector.detect(image.astype(np.uint8))
        assert found.boxes.shape == (0, 4)
        assert len(found.scores) == len(found.masks) == 0


def test_the_cells_found_correct_a_guess_that_was_far_off():
    drawn = field(9, diameter=40.0, **{**SPARSE, "white_cells": 2.0})
    detector = ThresholdDetector()
    wrong = detector._search(drawn.image, 75.0)
    assert _corrected(75.0, wrong) == pytest.approx(40, rel=0.2)
    assert _corrected(40.0, detector._search(drawn.image, 40.0)) == 40.0


def test_roi_maps_without_a_network_are_refused_before_anything_is_read():
    with pytest.raises(SettingsError, match="RoI maps need a network") as caught:
        resolve_settings(flags={"detector": "threshold", "features": ("roi",)})
    assert "--features shape" in caught.value.hint
    with pytest.raises(SettingsError, match="RoI"):
        resolve_settings(flags={"detector": "threshold", "preset": "paper"})


def test_the_settings_open_it_by_name():
    settings = resolve_settings(flags={"detector": "threshold", "detect.diameter": 50.0})
    detector = open_detector(settings)
    assert isinstance(detector, ThresholdDetector)
    assert detector.settings.diameter == 50


def test_a_model_trained_with_it_finds_cells_with_it_again(cohort, tmp_path):
    settings = resolve_settings(flags={"detector": "threshold", "method": "mean", "mil.epochs": 2})
    commands.train(cohort / "manifest.csv", tmp_path / "run", settings=settings, jobs=1)
    commands.predict(cohort / "manifest.csv", tmp_path / "out", model=tmp_path / "run", jobs=1)
    assert (
        json.loads((tmp_path / "run" / "model" / "model.json").read_text())["settings"]["detector"]
        == "threshold"
    )
    first, again = (pd.read_csv(tmp_path / name / "samples.csv") for name in ("run", "out"))
    assert first["predicted"].tolist() == again["predicted"].tolist()


def test_it_is_evaluated_as_any_detector(tmp_path):
    drawn = field(10, **SPARSE)
    Image.fromarray(drawn.image).save(tmp_path / "a.png")
    boxes = [[float(v) for v in (x0, y0, x1 - x0, y1 - y0)] for x0, y0, x1, y1 in drawn.boxes]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "red cell"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    [block] = commands.detect_evaluate(
        [tmp_path / "a.json"], settings=resolve_settings(flags={"detector": "threshold"})
    )
    assert block["scores"]["box_ap50"]["value"] > 0.95
    assert block["scores"]["recall"]["value"] > 0.95


@pytest.mark.slow
def test_it_finds_most_cells_of_real_smears(real_data):
    settings = resolve_settings(flags={"detector": "threshold"})
    known = real_data / "bbbc041seg" / "val.json"
    [block] = commands.detect_evaluate([known], settings=settings, limit=4)
    assert block["scores"]["mask_ap50"]["value"] > 0.75
