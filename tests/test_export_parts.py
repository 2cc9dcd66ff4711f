"""What an export is put together from: outlines, label images, features, column names."""

import anndata
import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Path2D

from hemomil.export import annotated, feature_collection, label_image, plain_names


def cells_of(boxes: list[tuple[float, float, float, float]]) -> pd.DataFrame:
    table = pd.DataFrame(boxes, columns=["x0", "y0", "x1", "y1"], dtype=float)
    return table.assign(cell_id=[f"s/{k:04d}" for k in range(len(boxes))], anomaly=np.nan)


def test_a_cell_without_a_mask_is_its_box_and_without_probabilities_has_no_class():
    (feature,) = feature_collection(cells_of([(2.5, 3, 10, 12)]), [None], ["anomaly"], ["control"])[
        "features"
    ]
    assert feature["geometry"]["coordinates"] == [[[2.5, 3], [10, 3], [10, 12], [2.5, 12], [2.5, 3]]]
    assert "classification" not in feature["properties"]
    assert feature["properties"]["measurements"] == {}


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)).filter(np.any))
def test_an_outline_holds_the_pixels_of_its_mask_and_no_others(mask):
    height, width = mask.shape
    cells = cells_of([(5.2, 7, 5 + width, 7 + height)])
    (feature,) = feature_collection(cells, [mask], [], [])["features"]
    parts = feature["geometry"]["coordinates"]
    parts = [parts] if feature["geometry"]["type"] == "Polygon" else parts
    centres = np.stack(np.meshgrid(np.arange(width) + 5.5, np.arange(height) + 7.5), axis=-1).reshape(-1, 2)
    inside = np.zeros(len(centres), int)
    for outer, *holes in parts:
        inside += Path2D(outer).contains_points(centres)
        for hole in holes:
            inside -= Path2D(hole).contains_points(centres)
    np.testing.assert_array_equal(inside.reshape(mask.shape), mask)
    corners = np.concatenate([outer for outer, *_ in parts])
    rows, columns = np.nonzero(mask)
    assert corners.min(axis=0).tolist() == [5 + columns.min(), 7 + rows.min()]
    assert corners.max(axis=0).tolist() == [6 + columns.max(), 8 + rows.max()]


def test_where_cells_overlap_the_surer_one_is_on_top():
    boxes = np.array([(0, 0, 6, 6), (4.4, 4.0, 10, 10), (0, 8, 2, 10)], float)
    masks = [None, np.ones((6, 6), bool), np.eye(2, dtype=bool)]
    labels = label_image(boxes, masks, np.array([0.9, 0.5, 0.7]), (12, 10))
    assert labels.shape == (10, 12)
    assert labels.dtype == np.uint16
    assert labels[5, 5] == 1
    assert labels[6, 6] == labels[9, 9] == 2
    assert (labels[8:, :2] == np.diag([3, 3])).all()
    assert label_image(boxes, masks, np.array([0.1, 0.5, 0.7]), (12, 10))[5, 5] == 2


def test_more_cells_than_16_bits_count_get_32():
    boxes = np.tile([0.0, 0, 1, 1], (2**16, 1))
    labels = label_image(boxes, [None] * len(boxes), np.arange(len(boxes), dtype=float), (8, 8))
    assert labels[0, 0] == 2**16


def test_roi_maps_alone_become_two_numbers_a_channel():
    maps = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float16)
    ids = pd.Index(["a", "b", "c"])
    store = anndata.AnnData(obs=pd.DataFrame(index=ids), obsm={"roi": maps}, uns={"hemomil": "{}"})
    data = annotated(store, pd.DataFrame({"cell_id": ["c", "a"]}), {})
    assert data.var_names.tolist() == [f"roi_{k}_{how}" for how in ("mean", "max") for k in range(4)]
    np.testing.assert_allclose(data.X[0], [*maps[2].mean((1, 2), dtype=np.float32), *maps[2].max((1, 2))])


@given(st.lists(st.text("aA1 -_é/.", min_size=1), unique=True, min_size=1))
def test_column_names_are_plain_and_distinct(names):
    plain = list(plain_names(pd.DataFrame([range(len(names))], columns=names)))
    assert len(set(plain)) == len(names)
    assert all(set(name) <= set("aA1_0123456789") for name in plain)
