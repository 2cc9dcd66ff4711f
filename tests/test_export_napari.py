"""What napari's plugin makes of a run folder, without a screen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from PIL import Image

from hemomil.commands.napari import reader_of, run_layers, show_layers, tables_of
from hemomil.errors import RunFolderError
from hemomil.export import box_layer, span_of

MANIFEST = Path(__file__).parents[1] / "src" / "hemomil" / "napari.yaml"
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # napari's


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and images of three samples, of which one has two images."""
    folder = tmp_path_factory.mktemp("napari")
    rng = np.random.default_rng(0)
    (folder / "run").mkdir()
    images = pd.DataFrame({"sample": ["s1", "s1", "s2", "s3"], "image": ["a.png", "b.png", "c.png", "d.png"]})
    images["patient"] = images["sample"]
    for image in images["image"]:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / image)
    cells = images.merge(pd.DataFrame({"k": range(4)}), how="cross")
    k = cells.pop("k")
    cells.insert(0, "cell_id", cells["image"] + "/" + k.astype(str))
    cells = cells.assign(x0=10.0 * k, y0=3.0, x1=10.0 * k + 8, y1=12.5, method="lse", prob_ill=0.5)
    cells = cells.assign(anomaly=rng.normal(size=len(cells)), contribution=k - 1.0)
    samples = images.drop(columns="image").drop_duplicates()
    samples = samples.assign(label="", predicted="ill", method="lse", prob_ill=1.0)
    samples.to_csv(folder / "run" / "samples.csv", index=False)
    cells.to_parquet(folder / "run" / "cells.parquet")
    about = {"classes": ["ill"], "methods": ["lse"], "data": {"manifest": str(folder / "manifest.csv")}}
    (folder / "run" / "run.json").write_text(json.dumps(about))
    return folder / "run"


def test_the_manifest_names_functions_that_exist_and_npe2_reads_a_run_by_it(run):
    from npe2 import PluginManager, PluginManifest
    from npe2.io_utils import _read

    manifest = PluginManifest.from_file(MANIFEST)
    manager = PluginManager()
    manager.register(manifest)
    manager.activate(manifest.name)
    for command in manifest.contributions.commands:
        assert callable(manager.commands.get(command.id))
    for path in (run, run / "cells.parquet", run / "run.json"):
        (pixels, _, kind), (boxes, _, shapes) = _read([str(path)], stack=False, _pm=manager)
        assert (kind, shapes) == ("image", "shapes")
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(run.parent / "a.png")))
        assert boxes.shape == (4, 4, 2)


def test_the_reader_leaves_other_files_and_folders_alone(run, tmp_path):
    assert reader_of(str(tmp_path)) is None
    assert reader_of(str(run.parent / "a.png")) is None
    assert reader_of([str(run)]) is not None


def test_layers_are_put_into_a_viewer_and_replaced_by_those_of_another_image(run):
    from napari.components import ViewerModel

    viewer = ViewerModel()
    show_layers(viewer, run_layers(run))
    assert [layer.name for layer in viewer.layers] == ["image", "cells"]
    show_layers(viewer, run_layers(run, sample="s1", image="b.png", score="contribution"))
    assert [layer.name for layer in viewer.layers] == ["image", "cells"]
    np.testing.assert_array_equal(viewer.layers["image"].data, np.asarray(Image.open(run.parent / "b.png")))
    shapes = viewer.layers["cells"]
    assert shapes.features["cell_id"].tolist() == [f"b.png/{k}" for k in range(4)]
    assert {"anomaly", "contribution", "prob_ill"} <= set(shapes.features)
    low, high = span_of(tables_of(run).cells["contribution"].to_numpy(), "contribution")
    expected = colormaps["PuOr_r"]((shapes.features["contribution"] - low) / (high - low))
    np.testing.assert_allclose(shapes.edge_color, expected, atol=1e-6)


def test_a_box_covers_the_pixels_it_holds():
    """napari's pixel 0 reaches from -0.5 to 0.5; rows come first."""
    cells = pd.DataFrame({"x0": [2.0], "y0": [3.0], "x1": [5.0], "y1": [7.0], "anomaly": [1.0]})
    corners, _, _ = box_layer(cells, "anomaly", (0.0, 1.0), "cells")
    assert corners[0].min(axis=0).tolist() == [2.5, 1.5]
    assert corners[0].max(axis=0).tolist() == [6.5, 4.5]


def test_a_cell_without_a_score_is_grey():
    cells = pd.DataFrame({"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0, "anomaly": [0.0, np.nan, 1.0]})
    _, told, _ = box_layer(cells, "anomaly", span_of(cells["anomaly"].to_numpy(), "anomaly"), "cells")
    first, unknown, last = told["edge_color"]
    assert unknown[0] == unknown[1] == unknown[2]
    np.testing.assert_allclose(first, colormaps["viridis_r"](0.0))
    np.testing.assert_allclose(last, colormaps["viridis_r"](1.0))


def test_the_span_of_a_score_that_goes_both_ways_is_even_round_0():
    low, high = span_of(np.array([-3.0, 0.0, 1.0]), "contribution")
    assert low == -high
    assert span_of(np.array([np.nan]), "anomaly") == (0.0, 1.0)
    assert span_of(np.array([2.0, 2.0]), "anomaly") == (2.0, 3.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sample": "s9"}, "sample 's9' is not in this run"),
        ({"sample": "s2", "image": "a.png"}, "image 'a.png' is not in this run"),
        ({"score": "attention"}, "score 'attention' is not in this run"),
    ],
)
def test_what_the_run_has_not_is_named_with_what_it_has(run, asked, message):
    with pytest.raises(RunFolderError, match=message) as refused:
        run_layers(run, **asked)
    assert "it has" in refused.value.hint


def test_a_run_of_features_brought_along_has_nothing_to_show(run, tmp_path):
    bare = shutil.copytree(run, tmp_path / "run")
    cells = pd.read_parquet(bare / "cells.parquet").assign(image="")
    cells.to_parquet(bare / "cells.parquet")
    with pytest.raises(RunFolderError, match="no sample to show") as refused:
        run_layers(bare)
    assert "brought along" in refused.value.hint
