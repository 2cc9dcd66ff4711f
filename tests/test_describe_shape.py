"""Laws of the shape features: what must change them, what must not, and what stays finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from hemomil.describe import SHAPE_GROUPS, SHAPE_NAMES, crops, measure
from hemomil.describe import segment as describe_segment
from hemomil.describe.outline import outline_of
from hemomil.describe.segment import view

SLIDE = np.array([230, 220, 225], np.float32)
STAIN = np.array([0.25, 0.7, 0.4], np.float32)


def thickness(size, centre, axes, angle=0.0, pallor=0.0, bump=0.0):
    """A cell's optical thickness: 1 at the rim, less in the middle by `pallor`, with a bump for a target."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = -(x - centre[0]) * np.sin(angle) + (y - centre[1]) * np.cos(angle)
    r = np.hypot(u / axes[0], v / axes[1])
    inside = np.clip((1 - r) * min(axes) + 0.5, 0, 1)
    return inside * (1 - pallor * np.exp(-((r / 0.45) ** 2)) + bump * np.exp(-((r / 0.25) ** 2)))


def field(*cells, size=(160, 200)):
    dense = sum(thickness(size, **cell) for cell in cells) if cells else np.zeros(size)
    return np.rint(SLIDE * np.exp(-dense[..., None] * STAIN)).astype(np.uint8)


def box_round(centre, axes, slack=6):
    (x, y), reach = centre, max(axes) + slack
    return [x - reach, y - reach, x + reach, y + reach]


def measured(*cells, slack=6, **how):
    boxes = np.array([box_round(cell["centre"], cell["axes"], slack) for cell in cells], float)
    values = measure(field(*cells, **how), boxes)
    return [dict(zip(SHAPE_NAMES, row, strict=True)) for row in values]


DISC = {"centre": (60, 70), "axes": (20, 20)}
PALE = DISC | {"pallor": 0.6}
TARGET = DISC | {"pallor": 0.7, "bump": 0.6}
OVAL = {"centre": (120, 90), "axes": (26, 15), "angle": 0.5}


def test_names_are_unique_and_grouped():
    assert len(set(SHAPE_NAMES)) == len(SHAPE_NAMES) == sum(map(len, SHAPE_GROUPS.values()))
    assert set(SHAPE_NAMES) == {name for names in SHAPE_GROUPS.values() for name in names}
    assert 75 <= len(SHAPE_NAMES) <= 110


def test_translation_of_the_image_changes_nothing():
    image, boxes = (
        field(PALE, OVAL),
        np.array([box_round((60, 70), (20, 20)), box_round((120, 90), (26, 15))], float),
    )
    moved = np.roll(image, (7, -11), axis=(0, 1))
    shift = np.array([-11, 7, -11, 7], float)
    np.testing.assert_allclose(measure(moved, boxes + shift), measure(image, boxes), rtol=2e-3, atol=2e-3)


def test_only_the_stain_group_and_its_noise_tell_a_paler_stain():
    image, box = field(PALE), np.array([box_round((60, 70), (20, 20))], float)
    pale = np.rint(SLIDE * (image / SLIDE) ** 0.7).astype(np.uint8)  # 70 % of the dye
    strong, weak = (dict(zip(SHAPE_NAMES, measure(i, box)[0], strict=True)) for i in (image, pale))
    for name in (*SHAPE_GROUPS["outline"], *SHAPE_GROUPS["profile"], *SHAPE_GROUPS["pallor"]):
        assert weak[name] == pytest.approx(strong[name], rel=0.06, abs=0.04), name
    assert weak["density_green"] == pytest.approx(0.7 * strong["density_green"], rel=0.05)


def test_the_order_of_boxes_does_not_matter():
    image, boxes = (
        field(PALE, OVAL),
        np.array([box_round((60, 70), (20, 20)), box_round((120, 90), (26, 15))], float),
    )
    np.testing.assert_allclose(measure(image, boxes[::-1]), measure(image, boxes)[::-1], rtol=1e-4, atol=1e-4)


def test_a_cell_is_measured_the_same_alone_and_in_company():
    image, boxes = (
        field(PALE, OVAL),
        np.array([box_round((60, 70), (20, 20)), box_round((120, 90), (26, 15))], float),
    )
    np.testing.assert_allclose(measure(image, boxes[:1]), measure(image, boxes)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [(20, 20), (24, 18), (28, 14)])
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_eccentricity_and_size_are_those_of_the_drawn_ellipse(axes, angle):
    values = measured({"centre": (100, 80), "axes": axes, "angle": angle})[0]
    assert values["eccentricity"] == pytest.approx(
        np.sqrt(1 - (axes[1] / axes[0]) ** 2), abs=0.04 if axes[0] > 20 else 0.2
    )
    assert values["equivalent_diameter_px"] == pytest.approx(2 * np.sqrt(axes[0] * axes[1]), rel=0.04)
    assert values["feret_max_px"] == pytest.approx(2 * axes[0], rel=0.05)
    assert values["feret_min_px"] == pytest.approx(2 * axes[1], rel=0.05)
    assert values["segmented"] == 1


def test_upsampling_scales_sizes_and_nothing_else():
    small, large = (
        measured(
            {"centre": (50 * k, 40 * k), "axes": (18 * k, 12 * k), "pallor": 0.5},
            size=(80 * k, 100 * k),
            slack=6 * k,
        )[0]
        for k in (1, 2)
    )
    for name in ("equivalent_diameter_px", "perimeter_px", "feret_max_px"):
        assert large[name] == pytest.approx(2 * small[name], rel=0.04), name
    for name in ("circularity", "eccentricity", "pallor_ratio", "solidity", "mean_green"):
        assert large[name] == pytest.approx(small[name], rel=0.05), name


def test_loose_and_tight_boxes_see_the_same_cell():
    tight, loose = (measured(PALE | {"axes": (20, 18)}, slack=slack)[0] for slack in (1, 10))
    for name in ("equivalent_diameter_px", "eccentricity", "pallor_ratio", "pallor_share", "density_green"):
        assert tight[name] == pytest.approx(loose[name], rel=0.06, abs=0.08), name


def test_a_spherocyte_has_less_pallor_than_a_discocyte():
    sphere, disc = measured(DISC)[0], measured(PALE)[0]
    assert sphere["pallor_ratio"] > 0.95 > 0.7 > disc["pallor_ratio"]
    assert sphere["pallor_share"] < 0.02 < disc["pallor_share"]
    assert sphere["pallor_depth"] < disc["pallor_depth"]


def test_a_target_has_a_bump_and_a_discocyte_has_none():
    assert measured(TARGET)[0]["target_bump"] > 0.03
    assert measured(PALE)[0]["target_bump"] == pytest.approx(0, abs=1e-6)


def test_rings_follow_the_drawn_thickness_from_rim_to_middle():
    values = measured(PALE)[0]
    rings = [values[f"ring_{i}_density"] for i in range(2, 7)] + [values["pallor_ratio"]]
    assert rings == sorted(rings, reverse=True)


def test_a_dark_body_is_counted_and_a_clean_cell_has_none():
    image, boxes = field(DISC), np.array([box_round(**DISC)], float)
    stained = image.copy()
    stained[72:77, 62:67] = (90, 30, 120)
    clean, dotted = (dict(zip(SHAPE_NAMES, measure(i, boxes)[0], strict=True)) for i in (image, stained))
    assert (clean["spot_count"], dotted["spot_count"]) == (0, 1)
    assert dotted["spot_share"] == pytest.approx(25 / (np.pi * 400), rel=0.5)
    assert dotted["spot_redness"] > 5
    assert dotted["spot_peak_green"] > 5 * clean["spot_peak_green"]


def test_a_tail_shows_as_taper_and_a_notch_as_concavity():
    y, x = np.mgrid[:96, :96]
    disc = np.hypot(x - 48, y - 48) < 22
    tail = disc | ((np.abs(y - 48) < (90 - x) / 6) & (x > 60) & (x < 90))
    notch = disc & ~((np.abs(y - 48) < 6) & (x > 45))
    image, boxes = np.full((96, 96, 3), 200, np.uint8), np.array([[0, 0, 96, 96]], float)
    plain, tailed, notched = (
        dict(zip(SHAPE_NAMES, measure(image, boxes, (mask,))[0], strict=True)) for mask in (disc, tail, notch)
    )
    assert tailed["taper"] > 0.15 > 0.01 > plain["taper"]
    assert tailed["curvature_max"] > 2 * plain["curvature_max"]
    assert notched["concavity_depth"] > 0.3 > 0.03 > plain["concavity_depth"]
    assert notched["curvature_min"] < -1


def test_the_outline_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for _ in range(8):
        turn = np.arctan2(y - 32, x - 32)
        lobes = sum(rng.normal(0, 0.05) * np.cos(k * turn + rng.uniform(0, 6)) for k in (2, 3, 4))
        mask = np.hypot(x - 32, y - 32) < 22 * (1 + lobes)
        ours, theirs = outline_of(mask), regionprops(mask.astype(np.uint8))[0]
        assert ours.area == pytest.approx(theirs.area, rel=0.03)
        assert ours.values[2] == pytest.approx(theirs.eccentricity, abs=0.03)
        assert ours.values[1] == pytest.approx(theirs.solidity, abs=0.04)
        assert ours.feret_max == pytest.approx(theirs.feret_diameter_max, rel=0.05)
        assert ours.perimeter == pytest.approx(theirs.perimeter_crofton, rel=0.05)


def test_a_given_mask_is_obeyed():
    image = field(DISC, {"centre": (102, 70), "axes": (22, 22)})  # touching
    mask = np.hypot(*np.meshgrid(np.arange(44) - 21.5, np.arange(44) - 21.5)) < 20
    boxes = np.array([[38.0, 48.0, 82.0, 92.0]])
    values = dict(zip(SHAPE_NAMES, measure(image, boxes, (mask,))[0], strict=True))
    assert values["equivalent_diameter_px"] == pytest.approx(40, rel=0.03)
    assert values["circularity"] > 0.95


def test_a_given_mask_lies_where_its_box_begins():
    y, x = np.mgrid[:44, :44] + 0.5
    mask, box = np.hypot(x - 22, y - 22) < 18, np.array([[38.4, 48.3, 81.8, 91.9]])
    values = dict(zip(SHAPE_NAMES, measure(field(DISC), box, (mask,))[0], strict=True))
    assert values["density_offset"] < 0.002
    assert values["ring_0_density"] == pytest.approx(1, abs=0.02)


def test_a_quarter_turn_changes_no_texture():
    image = field(OVAL | {"pallor": 0.6}, size=(200, 200))
    image[88:92, 110:130] = (120, 40, 130)  # a bar: a slope along one axis only
    box = np.array([box_round((120, 90), (26, 15))], float)
    turned_box = box[:, [1, 0, 3, 2]] @ np.diag([1.0, -1, 1, -1]) + [0, 200, 0, 200]
    turned_box = turned_box[:, [0, 3, 2, 1]]
    straight, turned = measure(image, box)[0], measure(np.rot90(image).copy(), turned_box)[0]
    for name in (*SHAPE_GROUPS["texture"], *SHAPE_GROUPS["pallor"]):
        i = SHAPE_NAMES.index(name)
        assert turned[i] == pytest.approx(straight[i], rel=0.05, abs=0.02), name


def test_an_even_disc_has_no_texture_and_a_bar_gives_it_some():
    image, box = field(DISC), np.array([box_round(**DISC)], float)
    barred = image.copy()
    barred[68:72, 50:70] = (120, 40, 130)
    even, bar = (dict(zip(SHAPE_NAMES, measure(i, box)[0], strict=True)) for i in (image, barred))
    for name in ("gradient_mean", "detail_1", "detail_4", "density_cv"):
        assert even[name] < 0.1, name
        assert bar[name] > 2 * even[name], name


def test_touching_cells_are_parted():
    left = measured(DISC, {"centre": (99, 70), "axes": (20, 20)})[0]
    assert left["equivalent_diameter_px"] == pytest.approx(40, rel=0.08)
    assert left["solidity"] > 0.95


def test_a_cell_on_black_is_all_that_is_lit():
    y, x = np.mgrid[:70, :60] + 0.5
    lit = np.hypot((x - 30) / 28, (y - 35) / 33) < 1
    image = np.where(lit[..., None], np.array([210, 140, 150]), 0).astype(np.uint8)
    values = dict(zip(SHAPE_NAMES, measure(image, np.array([[0.0, 0, 60, 70]]))[0], strict=True))
    assert values["equivalent_diameter_px"] == pytest.approx(2 * np.sqrt(28 * 33), rel=0.06)
    assert values["mean_red"] == pytest.approx(210, abs=3)
    assert values["segmented"] == 1


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["constant", "black", "white", "noise", "cells"]),
    box=st.tuples(st.integers(-10, 60), st.integers(-10, 60), st.integers(1, 80), st.integers(1, 80)),
)
def test_every_value_is_finite_whatever_the_image(seed, kind, box):
    rng = np.random.default_rng(seed)
    image = {
        "constant": np.full((70, 80, 3), 127, np.uint8),
        "black": np.zeros((70, 80, 3), np.uint8),
        "white": np.full((70, 80, 3), 255, np.uint8),
        "noise": rng.integers(0, 256, (70, 80, 3), dtype=np.uint8),
        "cells": field({"centre": (30, 30), "axes": (15, 12)}, size=(70, 80)),
    }[kind]
    x, y, width, height = box
    boxes = np.array([[x, y, x + width, y + height], [0, 0, 3, 3], [77, 67, 80, 70], [0, 0, 80, 70]], float)
    assert np.isfinite(measure(image, boxes)).all()


def test_degenerate_masks_give_finite_values():
    image, boxes = field(DISC), np.tile([[40.0, 50.0, 80.0, 90.0]], (5, 1))
    dot, line, two = (np.zeros((40, 40), bool) for _ in range(3))
    dot[20, 20], line[20, 3:37], two[5:9, 5:9], two[30:34, 30:34] = True, True, True, True
    values = measure(image, boxes, (dot, line, two, np.zeros((40, 40), bool), None))
    assert np.isfinite(values).all()


def test_only_cells_without_a_mask_are_sought_and_each_is_measured_as_if_alone(monkeypatch):
    cells = (PALE, OVAL, {"centre": (30, 120), "axes": (14, 18)})
    image, boxes = field(*cells), np.array([box_round(cell["centre"], cell["axes"]) for cell in cells], float)
    disc = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 22
    sought = []

    def spy(colour, *others):
        sought.append(len(colour))
        return segment(colour, *others)

    segment = describe_segment._segment
    monkeypatch.setattr(describe_segment, "_segment", spy)
    masks = (None, disc, np.zeros((48, 48), bool))  # the last of them is empty
    together = measure(image, boxes, masks)
    alone = [measure(image, boxes[row : row + 1], masks[row : row + 1])[0] for row in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    assert sought == [2, 1, 1]


def test_one_pixel_images_and_no_boxes_are_borne():
    assert np.isfinite(measure(np.full((1, 1, 3), 9, np.uint8), np.array([[0.0, 0, 1, 1]]))).all()
    assert measure(field(DISC), np.zeros((0, 4))).shape == (0, len(SHAPE_NAMES))


def test_where_no_cell_is_found_an_ellipse_stands_in():
    views = view(np.full((60, 60, 3), 220, np.uint8), np.array([[10.0, 20, 50, 40]]), None)
    assert not views.segmented[0]
    assert outline_of(views.mask[0]).values[2] == pytest.approx(np.sqrt(0.75), abs=0.05)


def test_crops_are_centred_and_padded_not_stretched():
    image = field({"centre": (60, 70), "axes": (10, 10)})
    crop = crops(image, np.array([[50.0, 60, 70, 80], [40.0, 60, 80, 80]]), size=40)
    assert crop.shape == (2, 40, 40, 3)
    dark = crop[..., 1] < 170
    across, down = (np.ptp(np.flatnonzero(dark[1].any(axis=a))) + 1 for a in (0, 1))
    assert abs(across - down) <= 1
    assert dark[0].sum() == pytest.approx(4 * dark[1].sum(), rel=0.1)


def test_crops_repeat_the_edge_beyond_the_image():
    image = np.full((20, 20, 3), 50, np.uint8)
    assert (crops(image, np.array([[-30.0, -30, 10, 10]]), size=16) == 50).all()


def test_a_crop_of_its_own_size_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crops(image, np.array([[0.0, 0, 32, 32]]), size=32)[0], image)


def test_aligned_crops_lie_level():
    cell = {"centre": (100, 80), "axes": (26, 13), "angle": 0.9}
    crop = crops(field(cell), np.array([box_round((100, 80), (26, 13))], float), align=True)[0]
    rows, columns = np.nonzero(crop[..., 1] < 170)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.05
    assert columns.std() > 1.7 * rows.std()
