"""What a report writes: one page or several, the model card, figures alone; no name can break any of it."""

import html
import re

import pandas as pd
import pytest

from hemomil.commands.page import report
from hemomil.report.card import model_card
from hemomil.report.tables import read_run
from hemomil.report.views import page_name
from test_report import CLASSES, SCRIPTS, Elements, change_json, make_run
from test_report_cells import add_cell_classes, change_cells, change_table, changed, written

# --- several files


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("split"), samples=6, images=1)
    change_table(run, sample=pd.read_csv(run / "samples.csv")["sample"].replace("s001", "../<b>s1"))
    cells = pd.read_parquet(run / "cells.parquet")
    change_cells(run, sample=cells["sample"].replace("s001", "../<b>s1"))
    (run / "report").mkdir()
    (run / "report" / "of-an-earlier-run.html").write_text("")
    written(run, max_megabytes=0.5)
    return run


def test_a_page_that_would_be_too_large_is_split(split):
    index = (split / "report.html").read_text()
    pages = sorted((split / "report").iterdir())
    assert len(pages) == 6
    assert '<section class="sample"' not in index
    assert all(path.read_text().count('<section class="sample"') == 1 for path in pages)


def test_the_index_and_the_pages_link_each_other_by_relative_paths(split):
    index = Elements((split / "report.html").read_text()).found
    linked = {a["href"] for tag, a in index if tag == "a" and not a["href"].startswith("#")}
    assert {split / href for href in linked} == set((split / "report").iterdir())
    for path in (split / "report").iterdir():
        back = [a["href"] for tag, a in Elements(path.read_text()).found if tag == "a"]
        assert (path.parent / back[0]).resolve() == split / "report.html"


def test_a_sample_cannot_name_a_file_elsewhere(split):
    assert page_name("../<b>s1") in {path.name for path in (split / "report").iterdir()}
    assert re.fullmatch(r"[A-Za-z0-9-]+\.html", page_name("../../etc/passwd"))
    assert page_name("a/b") != page_name("a b")


def test_a_split_report_is_the_same_every_time(split):
    files = [split / "report.html", *sorted((split / "report").iterdir())]
    before = [path.read_bytes() for path in files]
    written(split, max_megabytes=0.5)
    assert [path.read_bytes() for path in files] == before


def test_a_report_that_fits_leaves_no_pages_of_a_split_one(tmp_path):
    run = changed(tmp_path, samples=3)
    written(run, max_megabytes=0.5)
    assert len(list((run / "report").iterdir())) == 3
    written(run)
    assert list((run / "report").glob("*.html")) == []


# --- model card, figures, names


def test_the_model_card_counts_what_the_run_rests_on(tmp_path):
    tables = read_run(changed(tmp_path, samples=15))
    parts = {part.heading: dict(part.lines) for part in model_card(tables)}
    assert parts["Data"]["all"] == "8 patients, 15 samples, 180 cells"
    assert parts["Data"]["sickle"] == "5 patients, 5 samples, 60 cells"
    assert parts["Method"]["epochs"] == "30"
    assert parts["How well it reads"]["accuracy"].startswith("0.81 [0.73, 0.89], 15 patients.")
    assert "few patients" not in parts["Limits"]
    assert parts["Limits"]["warnings of this run"].startswith("1: few patients.")
    assert "sites" not in parts["Data"]


def test_the_model_card_names_sites_and_classes_of_few_patients(tmp_path):
    run = changed(tmp_path)
    manifest = tmp_path / "cohort" / "manifest.csv"
    manifest.write_text("image,sample,site\na,s000,north\nb,s000,north\nc,s001,south\nd,elsewhere,east\n")
    parts = {part.heading: dict(part.lines) for part in model_card(read_run(run))}
    assert parts["Data"]["sites"] == "north (1 sample), south (1 sample)"
    assert "control (2), sickle (2), spherocytosis (2)" in parts["Limits"]["few patients"]


def test_figures_alone_leave_the_page_as_it_was(tmp_path):
    run = changed(tmp_path, samples=3)
    assert report(run, figures_only=True) == run / "figures"
    assert not (run / "report.html").exists()
    assert {"cells.svg", "cells.png", "scores.svg", "scores.png"} <= {
        p.name for p in (run / "figures").iterdir()
    }
    assert report(run) == run / "report.html"


def test_a_class_cannot_write_html_or_css(tmp_path):
    run = changed(tmp_path)
    hostile = '"}</style><script>alert(1)</script>'
    change_table(run, **{f"prob_{hostile}": "0.1"})
    change_json(run / "run.json", classes=[*CLASSES, hostile])
    add_cell_classes(run, (*CLASSES, hostile))
    page = written(run)
    assert page.count("<script") == SCRIPTS
    assert page.count("</style>") == 1
    assert html.escape(hostile, quote=False).replace('"', "&#34;") in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "alert(" not in style
    assert re.findall(r'content: "([^"]*)"', style)[-len(CLASSES) - 1 :] == ["CO", "SI", "SP", "ST"]
