"""The laws of `detect evaluate`: its numbers, their intervals, the border, and the sets that it reads."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision

from hemomil.commands import evaluation, resolve_settings
from hemomil.commands.console import detector_table
from hemomil.commands.evaluation import detect_evaluate, detector_scores
from hemomil.commands.known import read_image_sets
from hemomil.detect import DetectSettings
from hemomil.detect.tally import (
    Known,
    average_precisions,
    inside,
    laid_out,
    pairs,
    tally_cells,
    tally_points,
)
from hemomil.errors import CellsError
from hemomil.types import Detections

SHAPE = (160, 200)
CUT = [0, 40, 15, 60]
WHOLE = [50, 50, 70, 70]
FREE = [100, 100, 120, 120]


def of(*boxes):
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def random_boxes(rng, n, shape=SHAPE, side=(12, 40)):
    sides = rng.uniform(*side, (n, 2))
    low = rng.uniform(0, 1, (n, 2)) * (np.array(shape[::-1]) - sides)
    return np.concatenate([low, low + sides], axis=1).astype(np.float32)


def ellipses(boxes):
    """A mask in every box, cut to the box rounded outwards."""
    made = []
    for x0, y0, x1, y1 in boxes:
        y, x = np.mgrid[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] + 0.5
        made.append(((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25)
    return tuple(made)


def detections(boxes, scores=None):
    scores = np.full(len(boxes), 0.9) if scores is None else scores
    return Detections(boxes=boxes, scores=np.asarray(scores, dtype=np.float32), masks=ellipses(boxes))


def known_of(boxes, labels=None):
    masks = laid_out(boxes, ellipses(boxes), SHAPE)
    return Known(boxes=boxes, labels=labels or ("",) * len(boxes), masks=masks)


def noisy(rng, known, misses=0.2, alarms=3):
    """Most of the known cells, moved a little, and some that are none."""
    kept = known[rng.uniform(size=len(known)) > misses]
    moved = kept + rng.normal(0, 2.5, kept.shape)
    wrong = random_boxes(rng, int(rng.poisson(alarms)))
    boxes = np.concatenate([moved, wrong]).clip(0, [*SHAPE[::-1], *SHAPE[::-1]]).astype(np.float32)
    return detections(boxes, rng.uniform(0.05, 1, len(boxes)))


def random_images(seed, n, cells=(0, 15)):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        known = random_boxes(rng, int(rng.integers(*cells)))
        yield noisy(rng, known), known


def tallies_of(images, **options):
    return [tally_cells(found, known_of(known), SHAPE, least=0.5, **options) for found, known in images]


def once(tallies):
    return np.ones((1, len(tallies)), dtype=np.int64)


def planes(boxes):
    whole = np.zeros((len(boxes), *SHAPE), dtype=bool)
    for plane, mask, (x0, y0) in zip(whole, ellipses(boxes), np.floor(boxes[:, :2]).astype(int), strict=True):
        plane[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask[: SHAPE[0] - y0, : SHAPE[1] - x0]
    return torch.from_numpy(whole)


def by_torchmetrics(images):
    """COCO average precision by the second implementation, of up to 1000 cells an image."""
    metric = MeanAveragePrecision(
        iou_type=("bbox", "segm"), max_detection_thresholds=[1, 100, 1000], extended_summary=True
    )
    for found, known in images:
        ones = [{"labels": torch.ones(len(b), dtype=torch.int64)} for b in (found.boxes, known)]
        prediction = {"boxes": torch.from_numpy(found.boxes), "scores": torch.from_numpy(found.scores)}
        target = {"boxes": torch.from_numpy(known), "masks": planes(known)}
        metric.update([prediction | {"masks": planes(found.boxes)} | ones[0]], [target | ones[1]])
    values = metric.compute()
    made = {}
    for kind, prefix in {"box": "bbox", "mask": "segm"}.items():
        # `map` itself looks at 100 cells an image, whatever it is told
        made[f"{kind}_ap"] = float(values[f"{prefix}_precision"][:, :, 0, 0, -1].mean())
        made |= {f"{kind}_ap{t}": float(values[f"{prefix}_map_{t}"]) for t in (50, 75)}
    return made


# Average precision


@pytest.mark.parametrize(("seed", "n", "cells"), [(0, 6, (0, 15)), (1, 1, (8, 9)), (2, 3, (60, 90))])
def test_average_precision_agrees_with_torchmetrics(seed, n, cells):
    images = list(random_images(seed, n, cells))
    tallies = tallies_of(images)
    ours = {name: value[0] for name, value in average_precisions(tallies, once(tallies)).items()}
    assert ours == pytest.approx(by_torchmetrics(images), abs=1e-6)


def test_average_precision_of_more_than_a_hundred_cells_agrees_with_torchmetrics():
    rng = np.random.default_rng(5)
    known = random_boxes(rng, 140, side=(6, 9))
    images = [(detections(known + rng.normal(0, 0.4, known.shape).astype(np.float32).clip(0)), known)]
    images[0][0].scores[:] = rng.uniform(size=140)
    tallies = tallies_of(images)
    ours = {name: value[0] for name, value in average_precisions(tallies, once(tallies)).items()}
    assert ours == pytest.approx(by_torchmetrics(images), abs=1e-6)


def test_of_two_known_cells_equally_near_the_choice_agrees_with_torchmetrics():
    known = of([40, 40, 60, 60], [50, 40, 70, 60])
    for other in (known[:1], known[1:]):
        found = detections(np.concatenate([of([45, 40, 65, 60]), other]), [0.9, 0.8])
        tallies = tallies_of([(found, known)])
        ours = {name: value[0] for name, value in average_precisions(tallies, once(tallies)).items()}
        assert ours == pytest.approx(by_torchmetrics([(found, known)]), abs=1e-6)


def test_a_draw_counts_an_image_as_often_as_it_is_drawn():
    images = list(random_images(3, 5))
    draw = np.array([[0, 2, 1, 0, 3]])
    repeated = tallies_of([images[i] for i in np.repeat(np.arange(5), draw[0])])
    drawn = average_precisions(tallies_of(images), draw)
    for name, value in average_precisions(repeated, once(repeated)).items():
        assert drawn[name][0] == pytest.approx(value[0], abs=1e-9)


def test_average_precision_needs_a_known_cell():
    found = detections(random_boxes(np.random.default_rng(0), 3))
    tallies = tallies_of([(found, found.boxes), (found, found.boxes[:0])])
    drawn = average_precisions(tallies, np.array([[0, 2], [1, 1]]))["box_ap"]
    assert np.isnan(drawn[0])
    assert drawn[1] > 0


# Counts


def test_perfect_detections_give_one():
    boxes = [random_boxes(np.random.default_rng(seed), 8, side=(12, 20)) for seed in range(6)]
    scores = detector_scores(tallies_of([(detections(b), b) for b in boxes]), seed=0)
    assert scores.pop("count_error")["value"] == 0
    for name, score in scores.items():
        assert score["value"] == pytest.approx(1, abs=1e-9), name
        assert score["low"] == pytest.approx(1, abs=1e-9), name
        assert score["unit"] == "images"


def test_the_matching_with_the_most_pairs_wins():
    known = of(*([0, 3 * k, 10, 3 * k + 10] for k in range(7)))
    found = known + of([0, 3, 0, 3])  # six are known cells exactly, but so all seven are
    assert len(pairs(found, known)[0]) == 7


def test_the_count_error_is_a_share_of_the_known_cells():
    boxes = random_boxes(np.random.default_rng(9), 4, side=(12, 20))
    images = [(detections(boxes[:1]), boxes), (detections(boxes[:3]), boxes[:0])]
    errors = detector_scores(tallies_of(images), seed=0)["count_error"]
    assert errors["value"] == pytest.approx((3 / 4 + 3) / 2)


def test_cells_below_the_threshold_count_for_average_precision_only():
    known = random_boxes(np.random.default_rng(1), 4, side=(12, 20))
    tally = tally_cells(detections(known, [0.9, 0.9, 0.2, 0.2]), known_of(known), SHAPE, least=0.5)
    assert tally.hits.tolist() == [True, True, False, False]
    assert tally.found == 2
    assert average_precisions([tally], once([tally]))["box_ap"][0] == pytest.approx(1)


@pytest.mark.parametrize("inner", [False, True])
def test_nothing_known_and_nothing_found_is_no_trouble(inner):
    none = np.zeros((0, 4), dtype=np.float32)
    tallies = tallies_of([(detections(none), none)] * 6, inner=inner)
    scores = detector_scores(tallies, seed=0)
    assert scores["recall"]["value"] is None
    assert scores["box_ap"]["value"] is None
    assert scores["count_error"]["value"] == 0


def test_one_box_is_the_find_of_one_point():
    boxes = np.array([[0, 0, 20, 20], [10, 10, 30, 30]], dtype=np.float32)
    points = np.array([[5, 5], [6, 6], [15, 15], [90, 90]], dtype=float)
    tally = tally_points(detections(boxes), points, ("",) * 4, SHAPE, least=0.5)
    assert tally.hits.sum() == 2
    assert tally.hits[2]  # the box of the other two is not wasted on it
    assert not tally.hits[3]
    assert tally.found is None


def test_a_box_does_not_hold_its_right_and_lower_edge():
    points = np.array([[50, 50], [70, 60], [60, 70]], dtype=float)
    tallies = [tally_points(detections(of(WHOLE)), p[None], ("",), SHAPE, least=0.5) for p in points]
    assert [int(tally.hits.sum()) for tally in tallies] == [1, 0, 0]


def test_points_say_nothing_of_false_alarms():
    points = np.array([[15, 15]], dtype=float)
    tally = tally_points(detections(np.array([[0, 0, 20, 20]], np.float32)), points, ("",), SHAPE, least=0.5)
    assert set(detector_scores([tally] * 6, seed=0)) == {"recall"}


def test_recall_is_told_by_class():
    known = random_boxes(np.random.default_rng(2), 4, side=(12, 20))
    labels = ("ring", "ring", "control", "")
    tally = tally_cells(detections(known[1:]), known_of(known, labels), SHAPE, least=0.5)
    scores = detector_scores([tally] * 6, seed=0)
    assert scores["recall"]["value"] == pytest.approx(3 / 4)
    assert scores["recall_ring"]["value"] == pytest.approx(1 / 2)
    assert scores["recall_control"]["value"] == 1
    assert "recall_" not in scores


# The border


@pytest.mark.parametrize(
    ("found", "known", "hit", "found_in", "known_in"),
    [
        ([WHOLE], [WHOLE, CUT], 1, 1, 1),  # a cut cell missed is no loss
        ([WHOLE, CUT], [WHOLE], 1, 1, 1),  # a cut cell found is no false alarm
        ([WHOLE, CUT], [WHOLE, CUT], 1, 1, 1),  # nor is it a success
        ([WHOLE, FREE], [WHOLE], 1, 2, 1),  # any other is a false alarm
        ([[3, 40, 16, 60]], [CUT], 0, 0, 0),  # a find inside, of a known cell that is cut
        ([CUT], [[3, 40, 16, 60]], 1, 1, 1),  # a find at the border, of a known cell that is not
    ],
)
def test_what_touches_the_border_is_left_out(found, known, hit, found_in, known_in):
    tally = tally_cells(detections(of(*found)), known_of(of(*known)), SHAPE, least=0.5, inner=True)
    assert (tally.hits.sum(), tally.found, len(tally.hits)) == (hit, found_in, known_in)
    assert tally.ranked["box"].known == known_in
    assert tally.ranked["box"].hits[0].tolist().count(True) == hit
    assert len(tally.ranked["mask"].scores) == found_in


def test_all_four_borders_are_borders_and_two_pixels_are_near():
    height, width = SHAPE
    at = of(
        [2, 50, 20, 70], [50, 2, 70, 20], [width - 20, 50, width - 2, 70], [50, height - 20, 70, height - 2]
    )
    off = at + of([1, 0, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 0], [0, -1, 0, -1])
    assert not inside(at, at[:0], SHAPE)[0].any()
    assert inside(off, off[:0], SHAPE)[0].all()


def test_average_precision_without_the_border_is_that_of_the_rest():
    images = list(random_images(4, 4))
    rest = []
    for found, known in images:
        found_in, known_in = inside(found.boxes, known, SHAPE)
        rest.append((detections(found.boxes[found_in], found.scores[found_in]), known[known_in]))
    tallies = tallies_of(images, inner=True)
    ours = {name: value[0] for name, value in average_precisions(tallies, once(tallies)).items()}
    assert ours == pytest.approx(by_torchmetrics(rest), abs=1e-6)


def test_a_point_at_the_border_is_left_out():
    points = np.array([[1, 50], [60, 60]], dtype=float)
    tally = tally_points(detections(of(WHOLE)), points, ("a", "b"), SHAPE, least=0.5, inner=True)
    assert tally.hits.tolist() == [True]
    assert tally.labels == ("b",)


# Intervals


def test_intervals_hold_the_value_and_shrink_with_more_images():
    few, many = (detector_scores(tallies_of(random_images(7, n, (4, 12))), seed=0) for n in (8, 128))
    for name in few:
        for score in (few[name], many[name]):
            assert score["low"] <= score["value"] <= score["high"], name
        assert many[name]["high"] - many[name]["low"] < 0.6 * (few[name]["high"] - few[name]["low"]), name


def test_too_few_images_have_no_interval():
    scores = detector_scores(tallies_of(random_images(8, 4, (4, 12))), seed=0)
    assert all(score["low"] is None and score["value"] is not None for score in scores.values())


# Sets of images, and the command


class Oracle:
    """Finds in each image what it was told, the image being known by its mean colour."""

    def __init__(self, found, settings=None):
        self.found, self.settings = found, settings or DetectSettings()

    def with_settings(self, settings):
        return Oracle(self.found, settings)

    def detect(self, image):
        return self.found[int(image[0, 0, 0])]


BOXES = {10: of(WHOLE, FREE), 20: of(WHOLE), 30: of(FREE)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images, their cells as COCO, as cells.csv and as points, and a detector that finds them all."""
    (tmp_path / "images").mkdir()
    for grey in BOXES:
        Image.fromarray(np.full((*SHAPE, 3), grey, np.uint8)).save(tmp_path / "images" / f"{grey}.png")
    rows = [(f"images/{grey}.png", *box) for grey, boxes in BOXES.items() for box in boxes.tolist()]
    cells = pd.DataFrame(rows, columns=["image", "x0", "y0", "x1", "y1"])
    cells["cell_label"] = ["ring", "control", "control", "control"]
    cells.to_csv(tmp_path / "cells.csv", index=False)
    points = cells.assign(x=(cells["x0"] + cells["x1"]) / 2, y=(cells["y0"] + cells["y1"]) / 2)
    points[["image", "x", "y", "cell_label"]].to_csv(tmp_path / "points.csv", index=False)
    (tmp_path / "coco.json").write_text(json.dumps(coco_of(cells)))
    monkeypatch.setattr(
        evaluation, "open_detector", lambda _: Oracle({grey: detections(b) for grey, b in BOXES.items()})
    )
    return tmp_path


def coco_of(cells):
    height, width = SHAPE
    names = [f"{grey}.png" for grey in BOXES]
    ids = {f"images/{name}": k for k, name in enumerate(names)}
    return {
        "images": [{"id": k, "file_name": n, "width": width, "height": height} for k, n in enumerate(names)],
        "annotations": [
            {
                "id": k,
                "image_id": ids[row.image],
                "category_id": 1 if row.cell_label == "control" else 2,
                "bbox": [row.x0, row.y0, row.x1 - row.x0, row.y1 - row.y0],
                "segmentation": [[row.x0, row.y0, row.x1, row.y0, row.x1, row.y1, row.x0, row.y1]],
            }
            for k, row in enumerate(cells.itertuples())
        ],
        "categories": [{"id": 1, "name": "control"}, {"id": 2, "name": "ring"}],
    }


def evaluate(*files, **options):
    return detect_evaluate(list(files), settings=resolve_settings(), **options)


def test_every_set_has_its_block(folder):
    blocks = evaluate(folder / "coco.json", folder / "cells.csv", folder / "points.csv")
    assert [block["file"] for block in blocks] == [
        str(folder / f) for f in ("coco.json", "cells.csv", "points.csv")
    ]
    for block in blocks:
        assert (block["images"], block["cells"]) == (3, 4)
        assert block["classes"] == {"control": 3, "ring": 1}
        for name in ("recall", "recall_ring", "recall_control"):
            assert block["scores"][name]["value"] == 1
    coco, cells, points = (block["scores"] for block in blocks)
    assert coco["mask_ap50"]["value"] == pytest.approx(1)
    assert "mask_ap" not in cells
    assert cells["precision"]["value"] == 1
    assert "precision" not in points
    json.dumps(blocks)


def test_the_table_names_the_set_and_every_number(folder):
    (block,) = evaluate(folder / "cells.csv")
    table = detector_table(block)
    assert "cells.csv" in table
    assert all(name in table for name in block["scores"])


def test_an_image_without_known_cells_counts(folder):
    document = json.loads((folder / "coco.json").read_text())
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 2]
    (folder / "coco.json").write_text(json.dumps(document))
    (block,) = evaluate(folder / "coco.json")
    assert block["images"] == 3
    assert block["scores"]["precision"]["value"] == pytest.approx(3 / 4)
    assert "mask_ap" in block["scores"]


def test_a_category_says_what_is_a_red_cell(folder):
    (block,) = evaluate(folder / "coco.json", categories=["ring"])
    assert block["cells"] == 1
    with pytest.raises(CellsError, match="platelet"):
        evaluate(folder / "coco.json", categories=["platelet"])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("coco.json", "10"),
        ("coco.json", "10.png"),
        ("cells.csv", "10"),
        ("points.csv", "10.png"),
        ("points.csv", "images/10.png"),
    ],
)
def test_only_the_listed_images_are_used(folder, file, name):
    (folder / "list.csv").write_text(f"image,coverage\n{name},0.99\n")
    (block,) = evaluate(folder / file, only=folder / "list.csv")
    assert (block["images"], block["cells"]) == (1, 2)


def test_a_limit_keeps_the_first_images(folder):
    for block in evaluate(folder / "coco.json", folder / "points.csv", limit=2):
        assert (block["images"], block["cells"]) == (2, 3)


def test_a_place_that_is_repeated_counts_once(folder):
    table = pd.read_csv(folder / "cells.csv")
    pd.concat([table.assign(sample="a"), table.assign(sample="b")]).to_csv(folder / "cells.csv", index=False)
    assert evaluate(folder / "cells.csv")[0]["cells"] == 4


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("points.csv", "image,x,y\nimages/10.png,5,five\n", "row 2.*not a number"),
        ("points.csv", "image,x,y\n,5,5\n", "row 2.*names no image"),
        ("points.csv", "image,x,y\nimages/10.png,5,900\n", "row 2.*outside its image"),
        ("points.csv", "image,x,y\nimages/11.png,5,5\n", "row 2.*11.png"),
        ("points.csv", "picture,x,y\nimages/10.png,5,5\n", "'image'"),
        ("cells.csv", "image,x0,y0,x1,y1\nimages/10.png,500,5,520,30\n", "row 2.*outside its image"),
        ("cells.csv", "image,x0,y0,x1,y1\nimages/10.png,50,5,20,30\n", "row 2.*no area"),
        ("cells.csv", "image,x0,y0\nimages/10.png,50,5\n", "'x1'"),
        ("coco.json", "{}", "COCO"),
    ],
)
def test_a_set_that_cannot_be_used_says_where(folder, file, text, match):
    (folder / file).write_text(text)
    with pytest.raises(CellsError, match=match):
        read_image_sets([folder / file])


def test_images_of_another_size_than_were_annotated_are_refused(folder):
    document = json.loads((folder / "coco.json").read_text())
    document["images"][1]["width"] = 400
    (folder / "coco.json").write_text(json.dumps(document))
    with pytest.raises(CellsError, match=r"20\.png.*400x160.*200x160"):
        read_image_sets([folder / "coco.json"])


@pytest.mark.parametrize(
    ("text", "match"),
    [("image\n10\n77\n", "row 3.*77"), ("name\n10\n", "'image'"), ("image\n", "no rows")],
)
def test_a_list_that_cannot_be_used_says_where(folder, text, match):
    (folder / "list.csv").write_text(text)
    with pytest.raises(CellsError, match=match):
        read_image_sets([folder / "points.csv"], only=folder / "list.csv")


def test_a_list_without_an_image_of_a_set_is_refused(folder):
    (folder / "list.csv").write_text("image\n10\n")
    (folder / "other.csv").write_text("image,x,y\nimages/20.png,5,5\n")
    with pytest.raises(CellsError, match=r"other\.csv"):
        read_image_sets([folder / "points.csv", folder / "other.csv"], only=folder / "list.csv")


def test_the_command_prints_blocks(folder, capsys):
    from typer.testing import CliRunner

    from hemomil.cli import app

    words = ["detect", "evaluate", str(folder / "cells.csv"), str(folder / "points.csv"), "-q", "--inner"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "cells.csv" in done.output
    assert "points.csv" in done.output
    blocks = json.loads(CliRunner().invoke(app, [*words, "--json", "--limit", "1"]).stdout)
    assert [block["images"] for block in blocks] == [1, 1]
    assert set(blocks[0]["scores"]["recall"]) >= {"value", "low", "high", "n", "unit"}
