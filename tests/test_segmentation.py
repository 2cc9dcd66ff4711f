"""Masks of many cells, kept as run lengths."""

import numpy as np
import pytest

from hemomil.segmentation import Masks


@pytest.fixture
def drawn():
    """Masks of several shapes, one of them unknown."""
    rng = np.random.default_rng(0)
    ellipse = np.hypot(*np.meshgrid(np.linspace(-1, 1, 70), np.linspace(-1, 1, 50))) < 1
    return [ellipse, None, rng.random((3, 9)) < 0.5, np.zeros((4, 1), bool), np.ones((1, 6), bool)]


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_masks_are_drawn_as_they_were_given(drawn):
    same(Masks.of(drawn), drawn)
    same(Masks.of(Masks.of(drawn)), drawn)
    same(Masks.of(drawn)[1:4], drawn[1:4])
    assert Masks.of(drawn)[-1].dtype == bool
    assert Masks.of(drawn).areas() == [None if mask is None else int(mask.sum()) for mask in drawn]


def test_a_mask_is_kept_in_a_twentieth_of_its_pixels(drawn):
    (text,) = Masks.of(drawn[:1]).texts
    assert len(text) < drawn[0].size / 20
