"""An expert marks cells in Chromium, also blind; and names that are markup stay text."""

import re

import pandas as pd
import pytest

from browser.viewer_page import column, opened
from view_runs import make_run
from view_server import serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("viewer"), samples=9)


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with serving(run, marks=tmp_path_factory.mktemp("marks") / "marks.csv") as client:
        yield client


def test_a_mark_is_found_again_after_a_reload(client, page):
    opened(page, client, "s02")
    page.keyboard.press("j")
    name = page.locator("#facts dd").first.inner_text()
    page.get_by_label("note").fill("=cup, with a “tail”")
    page.get_by_role("button", name=re.compile("^sickle")).click()
    page.get_by_text("Saved: sickle.").wait_for()
    page.reload()
    page.get_by_role("heading", name="Marked cells (1)").wait_for()
    page.locator("#marked .thumb").click()
    assert page.locator("#facts dd").first.inner_text() == name
    assert page.get_by_label("note").input_value() == "=cup, with a “tail”"
    assert page.get_by_role("button", name=re.compile("^sickle")).get_attribute("aria-pressed") == "true"
    page.get_by_role("link", name="All samples").click()
    page.get_by_label("Show only rows with").fill("marked")
    assert column(page, 1) == ["s02"]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download marks.csv").click()
    table = pd.read_csv(download.value.path())
    assert table[["cell_id", "mark", "class"]].to_numpy().tolist() == [[name, "class", "sickle"]]


def test_keys_mark_and_take_back_but_rest_while_typing(client, page):
    opened(page, client, "s03")
    page.keyboard.press("j")
    index = client.ask("/api/samples").json["sample"].index("s03")
    strangest = client.ask(f"/api/samples/{index}").json["ids"][client.numbers(index)["anomaly"].argmax()]
    assert page.locator("#facts dd").first.inner_text() == strangest
    for key, said in (("a", "artefact"), ("u", "unsure"), ("1", "control"), ("0", "no mark")):
        page.keyboard.press(key)
        page.get_by_text(f"Saved: {said}.").wait_for()
    page.keyboard.press("m")
    page.keyboard.type("a12")
    assert page.get_by_label("note").input_value() == "a12"
    page.get_by_label("another class").fill("tear drop")
    page.get_by_label("another class").press("Enter")
    page.get_by_text("Saved: tear drop.").wait_for()


def test_a_mark_that_is_not_saved_is_said(client, page):
    # before the page is there: Chromium takes a moment to hear of it, and one mark in sixty got through
    page.route("**/api/marks", lambda route: route.abort())
    opened(page, client, "s04")
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.get_by_text("Not saved:").wait_for()
    assert page.get_by_role("heading", name="Marked cells (0)").is_visible()


def test_a_blind_page_shows_no_score_and_no_class_but_marks(run, tmp_path, watched):
    with serving(run, blind=True, marks=tmp_path / "marks.csv") as client:
        page = opened(watched.page, client, "s01")
        page.keyboard.press("j")
        page.keyboard.press("2")
        page.get_by_text("Saved: sickle.").wait_for()
        for hidden in ("#reading", "#colouring", "#threshold-row", "#plane-card"):
            assert not page.locator(hidden).is_visible()
        said = page.locator("main").inner_text()
        for word in ("anomaly", "attention", "predicted", "known class", "images/"):
            assert word not in said
        page.get_by_role("link", name="All samples").click()
        assert page.locator("#samples th").all_inner_texts() == ["sample", "patient", "cells", "marks"]
    assert watched.errors == []


def test_markup_in_names_is_text(tmp_path, watched):
    run = make_run(tmp_path)
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    table = pd.read_csv(run / "samples.csv", dtype=str).assign(label=hostile, predicted=hostile)
    table.rename(columns={"prob_sickle": f"prob_{hostile}"}).to_csv(run / "samples.csv", index=False)
    cells = pd.read_parquet(run / "cells.parquet")
    cells["cell_id"] = hostile + cells["cell_id"]
    cells.assign(cell_label=hostile).to_parquet(run / "cells.parquet", index=False)
    alerts = []
    watched.page.on("dialog", lambda dialog: alerts.append(dialog.message) or dialog.dismiss())
    with serving(run) as client:
        page = opened(watched.page, client, "s01")
        page.keyboard.press("j")
        assert hostile in page.locator("#facts").inner_text()
        assert hostile in page.locator("#tags").inner_text()
        assert page.locator("main script, main img[onerror]").count() == 0
    assert alerts == []
    assert watched.errors == []
