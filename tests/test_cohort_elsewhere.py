"""Cells that other tools drew are the same cells, whichever way they were written down."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.measure import label

from hemomil.cohort import KnownCells, read_cells, read_known_cells, read_manifest, read_truth
from hemomil.cohort.outlines import Polygons
from hemomil.commands.settings import Settings
from hemomil.commands.source import load_source
from hemomil.errors import CellsError
from hemomil.types import Cells, Cohort, ImageRow, Sample

WIDTH, HEIGHT = 100, 60


@pytest.fixture
def labels() -> np.ndarray:
    """Three cells: two that touch, and one with a hole; numbered with a gap."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    labels[10:20, 5:12] = 1
    labels[10:20, 12:30] = 2
    labels[30:50, 40:60] = 4
    labels[36:44, 46:54] = 0
    return labels


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return cohort_of(tmp_path, "a.png", "b.png")


def cohort_of(folder: Path, *images: str, kind: str = "field") -> Cohort:
    rows = []
    for number, image in enumerate(images, start=2):
        path = folder / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)).save(path)
        rows.append(ImageRow(image=f"images/{image}", path=path, row=number, kind=kind))
    return Cohort(samples=(Sample(sample="s", patient="p", label="control", images=tuple(rows)),))


def written(path: Path, content: object) -> Path:
    """A label image by the suffix of its name, or JSON; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(content).save(path)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, content)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path.parent


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(*rings: list, kind: str | None = "detection", name: str | None = None) -> dict:
    properties = {} if kind is None else {"objectType": kind}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "f2f2",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
    }


def collection(*features: dict) -> dict:
    return {"type": "FeatureCollection", "features": list(features)}


THREE = (
    feature(rectangle(5, 10, 12, 20)),
    feature(rectangle(12, 10, 30, 20)),
    feature(rectangle(40, 30, 60, 50), rectangle(46, 36, 54, 44)),
)
"""The cells of `labels`, along the edges of their pixels."""


def coco_of(labels: np.ndarray) -> dict:
    annotations = []
    for k in np.unique(labels[labels > 0]).tolist():
        packed = coco_mask.encode(np.asfortranarray(labels == k, dtype=np.uint8))
        box = coco_mask.toBbox(packed).tolist()
        packed["counts"] = packed["counts"].decode()
        annotations.append({"id": k, "image_id": 7, "bbox": box, "segmentation": packed})
    image = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}


def same(one: Cells, other: Cells) -> bool:
    return (
        (one.cell_ids, one.images, one.cell_labels) == (other.cell_ids, other.images, other.cell_labels)
        and np.array_equal(one.boxes, other.boxes)
        and all(np.array_equal(m, n) for m, n in zip(one.masks, other.masks, strict=True))
    )


def kinds(known: KnownCells) -> list[str]:
    return [notice.kind for notice in known.notices]


def refused(path: Path, cohort: Cohort) -> str:
    with pytest.raises(CellsError) as caught:
        read_known_cells(path, cohort)
    return str(caught.value)


# The same cells


def test_a_label_image_geojson_and_coco_of_the_same_cells_give_the_same_cells(tmp_path, cohort, labels):
    masks = read_cells(written(tmp_path / "masks" / "a_cp_masks.png", labels), cohort)
    drawn = read_cells(written(tmp_path / "qupath" / "a.geojson", collection(*THREE)), cohort)
    written(tmp_path / "coco.json", coco_of(labels))
    known = read_cells(tmp_path / "coco.json", cohort)
    assert masks.boxes.tolist() == [[5, 10, 12, 20], [12, 10, 30, 20], [40, 30, 60, 50]]
    assert [int(mask.sum()) for mask in masks.masks] == [70, 180, 20 * 20 - 8 * 8]
    assert same(masks, drawn)
    assert same(masks, known)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.png", np.uint8),
        ("a_masks.png", np.uint16),
        ("a_mask.tif", np.uint8),
        ("a_label.tif", np.uint16),
        ("a_labels.tiff", np.int32),
        ("a.ome.tif", np.uint32),
        ("a.ome_cp_masks.tif", np.dtype(">u2")),
        ("a.tif", np.float32),
        ("a.png.tif", np.int64),
    ],
)
def test_names_and_depths_of_label_images_do_not_matter(tmp_path, cohort, labels, name, dtype):
    expected = read_cells(written(tmp_path / "masks" / "a.png", labels), cohort)
    found = read_cells(written(tmp_path / "other" / name, labels.astype(dtype)), cohort)
    assert same(found, expected)


def test_large_and_missing_numbers_change_nothing_but_the_order_of_numbers_counts(tmp_path, cohort, labels):
    expected = read_cells(written(tmp_path / "masks" / "a.png", labels), cohort)
    large = np.array([0, 7, 4_000_000_000, 0, 4_294_967_295], dtype=np.uint32)[labels]
    assert same(read_cells(written(tmp_path / "large" / "a.tif", large), cohort), expected)
    turned = np.array([0, 5, 4, 0, 3])[labels].astype(np.uint8)
    cells = read_cells(written(tmp_path / "turned" / "a.png", turned), cohort)
    assert cells.boxes.tolist() == expected.boxes.tolist()[::-1]


@settings(max_examples=25, deadline=None)
@for_all(seed=st.integers(0, 2**32 - 1))
def test_every_pixel_of_a_label_image_is_in_the_one_cell_of_its_number(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("any")
    noise = np.random.default_rng(seed).random((HEIGHT, WIDTH))
    labels = label(noise > 0.6, connectivity=1).astype(np.uint16)
    cells = read_cells(written(folder / "masks" / "a.png", labels), cohort_of(folder, "a.png"))
    again = np.zeros_like(labels)
    for number, (mask, box) in enumerate(zip(cells.masks, cells.boxes.astype(int), strict=True), start=1):
        x0, y0, x1, y1 = box
        assert mask.shape == (y1 - y0, x1 - x0)
        again[y0:y1, x0:x1] += number * mask.astype(np.uint16)
    assert np.array_equal(again, labels)


def test_touching_cells_remain_two(tmp_path, cohort, labels):
    cells = read_cells(written(tmp_path / "masks" / "a.png", labels), cohort)
    one, other = cells.masks[:2]
    assert one.all()
    assert other.all()


def test_an_image_without_a_cell_is_no_error(tmp_path, cohort, labels):
    written(tmp_path / "masks" / "b.png", labels * 0)
    known = read_known_cells(written(tmp_path / "masks" / "a.png", labels), cohort)
    assert set(known.cells.images) == {"images/a.png"}
    assert kinds(known) == []


# GeoJSON


def test_geojson_may_be_a_collection_a_list_or_one_feature_and_be_called_json(tmp_path, cohort):
    expected = read_cells(written(tmp_path / "qupath" / "a.geojson", collection(*THREE)), cohort)
    assert same(read_cells(written(tmp_path / "list" / "a.png.geojson", list(THREE)), cohort), expected)
    written(tmp_path / "a.json", list(THREE))
    assert same(read_cells(tmp_path / "a.json", cohort), expected)
    assert len(read_cells(written(tmp_path / "one" / "a.json", THREE[0]), cohort)) == 1
    assert len(read_cells(written(tmp_path / "none" / "a.geojson", []), cohort)) == 0


def test_a_polygon_holds_the_pixels_whose_centre_it_holds():
    disc = [[30 + 12 * np.cos(t), 25 + 12 * np.sin(t)] for t in np.linspace(0, 2 * np.pi, 400)]
    cell = Polygons(parts=((np.array(disc),),))
    mask = cell.mask(cell.box)
    y, x = np.mgrid[13:37, 18:42] + 0.5
    assert mask.shape == (24, 24)
    assert np.array_equal(mask, (x - 30) ** 2 + (y - 25) ** 2 < 12**2)


def test_a_cell_of_several_pieces_is_one_cell(tmp_path, cohort):
    pieces = feature()
    pieces["geometry"] = {
        "type": "MultiPolygon",
        "coordinates": [
            [rectangle(10, 10, 20, 20), rectangle(12, 12, 14, 14)],
            [rectangle(24, 10, 30, 20)],
            [rectangle(12, 12, 13, 13)],
        ],
    }
    cells = read_cells(written(tmp_path / "qupath" / "a.geojson", collection(pieces)), cohort)
    assert cells.boxes.tolist() == [[10, 10, 30, 20]]
    assert int(cells.masks[0].sum()) == 100 - 4 + 60 + 1


def test_a_polygon_that_leaves_its_image_is_cut(tmp_path, cohort):
    path = written(tmp_path / "qupath" / "a.geojson", collection(feature(rectangle(-5.5, 50, 9, 1e6))))
    cells = read_cells(path, cohort)
    assert cells.boxes.tolist() == [[0, 50, 9, HEIGHT]]
    assert cells.masks[0].shape == (10, 9)
    assert cells.masks[0].all()
    path = written(tmp_path / "qupath" / "a.geojson", collection(feature(rectangle(200, 1, 210, 9))))
    text = refused(path, cohort)
    assert "cell 1: box 200 1 210 9 of image 'images/a.png' lies outside its image of 100x60" in text


def test_classes_become_labels_in_every_spelling_of_qupath(tmp_path, cohort):
    features = [feature(rectangle(k, 1, k + 5, 9), kind=None) for k in range(0, 50, 10)]
    features[0]["properties"] = {"object_type": "PathCellObject", "classification": {"name": "sickle"}}
    features[1]["properties"] = {"objectType": "cell", "classification": {"names": ["red", "sickle"]}}
    features[2]["properties"] = {"classification": "round"}
    features[3]["properties"] = None
    path = written(tmp_path / "qupath" / "a.geojson", collection(*features))
    assert read_cells(path, cohort).cell_labels == ("sickle", "red: sickle", "round", None, None)


def test_what_is_no_cell_is_counted_and_left_aside(tmp_path, cohort):
    point, nothing = feature(), feature()
    point["geometry"] = {"type": "Point", "coordinates": [3, 3]}
    nothing["geometry"] = None
    around = feature(rectangle(0, 0, WIDTH, HEIGHT), kind="annotation", name="Region")
    by_hand = feature(rectangle(70, 10, 80, 20), kind="annotation", name="sickle")
    tile = feature(rectangle(0, 0, 9, 9), kind="tile")
    written(tmp_path / "qupath" / "b.geojson", collection(point))
    path = written(
        tmp_path / "qupath" / "a.geojson", collection(*THREE, point, nothing, around, by_hand, tile)
    )
    known = read_known_cells(path, cohort)
    assert known.cells.cell_labels == (None, None, None, "sickle")
    assert kinds(known) == ["features-left-aside"]
    text = known.notices[0].text
    assert text.startswith("5 features that are no cells")
    for part in ("2 x Point geometry", "1 x no geometry", "1 x tile object", "1 x annotation round cells"):
        assert part in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("{}", "is not GeoJSON: it has no list of features"),
        ('{"images": [], "annotations": []}', "is not GeoJSON"),
        ("[1, 2]", "is not GeoJSON"),
    ],
)
def test_what_is_not_geojson_is_refused_with_its_name(tmp_path, cohort, content, expected):
    path = tmp_path / "a.geojson"
    path.write_text(content)
    text = refused(path, cohort)
    assert "a.geojson" in text
    assert expected in text


def test_every_polygon_that_cannot_be_read_is_told_at_once(tmp_path, cohort):
    bad = [
        feature(),
        feature([[1, 1], [2, 2]]),
        feature([[1, 1], [2, "x"], [3, 3]]),
        feature([1, 2, 3]),
        feature([[1, 1], [float("nan"), 2], [3, 3]]),
    ]
    del bad[0]["geometry"]["coordinates"]
    written(tmp_path / "qupath" / "b.geojson", collection(feature([])))
    text = refused(written(tmp_path / "qupath" / "a.geojson", collection(THREE[0], *bad)), cohort)
    for number in range(2, 7):
        assert f"feature {number} has no polygon" in text
    assert "b.geojson has 1 problem" in text


def test_a_polygon_without_area_is_named(tmp_path, cohort):
    path = written(tmp_path / "qupath" / "a.geojson", collection(feature([[1, 1], [5, 1], [9, 1]])))
    assert "cell 1: box 1 1 9 1 of image 'images/a.png' has no area" in refused(path, cohort)


# Label images that are none


def test_a_label_image_of_another_size_is_refused_with_both_sizes(tmp_path, cohort, labels):
    large = np.kron(labels, np.ones((2, 2), dtype=np.uint16))
    text = refused(written(tmp_path / "masks" / "a.png", large), cohort)
    assert "image 'images/a.png' was annotated at 200x120 pixels, but is 100x60" in text
    assert "1 problem" in text


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("a.png", lambda m: np.stack([m] * 3, axis=2).astype(np.uint8), "colours or several planes"),
        ("a.tif", lambda m: np.stack([m] * 3, axis=2), "colours or several planes (an array of 60x100x3)"),
        ("a.tif", lambda m: np.stack([m] * 5), "an array of 5x60x100"),
        ("a.tif", lambda m: m.astype(np.float32) / 2, "its float32 numbers are not whole"),
        ("a.tif", lambda m: np.where(m == 1, np.nan, m), "are not whole"),
        ("a.tif", lambda m: m.astype(np.int16) - 1, "it holds -1, below 0"),
        ("a.png", lambda m: (m > 0).astype(np.uint8) * 255, "all its 2 pieces have one number"),
        ("a.png", lambda m: m > 0, "all its 2 pieces have one number"),
    ],
)
def test_what_is_no_label_image_is_refused(tmp_path, cohort, labels, name, change, expected):
    text = refused(written(tmp_path / "masks" / name, change(labels)), cohort)
    assert name in text
    assert expected in text


def test_every_file_that_cannot_be_read_is_told_at_once(tmp_path, cohort, labels):
    written(tmp_path / "masks" / "a.tif", labels)
    folder = written(tmp_path / "masks" / "b.png", labels)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    text = refused(folder, cohort)
    assert "2 problems" in text
    assert "a.tif cannot be read" in text
    assert "b.png cannot be read" in text


def test_a_pickle_of_cellpose_is_refused_but_may_lie_beside_its_masks(tmp_path, cohort, labels):
    folder = tmp_path / "cellpose"
    folder.mkdir()
    np.save(folder / "a_seg.npy", {"masks": labels}, allow_pickle=True)
    for path in (folder, folder / "a_seg.npy"):
        text = refused(path, cohort)
        assert "a_seg.npy is a pickle" in text
        assert "save the masks as PNG or TIFF" in text
    assert len(read_cells(written(folder / "a_cp_masks.png", labels), cohort)) == 3


# Which file belongs to which image


def test_a_folder_is_refused_if_it_is_empty_or_names_no_image(tmp_path, cohort, labels):
    folder = tmp_path / "masks"
    folder.mkdir()
    assert "it holds nothing" in refused(folder, cohort)
    (folder / "notes.txt").write_text("x")
    assert "1 files, the first 'notes.txt'" in refused(folder, cohort)
    text = refused(written(folder / "z_cp_masks.png", labels), cohort)
    assert "the first file is 'z_cp_masks.png', the first image 'images/a.png'" in text
    assert "a_cp_masks.png" in text
    assert "there is no file or folder" in refused(tmp_path / "nowhere.geojson", cohort)


def test_images_without_a_file_and_files_without_an_image_are_named(tmp_path, cohort, labels):
    written(tmp_path / "masks" / "z.png", labels)
    known = read_known_cells(written(tmp_path / "masks" / "a.png", labels), cohort)
    assert kinds(known) == ["files-of-other-images", "images-without-outlines"]
    assert known.notices[0].text == "1 files name no image of the manifest: z.png"
    assert known.notices[1].text == "1 images of the manifest have no file: images/b.png"
    assert len(known.cells) == 3


def test_an_image_that_is_one_cell_needs_no_file(tmp_path, labels):
    fields, single = cohort_of(tmp_path, "a.png"), cohort_of(tmp_path, "one.png", kind="cell")
    images = (*fields.samples[0].images, *single.samples[0].images)
    mixed = Cohort(samples=(Sample(sample="s", patient="p", label="control", images=images),))
    known = read_known_cells(written(tmp_path / "masks" / "a.png", labels), mixed)
    assert len(known.cells) == 4
    assert kinds(known) == []


def test_images_may_lie_beside_their_masks(tmp_path, cohort, labels):
    written(tmp_path / "images" / "a_cp_masks.png", labels)
    known = read_known_cells(written(tmp_path / "images" / "b_cp_masks.tif", labels), cohort)
    assert len(known.cells) == 6
    assert kinds(known) == []


def test_hidden_files_of_other_systems_are_passed_over(tmp_path, cohort, labels):
    folder = written(tmp_path / "masks" / "a.png", labels)
    (folder / "._a.png").write_bytes(b"\0")
    assert len(read_cells(folder, cohort)) == 3


def test_folders_tell_images_of_one_name_apart(tmp_path, labels):
    cohort = cohort_of(tmp_path, "p1/a.png", "p2/a.png")
    written(tmp_path / "masks" / "p1" / "a_masks.png", labels)
    folder = written(tmp_path / "masks" / "p2" / "a_masks.png", labels * (labels == 4)).parent
    cells = read_cells(folder, cohort)
    assert cells.images == ("images/p1/a.png",) * 3 + ("images/p2/a.png",)
    # of a part of the images, the files of the others are not taken
    part = Cohort(samples=(Sample(sample="s", patient="p", label=None, images=cohort.samples[0].images[1:]),))
    assert len(read_cells(folder, part)) == 1
    text = refused(written(tmp_path / "flat" / "a.png", labels), cohort)
    assert "names 2 images: images/p1/a.png, images/p2/a.png" in text


def test_two_files_of_one_image_are_refused(tmp_path, cohort, labels):
    written(tmp_path / "masks" / "a.geojson", list(THREE))
    text = refused(written(tmp_path / "masks" / "a_masks.png", labels), cohort)
    assert "image 'images/a.png' has 2 files" in text
    assert "a.geojson" in text


def test_a_single_file_may_have_any_name_where_there_is_one_image(tmp_path, cohort, labels):
    written(tmp_path / "export.geojson", collection(*THREE))
    written(tmp_path / "masks.tif", labels)
    alone = cohort_of(tmp_path, "a.png")
    assert same(read_cells(tmp_path / "export.geojson", alone), read_cells(tmp_path / "masks.tif", alone))
    assert "none of its 1 files names an image" in refused(tmp_path / "export.geojson", cohort)


# Into a run


def test_a_folder_of_outlines_goes_into_a_run_as_cells_and_as_truth(tmp_path, cohort, labels):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "image,sample,patient,label\nimages/a.png,s,p,control\nimages/b.png,t,q,sickle\n", encoding="utf-8"
    )
    written(tmp_path / "masks" / "a_cp_masks.png", labels)
    folder = written(tmp_path / "masks" / "b.geojson", collection(feature(rectangle(1, 1, 9, 9), name="x")))
    source = load_source(manifest, Settings(), cells=folder, truth=folder)
    assert source.cells.cell_ids == ("s/0000", "s/0001", "s/0002", "t/0000")
    assert source.notices == ()
    assert same(source.cells, source.truth_cells)
    assert source.truth["cell_label"].tolist() == ["", "", "", "x"]
    known = read_manifest(manifest)
    assert read_truth(folder, known)["image"].tolist() == ["images/a.png"] * 3 + ["images/b.png"]
