"""The laws of finding cells that need no learning: scale, tiles, masks, files, scores."""

import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_iou

from hemomil.detect import Detector, DetectSettings, Example, evaluate_detector, read_coco_examples
from hemomil.detect.detector import corrected
from hemomil.detect.masks import cut_masks
from hemomil.detect.scale import BLUE, guess_diameter
from hemomil.detect.tally import pairs
from hemomil.detect.tiles import lay_tiles, not_inside_a_better, owners
from hemomil.errors import CellsError, ModelError


def discs(seed=0, height=160, width=200, diameter=40.0, count=9):
    """Dark discs on bright glass, none overlapping much, with their boxes and masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.full((height, width, 3), 225.0)
    boxes, masks = [], []
    while len(boxes) < count:
        radius = diameter / 2 * rng.uniform(0.9, 1.1)
        cx, cy = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if any(np.hypot(cx - (b[0] + b[2]) / 2, cy - (b[1] + b[3]) / 2) < 1.9 * radius for b in boxes):
            count -= 1
            continue
        disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        image[disc] = (200, 110, 120)
        rows, columns = np.nonzero(disc.any(1))[0], np.nonzero(disc.any(0))[0]
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        boxes.append(box)
        masks.append(disc[box[1] : box[3], box[0] : box[2]])
    noisy = image + rng.normal(0, 4, image.shape)
    return Example(
        image=noisy.clip(0, 255).astype(np.uint8), boxes=np.array(boxes, dtype=np.float32), masks=tuple(masks)
    )


@pytest.fixture(scope="module")
def untrained():
    return Detector.untrained(seed=3, settings=DetectSettings(threads=1, score_threshold=0.3, diameter=40))


@pytest.mark.parametrize("diameter", [20, 45, 90])
def test_the_size_of_cells_is_guessed_within_a_quarter(diameter):
    image = discs(1, 5 * diameter, 7 * diameter, diameter, 12).image
    assert guess_diameter(image) == pytest.approx(diameter, rel=0.25)


def test_the_size_of_yellow_cells_is_guessed_from_the_blue():
    image = discs(1, 225, 315, 45, 12).image
    image[..., :2] = 200 + image[..., :2] // 50
    assert guess_diameter(image) is None
    assert guess_diameter(image, BLUE) == pytest.approx(45, rel=0.25)


def test_cells_found_correct_a_guess_that_was_far_off_only():
    boxes = torch.tensor([[0.0, 0, 40, 40]]).repeat(5, 1)
    assert corrected(38.0, boxes) == 38.0
    assert corrected(20.0, boxes) == 40.0
    assert corrected(80.0, boxes) == 40.0
    assert corrected(80.0, boxes[:4]) == 80.0


def test_a_blank_image_has_no_cell_size():
    assert guess_diameter(np.full((50, 60, 3), 230, dtype=np.uint8)) is None


@pytest.mark.parametrize(("height", "width"), [(16, 16), (300, 768), (769, 768), (1000, 2500)])
def test_tiles_cover_the_image_and_their_cores_share_it(height, width):
    tiles = lay_tiles(height, width, 768, 128)
    seen = np.zeros((height, width), dtype=int)
    for x, y in tiles.corners.tolist():
        assert 0 <= x <= width - tiles.width
        assert 0 <= y <= height - tiles.height
        seen[y : y + tiles.height, x : x + tiles.width] += 1
    assert seen.min() == 1
    centres = torch.cartesian_prod(torch.linspace(0, width, 37), torch.linspace(0, height, 29))
    inside = (centres[:, None] >= tiles.cores[:, :2]) & (centres[:, None] < tiles.cores[:, 2:])
    assert (inside.all(dim=2).sum(dim=1) == 1).all()


def test_a_cell_smaller_than_the_overlap_lies_whole_in_the_tile_that_owns_it():
    tiles = lay_tiles(1500, 2000, 512, 128)
    corners = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1880.0, 1380.0])
    boxes = torch.cat([corners, corners + 120], dim=1)
    origin = tiles.corners[owners(boxes, tiles)]
    assert (boxes[:, :2] >= origin).all()
    assert (boxes[:, 2:] <= origin + torch.tensor([tiles.width, tiles.height])).all()


def test_half_a_cell_beside_the_whole_of_it_is_dropped():
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 20], [30, 0, 70, 40]])
    assert not_inside_a_better(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.75).tolist() == [True, False, True]
    assert not_inside_a_better(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.75).tolist() == [False, True, True]


def test_of_equal_scores_one_stays():
    boxes = torch.tensor([[0.0, 0, 40, 40]] * 3)
    assert not_inside_a_better(boxes, torch.ones(3), 0.75).tolist() == [True, False, False]


def test_a_mask_has_the_shape_of_its_box_rounded_outwards():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 80, (150, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.5, 60, (150, 2))], axis=1).astype(np.float32)
    masks = cut_masks(torch.ones(150, 28, 28), boxes)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        assert mask.shape == (np.ceil(y1) - np.floor(y0), np.ceil(x1) - np.floor(x0))


def test_a_mask_is_placed_where_its_probabilities_say():
    y, x = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(28) + 0.5, indexing="ij")
    disc = (((x - 14) ** 2 + (y - 14) ** 2) < 14**2).float()
    right = (x > 14).float()
    boxes = np.array([[3.0, 5, 103, 105], [10, 10, 50, 50]], dtype=np.float32)
    round_mask, right_mask = cut_masks(torch.stack([disc, right]), boxes)
    assert round_mask.mean() == pytest.approx(np.pi / 4, abs=0.02)
    assert not right_mask[:, :19].any()
    assert right_mask[:, 21:].all()


def test_the_order_of_boxes_does_not_change_their_masks():
    probabilities = torch.rand(200, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = np.cumsum(np.random.default_rng(1).uniform(1, 30, (200, 4)), axis=1).astype(np.float32)
    forward, backward = cut_masks(probabilities, boxes), cut_masks(probabilities.flip(0), boxes[::-1].copy())
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward[::-1], strict=True))


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 1, 3), (40, 300, 3)])
def test_small_images_are_no_trouble(shape):
    detector = Detector.untrained(settings=DetectSettings(threads=1))
    found, maps = detector.detect_with_roi(np.full(shape, 200, dtype=np.uint8))
    assert len(found.scores) == len(found.boxes) == len(maps)


def test_cells_found_are_in_the_image_in_reading_order_and_carry_masks(untrained):
    image = discs(2).image
    found = untrained.detect(image)
    assert len(found.boxes) > 3
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
    assert (np.diff(found.boxes[:, 1]) >= 0).all()
    assert len(found.masks) == len(found.boxes)


def test_roi_maps_come_from_the_same_pass_as_the_cells(untrained):
    image = discs(4).image
    found, maps = untrained.detect_with_roi(image)
    assert maps.shape == (len(found.boxes), 256, 14, 14)
    assert maps.dtype == np.float16
    np.testing.assert_allclose(untrained.roi_maps(image, found.boxes), maps, rtol=2e-3, atol=2e-3)


def test_a_roi_map_does_not_depend_on_the_other_boxes():
    example = discs(5, 150, 220, 30.0, 16)
    detector = Detector.untrained(settings=DetectSettings(threads=1, tile=128, overlap=64, diameter=30))
    together = detector.roi_maps(example.image, example.boxes)
    one = detector.roi_maps(example.image, example.boxes[7:8])
    np.testing.assert_array_equal(one[0], together[7])
    assert detector.roi_maps(example.image, example.boxes[:0]).shape == (0, 256, 14, 14)


def test_a_single_cell_image_has_one_map_of_the_usual_shape():
    image = discs(6, 130, 120, 100.0, 1).image
    detector = Detector.untrained(settings=DetectSettings(threads=1))
    whole = np.array([[0, 0, 120, 130]], dtype=np.float32)
    assert detector.roi_maps(image, whole).shape == (1, 256, 14, 14)


def test_a_saved_detector_finds_the_same_cells(tmp_path, untrained):
    untrained.save(tmp_path / "saved")
    loaded = Detector.load(tmp_path / "saved", settings=untrained.settings)
    image = discs(7).image
    assert loaded.fingerprint == untrained.fingerprint
    np.testing.assert_array_equal(loaded.detect(image).boxes, untrained.detect(image).boxes)


def test_other_weights_have_another_fingerprint(untrained):
    assert Detector.untrained(seed=4).fingerprint != untrained.fingerprint


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    about = {
        "format": "hemomil-detector-1",
        "backbone": "small",
        "nominal": "40.0",
        "classes": '["red cell"]',
    }
    save_file({"a": torch.zeros(2)}, tmp_path / "wrong.safetensors", metadata=about)
    for name in ("text.safetensors", "other.safetensors", "wrong.safetensors", "absent.safetensors"):
        with pytest.raises(ModelError, match=name):
            Detector.load(tmp_path / name)


def test_resnet50_ships_no_weights():
    with pytest.raises(ModelError, match="resnet50"):
        Detector.shipped("resnet50")


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ValidationError):
        DetectSettings(treshold=0.5)


def test_coco_weights_that_cannot_be_fetched_are_the_users_to_bring(monkeypatch):
    def offline(**_):
        raise URLError("no network")

    monkeypatch.setattr("hemomil.detect.net.maskrcnn_resnet50_fpn", offline)
    with pytest.raises(ModelError, match="no network"):
        Detector.coco()


@pytest.mark.slow
def test_coco_weights_come_in_by_torchvisions_own_loader(tmp_path, monkeypatch):
    donor = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(donor.state_dict(), tmp_path / "checkpoints.pth")
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda *_, **__: torch.load(tmp_path / "checkpoints.pth", weights_only=True),
    )
    detector = Detector.coco()
    kept = "backbone.body.layer3.0.conv1.weight"
    assert torch.equal(detector.net.state_dict()[kept], donor.state_dict()[kept].half().float())
    assert detector.roi_maps(discs(8).image, discs(8).boxes).shape[1:] == (256, 14, 14)


def coco_file(folder, *, segmentation, category="red blood cell"):
    example = discs(9)
    (folder / "images").mkdir()
    Image.fromarray(example.image).save(folder / "images" / "1.png")
    x0, y0, x1, y1 = example.boxes[0].tolist()
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
    if segmentation:
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 200, "height": 160}],
        "annotations": [annotation, {**annotation, "id": 2, "iscrowd": 1}],
        "categories": [{"id": 2, "name": category}],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return folder / "coco.json", example


@pytest.mark.parametrize("segmentation", [True, False])
def test_coco_examples_have_the_boxes_and_masks_of_the_file(tmp_path, segmentation):
    path, example = coco_file(tmp_path, segmentation=segmentation)
    (read,) = read_coco_examples(path, categories=["red blood cell"])
    np.testing.assert_array_equal(read.boxes, example.boxes[:1])
    np.testing.assert_array_equal(read.image, example.image)
    assert (read.masks is not None) == segmentation
    if segmentation:
        assert read.masks[0].all()
        assert read.masks[0].base is None, "a view keeps a mask of the whole image in memory"


def test_a_coco_file_that_cannot_be_used_says_why(tmp_path):
    path, _ = coco_file(tmp_path, segmentation=False)
    with pytest.raises(CellsError, match="platelet"):
        list(read_coco_examples(path, categories=["platelet"]))
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(CellsError, match=r"1\.png"):
        list(read_coco_examples(path))
    path.write_text("[]")
    with pytest.raises(CellsError, match="categories"):
        list(read_coco_examples(path))


class Oracle:
    """Finds exactly what it was told."""

    fingerprint = "oracle"

    def __init__(self, found):
        self.found, self.settings = found, DetectSettings()

    def with_settings(self, settings):
        return self

    def detect(self, image):
        return self.found.pop(0)


def found_of(example, keep=slice(None)):
    from hemomil.types import Detections

    boxes, masks = example.boxes[keep], example.masks and example.masks[keep]
    return Detections(boxes=boxes, scores=np.full(len(boxes), 0.9, np.float32), masks=masks)


def test_perfect_cells_score_one():
    examples = [discs(seed) for seed in range(3)]
    scores = evaluate_detector(Oracle([found_of(e) for e in examples]), examples)
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap75", "recall", "precision"):
        assert scores[name] == pytest.approx(1.0, abs=1e-6)
    assert scores["count_error"] == 0


def test_half_the_cells_give_half_the_recall():
    example = discs(3, 300, 300, 40.0, 12)
    scores = evaluate_detector(Oracle([found_of(example, slice(0, len(example.boxes), 2))]), [example])
    share = len(example.boxes[::2]) / len(example.boxes)
    assert scores["recall"] == pytest.approx(share)
    assert scores["box_ap50"] == pytest.approx(share, abs=0.02)
    assert scores["precision"] == 1


def test_more_than_a_hundred_cells_count():
    grid = np.array([[x, y, x + 8, y + 8] for x in range(0, 120, 10) for y in range(0, 120, 10)], np.float32)
    example = Example(image=np.zeros((120, 120, 3), np.uint8), boxes=grid)
    scores = evaluate_detector(Oracle([found_of(example)]), [example])
    assert scores["box_ap50"] == pytest.approx(1.0, abs=1e-6)


def test_a_cell_is_matched_once():
    box = np.array([[0, 0, 10, 10]], dtype=np.float32)
    assert len(pairs(np.repeat(box, 3, axis=0), box)[0]) == 1
    assert len(pairs(box, box + 20)[0]) == 0
    assert len(pairs(box[:0], box)[0]) == 0


def test_matching_agrees_with_iou():
    iou = box_iou(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 5, 10, 15]]))
    assert float(iou) < 0.5
    assert len(pairs(np.array([[0, 0, 10, 10.0]]), np.array([[0, 5, 10, 15.0]]))[0]) == 0
