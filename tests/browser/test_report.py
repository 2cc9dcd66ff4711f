"""The report as a person uses it, opened from disk in Chromium: no network, no fault, no error."""

import re

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe

from hemomil.report import ReportSettings, write_report
from test_report import make_run, read_image
from test_report_cells import add_cell_classes

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("browser-report"), samples=9, images=1)
    add_cell_classes(folder)
    write_report(folder, read_image=read_image)
    return folder


@pytest.fixture
def report(run, page):
    page.goto((run / "report.html").as_uri())
    return page


def shown_rows(page):
    return [row.inner_text().split("\t") for row in page.locator("#all-samples tbody tr:visible").all()]


def opened_plane(page):
    """The section of the first sample, its plane drawn."""
    section = page.locator("section.sample").first
    section.locator("details.plane summary").click()
    section.locator('.plot[data-drawn="yes"]').wait_for()
    return section


def test_nothing_is_asked_for_and_nothing_fails(run, watched):
    watched.page.goto((run / "report.html").as_uri())
    opened_plane(watched.page)
    watched.page.wait_for_timeout(500)
    assert watched.errors == []
    assert {re.match(r"\w+:", url)[0] for url in watched.requests} <= {"file:", "data:"}
    assert [url for url in watched.requests if url.startswith("file:")] == [(run / "report.html").as_uri()]


def test_the_table_is_sorted_and_filtered(report):
    report.locator("#all-samples th", has_text="probability").click()
    values = [float(row[5]) for row in shown_rows(report)]
    assert values == sorted(values)
    report.locator("#all-samples th", has_text="probability").click()
    assert [float(row[5]) for row in shown_rows(report)] == sorted(values, reverse=True)
    report.locator("#filter").fill("sickle s001")
    assert [row[0] for row in shown_rows(report)] == ["s001"]
    assert report.locator("#filter-count").inner_text() == "1 of 9"


def test_each_colouring_changes_the_boxes_and_its_legend(report):
    box = report.locator(".field .over").first
    seen = set()
    for name in ("anomaly", "attention", "contribution", "class"):
        button = report.locator(".bar button", has_text=name)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert report.locator(".legend:visible").count() == 1
        seen.add(box.evaluate("e => getComputedStyle(e).stroke + getComputedStyle(e).strokeDasharray"))
    assert len(seen) >= 3
    dashes = report.locator(".field .over").evaluate_all(
        "boxes => boxes.map(e => getComputedStyle(e).strokeDasharray)"
    )
    assert len(set(dashes)) == 3


def left_shown(page):
    """Boxes to be seen, and how many the page says there are."""
    said = page.locator("#threshold-said").inner_text()
    return page.locator(".field g:visible").count(), int(re.search(r"\d+", said)[0])


def test_the_threshold_hides_cells_by_the_keyboard(report):
    everything, said = left_shown(report)
    assert everything == said == 9 * 12
    report.locator("#threshold").focus()
    for _ in range(50):
        report.keyboard.press("ArrowRight")
    half, said = left_shown(report)
    assert half == said
    assert 0.4 * everything <= half <= 0.6 * everything
    report.locator(".bar button", has_text="contribution").click()
    assert left_shown(report)[0] == left_shown(report)[1]
    report.locator("#threshold").press("Home")
    assert left_shown(report) == (everything, everything)


def test_the_threshold_hides_cells_by_the_mouse(report):
    slider = report.locator("#threshold")
    slider.scroll_into_view_if_needed()
    place = slider.bounding_box()
    middle = place["y"] + place["height"] / 2
    report.mouse.move(place["x"] + 8, middle)
    report.mouse.down()
    report.mouse.move(place["x"] + 0.9 * place["width"], middle, steps=5)
    report.mouse.up()
    left, said = left_shown(report)
    assert left == said
    assert left <= 0.2 * 9 * 12


def test_pointing_at_a_box_tells_its_numbers(report):
    box = report.locator(".field g").last
    box.scroll_into_view_if_needed()
    box.hover(position={"x": 3, "y": 3})
    texts = report.locator(".field g").evaluate_all("all => all.map(g => g.dataset.cell)")
    assert report.locator("#readout").inner_text() in texts


def test_pointing_at_the_plane_shows_the_cell_and_marks_its_box(run, report):
    section = opened_plane(report)
    plot = section.locator(".plot")
    plot.scroll_into_view_if_needed()
    place = plot.bounding_box()
    # the pointer goes over the plane until it meets a cell
    for step in range(60, int(place["width"]), 4):
        for up in (0.35, 0.5, 0.65, 0.8):
            report.mouse.move(place["x"] + step, place["y"] + up * place["height"])
        if section.locator(".pointed").count():
            break
    told = section.locator(".closer p").inner_text()
    cell_id = told.split(" · ")[0]
    assert cell_id in set(pd.read_parquet(run / "cells.parquet")["cell_id"])
    assert section.locator("g.pointed").get_attribute("data-cell") == told
    section.locator("canvas").last.wait_for()
    report.wait_for_timeout(300)
    painted = section.locator(".closer canvas").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, 144, 144).data.filter((v, i) => i % 4 === 3 && v).length"
    )
    assert painted > 100 * 100


def test_a_split_report_works_from_page_to_page(tmp_path, watched):
    run = make_run(tmp_path, samples=3, images=1)
    write_report(run, read_image=read_image, settings=ReportSettings(max_megabytes=0.5))
    page = watched.page
    page.goto((run / "report.html").as_uri())
    page.locator("ul.pages a", has_text="s001").click()
    assert "s001" in page.locator("h1").inner_text()
    opened_plane(page)
    page.locator("a", has_text="all samples").click()
    page.locator("#all-samples").wait_for()
    assert watched.errors == []


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_is_readable_by_all_and_fits_the_screen(report, tmp_path, width):
    report.set_viewport_size({"width": width, "height": 900})
    opened_plane(report)
    report.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    report.wait_for_function("() => !document.querySelector('.plot:not([data-drawn])')")
    found = Axe().run(report).response["violations"]
    grave = {
        v["id"]: [n["html"][:200] for n in v["nodes"][:3]]
        for v in found
        if v["impact"] in ("serious", "critical")
    }
    assert grave == {}
    assert report.evaluate("document.documentElement.scrollWidth") <= width
    report.screenshot(path=tmp_path / f"report-{width}.png", full_page=True)
    report.locator(".bar button", has_text="class").click()
    report.locator("section.sample").first.screenshot(path=tmp_path / f"sample-{width}.png")
