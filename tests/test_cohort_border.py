"""Cells cut by the border of their image: told by their box, left out with a count, kept on request."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemomil.cohort import (
    assign,
    cut_by_border,
    read_known_cells,
    whole_image_cells,
    without_cut,
    write_cells_csv,
)
from hemomil.errors import CellsError
from hemomil.types import Cohort, Detections, ImageRow, Sample

WIDTH, HEIGHT = 300, 200
CUT = np.array([[0, 50, 30, 90], [260, 50, 300, 90], [50, 0, 90, 25], [50, 170, 90, 199]], dtype=float)
WHOLE = np.array([[10, 10, 50, 50], [240, 140, 280, 180], [100, 60, 140, 100]], dtype=float)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    return one_image(tmp_path, "field")


def one_image(folder: Path, kind: str) -> Cohort:
    row = ImageRow(image="a.png", path=folder / "a.png", row=2, kind=kind)
    return Cohort(samples=(Sample(sample="s", patient="p", label="control", images=(row,)),))


@pytest.fixture
def cells(cohort: Cohort):
    boxes = np.concatenate([CUT, WHOLE])
    return assign(cohort, {"a.png": Detections(boxes=boxes, scores=np.ones(len(boxes)))})


def test_cells_that_reach_any_border_are_cut_and_others_are_not(cells, cohort):
    assert cut_by_border(cells, cohort).tolist() == [True] * len(CUT) + [False] * len(WHOLE)


def test_cut_cells_are_left_out_and_counted_under_the_ids_of_the_rest(cells, cohort):
    whole, (notice,) = without_cut(cells, cohort)
    assert whole.cell_ids == cells.cell_ids[len(CUT) :]
    np.testing.assert_array_equal(whole.boxes, WHOLE)
    assert "4 of 7 cells" in notice.text


def test_where_nothing_is_cut_nothing_is_said(cohort):
    cells = assign(cohort, {"a.png": Detections(boxes=WHOLE, scores=np.ones(len(WHOLE)))})
    whole, notices = without_cut(cells, cohort)
    assert whole.cell_ids == cells.cell_ids
    assert notices == ()


def test_an_image_of_one_cell_is_never_cut(cohort, tmp_path):
    single = one_image(tmp_path, "cell")
    assert not cut_by_border(whole_image_cells(single), single).any()


def test_a_border_counts_in_proportion_to_the_cells(cohort):
    near = WHOLE + np.array([0, -7, 0, -7])  # 3 pixels from the upper border, cells of 40 and of 160 pixels
    small = assign(cohort, {"a.png": Detections(boxes=near, scores=np.ones(3))})
    assert cut_by_border(small, cohort).tolist() == [False, False, False]
    large = np.array([[50, 3, 210, 163]], dtype=float)
    assert cut_by_border(assign(cohort, {"a.png": Detections(boxes=large, scores=np.ones(1))}), cohort).all()


def test_a_file_that_marks_cut_cells_is_obeyed_unless_they_are_wanted(cells, cohort, tmp_path):
    write_cells_csv(tmp_path / "cells.csv", cells, cut=cut_by_border(cells, cohort))
    assert pd.read_csv(tmp_path / "cells.csv")["border"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    known = read_known_cells(tmp_path / "cells.csv", cohort)
    assert len(known.cells) == len(WHOLE)
    assert any("4 of 7 cells" in notice.text for notice in known.notices)
    assert len(read_known_cells(tmp_path / "cells.csv", cohort, keep_cut=True).cells) == len(cells)


def test_a_mark_that_is_neither_yes_nor_no_is_named_with_its_row(cohort, tmp_path):
    (tmp_path / "cells.csv").write_text("image,x0,y0,x1,y1,border\na.png,5,5,50,50,maybe\n")
    with pytest.raises(CellsError, match=r"(?s)2.*maybe"):
        read_known_cells(tmp_path / "cells.csv", cohort)
