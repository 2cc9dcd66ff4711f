"""Annotations that are boxes only, completed by a detector; and things that are no red cells, told apart."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hemomil import commands
from hemomil.detect import (
    Detector,
    DetectSettings,
    Example,
    TrainSettings,
    complete_example,
    read_coco_examples,
)
from hemomil.detect.augment import random_crop
from hemomil.errors import RunFolderError, SettingsError
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream
from test_detect import discs


@pytest.fixture(scope="module")
def detector():
    return Detector.shipped(settings=DetectSettings(threads=1))


@pytest.fixture(scope="module")
def field():
    """A plain field of 34-pixel cells, with its truth."""
    rng = stream(21, "complete-test")
    settings = random_field_settings(rng, size=(220, 280), diameter=(34.0, 35.0))
    plain = {"cells": 20, "overlap": 0.0, "white_cells": 0.0, "artefacts": 0.0, "touching": 0.0}
    drawn = draw_field(rng, settings.model_copy(update=plain))
    return Example(image=drawn.image, boxes=drawn.boxes, masks=drawn.masks)


def loosened(field, keep):
    """Boxes 4 pixels too large on every side, of some of the cells, without masks."""
    grown = field.boxes[keep] + np.array([-4, -4, 4, 4], dtype=np.float32)
    height, width = field.image.shape[:2]
    return Example(image=field.image, boxes=grown.clip(0, [width, height] * 2).astype(np.float32))


def iou_of_masks(a, b, box_a, box_b):
    plane = np.zeros((2, 400, 400), dtype=bool)
    for layer, mask, (x0, y0, _, _) in ((plane[0], a, box_a), (plane[1], b, box_b)):
        layer[int(y0) : int(y0) + mask.shape[0], int(x0) : int(x0) + mask.shape[1]] = mask
    return (plane[0] & plane[1]).sum() / (plane[0] | plane[1]).sum()


def test_loose_boxes_get_masks_and_become_tight(detector, field):
    completed = complete_example(detector, loosened(field, slice(None)))
    known = len(field.boxes)
    assert len(completed.masks) == len(completed.boxes) >= known
    overlap = [
        iou_of_masks(*pair)
        for pair in zip(
            completed.masks[:known], field.masks, completed.boxes[:known], field.boxes, strict=True
        )
    ]
    assert np.median(overlap) > 0.85
    for mask, (x0, y0, x1, y1) in zip(completed.masks, completed.boxes, strict=True):
        assert mask.shape == (np.ceil(y1) - np.floor(y0), np.ceil(x1) - np.floor(x0))


def test_cells_that_nobody_boxed_are_added_and_none_twice(detector, field):
    half = loosened(field, slice(0, None, 2))
    completed = complete_example(detector, half)
    assert abs(len(completed.boxes) - len(field.boxes)) <= 0.2 * len(field.boxes)
    assert completed.labels == (1,) * len(completed.boxes)


def test_what_has_masks_is_left_as_it_is(detector, field):
    assert complete_example(detector, field) is field


def test_an_image_without_annotations_gets_what_is_found(detector, field):
    empty = Example(image=field.image, boxes=field.boxes[:0])
    assert len(complete_example(detector, empty).boxes) >= 0.8 * len(field.boxes)


def test_a_mask_that_does_not_fit_its_box_becomes_the_ellipse(field):
    blind = Detector.untrained(
        seed=1, settings=DetectSettings(threads=1, score_threshold=0.99, diameter=34.0)
    )
    with torch.no_grad():
        blind.net.roi_heads.mask_predictor.mask_fcn_logits.bias.fill_(-50)  # no pixel is a cell
    completed = complete_example(blind, loosened(field, slice(0, 3)))
    np.testing.assert_allclose([m.mean() for m in completed.masks[:3]], np.pi / 4, atol=0.03)


def test_masks_do_not_depend_on_the_order_of_boxes(detector, field):
    forward = detector.masks_at(field.image, field.boxes)
    backward = detector.masks_at(field.image, field.boxes[::-1].copy())
    agree = [np.mean(a == b) for a, b in zip(forward, backward[::-1], strict=True)]
    assert min(agree) > 0.999
    assert detector.masks_at(field.image, field.boxes[:0]) == ()


def mixed(folder):
    """COCO boxes of the discs: the first a white cell, the second a platelet, the rest red cells."""
    example = discs(12, count=6)
    Image.fromarray(example.image).save(folder / "1.png")
    names = {1: "WBC", 2: "Platelets", 3: "RBC", 4: "scale bar"}
    kinds = [1, 2, 3, 3, 4, 3]
    annotations = [
        {
            "id": k,
            "image_id": 1,
            "category_id": kinds[k % 6],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        }
        for k, (x0, y0, x1, y1) in enumerate(example.boxes)
    ]
    document = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in names.items()],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return folder / "coco.json", kinds[: len(example.boxes)]


def test_white_cells_and_platelets_keep_their_kind_where_they_are_wanted(tmp_path):
    path, kinds = mixed(tmp_path)
    (red,) = read_coco_examples(path, categories=["RBC"])
    assert len(red.boxes) == kinds.count(3)
    assert red.labels is None
    (all_kinds,) = read_coco_examples(path, categories=["RBC"], others=True)
    expected = [{1: 2, 2: 3, 3: 1}[kind] for kind in kinds if kind != 4]
    assert list(all_kinds.labels) == expected


def test_a_crop_keeps_the_kind_of_everything_in_it():
    example = discs(13, 220, 260, 45.0, 8)
    labels = tuple(1 + row % 3 for row in range(len(example.boxes)))
    told = Example(image=example.image, boxes=example.boxes, masks=example.masks, labels=labels)
    settings = TrainSettings(crop=320, zoom=(0.99, 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = random_crop(told, settings, stream(0, "crop"))
    assert sorted(crop.target["labels"].tolist()) == sorted(labels)


def test_a_training_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(SettingsError, match="nothing to learn"):
        commands.detect_train(tmp_path / "new.safetensors")
    with pytest.raises(SettingsError, match="complete"):
        commands.detect_train(tmp_path / "new.safetensors", simulated=1, complete=True)
    with pytest.raises(SettingsError, match="learning_rate"):
        commands.detect_train(tmp_path / "new.safetensors", simulated=1, settings={"learning_rate": -1})
    (tmp_path / "old.safetensors").touch()
    with pytest.raises(RunFolderError, match="old"):
        commands.detect_train(tmp_path / "old.safetensors", simulated=1)


def test_a_training_goes_on_from_the_shipped_detector_and_leaves_one_file(tmp_path):
    path, _ = mixed(tmp_path)
    made = commands.detect_train(
        tmp_path / "out" / "own.safetensors",
        coco=[path],
        categories=["RBC"],
        images=1,
        start="shipped",
        complete=True,
        settings={"steps": 1, "batch": 1, "crop": 96, "bfloat16": False},
    )
    assert made["started_from"] == Detector.shipped().fingerprint
    assert made["fingerprint"] != made["started_from"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["own.safetensors"]
    own = Detector.load(tmp_path / "out" / "own.safetensors")
    assert own.classes == Detector.shipped().classes


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    path, _ = mixed(tmp_path)
    tiny = {"steps": 2, "every": 1, "batch": 1, "crop": 96, "bfloat16": False}
    told = {"coco": [path], "categories": ["RBC"], "settings": tiny}
    unbroken = commands.detect_train(tmp_path / "a" / "own.safetensors", **told)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hemomil.commands.detection._tell", killed)  # after the first step is on disk
        with pytest.raises(KeyboardInterrupt):
            commands.detect_train(tmp_path / "b" / "own.safetensors", **told)
    assert [file.name for file in (tmp_path / "b").iterdir() if "checkpoint" in file.name]
    again = commands.detect_train(tmp_path / "b" / "own.safetensors", **told)
    assert again["fingerprint"] == unbroken["fingerprint"]
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["own.safetensors"]


def test_a_detector_of_another_kind_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    Detector.untrained(nominal=60.0).save(tmp_path / "other.safetensors")
    monkeypatch.setattr("hemomil.commands.detection.simulated_examples", None)
    with pytest.raises(SettingsError, match="60"):
        commands.detect_train(
            tmp_path / "new.safetensors", simulated=1, start=str(tmp_path / "other.safetensors")
        )
