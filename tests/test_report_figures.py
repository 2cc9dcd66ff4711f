"""Figures: there when the run has what they show, at the size of print, legible, and the same every time."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from sklearn.metrics import auc, roc_auc_score

from hemomil.commands.curves import write_curves
from hemomil.report import figures, printed
from hemomil.report.cells_figure import ACROSS, cells_figure, figure_scales, typical_sample
from hemomil.report.class_figures import class_figure
from hemomil.report.deletion_figure import deletion_figure
from hemomil.report.evidence import Curve, read_evidence
from hemomil.report.figures import write_figures
from hemomil.report.pictures import Pictures
from hemomil.report.score_figures import score_figure, unseen_figure
from hemomil.report.tables import read_run
from hemomil.streams import stream
from test_report import CLASSES, change_json, estimate, make_run, read_image

ALL = {
    *("methods", "classes", "roc", "precision-recall", "reliability"),
    *("confusion", "cells", "scores", "unseen", "deletion"),
}
LONG = (
    *("control", "sickle cell disease", "hereditary spherocytosis"),
    *("hereditary xerocytosis", "thalassemia", "paroxysmal nocturnal hemoglobinuria"),
)
TWELVE = (
    *("mean", "max", "lse", "instance", "anomaly-quantiles", "placebo", "att", "att+sic"),
    *("anomaly", "anomaly+att", "anomaly+att+sic", "default"),
)
DELETION = {name: {"deletion_gain": estimate(0.3125)} for name in ("att", "default")}


def deleted_of(samples):
    """deletion.csv of these samples: nothing is lost at random, a twentieth with each cell said to count."""
    told = samples[["sample", "patient", "label", "run", "method", "predicted"]].assign(probability=0.9)
    parts = [told.assign(k=k, without_top=0.9 - k / 20, without_random=0.9) for k in (1, 2, 4, 8)]
    return pd.concat(parts)


def add_evidence(run):
    """What `study --leave-out each` writes beside the tables of a run."""
    samples = pd.read_csv(run / "samples.csv", dtype={"patient": str})
    samples["patient"] = samples["sample"]  # one label each, and enough patients
    write_curves(run, samples, deleted_of(samples), CLASSES, seed=0)
    cells = pd.read_parquet(run / "cells.parquet")
    label = cells["sample"].map(samples.drop_duplicates("sample").set_index("sample")["label"])
    cells = cells.assign(label=label, patient=cells["sample"])
    parts = [cells[cells["label"].isin(["control", name])].assign(left_out=name) for name in CLASSES[1:]]
    pd.concat(parts).to_parquet(run / "unseen_cells.parquet")
    unseen = {
        name: {
            method: {
                "auroc_novelty_patient": estimate(0.8125),
                "instances": {"anomaly": {"auroc": estimate(0.925)}},
            }
            for method in ("att", "default")
        }
        for name in CLASSES[1:]
    }
    metrics = json.loads((run / "metrics.json").read_text())
    for own in metrics["methods"].values():
        own |= {f"{m}_{c}": estimate(0.75) | {"sd_runs": 0.02} for m in ("auroc", "auprc") for c in CLASSES}
        own |= {"ece": estimate(0.1), "brier": estimate(0.2)}
    (run / "metrics.json").write_text(json.dumps(metrics | {"unseen": unseen, "deletion": DELETION}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return add_evidence(make_run(tmp_path_factory.mktemp("figures")))


@pytest.fixture(scope="module")
def tables(run):
    return read_run(run)


def pictures_of(tables):
    return Pictures(tables.manifest, read_image)


def made(tables):
    with matplotlib.rc_context(printed.STYLE):
        found = dict(figures._figures(tables, pictures_of(tables)))
        return {name: figure for name, figure in found.items() if figure is not None}


def texts(figure):
    """What is written; not the labels of ticks beyond the ends of an axis, which are never drawn."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    beyond = {
        tick.label1
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = figure.findobj(Text)
    return [t for t in found if t.get_visible() and t.get_text().strip() and t not in beyond]


def said(figure):
    return "\n".join(text.get_text() for text in texts(figure))


def boxes(figure, found):
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in found]


def assert_legible(figure):
    """No text smaller than 7 pt, outside the figure, or across another one."""
    found = texts(figure)
    assert min(text.get_fontsize() for text in found) >= 7
    spans = boxes(figure, found)
    width, height = figure.bbox.width, figure.bbox.height
    for text, span in zip(found, spans, strict=True):
        outside = span.x0 < -1 or span.y0 < -1 or span.x1 > width + 1 or span.y1 > height + 1
        assert not outside, (text.get_text(), span)
    for i, one in enumerate(spans):
        for j in range(i):
            x, y = np.minimum(one.max, spans[j].max) - np.maximum(one.min, spans[j].min)
            slanted = found[i].get_rotation() % 90 or found[j].get_rotation() % 90  # spans say too much
            assert x < 1.5 or y < 1.5 or slanted, (found[i].get_text(), found[j].get_text())


def test_a_study_has_every_figure_as_svg_and_png(tables):
    assert set(write_figures(tables, pictures_of(tables))) == ALL
    files = {path.name for path in (tables.folder / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in ALL for kind in ("svg", "png")}


def test_figures_are_as_wide_as_columns_and_legible(tables):
    for name, figure in made(tables).items():
        width, height = figure.get_size_inches() / printed.MM
        assert 84.9 < width < 180.1, name
        assert height < 247, name
        assert_legible(figure)


def test_figures_are_the_same_bytes_every_time(run, tables):
    first = write_figures(tables, pictures_of(tables))
    png = {path.name: path.read_bytes() for path in (run / "figures").glob("*.png")}
    again = read_run(run)
    assert write_figures(again, pictures_of(again)) == first
    assert {path.name: path.read_bytes() for path in (run / "figures").glob("*.png")} == png


def test_what_a_run_does_not_have_is_not_drawn(tmp_path):
    run = make_run(tmp_path, samples=6)
    cells = pd.read_parquet(run / "cells.parquet").drop(columns=["image", "x0", "y0", "x1", "y1"])
    cells.assign(attention=np.nan, contribution=np.nan).to_parquet(run / "cells.parquet")
    change_json(run / "run.json", data={})
    tables = read_run(run)
    assert set(write_figures(tables, pictures_of(tables))) == {"methods", "confusion", "scores"}


def many(tables, sd_runs=0.03):
    """Twelve methods and six classes with long names, one of them too small."""
    rng = stream(0, "many")
    names = [f"{metric}_{name}" for metric in ("auroc", "auprc") for name in LONG]
    names += ["accuracy", "macro_f1", "macro_auroc", "macro_auprc"]
    rows = [
        {"method": method, "score": "", "metric": metric, "value": value, "low": value - 0.1}
        | {"high": value + 0.1, "n": 13, "unit": "patients", "sd_runs": sd_runs}
        for method in TWELVE
        for metric in names
        for value in [np.nan if "thalassemia" in metric else rng.uniform(0.5, 0.9)]
    ]
    labels = [LONG[i % len(LONG)] for i in range(len(tables.samples))]
    samples = tables.samples.assign(label=labels, predicted=labels[::-1])
    samples = samples.assign(**{f"prob_{name}": 0.5 for name in LONG})
    changed = {"estimates": pd.DataFrame(rows), "classes": LONG, "methods": TWELVE, "samples": samples}
    fields = {name: getattr(tables, name) for name in type(tables).__dataclass_fields__}
    return type(tables)(**fields | changed)


@pytest.mark.parametrize("name", ["methods", "classes", "confusion", "scores", "cells"])
def test_twelve_methods_and_six_classes_stay_legible(tables, name):
    figure = made(many(tables))[name]
    assert figure.get_size_inches()[1] / printed.MM < 247
    assert_legible(figure)


def test_a_class_of_few_patients_is_named_not_estimable(tables):
    assert said(class_figure(many(tables), {})).count("not\nestimable\n(13 patients)") == 2


def test_without_repeated_runs_no_spread_over_runs_is_promised(tables):
    assert "SD" in said(class_figure(many(tables), {}))
    assert "SD" not in said(class_figure(many(tables, sd_runs=np.nan), {}))


def test_the_sample_shown_is_the_rightly_called_one_of_median_probability(tables):
    own = tables.samples[(tables.samples["label"] == "sickle") & (tables.samples["predicted"] == "sickle")]
    row = typical_sample(tables, "sickle")
    assert row["predicted"] == "sickle"
    below, above = (
        (own["prob_sickle"] < row["prob_sickle"]).sum(),
        (own["prob_sickle"] > row["prob_sickle"]).sum(),
    )
    assert above - below in (0, 1)


def framed(figure):
    """Of each picture: the corners of its frames and their colours, the coloured ones only."""
    return [
        (
            [path.get_extents().bounds for path in panel.collections[1].get_paths()],
            panel.collections[1].get_edgecolor(),
        )
        for panel in figure.axes
        if panel.images
    ]


def test_frames_lie_around_the_cells_and_have_the_colour_of_their_score(tables):
    figure = cells_figure(tables, pictures_of(tables))
    found = framed(figure)
    assert len(found) == 2 * len(CLASSES)
    row = typical_sample(tables, "control")
    cells = tables.cells[tables.cells["sample"] == row["sample"]]
    cells = cells[cells["image"] == cells.groupby("image").size().idxmax()]
    for (bounds, colours), scale in zip(found, figure_scales(tables), strict=False):
        own = cells.sort_values(scale.key, kind="stable")
        shift = own[["x0", "y0"]].to_numpy() - [bound[:2] for bound in bounds]
        assert np.allclose(shift, shift[0])
        assert np.allclose([bound[2] for bound in bounds], own["x1"] - own["x0"])
        steps = scale.steps(own[scale.key].to_numpy())
        assert np.allclose(colours, [to_rgba(scale.colours[step]) for step in steps])


def test_single_cells_are_shown_by_falling_score(tmp_path, tables):
    singles = tables.cells.assign(image=tables.cells["cell_id"], x0=0.0, y0=0.0, x1=40.0, y1=40.0)
    fields = {name: getattr(tables, name) for name in type(tables).__dataclass_fields__}
    shade = dict(zip(singles["cell_id"], singles["anomaly"].rank() / len(singles) * 255, strict=True))

    def read(path):
        cell_id = f"{path.parent.name}/{path.name}"
        return np.full((40, 40, 3), round(shade[cell_id]), np.uint8)

    single = type(tables)(**fields | {"cells": singles})
    figure = cells_figure(single, Pictures(tables.manifest, read))
    panel = next(panel for panel in figure.axes if panel.images)
    pixels = np.asarray(panel.images[0].get_array())
    first_line = [pixels[30, 30 + 74 * i, 0] for i in range(ACROSS)]
    assert first_line == sorted(first_line, reverse=True)
    assert "24 cells" in said(figure)


def test_a_method_without_attention_shows_contributions(tmp_path):
    run = make_run(tmp_path, samples=6)
    cells = pd.read_parquet(run / "cells.parquet")
    cells.assign(attention=np.nan).to_parquet(run / "cells.parquet")
    tables = read_run(run)
    assert "contribution" in said(score_figure(tables))
    assert [scale.key for scale in figure_scales(tables)] == ["anomaly", "contribution"]


def test_the_healthy_class_is_drawn_first(tables):
    labels = [text.get_text() for text in score_figure(tables).axes[0].get_yticklabels()]
    assert [label.split("\n")[0] for label in labels] == list(CLASSES)


def test_unseen_classes_have_their_areas_written_in(tables):
    text = said(unseen_figure(tables, read_evidence(tables)))
    assert (
        text.count("cells, anomaly: 0.93 [0.84, 1.00]") + text.count("cells, anomaly: 0.93 [0.85, 1.00]") == 2
    )
    assert text.count("patients, novelty: 0.81 [0.73, 0.89]") == 2


def test_a_curve_has_the_area_of_the_metric(run, tables):
    samples = pd.read_csv(run / "samples.csv").query("method == 'default' and run == 0")
    curve = read_evidence(tables).roc["sickle"]
    area = roc_auc_score(samples["label"] == "sickle", samples["prob_sickle"])
    assert auc(curve.x, curve.value) == pytest.approx(area, abs=0.02)
    assert (curve.low <= curve.value + 1e-9).all()
    assert (curve.high >= curve.value - 1e-9).all()
    assert curve.share == pytest.approx(1 / 3, abs=1e-3)


def test_a_deletion_curve_falls_as_the_table_says_and_names_its_gain(tables):
    top, random = read_evidence(tables).deletion["default"]
    assert top.value == pytest.approx([0.9, 0.85, 0.8, 0.7, 0.5])
    assert random.value == pytest.approx([0.9] * 5)
    assert said(made(tables)["deletion"]).count("gain 0.31 [0.23, 0.39]") == 2


def test_deletion_curves_of_twelve_methods_stay_legible(tables):
    rng = stream(0, "deletion")
    curves = {name: tuple(any_curve(0.85 - rng.uniform(0, fall)) for fall in (0.4, 0.1)) for name in TWELVE}
    with matplotlib.rc_context(printed.STYLE):
        figure = deletion_figure(tables, curves)
    assert figure.get_size_inches()[1] / printed.MM < 247
    assert_legible(figure)


def any_curve(end):
    x = np.array([0, 1, 2, 4, 8.0])
    value = 0.85 + (end - 0.85) * x / 8
    return Curve(x=x, value=value, low=value - 0.05, high=value + 0.05, n=20, share=np.nan)


def test_a_class_of_few_patients_has_no_curve(tmp_path):
    run = make_run(tmp_path, samples=30)
    samples = pd.read_csv(run / "samples.csv", dtype={"patient": str})
    one = samples["sample"].where(samples["label"] != "sickle", "all of them")
    samples = samples.assign(patient=one)
    write_curves(run, samples, deleted_of(samples), CLASSES, seed=0)
    evidence = read_evidence(read_run(run))
    assert np.isnan(evidence.roc["sickle"].value).all()
    assert np.isfinite(evidence.roc["control"].value).all()
    assert "sickle" not in said(made(read_run(run))["roc"])
