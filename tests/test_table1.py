"""Table 1: the numbers of the metrics and of the paired comparison, escaped, and nothing bold by chance."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from hemomil.commands.settings import Settings
from hemomil.commands.table1 import reference_method, table1, write_table1
from hemomil.report.table1 import COLUMNS, escape_tex, note, table1_files
from hemomil.stats import OVERALL, paired_difference, study_metrics
from hemomil.streams import stream

CLASSES = ("control", "scd", "thal")
SETTINGS = Settings.model_validate({"study": {"bootstrap": 200}})


def study(skills, *, patients=30, samples=2, runs=2, few=0):
    """samples.csv of methods; a skill of 1 is always right, of 0 always guessing. `few` patients of thal."""
    rng = stream(0, "table1")
    labels = ["thal" if i < few else CLASSES[i % (2 if few else 3)] for i in range(patients)]
    rows = []
    for method, skill in skills.items():
        for run in range(runs):
            for i in range(patients * samples):
                label = labels[i // samples]
                aim = [skill * (name == label) + (1 - skill) / 3 for name in CLASSES]
                said = rng.dirichlet(np.array(aim) * 20 + 0.01)
                rows.append(
                    {"sample": f"s{i}", "patient": f"p{i // samples}", "label": label, "run": run}
                    | {"method": method, "predicted": CLASSES[int(said.argmax())]}
                    | {f"prob_{name}": p for name, p in zip(CLASSES, said, strict=True)}
                )
    return pd.DataFrame(rows)


def made(samples, classes=CLASSES):
    metrics = study_metrics(samples, classes, control="control", seed=0, n_boot=200)
    return table1(samples, classes, metrics, SETTINGS)


@pytest.fixture(scope="module")
def samples():
    return study({"att": 0.0, "anomaly+att+sic": 0.05, "default": 0.95})


@pytest.fixture(scope="module")
def table(samples):
    return made(samples)


def row(table, level, method, metric):
    rows = table.rows.set_index(["level", "method", "metric"])
    return rows.loc[(level, method, metric)]


def test_every_number_is_that_of_the_metrics(samples, table):
    metrics = study_metrics(samples, CLASSES, control="control", seed=0, n_boot=200)
    assert len(table.rows) == 2 * len(metrics) * len(OVERALL)
    for level, suffix in (("sample", ""), ("patient", "_patient")):
        for method, own in metrics.items():
            for metric in OVERALL:
                shown = row(table, level, method, metric)
                for name in ("value", "low", "high", "sd_runs", "n"):
                    assert shown[name] == own[f"{metric}{suffix}"][name]


def test_a_difference_is_the_paired_one_to_the_papers_method(samples, table):
    assert table.reference == "anomaly+att+sic"
    said = paired_difference(
        samples, "att", table.reference, "macro_auroc", CLASSES, control="control", seed=0, n_boot=200
    )
    shown = row(table, "sample", "att", "macro_auroc")
    assert (shown["difference"], shown["difference_low"], shown["difference_high"]) == (
        said.value,
        said.low,
        said.high,
    )
    assert table.rows.loc[table.rows["method"] == table.reference, "difference"].isna().all()


def test_only_what_beats_every_other_method_clearly_is_best(table):
    assert set(table.rows.loc[table.rows["best"], "method"]) == {"default"}
    assert table.rows.loc[table.rows["method"] == "default", "best"].all()


def test_of_methods_that_do_not_differ_none_is_best():
    samples = study({"att": 0.3, "lse": 0.3, "default": 0.32}, runs=1)
    assert not made(samples).rows["best"].any()
    # the highest beats one of the others clearly, but not both
    twins = study({"mean": 0.0, "att": 0.9, "default": 0.92}, runs=1)
    assert not made(twins).rows["best"].any()


def test_the_reference_is_the_papers_method_or_the_first():
    assert reference_method(["att", "anomaly+att+sic"]) == "anomaly+att+sic"
    assert reference_method(["lse", "att"]) == "lse"
    assert reference_method(["att"]) is None


def test_the_csv_reads_back_to_the_same_numbers(table):
    read = pd.read_csv(io.StringIO(table1_files(table)["csv"]))
    assert list(read) == list(COLUMNS)
    pd.testing.assert_frame_equal(read, table.rows, check_dtype=False, rtol=1e-12)


def test_text_latex_and_html_say_the_same(table):
    files = table1_files(table)
    shown = row(table, "patient", "att", "accuracy")
    value = f"{shown['value']:.3f} ± {shown['sd_runs']:.3f} [{shown['low']:.2f}, {shown['high']:.2f}]"
    assert value in files["txt"]
    assert value in files["html"]
    assert escape_tex(value) in files["tex"]
    best = row(table, "sample", "default", "accuracy")["value"]
    assert files["txt"].count(" *") - 1 == files["html"].count("<b>") == files["tex"].count(r"\textbf{") == 10
    assert rf"\textbf{{{best:.3f}" in files["tex"]
    assert "≥" not in files["tex"]


def test_the_latex_is_whole_and_plain_ascii(table):
    tex = table1_files(table)["tex"]
    assert tex.isascii()
    for name in re.findall(r"\\begin\{(\w+\*?)\}", tex):
        assert tex.count(rf"\begin{{{name}}}") == tex.count(rf"\end{{{name}}}")
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tex.count(rule) == 1
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")].splitlines()[1:]
    assert all(line.count("&") == len(OVERALL) for line in body if line)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_names_cannot_write_html_or_latex():
    hostile = r"<script>x</script>&_%$#{\input"
    samples = study({hostile: 0.3, "lse": 0.4}, runs=1)
    files = table1_files(made(samples))
    assert "script" not in Tags(files["html"]).found
    assert r"\input" not in files["tex"].replace(r"\textbackslash{}input", "")
    assert r"\_\%\$\#\{" in files["tex"]


def test_the_note_says_what_is_shown(table):
    said = note(table)
    assert "over 2 runs" in said
    assert "30 patients" in said
    assert "none here has so few" in said


def test_a_class_of_few_patients_is_named():
    said = note(made(study({"att": 0.5}, few=3)))
    assert "not estimable (here thal (3))" in said


def test_one_method_in_one_run_has_neither_differences_nor_spread():
    files = table1_files(made(study({"att": 0.5}, runs=1)))
    assert "minus" not in files["txt"]
    assert "±" not in files["txt"]
    assert "One run" in files["txt"]


def test_where_patients_have_two_labels_there_is_no_table_by_patient():
    samples = study({"att": 0.5, "lse": 0.5}, runs=1)
    samples["patient"] = "p" + samples["sample"].str[1:].astype(int).mod(20).astype(str)
    table = made(samples)
    assert set(table.rows["level"]) == {"sample"}
    assert "Not by patient" in note(table)


def test_with_too_few_patients_nothing_is_estimable_and_nothing_breaks():
    files = table1_files(made(study({"att": 0.5, "lse": 0.5}, patients=3)))
    assert files["txt"].count("not estimable") >= 2 * 2 * len(OVERALL)


def test_the_files_are_the_same_every_time(tmp_path, samples):
    metrics = study_metrics(samples, CLASSES, control="control", seed=0, n_boot=200)
    for name in ("one", "two"):
        write_table1(tmp_path / name, samples, CLASSES, metrics, SETTINGS)
    for suffix in ("csv", "txt", "tex", "html"):
        first, second = ((tmp_path / name / f"table1.{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
