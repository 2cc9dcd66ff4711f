"""Known cells and found cells come to the samples they belong to, in order, and none is lost silently."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hemomil.cohort import (
    assign,
    empty_samples,
    match_truth,
    read_cells,
    read_known_cells,
    read_truth,
    whole_image_cells,
    write_cells_csv,
)
from hemomil.errors import CellsError, ImageError
from hemomil.types import Cells, Cohort, Detections, ImageRow, Sample

WIDTH, HEIGHT = 100, 60
LEFT, RIGHT = (0, 0, 50, HEIGHT), (50, 0, WIDTH, HEIGHT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "cell.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)).save(path)
    return tmp_path


def sample(folder: Path, name: str, *images: tuple, kind: str = "field", **more) -> Sample:
    rows = tuple(
        ImageRow(
            image=f"images/{image}", path=folder / "images" / image, row=2, region=region, kind=kind, **more
        )
        for image, region in images
    )
    return Sample(sample=name, patient=f"patient of {name}", label="control", images=rows)


@pytest.fixture
def cohort(folder: Path) -> Cohort:
    """Two halves of one image, and the second with another image besides."""
    return Cohort(
        samples=(
            sample(folder, "left", ("a.png", LEFT)),
            sample(folder, "right", ("b.png", None), ("a.png", RIGHT)),
        )
    )


def given(folder: Path, text: str) -> Path:
    path = folder / "cells.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, cohort: Cohort) -> str:
    with pytest.raises(CellsError) as caught:
        read_cells(path, cohort)
    return str(caught.value)


# Who gets which cell


def test_the_centre_of_a_cell_decides_which_region_holds_it(folder, cohort):
    path = given(
        folder,
        "image,x0,y0,x1,y1,cell_label\n"
        "images/a.png,45,10,56,20,sickle\n"
        "images/a.png,44,10,55,20,\n"
        "images/b.png,1,1,9,9,\n"
        "images/a.png,45,10,55,20,\n",
    )
    cells = read_cells(path, cohort)
    assert cells.cell_ids == ("left/0000", "right/0000", "right/0001", "right/0002")
    assert cells.samples == ("left", "right", "right", "right")
    # the half-open border belongs to the right, whose first image comes first
    assert cells.images == ("images/a.png", "images/b.png", "images/a.png", "images/a.png")
    assert cells.boxes.tolist() == [[44, 10, 55, 20], [1, 1, 9, 9], [45, 10, 56, 20], [45, 10, 55, 20]]
    assert cells.cell_labels == (None, None, "sickle", None)
    assert cells.scores.tolist() == [1, 1, 1, 1]
    assert tuple(cells.masks) == (None,) * 4


def test_the_sample_column_decides_where_it_is_filled_in(folder, cohort):
    path = given(
        folder,
        "image,sample,x0,y0,x1,y1,det_score\nimages/a.png,right,1,1,9,9,0.5\nimages/a.png,,1,1,9,9,\n",
    )
    cells = read_cells(path, cohort)
    assert cells.samples == ("left", "right")
    assert cells.scores.tolist() == [1, 0.5]


def test_a_cell_may_belong_to_two_samples(folder):
    cohort = Cohort(samples=(sample(folder, "s1", ("a.png", None)), sample(folder, "s2", ("a.png", None))))
    cells = read_cells(given(folder, "image,x0,y0,x1,y1\nimages/a.png,1,1,9,9\n"), cohort)
    assert cells.cell_ids == ("s1/0000", "s2/0000")


def test_regions_of_one_sample_that_overlap_count_a_cell_once(folder):
    cohort = Cohort(samples=(sample(folder, "s", ("a.png", LEFT), ("a.png", None)),))
    cells = read_cells(
        given(folder, "image,x0,y0,x1,y1\nimages/a.png,1,1,9,9\nimages/a.png,60,1,70,9\n"), cohort
    )
    assert cells.boxes[:, 0].tolist() == [1, 60]


def test_found_cells_follow_the_same_rule(cohort):
    boxes = np.array([[45, 10, 56, 20], [44, 10, 55, 20]], dtype=np.float32)
    masks = (np.ones((10, 11), dtype=bool), np.zeros((10, 11), dtype=bool))
    nothing = Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0))
    found = {
        "images/a.png": Detections(boxes=boxes, scores=np.array([0.9, 0.8]), masks=masks),
        "images/b.png": nothing,
    }
    cells = assign(cohort, found)
    assert cells.samples == ("left", "right")
    assert cells.scores.tolist() == [0.8, 0.9]
    assert [mask.any() for mask in cells.masks] == [False, True]
    assert len(assign(cohort, {})) == 0
    assert [n.subject for n in empty_samples(cohort, assign(cohort, {}))] == ["left", "right"]


def test_an_image_of_kind_cell_is_one_cell_and_kinds_may_mix(folder, cohort):
    one = sample(folder, "one", ("cell.png", None), ("b.png", LEFT), kind="cell", cell_label="target")
    mixed = Cohort(samples=(one, *cohort.samples))
    whole = whole_image_cells(mixed)
    assert whole.boxes.tolist() == [[0, 0, WIDTH, HEIGHT], [0, 0, 50, HEIGHT]]
    assert whole.cell_labels == ("target", "target")
    cells = read_cells(given(folder, "image,x0,y0,x1,y1\nimages/a.png,1,1,9,9\n"), mixed)
    assert cells.cell_ids == ("one/0000", "one/0001", "left/0000")


def test_an_unreadable_image_of_kind_cell_is_named(folder):
    (folder / "images" / "cell.png").write_bytes(b"")
    with pytest.raises(ImageError, match="is empty"):
        whole_image_cells(Cohort(samples=(sample(folder, "one", ("cell.png", None), kind="cell"),)))


def test_what_is_written_is_read_back(folder, cohort):
    cells = Cells(
        cell_ids=("left/0000", "right/0000"),
        samples=("left", "right"),
        images=("images/a.png", "images/b.png"),
        boxes=np.array([[1.5, 2, 9.25, 9], [3, 3, 99, 59]]),
        scores=np.array([0.5, 1.0]),
        masks=(None, None),
        cell_labels=("sickle", None),
    )
    write_cells_csv(folder / "out" / "cells.csv", cells)
    again = read_cells(folder / "out" / "cells.csv", cohort)
    assert np.array_equal(again.boxes, cells.boxes)
    assert (again.cell_ids, again.samples, again.images) == (cells.cell_ids, cells.samples, cells.images)
    assert again.cell_labels == cells.cell_labels
    assert again.scores.tolist() == cells.scores.tolist()


# What is wrong with a file, and what is left aside


def test_every_bad_box_is_told_at_once_with_its_row(folder, cohort):
    path = given(
        folder,
        "image,x0,y0,x1,y1\n"
        "images/a.png,1,1,9,9\n"
        "images/a.png,9,1,9,9\n"
        "images/a.png,1,1,,9\n"
        "images/a.png,1,nan,9,9\n"
        "images/a.png,1,one,9,9\n"
        ",1,1,9,9\n",
    )
    text = refused(path, cohort)
    assert "5 problems" in text
    assert "row 3: box 9 1 9 9 of image 'images/a.png' has no area" in text
    for row in (4, 5, 6):
        assert f"row {row}: box" in text
    assert "row 7: box 1 1 9 9 of image '' names no image" in text


def test_a_box_outside_its_image_is_refused_and_one_partly_outside_is_clipped(folder, cohort):
    path = given(folder, "image,x0,y0,x1,y1\nimages/b.png,-5,-5,9,9\nimages/b.png,90,50,110,70\n")
    assert read_cells(path, cohort).boxes.tolist() == [[0, 0, 9, 9], [90, 50, 100, 60]]
    path = given(folder, "image,x0,y0,x1,y1\nimages/b.png,100,1,110,9\nimages/b.png,1,-9,9,0\n")
    text = refused(path, cohort)
    assert "row 2: box 100 1 110 9 of image 'images/b.png' lies outside its image of 100x60 pixels" in text
    assert "row 3" in text


def test_columns_are_found_by_other_names_and_missed_with_a_suggestion(folder, cohort):
    good = given(folder, "FILENAME,X0,Y0,X1,Y1,slide_id,score\nimages/a.png,1,1,9,9,left,0.25\n")
    assert read_cells(good, cohort).scores.tolist() == [0.25]
    text = refused(given(folder, "image,x0,y0,xx1,y1\nimages/a.png,1,1,9,9\n"), cohort)
    assert "did you mean 'xx1'? rename it to 'x1'" in text


def test_images_are_found_by_the_last_part_of_their_path_if_only_one_has_it(folder, cohort):
    path = given(folder, "image,x0,y0,x1,y1\nelsewhere\\a.png,1,1,9,9\n/data/b.png,1,1,9,9\n")
    assert read_cells(path, cohort).images == ("images/a.png", "images/b.png")
    path = given(folder, "image,x0,y0,x1,y1\nx/a.png,1,1,9,9\ny/a.png,1,1,9,9\nb.png,1,1,9,9\n")
    known = read_known_cells(path, cohort)
    assert known.cells.images == ("images/b.png",)
    assert [n.kind for n in known.notices] == ["cells-of-other-images", "no-cells"]


def test_cells_of_other_images_samples_and_places_are_counted_and_named(folder, cohort):
    left = Cohort(samples=cohort.samples[:1])
    path = given(
        folder,
        "image,sample,x0,y0,x1,y1\n"
        "images/a.png,,1,1,9,9\nimages/a.png,right,1,1,9,9\nimages/b.png,,1,1,9,9\nimages/a.png,,60,1,70,9\n",
    )
    known = read_known_cells(path, left)
    assert len(known.cells) == 1
    assert [n.kind for n in known.notices] == [
        "cells-of-other-images",
        "cells-of-other-samples",
        "cells-in-no-region",
    ]
    assert "images/b.png (row 4)" in known.notices[0].text
    assert "right (row 3)" in known.notices[1].text


def test_a_file_that_shares_nothing_with_the_cohort_is_refused(folder, cohort):
    text = refused(given(folder, "image,x0,y0,x1,y1\nz.png,1,1,9,9\n"), cohort)
    assert "none of its 1 cells belongs" in text
    assert "'images/a.png'" in text


def test_a_sample_without_cells_is_noticed(folder, cohort):
    known = read_known_cells(given(folder, "image,x0,y0,x1,y1\nimages/b.png,1,1,9,9\n"), cohort)
    assert [(n.kind, n.subject) for n in known.notices] == [("no-cells", "left")]
    assert "images/a.png" in known.notices[0].text


# COCO


def coco(folder: Path, annotations: list[dict], **more) -> Path:
    data = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [{"id": k + 1, "image_id": 7, "iscrowd": 0, **a} for k, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "round"}, {"id": 2, "name": "sickle"}],
    } | more
    path = folder / "cells.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_coco_boxes_masks_and_categories_are_read(folder, cohort):
    full = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    full[10:20, 5:12] = 1
    packed = coco_mask.encode(np.asfortranarray(full))
    packed["counts"] = packed["counts"].decode()
    polygon = [[20.0, 10.0, 30.0, 10.0, 30.0, 20.0, 20.0, 20.0]]
    counts = full.flatten(order="F").astype(int)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, counts, -1]) != 0)).tolist()
    path = coco(
        folder,
        [
            {"bbox": [4.5, 9, 8, 12], "category_id": 2, "segmentation": packed},
            {"bbox": [20, 10, 10, 10], "category_id": 1, "segmentation": polygon, "score": 0.25},
            {
                "bbox": [4.5, 9, 8, 12],
                "category_id": 2,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs},
            },
            {"bbox": [60, 10, 10, 10], "category_id": 1},
            {"bbox": [0, 0, 99, 50], "category_id": 1, "iscrowd": 1},
        ],
    )
    known = read_known_cells(path, cohort)
    cells = known.cells
    assert cells.cell_ids == ("left/0000", "left/0001", "left/0002", "right/0000")
    assert cells.boxes[:2].tolist() == [[4.5, 9, 12.5, 21], [20, 10, 30, 20]]
    assert cells.cell_labels == ("sickle", "round", "sickle", "round")
    assert cells.scores.tolist() == [1, 0.25, 1, 1]
    rle, polygonal, runlength, none = cells.masks
    assert np.array_equal(rle, full[9:21, 4:13].astype(bool))
    assert np.array_equal(runlength, rle)
    assert polygonal.shape == (10, 10)
    assert polygonal.mean() > 0.9
    assert none is None
    assert [n.kind for n in known.notices] == ["crowd-annotations"]


def test_masks_fit_their_boxes_when_these_are_clipped(folder, cohort):
    polygon = [[-5.0, 10.0, 9.0, 10.0, 9.0, 20.0, -5.0, 20.0]]
    path = coco(folder, [{"bbox": [-5, 10, 14, 10], "category_id": 1, "segmentation": polygon}])
    cells = read_cells(path, cohort)
    assert cells.boxes.tolist() == [[0, 10, 9, 20]]
    assert cells.masks[0].shape == (10, 9)


def test_a_single_category_is_no_label(folder, cohort):
    path = coco(folder, [{"bbox": [1, 1, 9, 9], "category_id": 1}], categories=[{"id": 1, "name": "cell"}])
    assert read_cells(path, cohort).cell_labels == (None,)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"bbox": [1, 1, 0, 9]}, "annotation 1: box 1 1 1 10 of image 'a.png' has no area"),
        ({"bbox": [1, 1, 9]}, "annotation 1 has no box"),
        ({"bbox": None}, "annotation 1 has no box"),
        ({"bbox": [1, 1, 9, 9], "image_id": 99}, "annotation 1 belongs to no image"),
        ({"bbox": [1, 1, 9, 9], "id": None}, "has no id of its own"),
        ({"bbox": [200, 1, 9, 9]}, "lies outside its image of 100x60 pixels"),
    ],
)
def test_bad_annotations_are_named(folder, cohort, annotation, expected):
    assert expected in refused(coco(folder, [annotation]), cohort)


def test_annotations_of_an_image_of_another_size_are_refused(folder, cohort):
    images = [{"id": 7, "file_name": "a.png", "width": 200, "height": 120}]
    text = refused(coco(folder, [{"bbox": [1, 1, 9, 9]}], images=images), cohort)
    assert "was annotated at 200x120 pixels, but is 100x60" in text


@pytest.mark.parametrize(
    ("content", "expected"), [("{", "is not JSON"), ("[]", "is not COCO"), ("{}", "is not COCO")]
)
def test_what_is_not_coco_is_refused(folder, cohort, content, expected):
    path = folder / "cells.json"
    path.write_text(content)
    assert expected in refused(path, cohort)


# Known classes for found cells


def cells_at(*boxes: tuple, samples: tuple[str, ...] | None = None) -> Cells:
    n = len(boxes)
    return Cells(
        cell_ids=tuple(f"s/{k}" for k in range(n)),
        samples=samples or ("s",) * n,
        images=("images/a.png",) * n,
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        scores=np.ones(n),
        masks=(None,) * n,
        cell_labels=(None,) * n,
    )


def truth(*rows: tuple) -> pd.DataFrame:
    columns = ["image", "x0", "y0", "x1", "y1", "cell_label", "sample"]
    return pd.DataFrame([(*row, "") for row in rows], columns=columns)


def test_a_cell_has_the_class_of_the_known_cell_it_overlaps_by_half():
    known = truth(("a.png", 0, 0, 10, 10, "round"), ("a.png", 50, 0, 60, 10, "sickle"))
    # IoU 9/11; 1/2 exactly; 1/3; none
    found = cells_at((1, 0, 11, 10), (50, 0, 60, 5), (55, 0, 65, 10), (80, 0, 90, 10))
    assert match_truth(found, known) == ("round", "sickle", None, None)


def test_pairs_are_chosen_for_the_largest_overlap_and_each_known_cell_once():
    known = truth(("a.png", 0, 0, 10, 10, "left"), ("a.png", 2, 0, 12, 10, "right"))
    found = cells_at((2, 0, 12, 10), (1, 0, 11, 10), (2, 0, 12, 9))
    assert match_truth(found, known) == ("right", "left", None)


def test_a_cell_in_two_samples_is_matched_in_both_and_repeats_count_once():
    known = truth(("a.png", 0, 0, 10, 10, "round"), ("a.png", 0, 0, 10, 10, "round"))
    assert match_truth(cells_at((0, 0, 10, 10), (0, 0, 10, 10), samples=("s", "t")), known) == (
        "round",
        "round",
    )
    assert match_truth(cells_at((0, 0, 10, 10), (0, 0, 10, 10)), known) == ("round", None)


def test_a_known_cell_without_a_class_gives_none():
    assert match_truth(cells_at((0, 0, 10, 10)), truth(("a.png", 0, 0, 10, 10, ""))) == (None,)


def test_truth_of_other_images_is_refused():
    with pytest.raises(CellsError, match="none of the 1 images"):
        match_truth(cells_at((0, 0, 10, 10)), truth(("z.png", 0, 0, 10, 10, "")))
    assert match_truth(cells_at(), truth(("z.png", 0, 0, 10, 10, ""))) == ()


def test_truth_is_read_as_the_file_names_it(folder):
    path = given(folder, "image,x0,y0,x1,y1,cell_label\nx/a.png,1,1,9,9,round\n")
    table = read_truth(path)
    assert table.to_dict("records") == [
        {"image": "x/a.png", "x0": 1, "y0": 1, "x1": 9, "y1": 9, "cell_label": "round", "sample": ""}
    ]
