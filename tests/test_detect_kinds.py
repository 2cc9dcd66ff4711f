"""Red or white: what a network is not sure of is given out as a red cell, once."""

import torch

from hemomil.detect.kinds import LARGEST_RED, WHITE_SURE, in_doubt_red

NOMINAL = 40.0
LARGE = (0.0, 0.0, 80.0, 80.0)
BESIDE = (2.0, 0.0, 82.0, 80.0)


def found(*cells):
    """Boxes, labels and scores as torchvision gives them."""
    boxes, labels, scores = zip(*cells, strict=True) if cells else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def settled(*cells):
    result = in_doubt_red(found(*cells), NOMINAL)
    return result["labels"].tolist(), [round(float(score), 3) for score in result["scores"]]


def test_a_sure_white_cell_stays_white():
    assert settled((LARGE, 2, 0.9), (BESIDE, 1, 0.3)) == ([2, 1], [0.9, 0.3])


def test_a_doubtful_one_is_red_with_the_sum_of_both_scores():
    assert settled((LARGE, 2, 0.4), (BESIDE, 1, 0.3)) == ([1, 1], [0.7, 0.3])
    assert settled((LARGE, 2, 0.3), (BESIDE, 1, 0.4)) == ([2, 1], [0.3, 0.7])
    assert settled((LARGE, 2, 0.6)) == ([1], [0.6])


def test_a_red_cell_that_is_sure_needs_no_support():
    assert settled((LARGE, 2, 0.3), (BESIDE, 1, 0.95)) == ([2, 1], [0.3, 0.95])


def test_boxes_in_other_places_do_not_count():
    assert settled((LARGE, 2, 0.4), ((200.0, 0.0, 280.0, 80.0), 1, 0.3)) == ([1, 1], [0.4, 0.3])


def test_what_is_no_larger_than_the_red_cells_beside_it_is_red_however_white_it_looks():
    reds = [((100.0 * k, 200.0, 100.0 * k + 60, 260.0), 1, 0.9) for k in range(5)]
    side = 60 * LARGEST_RED
    small, large = (0.0, 0.0, side - 1, side - 1), (0.0, 0.0, side + 1, side + 1)
    assert settled((small, 2, 0.99), *reds)[0][0] == 1
    assert settled((large, 2, 0.99), *reds)[0][0] == 2
    assert settled((small, 2, 0.99))[0][0] == 2  # nothing tells that red cells are large here


def test_platelets_and_nothing_are_left_as_they_are():
    assert settled((LARGE, 3, WHITE_SURE / 2)) == ([3], [0.35])
    assert settled() == ([], [])
