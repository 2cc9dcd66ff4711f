"""Simulated fields: physics, truth and cell classes obey their laws."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage.measure import regionprops

from hemomil.simulate import (
    CELL_CLASSES,
    Camera,
    FieldSettings,
    Light,
    Optics,
    Stain,
    draw_field,
    random_field_settings,
)
from hemomil.simulate.camera import focus, transmittance
from hemomil.simulate.distractors import inclusion
from hemomil.simulate.field import _absorbance
from hemomil.simulate.patients import HALLMARKS
from hemomil.simulate.settings import SimulateSettings
from hemomil.simulate.shapes import CellShape, random_shape
from hemomil.simulate.smear import lay
from hemomil.simulate.thickness import PEAK, draw_cell

CLEAN = FieldSettings(
    size=(96, 96),
    cells=0,
    platelets=0,
    white_cells=0,
    artefacts=0,
    texture=0,
    irregularity=0,
    anisocytosis=0,
    stain=Stain(plasma=(0, 0, 0)),
    optics=Optics(defocus=0, halo=0),
    light=Light(tilt=0, vignette=0),
    camera=Camera(read_noise=0, electrons=1e12),
)


def rng(seed=0):
    return np.random.default_rng(seed)


def cell(label, seed=0, radius=40.0):
    """One clean cell of a class."""
    generator = rng(seed)
    return draw_cell(generator, random_shape(generator, label, CLEAN), (0.5, 0.5), radius)


def pallor(patch):
    """How much thinner the cell is at its thinnest inner place than at its thickest."""
    props = regionprops(patch.mask.astype(int))[0]
    y, x = (round(c) for c in props.centroid)
    return 1 - patch.thickness[y - 3 : y + 4, x - 3 : x + 4].mean() / patch.thickness.max()


def measured(label, measure, n=12):
    return np.array([measure(cell(label, seed)) for seed in range(n)])


def eccentricity(patch):
    return regionprops(patch.mask.astype(int))[0].eccentricity


def solidity(patch):
    return regionprops(patch.mask.astype(int))[0].solidity


def mass(patch):
    return patch.thickness.sum() / patch.mask.sum()


# physics


def test_doubled_concentration_squares_the_transmittance():
    red = draw_cell(rng(), CellShape(label="discocyte"), (48.0, 48.0), 30.0)
    absorbance = _absorbance(rng(), CLEAN, [("discocyte", red)], [])
    assert absorbance.max() > 0.3
    np.testing.assert_allclose(transmittance(2 * absorbance), transmittance(absorbance) ** 2, rtol=1e-5)


def test_a_unit_of_absorbance_passes_one_part_in_e():
    assert transmittance(np.ones((1, 1, 3), np.float32))[0, 0, 0] == pytest.approx(1 / np.e)


def test_the_stored_picture_obeys_beer_and_lambert():
    """Seen through camera and gamma: the ratio to the empty field is squared by twice the stain."""
    field = CLEAN.model_copy(update={"cells": 1, "diameter": 60.0})
    empty = np.asarray(field.light.background) * 255
    thick = field.stain.model_copy(update={"concentration": 2.0})
    once = draw_field(rng(3), field).image / empty
    twice = draw_field(rng(3), field.model_copy(update={"stain": thick})).image / empty
    assert once.min() < 0.8
    np.testing.assert_allclose(twice, once**2, atol=0.012)


def test_thicknesses_add_where_cells_overlap():
    one = draw_cell(rng(1), CellShape(label="discocyte"), (40.0, 48.0), 25.0)
    two = draw_cell(rng(2), CellShape(label="discocyte"), (60.0, 48.0), 25.0)
    apart = [_absorbance(rng(), CLEAN, [("discocyte", c)], []) for c in (one, two)]
    together = _absorbance(rng(), CLEAN, [("discocyte", one), ("discocyte", two)], [])
    np.testing.assert_allclose(together, apart[0] + apart[1], atol=1e-6)


def test_the_healthy_profile_is_that_of_evans_and_fung():
    shape = CellShape(label="discocyte", steepness=1.0, edge=0.5)
    patch = draw_cell(rng(), shape, (0.5, 0.5), 100.0)
    middle = patch.thickness[patch.thickness.shape[0] // 2]
    half = len(middle) // 2
    s = np.arange(0, 95) / 100
    expected = np.sqrt(1 - s**2) * (0.81 + 7.83 * s**2 - 4.39 * s**4) / PEAK
    np.testing.assert_allclose(middle[half : half + 95], expected, atol=1e-3)


def test_the_thickest_place_of_a_healthy_cell_is_the_unit_of_thickness():
    patch = draw_cell(rng(), CellShape(label="discocyte", steepness=1.0, edge=0.5), (0.5, 0.5), 100.0)
    assert patch.thickness.max() == pytest.approx(1.0, abs=0.01)


def test_focus_keeps_the_light():
    light = rng().random((64, 64, 3)).astype(np.float32)
    blurred = focus(light, Optics(defocus=2.0, halo=0.0))
    assert blurred.mean() == pytest.approx(light.mean(), rel=0.01)
    assert blurred.std() < light.std() / 3


@pytest.mark.parametrize(("strength", "sign"), [(0.4, 1), (-0.4, -1)])
def test_a_halo_is_bright_or_dark_outside_an_edge(strength, sign):
    light = np.ones((64, 64, 3), np.float32)
    light[:, 32:] = 0.5
    seen = focus(light, Optics(defocus=0.0, halo=strength))
    assert np.sign(seen[32, 30, 0] - 1) == sign


def test_noise_grows_as_the_camera_catches_fewer_electrons():
    def noise(electrons):
        camera = Camera(electrons=electrons, read_noise=0)
        return draw_field(rng(), CLEAN.model_copy(update={"camera": camera})).image[..., 1].std()

    assert noise(300.0) == pytest.approx(10 * noise(30000.0), rel=0.15)


# classes of cells


def test_a_spherocyte_has_less_pallor_and_is_smaller_and_thicker_than_a_discocyte():
    assert measured("spherocyte", pallor).max() < 0.1 < 0.4 < measured("discocyte", pallor).min()
    area = {c: measured(c, lambda p: p.mask.sum()) for c in ("spherocyte", "discocyte")}
    assert area["spherocyte"].max() < area["discocyte"].min()
    assert measured("spherocyte", mass).mean() > measured("discocyte", mass).mean()


def test_sickles_and_ovalocytes_are_longer_than_discocytes():
    sickle, oval, disc = (measured(c, eccentricity) for c in ("sickle", "ovalocyte", "discocyte"))
    assert sickle.min() > 0.9
    assert disc.max() < 0.55 < 0.65 < oval.min()


def test_a_crescent_is_bent():
    assert measured("sickle", solidity).mean() < measured("ovalocyte", solidity).mean() - 0.03


def test_a_target_is_thicker_in_its_middle_than_around_it():
    patch = cell("target")
    y, x = (round(c) for c in regionprops(patch.mask.astype(int))[0].centroid)
    line = patch.thickness[y, x : x + 32]
    assert line[:3].mean() > 1.2 * line.min()
    assert line.argmin() > 6


def test_a_tear_drop_has_a_tail():
    assert measured("teardrop", solidity).mean() < measured("discocyte", solidity).mean() - 0.03


def test_microcytes_are_small_and_macrocytes_large():
    small, usual, large = (
        measured(c, lambda p: p.mask.sum()) for c in ("microcyte", "discocyte", "macrocyte")
    )
    assert small.max() < usual.min()
    assert usual.max() < large.min()


def test_hypochromic_cells_are_pale_and_xerocytes_dense():
    pale, usual, dense = (measured(c, mass) for c in ("hypochromic", "discocyte", "xerocyte"))
    assert pale.max() < usual.min()
    assert usual.max() < dense.min()


def test_the_pallor_of_a_stomatocyte_is_a_slit():
    patch = cell("stomatocyte", radius=60.0)
    thin = patch.thickness < 0.5 * patch.thickness.max()
    y, x = (round(c) for c in regionprops(patch.mask.astype(int))[0].centroid)
    inner = np.zeros_like(thin)
    inner[y - 35 : y + 36, x - 35 : x + 36] = thin[y - 35 : y + 36, x - 35 : x + 36]
    assert regionprops(inner.astype(int))[0].eccentricity > 0.85


def test_an_echinocyte_has_spicules():
    assert measured("echinocyte", solidity).mean() < measured("discocyte", solidity).mean() - 0.02


def test_a_schistocyte_is_a_fragment():
    assert measured("schistocyte", lambda p: p.mask.sum()).max() < 0.8 * np.pi * 40**2


def test_mild_cells_lie_between_their_class_and_an_ordinary_cell():
    mild = CLEAN.model_copy(update={"mildness": 1.0})
    sickles = [random_shape(rng(i), "sickle", mild).aspect for i in range(200)]
    assert min(sickles) < 1.4
    assert max(sickles) > 3.0
    assert {random_shape(rng(i), "sickle", mild).label for i in range(20)} == {"sickle"}


@pytest.mark.parametrize("label", CELL_CLASSES)
def test_no_cell_reaches_the_end_of_its_patch(label):
    for seed in range(15):
        mask = cell(label, seed).mask
        assert mask.any()
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()


@pytest.mark.parametrize("label", CELL_CLASSES)
def test_hemoglobin_lies_inside_the_outline_only(label):
    patch = cell(label)
    assert (patch.thickness[patch.mask] > 0).all()
    assert (patch.thickness[~patch.mask] == 0).all()


def test_every_hallmark_can_be_drawn():
    assert {name for shares in HALLMARKS.values() for name in shares} <= set(CELL_CLASSES)
    assert all(sum(shares.values()) == pytest.approx(1) for shares in HALLMARKS.values() if shares)


# layout


def centres(layout):
    return np.array([layout.x, layout.y]).T, np.array(layout.radius)


def test_cells_that_should_not_touch_do_not():
    field = CLEAN.model_copy(update={"size": (400, 400), "touching": 0.0})
    xy, radius = centres(lay(rng(), [20.0] * 25, field))
    apart = np.linalg.norm(xy[:, None] - xy, axis=2)[np.triu_indices(25, 1)]
    assert (radius == 20).all()
    assert apart.min() >= 40


def test_touching_cells_overlap_no_more_than_allowed():
    field = CLEAN.model_copy(update={"size": (400, 400), "touching": 1.0, "overlap": 0.25})
    xy, _ = centres(lay(rng(), [20.0] * 40, field))
    apart = np.linalg.norm(xy[:, None] - xy, axis=2)[np.triu_indices(40, 1)]
    assert 30 <= apart.min() < 36


def test_a_cell_for_which_there_is_no_room_is_left_out():
    field = CLEAN.model_copy(update={"touching": 0.0})
    _, radius = centres(lay(rng(), [20.0] * 60, field))
    assert 3 < (radius > 0).sum() < 15


def test_a_pressed_pair_does_not_overlap():
    field = FieldSettings(
        **{**CLEAN.model_dump(), "size": (200, 200), "cells": 12, "diameter": 50, "touching": 1.0}
        | {"overlap": 0.3, "pressed": 1.0}
    )
    for seed in range(4):
        assert painted(draw_field(rng(seed), field)).max() == 1
    laid_over = draw_field(rng(), field.model_copy(update={"pressed": 0.0}))
    assert painted(laid_over).max() > 1


# truth


def painted(field):
    """How many red cells hold each pixel."""
    count = np.zeros(field.image.shape[:2], int)
    for (x0, y0, x1, y1), mask in zip(field.boxes.astype(int), field.masks, strict=True):
        count[y0:y1, x0:x1] += mask
    return count


def check_truth(field):
    height, width = field.image.shape[:2]
    boxes = np.concatenate([field.boxes, field.distractor_boxes])
    assert len(field.boxes) == len(field.masks) == len(field.labels)
    assert len(field.distractor_boxes) == len(field.distractor_masks) == len(field.distractor_labels)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    for (x0, y0, x1, y1), mask in zip(boxes, field.masks + field.distractor_masks, strict=True):
        assert mask.shape == (y1 - y0, x1 - x0)
        # tight: the mask touches all four sides of its box
        assert mask[0].any()
        assert mask[-1].any()
        assert mask[:, 0].any()
        assert mask[:, -1].any()
    assert set(field.labels) <= set(CELL_CLASSES)
    assert set(field.distractor_labels) <= {"platelet", "white_cell", "artefact"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_masks_and_boxes_agree_on_any_field(seed):
    generator = rng(seed)
    check_truth(draw_field(generator, random_field_settings(generator, (128, 160))))


def test_masks_lie_where_the_picture_is_dark():
    field = draw_field(rng(), CLEAN.model_copy(update={"size": (240, 240), "cells": 10, "diameter": 44.0}))
    green = field.image[..., 1].astype(float)
    dark = green < green.max() - 5
    inside = painted(field) > 0
    assert (dark & inside).sum() / (dark | inside).sum() > 0.95


def test_same_generator_state_gives_the_same_bytes():
    one, two = (
        draw_field(g, random_field_settings(g, (128, 128))) for g in (np.random.default_rng(5) for _ in "ab")
    )
    assert one.image.tobytes() == two.image.tobytes()
    assert one.boxes.tobytes() == two.boxes.tobytes()


def test_cells_are_cut_by_the_border():
    field = draw_field(rng(1), CLEAN.model_copy(update={"size": (300, 300), "cells": 40, "diameter": 50.0}))
    on_border = (field.boxes[:, :2] == 0).any(1) | (field.boxes[:, 2:] == 300).any(1)
    assert 0.1 < on_border.mean() < 0.7


def test_nothing_behind_the_field_stop_is_in_the_truth():
    field = CLEAN.model_copy(
        update={"size": (200, 200), "cells": 30, "diameter": 30.0, "light": Light(stop="bars")}
    )
    drawn = draw_field(rng(), field)
    assert drawn.image[:10].max() < 5
    assert drawn.boxes[:, 1].min() >= 11


def test_cells_follow_the_mix():
    mix = {"discocyte": 3.0, "spherocyte": 1.0}
    field = CLEAN.model_copy(update={"size": (900, 900), "cells": 400, "diameter": 20.0, "mix": mix})
    labels = draw_field(rng(), field).labels
    share = labels.count("spherocyte") / len(labels)
    assert abs(share - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(labels))


def test_an_empty_field_has_an_empty_truth():
    field = draw_field(rng(), CLEAN)
    assert field.boxes.shape == (0, 4)
    assert field.masks == ()
    assert np.ptp(field.image, axis=(0, 1)).max() <= 1


def test_distractors_are_named():
    busy = CLEAN.model_copy(
        update={"size": (256, 256), "platelets": 6.0, "white_cells": 3.0, "artefacts": 6.0}
    )
    assert set(draw_field(rng(), busy).distractor_labels) == {"platelet", "white_cell", "artefact"}


def test_inclusions_darken_cells_and_leave_the_truth_alone():
    plain = CLEAN.model_copy(update={"size": (256, 256), "cells": 8})
    clean, infected = (
        draw_field(rng(2), plain.model_copy(update={"inclusions": share})) for share in (0.0, 1.0)
    )
    np.testing.assert_array_equal(clean.boxes, infected.boxes)
    assert infected.image.min() < clean.image.min() - 30


def test_a_parasite_stays_inside_its_cell():
    inside = cell("microcyte", radius=30.0).mask
    for seed in range(12):
        amount = inclusion(rng(seed), inside.shape, inside, 30.0)
        assert amount[inside].max() > 0.1
        assert (amount[~inside] == 0).all()


# variation


def test_random_fields_differ_as_laboratories_do():
    drawn = [random_field_settings(rng(i)) for i in range(200)]
    assert min(f.diameter for f in drawn) < 25
    assert max(f.diameter for f in drawn) > 100
    assert {f.light.stop for f in drawn} == {"none", "round", "bars"}
    assert {np.sign(f.optics.halo) for f in drawn} == {-1, 0, 1}
    assert {name for f in drawn for name in f.mix} == set(CELL_CLASSES)
    assert any(f.camera.jpeg_quality is None for f in drawn)
    assert any(f.camera.jpeg_quality for f in drawn)


def test_most_random_fields_show_their_cells():
    """A cell that cannot be seen teaches a detector nothing."""
    shown = []
    for i in range(30):
        generator = rng(i)
        field = draw_field(generator, random_field_settings(generator, (160, 160), diameter=(20.0, 60.0)))
        inside = painted(field) > 0
        if inside.any() and not inside.all():
            grey = field.image.astype(float).mean(2)
            shown.append(abs(np.median(grey[inside]) - np.median(grey[~inside])))
    assert np.mean(np.array(shown) > 6) > 0.85


def test_a_field_is_drawn_quickly():
    field = FieldSettings(size=(512, 512), cells=40, diameter=60)
    draw_field(rng(), field)
    start = time.process_time()
    draw_field(rng(), field)
    # 0.05 s without shape checking; the limit leaves room for slow machines
    assert time.process_time() - start < 0.5


# settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"cells": (20, 10)},
        {"cells": (0, 10)},
        {"patients": {"control": -1}},
        {"patients": {}},
        {"patients": {"gout": 3}},
        {"prevalence": {"scd": 1.5}},
        {"colour": "red"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        SimulateSettings(**wrong)


def test_a_mix_of_unknown_cells_is_refused():
    with pytest.raises(ValidationError, match="blast"):
        FieldSettings(mix={"blast": 1.0})
