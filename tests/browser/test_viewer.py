"""The viewer as a person uses it in Chromium: nothing but its own server is asked, and nothing fails."""

import re

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from browser.viewer_page import column, drawn, opened, point_at_a_cell
from view_runs import PER_SAMPLE, make_run
from view_server import serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("viewer"), samples=9)


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with serving(run, marks=tmp_path_factory.mktemp("marks") / "marks.csv") as client:
        yield client


@pytest.fixture
def sample(client, page):
    """The page of sample s01, its image drawn."""
    return opened(page, client, "s01")


def test_only_its_own_server_is_asked_and_nothing_fails(client, watched):
    page = opened(watched.page, client, "s01")
    for colouring in ("attention", "contribution", "class", "anomaly"):
        page.get_by_role("button", name=colouring, exact=True).click()
    for key in ("j", "k", "n", "p", "c", "b", ".", ",", "+", "-", "f", "?"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Close").click()
    page.get_by_role("link", name="All samples").click()
    page.locator("#samples tbody tr").first.wait_for()
    assert watched.errors == []
    asked = [url for url in watched.requests if not url.startswith("data:")]
    assert asked
    assert all(url.startswith(client.url) for url in asked)


def test_the_list_is_sorted_and_searched(client, page):
    page.goto(client.url)
    page.get_by_role("button", name="probability").click()
    found = [float(text) for text in column(page, 6)]
    assert found == sorted(found)
    page.get_by_role("button", name="probability").click()
    assert [float(text) for text in column(page, 6)] == sorted(found, reverse=True)
    page.get_by_label("Show only rows with").fill("control s03")
    assert column(page, 1) == ["s03"]
    assert page.locator("#search-count").inner_text() == "1 of 9 samples"


def test_many_samples_are_turned_by_pages_and_searched_over_all(tmp_path, page):
    run = make_run(tmp_path)
    table = pd.read_csv(run / "samples.csv", dtype=str)
    more = [table.assign(sample=[f"more{i:02d}-{name}" for name in table["sample"]]) for i in range(20)]
    pd.concat([table, *more]).to_csv(run / "samples.csv", index=False)
    with serving(run) as client:
        page.goto(client.url)
        page.locator("#samples tbody tr").nth(99).wait_for()
        page.get_by_role("button", name="Next page").click()
        assert len(column(page, 1)) == 26
        assert page.locator("#page-here").inner_text() == "page 2 of 2"
        page.get_by_label("Show only rows with").fill("more07-s04")
        assert column(page, 1) == ["more07-s04"]
        assert not page.locator("#pager").is_visible()


def test_each_colouring_draws_other_boxes_and_has_a_legend(sample):
    seen = set()
    for name in ("anomaly", "attention", "contribution", "class"):
        button = sample.get_by_role("button", name=name, exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        seen.add((drawn(sample), sample.locator("#legend").inner_text()))
    assert len(seen) == 4
    assert "control" in sample.locator("#legend").inner_text()


def test_the_threshold_hides_cells_by_mouse_and_by_keyboard(client, sample):
    index = client.ask("/api/samples").json["sample"].index("s01")
    strange = client.numbers(index)["strange"]
    before = drawn(sample)
    slider = sample.get_by_label(re.compile("Hide the lowest"))
    frame = slider.bounding_box()
    sample.mouse.move(frame["x"] + 9, frame["y"] + frame["height"] / 2)
    sample.mouse.down()
    sample.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2, steps=5)
    sample.mouse.up()
    percent = int(slider.input_value())
    assert 40 < percent < 60
    left = int((strange >= percent / 100).sum())
    assert sample.locator("#left").inner_text().startswith(f"{left} of {PER_SAMPLE} cells left")
    assert drawn(sample) != before
    slider.press("ArrowRight")
    assert slider.input_value() == str(percent + 1)
    slider.press("Home")
    assert sample.locator("#left").inner_text() == ""
    assert drawn(sample) == before


def test_pointing_at_a_cell_tells_its_numbers_and_a_click_chooses_it(sample):
    said = point_at_a_cell(sample, "#field")
    for word in ("anomaly", "attention", "contribution", "by itself like"):
        assert word in said
    sample.mouse.down()
    sample.mouse.up()
    assert said.startswith(sample.locator("#facts dd").first.inner_text())


def test_pointing_at_the_plane_shows_the_cell_and_a_click_goes_to_it(sample):
    said = point_at_a_cell(sample, "#plane", step=9)
    picture = sample.locator("#tip img")
    picture.wait_for()
    sample.mouse.down()
    sample.mouse.up()
    name = sample.locator("#facts dd").first.inner_text()
    assert name in said
    number = int(name.partition("/")[2])
    place = 1 if number < PER_SAMPLE // 2 else 2
    sample.wait_for_function(f"location.hash.endsWith('/{place}')")


def test_the_image_is_zoomed_and_moved(sample):
    before = drawn(sample)
    frame = sample.locator("#field").bounding_box()
    sample.mouse.move(frame["x"] + 200, frame["y"] + 150)
    sample.mouse.wheel(0, -400)
    sample.wait_for_function("document.querySelector('#field').classList.contains('zoomed')")
    zoomed = drawn(sample)
    sample.mouse.down()
    sample.mouse.move(frame["x"] + 260, frame["y"] + 190, steps=4)
    sample.mouse.up()
    assert len({before, zoomed, drawn(sample)}) == 3
    sample.get_by_role("button", name="Fit").click()
    sample.mouse.move(0, 0)
    assert drawn(sample) == before


def test_of_a_large_image_what_is_looked_at_closely_is_asked_for_again(tmp_path, page):
    run = make_run(tmp_path)
    field = tmp_path / "cohort" / "images" / "1-0.png"
    with Image.open(field) as image:
        image.resize((6000, 4400)).save(field)
    cells = pd.read_parquet(run / "cells.parquet")
    large = cells["image"] == "images/1-0.png"
    cells.loc[large, ["x0", "y0", "x1", "y1"]] *= 20
    cells.to_parquet(run / "cells.parquet", index=False)
    with serving(run) as client:
        opened(page, client, "s01")
        frame = page.locator("#field").bounding_box()
        page.mouse.move(frame["x"] + 300, frame["y"] + 200)
        with page.expect_response(re.compile("/pictures/.*/images/")) as answer:
            page.mouse.wheel(0, -1200)
        x0, y0, x1, y1 = map(int, re.search(r"(\d+),(\d+),(\d+),(\d+)/", answer.value.url).groups())
        assert 0 < x1 - x0 < 2000
        assert 0 < y1 - y0 < 2000


def test_an_image_that_cannot_be_read_shows_its_error_in_its_place(tmp_path, page):
    run = make_run(tmp_path)
    (tmp_path / "cohort" / "images" / "1-0.png").unlink()
    with serving(run) as client:
        page.goto(f"{client.url}#/sample/s01")
        page.get_by_text("This image cannot be shown. image images/1-0.png is not there").wait_for()
        page.get_by_role("button", name="Next image").click()
        page.locator("#field").wait_for()
        page.get_by_text("This picture cannot be shown.").first.wait_for()


def test_single_cells_are_a_mosaic_whose_cells_can_be_hidden_and_chosen(tmp_path, page):
    run = make_run(tmp_path)
    cells = pd.read_parquet(run / "cells.parquet")
    names = {cell: f"images/{i}.png" for i, cell in enumerate(cells["cell_id"].unique())}
    for i, name in enumerate(names.values()):
        (tmp_path / "cohort" / name).hardlink_to(tmp_path / "cohort" / "images" / f"{i % 6}-0.png")
    cells.assign(image=cells["cell_id"].map(names), x0=0, y0=0).to_parquet(run / "cells.parquet", index=False)
    with serving(run) as client:
        page.goto(f"{client.url}#/sample/s01")
        page.locator("#mosaic .thumb").nth(PER_SAMPLE - 1).wait_for()
        assert not page.locator("#field").is_visible()
        page.locator("#threshold").fill("60")
        shown = page.locator("#mosaic .thumb:visible").count()
        assert page.locator("#left").inner_text().startswith(f"{shown} of {PER_SAMPLE}")
        page.locator("#mosaic .thumb:visible").first.click()
        assert page.locator("#mosaic .thumb[aria-current=true]").count() == 1


def test_a_run_without_images_or_scores_can_be_looked_at(tmp_path, watched):
    run = make_run(tmp_path, data={})
    cells = pd.read_parquet(run / "cells.parquet").drop(columns=["image", "x0", "y0", "x1", "y1"])
    bare = ["attention", "anomaly", "anomaly_p", "anomaly_q", "weight"]
    cells.assign(**dict.fromkeys(bare, np.nan)).to_parquet(run / "cells.parquet", index=False)
    with serving(run) as client:
        watched.page.goto(f"{client.url}#/sample/s01")
        watched.page.get_by_text("This run has no images").wait_for()
        assert not watched.page.locator("#plane-card").is_visible()
        watched.page.keyboard.press("j")
        assert "contribution" in watched.page.locator("#facts").inner_text()
    assert watched.errors == []


def test_the_token_does_not_stay_in_the_address(run, tmp_path, watched):
    with serving(run, token="a-token-long-enough", marks=tmp_path / "marks.csv") as client:
        watched.page.goto(client.url)
        watched.page.locator("#samples tbody tr").first.wait_for()
        assert "token" not in watched.page.url
        watched.page.reload()
        watched.page.locator("#samples tbody tr").first.wait_for()
    assert watched.errors == []


@pytest.mark.parametrize("width", [1440, 390])
def test_no_serious_fault_for_assistive_technology_and_nothing_sticks_out(client, page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(client.url)
    page.locator("#samples tbody tr").first.wait_for()
    check(page, tmp_path / f"list-{width}.png")
    opened(page, client, "s01")
    page.keyboard.press("j")
    check(page, tmp_path / f"sample-{width}.png")
    page.get_by_role("button", name="class", exact=True).click()
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    check(page, tmp_path / f"help-{width}.png")


def check(page, picture):
    page.screenshot(path=picture, full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    faults = [f for f in Axe().run(page).response["violations"] if f["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []
