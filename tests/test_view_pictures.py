"""Pictures of the viewer: the right part of the image, in bounded memory, or the reason why there is none."""

import io

import numpy as np
import pytest
from PIL import Image

from hemomil.cohort import read_image
from hemomil.errors import ImageError
from hemomil.view import Pictures, pictures
from view_runs import make_run, shown_cells
from view_server import serving


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def client(run):
    with serving(run) as client:
        yield client


def key(client):
    return client.ask("/api/run").json["pictures"]


def picture(client, path):
    answer = client.ask(f"{key(client)}/{path}")
    assert answer.headers["Content-Type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.body))).astype(int)


def test_a_part_of_an_image_is_that_part(run, client):
    name = client.ask("/api/samples/0").json["image_names"][0]
    whole = read_image(run.parent / "cohort" / name).astype(int)
    number = client.ask("/api/samples/0").json["images"][0]
    assert client.ask(f"/api/images/{number}").json == {"width": 300, "height": 220}
    shown = picture(client, f"images/{number}/20,30,120,90/999")
    assert shown.shape == (60, 100, 3)
    assert np.abs(shown - whole[30:90, 20:120]).mean() < 3
    assert picture(client, f"images/{number}/0,0,300,220/150").shape == (110, 150, 3)
    assert picture(client, f"images/{number}/0,0,999999,999999/4000").shape == (220, 300, 3)
    assert picture(client, f"images/{number}/900,900,3,3/0").shape == (1, 1, 3)


def test_a_cell_lies_in_the_middle_of_its_picture(run, client):
    sample = client.ask("/api/samples/0").json
    cells = shown_cells(run).set_index("cell_id")
    for place, name in enumerate(sample["ids"]):
        box = cells.loc[name]
        whole = read_image(run.parent / "cohort" / box["image"]).astype(int)
        middle = whole[int(box["y0"] + box["y1"]) // 2, int(box["x0"] + box["x1"]) // 2]
        shown = picture(client, f"cells/{sample['first'] + place}")
        assert shown.shape == (160, 160, 3)
        assert np.abs(shown[78:82, 78:82].mean(axis=(0, 1)) - middle).max() < 12


def looking(image, **options):
    return Pictures(["only.png"], options.get("folder"), lambda path: image)


def test_beyond_the_border_a_picture_is_quiet(tmp_path):
    image = np.full((40, 40, 3), (236, 228, 222), np.uint8)
    image[:10, :10] = (120, 30, 30)
    content = looking(image, folder=tmp_path).cell(0, (-20.0, -20.0, 40.0, 40.0))
    shown = np.asarray(Image.open(io.BytesIO(content)))
    assert np.abs(shown[:30, :30].astype(int) - (236, 228, 222)).max() < 6


@pytest.mark.parametrize(
    "box", [(500.0, 500.0, 540.0, 540.0), (np.nan,) * 4, (5.0, 5.0, 5.0, 5.0), (0.0, 0.0, 1e12, 9.0)]
)
def test_a_box_that_is_none_still_has_a_picture(tmp_path, box):
    image = np.full((40, 40, 3), 200, np.uint8)
    assert Image.open(io.BytesIO(looking(image, folder=tmp_path).cell(0, box))).size == (160, 160)


def test_an_image_that_cannot_be_read_says_why_and_not_where(tmp_path):
    run = make_run(tmp_path)
    images = tmp_path / "cohort" / "images"
    (images / "0-0.png").unlink()
    (images / "0-1.png").write_bytes(b"no image")
    with serving(run) as client:
        index = client.ask("/api/samples").json["sample"].index("s00")
        numbers = client.ask(f"/api/samples/{index}").json["images"]
        answers = [client.ask(f"/api/images/{number}") for number in numbers]
        problems = [answer.json["problem"] for answer in answers]
        assert problems[0] == "image images/0-0.png is not there"
        assert "images/0-1.png is not a PNG, JPEG or TIFF image" in problems[1]
        assert str(tmp_path) not in "".join(problems)
        first = client.ask(f"/api/samples/{index}").json["first"]
        assert client.ask(f"{key(client)}/cells/{first}").status == 404
        assert client.ask(f"/api/images/{numbers[0] + 2}").json == {"width": 300, "height": 220}


def test_a_run_that_names_no_manifest_says_so():
    with pytest.raises(ImageError, match="names no manifest"):
        looking(np.zeros((9, 9, 3), np.uint8)).size(0)


def test_what_is_kept_is_bounded_and_the_same_when_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IMAGE_BYTES", 100_000)
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
    reads = []
    shown = Pictures([f"{i}.png" for i in range(8)], tmp_path, lambda path: reads.append(path) or noise)
    first = [shown.part(image, (0, 0, 100, 100), 100) for image in range(8)]
    assert shown.images.bytes <= 100_000
    assert shown.pictures.bytes <= 20_000
    assert [shown.part(image, (0, 0, 100, 100), 100) for image in range(8)] == first
    assert len(reads) > 8
    assert shown.images.bytes == 90_000


def test_one_image_that_is_too_large_to_keep_is_kept_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IMAGE_BYTES", 10)
    reads = []
    image = np.full((20, 20, 3), 9, np.uint8)
    shown = Pictures(["a.png", "b.png"], tmp_path, lambda path: reads.append(path.name) or image)
    for number in (0, 0, 1, 1, 0):
        shown.size(number)
    assert reads == ["a.png", "b.png", "a.png"]
