"""The page that a person sees: complete, offline, escaped, and the same every time."""

import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from hemomil.errors import RunFolderError
from hemomil.report import ReportSettings, write_report
from hemomil.report.plane import bokeh_js
from hemomil.streams import stream

CLASSES = ("control", "sickle", "spherocytosis")
METHODS = ("att", "default")
SIDE = (300, 220)
SCRIPTS = 2
"""Of a page: BokehJS, and our own."""


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def draw_field(rng, strange_share):
    """A field of drawn cells, their boxes, and which of them are strange."""
    image = Image.new("RGB", SIDE, (236, 228, 222))
    draw = ImageDraw.Draw(image)
    boxes, strange = [], []
    for row in range(3):
        for column in range(4):
            odd = bool(rng.random() < strange_share)
            width, height = (20, 48) if odd else (40, 40)
            x, y = 20 + 70 * column + rng.integers(0, 12), 12 + 70 * row + rng.integers(0, 10)
            box = (int(x), int(y), int(x + width), int(y + height))
            draw.ellipse(box, fill=(196, 118, 112))
            if not odd:
                draw.ellipse((x + 14, y + 14, x + 26, y + 26), fill=(222, 172, 166))
            boxes.append(box)
            strange.append(odd)
    return image, boxes, strange


def cells_of(rng, cohort, sample, label, images):
    rows = []
    for _ in range(images):
        name = f"images/{len(list((cohort / 'images').iterdir())):04d}.png"
        image, boxes, strange = draw_field(rng, 0.02 if label == "control" else 0.3)
        image.save(cohort / name)
        for box, odd in zip(boxes, strange, strict=True):
            rows.append(
                {
                    "sample": sample,
                    "image": name,
                    **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
                    "odd": odd,
                }
            )
    frame = pd.DataFrame(rows)
    frame.insert(0, "cell_id", [f"{sample}/{i:04d}" for i in range(len(frame))])
    anomaly = rng.gamma(6, 1.2, len(frame)) + 14 * frame["odd"]
    attention = np.exp(rng.normal(0, 0.5, len(frame)) + 1.5 * frame["odd"])
    return frame.assign(
        anomaly=anomaly,
        attention=attention / attention.sum(),
        weight=attention / attention.sum(),
        contribution=rng.normal(0, 0.05, len(frame)) + 0.5 * frame["odd"],
        anomaly_p=1 / (1 + anomaly**2),
        anomaly_q=1 / (1 + anomaly),
    )


def make_cohort(folder, samples, images):
    rng = stream(0, "report-test")
    cohort = folder / "cohort"
    (cohort / "images").mkdir(parents=True)
    cells, rows = [], []
    for i in range(samples):
        label = CLASSES[i % 3]
        sample = f"s{i:03d}"
        cells.append(cells_of(rng, cohort, sample, label, images))
        probabilities = rng.dirichlet([1 + 6 * (name == label) for name in CLASSES])
        rows.append(
            {
                "sample": sample,
                "patient": f"p{i // 2:03d}",
                "label": label,
                "fold": i % 3,
                "novelty_p": rng.random(),
            }
        )
        rows[-1] |= {f"prob_{name}": p for name, p in zip(CLASSES, probabilities, strict=True)}
        rows[-1]["predicted"] = CLASSES[int(np.argmax(probabilities))]
    (cohort / "manifest.csv").write_text("image,sample\n")
    return cohort, pd.DataFrame(rows), pd.concat(cells, ignore_index=True)


def write_shape(run, cells):
    width, height = cells["x1"] - cells["x0"], cells["y1"] - cells["y0"]
    noise = stream(0, "shape").normal(0, 1, (len(cells), 3))
    shape = np.column_stack([width * height, height / width, width]) * (1 + 0.03 * noise)
    obs = pd.DataFrame(index=pd.Index(cells["cell_id"].astype(str), name="cell_id"))
    var = pd.DataFrame(index=["area", "elongation", "central_pallor"])
    values = shape.astype(np.float32)
    store = anndata.AnnData(values, obs=obs, var=var, obsm={"shape": values})
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=3):
        warnings.simplefilter("ignore")
        store.write_zarr(run / "cells.zarr")


def estimate(value, spread=0.08):
    return {
        "value": value,
        "low": round(value - spread, 3),
        "high": round(value + spread, 3),
        "n": 15,
        "unit": "patients",
    }


def make_run(folder, samples=30, images=2, command="study"):
    """A run folder as `study` writes it: every method and run side by side."""
    cohort, table, cells = make_cohort(folder, samples, images)
    run = folder / "run"
    run.mkdir()
    both = [(method, number) for method in METHODS for number in (1, 0)]
    long = pd.concat([table.assign(method=m, run=r) for m, r in both], ignore_index=True)
    long.to_csv(run / "samples.csv", index=False)
    parts = [
        cells.drop(columns="odd").assign(
            method=m, run=r, anomaly=cells["anomaly"] + 100 * (m == "att") + 50 * r
        )
        for m, r in both
    ]
    pd.concat(parts, ignore_index=True).to_parquet(run / "cells.parquet")
    write_shape(run, cells)
    metrics = {
        m: {
            "accuracy": estimate(0.7125 + i / 10),
            "macro_f1": estimate(0.68 + i / 10),
            "auroc": estimate(0.8 + i / 10),
        }
        for i, m in enumerate(METHODS)
    }
    metrics["att"]["recall"] = {
        "sickle": {"value": None, "low": None, "high": None, "n": 4, "unit": "patients"}
    }
    instances = {"default": {"anomaly": {"auroc": estimate(0.913), "ap": estimate(0.641)}}}
    (run / "metrics.json").write_text(
        json.dumps({"methods": metrics, "instances": instances, "evaluated_on": None})
    )
    about = {
        "command": command,
        "version": "0.1.0",
        "settings": {"mil": {"epochs": 30, "lr": 0.0005}, "folds": 3},
        "seed": 7,
        "device": "cpu",
        "timings": {"describe": 3.5, "fit": 12.25},
        "notices": [{"kind": "few-patients", "subject": "sickle", "text": "4 patients: not estimable"}],
        "classes": list(CLASSES),
        "control": "control",
        "methods": list(METHODS),
        "data": {"manifest": str(cohort / "manifest.csv")},
    }
    (run / "run.json").write_text(json.dumps(about))
    return run


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report"))
    write_report(folder, read_image=read_image)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text()


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def text_of(page):
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_loads_nothing_from_elsewhere(page):
    loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    for _, attributes in Elements(page).found:
        for name in loading & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), attributes[name][:80]
    own = page.replace(bokeh_js(), "")  # it names addresses, but asks for none: the browser's tests watch it
    assert len(own) < len(page)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", own)
    assert "default-src 'none'" in page


def test_the_page_is_the_same_every_time(run, page, tmp_path):
    figures = {path.name: path.read_bytes() for path in sorted((run / "figures").iterdir())}
    write_report(run, read_image=read_image)
    assert (run / "report.html").read_text() == page
    assert {path.name: path.read_bytes() for path in sorted((run / "figures").iterdir())} == figures


def test_every_metric_is_shown_as_the_table_has_it(run, page):
    text = text_of(page)
    methods = json.loads((run / "metrics.json").read_text())["methods"]
    for metrics in methods.values():
        for name in ("accuracy", "macro_f1", "auroc"):
            e = metrics[name]
            assert f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}] 15 patients" in text
    assert "0.91 [0.83, 0.99]" in text
    assert (
        "recall sickle not estimable" in text.replace("sickle recall", "recall sickle")
        or "not estimable" in text
    )


def table_of_samples(page):
    """The table of all samples as the page shows it."""
    table = page[page.index('<table id="all-samples"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], flags=re.S)
    read = [
        [text_of(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.S)] for row in rows
    ]
    return pd.DataFrame(read[1:], columns=read[0]).set_index("sample")


def test_every_sample_is_in_the_table_as_samples_csv_has_it(run, page):
    table = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0").set_index("sample")
    shown = table_of_samples(page)
    assert set(shown.index) == set(table.index)
    shown = shown.loc[table.index]
    assert list(shown["predicted"]) == list(table["predicted"])
    best = table[[f"prob_{name}" for name in CLASSES]].max(axis=1)
    assert np.allclose(shown["probability"].astype(float), best, atol=0.0051)
    assert list(shown["agrees"].str.contains("agrees")) == list(table["label"] == table["predicted"])


def test_the_numbers_of_a_cell_are_those_of_the_shown_method(run, page):
    cells = pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0")
    strangest = cells.sort_values("anomaly").iloc[-1]
    said = re.search(rf'data-cell="{strangest["cell_id"]} · ([^"]*)"', page).group(1)
    size = (cells["sample"] == strangest["sample"]).sum()
    assert f"anomaly {strangest['anomaly']:.1f}" in said
    assert f"attention {strangest['attention'] * size:.2f}×" in said
    assert f"contribution {strangest['contribution']:+.2f}".replace("-", "−") in said


def test_boxes_lie_where_the_cells_are(run, page):
    cells = (
        pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0").set_index("cell_id")
    )
    found = re.findall(
        r'data-cell="(\S+) [^"]*" data-n="\d+" data-q="[^"]*"><title>.*?</title>'
        r'<rect class="under" x="([\d.]+)" y="([\d.]+)"',
        page,
    )
    assert found
    for cell_id, x, y in found:
        assert (float(x), float(y)) == (cells.loc[cell_id, "x0"], cells.loc[cell_id, "y0"])


def test_a_stranger_cell_never_has_a_lower_colour_step(run, page):
    cells = (
        pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0").set_index("cell_id")
    )
    found = re.findall(r'<g class="a(\d) t\d c\d" data-cell="(\S+) ', page)
    steps = pd.Series({cell_id: int(step) for step, cell_id in found})
    ordered = steps.loc[cells.loc[steps.index, "anomaly"].sort_values().index]
    assert ordered.is_monotonic_increasing
    assert set(ordered) >= {0, 9}


def test_a_drawn_sickle_is_strange_because_it_is_elongated(page):
    first = page[page.index('id="strangest"') :]
    assert "far more elongated <small>(elongation +" in first[: first.index("</section>")]


def test_names_cannot_write_html(tmp_path):
    run = make_run(tmp_path, samples=6)
    hostile = "<script>alert(1)</script>"
    for name in ("sample", "patient", "label", "predicted"):
        table = pd.read_csv(run / "samples.csv", dtype=str)
        table[name] = hostile + table[name]
        table.to_csv(run / "samples.csv", index=False)
    cells = pd.read_parquet(run / "cells.parquet")
    cells["sample"] = hostile + cells["sample"]
    cells["cell_id"] = '"><img src=x onerror=alert(1)>' + cells["cell_id"]
    cells["image"] = hostile + cells["image"]
    cells.to_parquet(run / "cells.parquet")
    notice = {"kind": hostile, "subject": hostile, "text": hostile}
    change_json(run / "run.json", notices=[notice], command=hostile, settings={hostile: hostile})
    page = write_report(run, read_image=read_image).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == SCRIPTS
    assert not any("onerror" in attributes for _, attributes in Elements(page).found)


def test_a_prediction_without_labels_or_metrics_has_a_page(tmp_path):
    run = make_run(tmp_path, samples=9, command="predict")
    (run / "metrics.json").unlink()
    table = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0")
    table.drop(columns=["run", "fold"]).assign(label=None).to_csv(run / "samples.csv", index=False)
    cells = pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0")
    cells.assign(run=pd.NA, label=None).to_parquet(run / "cells.parquet")
    change_json(run / "run.json", methods=["default"])
    text = text_of(write_report(run, read_image=read_image).read_text())
    assert "without knowing their classes" in text
    assert "class not known" in text
    assert "no sample is known healthy" in text
    assert "How well it reads new patients was measured" in text
    assert not (run / "figures" / "confusion.svg").exists()


def test_images_that_cannot_be_read_are_named_and_the_page_opens(tmp_path):
    run = make_run(tmp_path, samples=6)
    cohort = tmp_path / "cohort"
    (cohort / "images" / "0000.png").unlink()
    (cohort / "images" / "0003.png").write_bytes(b"no image")
    text = text_of(write_report(run, read_image=read_image).read_text())
    assert "images that could not be shown (2)" in text
    assert "images/0000.png : the file is not there" in text
    assert "This image cannot be shown" in text


def test_a_run_without_boxes_images_or_shape_has_a_page(tmp_path):
    run = make_run(tmp_path, samples=6)
    cells = pd.read_parquet(run / "cells.parquet").drop(columns=["image", "x0", "y0", "x1", "y1"])
    cells.assign(attention=np.nan, contribution=np.nan).to_parquet(run / "cells.parquet")
    change_json(run / "run.json", data={})
    (run / "cells.zarr").rename(run / "away.zarr")
    page = write_report(run, read_image=read_image).read_text()
    assert "This run has no images" in page
    assert 'data-set-colour="a"' in page
    assert 'data-set-colour="t"' not in page


def test_a_sample_without_cells_is_there_without_a_prediction(tmp_path):
    run = make_run(tmp_path, samples=6)
    table = pd.read_csv(run / "samples.csv", dtype=str)
    lost = table["sample"] == "s001"
    table.loc[lost, ["predicted", *(f"prob_{name}" for name in CLASSES)]] = None
    table.to_csv(run / "samples.csv", index=False)
    cells = pd.read_parquet(run / "cells.parquet")
    cells[cells["sample"] != "s001"].to_parquet(run / "cells.parquet")
    text = text_of(write_report(run, read_image=read_image).read_text())
    assert "s001 patient p000 0 cells no prediction Nothing is predicted for this sample" in text


def test_single_cell_images_are_shown_as_a_mosaic(tmp_path):
    run = make_run(tmp_path, samples=6)
    cells = pd.read_parquet(run / "cells.parquet")
    folder = tmp_path / "cohort" / "single"
    folder.mkdir()
    names = {cell_id: f"single/{i}.png" for i, cell_id in enumerate(cells["cell_id"].unique())}
    for name in names.values():
        Image.new("RGB", (40, 40), (200, 120, 110)).save(tmp_path / "cohort" / name)
    cells = cells.assign(image=cells["cell_id"].map(names), x0=0.0, y0=0.0, x1=40.0, y1=40.0)
    cells.to_parquet(run / "cells.parquet")
    page = write_report(run, read_image=read_image).read_text()
    assert 'class="mosaic"' in page
    assert 'class="field"' not in page


def test_a_large_run_says_what_it_shows_and_lists_all(tmp_path):
    run = make_run(tmp_path, samples=30)
    page = write_report(run, read_image=read_image, settings=ReportSettings(samples=9, boxes=5)).read_text()
    assert page.count('<section class="sample"') == 9
    text = text_of(page)
    assert "9 of 30 samples are shown" in text
    assert "30 of 30" in text
    assert "boxes of 7 less strange cells are left out" in text
    for why in ("confidently right", "strangest of its class"):
        assert f"shown because: {why}" in text


def test_a_sample_says_how_many_runs_agree(tmp_path):
    run = make_run(tmp_path, samples=3)
    table = pd.read_csv(run / "samples.csv")
    other = (table["sample"] == "s000") & (table["run"] == 1)
    table.loc[other, "predicted"] = "sickle" if table["predicted"][0] == "control" else "control"
    table.to_csv(run / "samples.csv", index=False)
    text = text_of(write_report(run, read_image=read_image).read_text())
    assert text.count("1 of 2 trainings") == 1
    assert text.count("2 of 2 trainings") == 2


def test_another_method_can_be_shown(tmp_path):
    run = make_run(tmp_path, samples=6)
    page = write_report(run, read_image=read_image, settings=ReportSettings(method="att")).read_text()
    strangest = pd.read_parquet(run / "cells.parquet").query("method == 'att' and run == 0")["anomaly"].max()
    assert strangest > 100
    assert f"anomaly {strangest:.1f}" in page


def test_an_unfinished_run_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(RunFolderError, match="name a folder that"):
        write_report(tmp_path, read_image=read_image)


def test_a_method_that_is_not_there_is_refused(tmp_path):
    run = make_run(tmp_path, samples=3)
    with pytest.raises(RunFolderError, match="it has att, default"):
        write_report(run, read_image=read_image, settings=ReportSettings(method="lse"))
