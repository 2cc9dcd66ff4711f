"""The commands from end to end, on a small simulated cohort, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_zarr
from joblib import Parallel
from threadpoolctl import threadpool_limits

from hemomil import commands
from hemomil.commands.console import SILENT
from hemomil.errors import FeaturesError, HemomilError, RunFolderError, SettingsError

METHODS = ("att", "default")
QUICK = {
    "study.methods": METHODS, "study.runs": 1, "study.folds": 2, "study.bootstrap": 100,
    "mil.epochs": 3, "inner_folds": 0,
}  # fmt: skip

TABLES = ("splits.csv", "samples.csv", "cells.parquet", "deletion.csv", "metrics.json")


def quick(**flags: object) -> object:
    return commands.resolve_settings(flags={**QUICK, **flags})


SIMPLE = {"study.methods": ("att", "mean"), "method": "att"}
"""One network each, where nothing depends on the method."""


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the small cohort, on its known cells."""
    run = tmp_path_factory.mktemp("study") / "run"
    commands.study(cohort / "manifest.csv", run, settings=quick(), cells=cohort / "cells.csv", jobs=1)
    return run


def test_a_study_leaves_every_file_of_the_design(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "run.json", "settings.toml", "cells.zarr", "splits.csv", "samples.csv", "cells.parquet",
        "metrics.json", "figures", "report.html", "curves.json", "confounders.csv", "deletion.csv",
        "table1.csv", "table1.html", "table1.tex", "table1.txt",
    }  # fmt: skip


def test_the_tables_have_the_columns_of_the_design(finished):
    samples = pd.read_csv(finished / "samples.csv")
    classes = json.loads((finished / "run.json").read_text())["classes"]
    prob = [f"prob_{name}" for name in classes]
    assert list(samples) == [
        "sample",
        "patient",
        "label",
        "fold",
        "run",
        "method",
        "predicted",
        *prob,
        "novelty_p",
        "novelty_floor",
        "abnormal_low",
    ]
    cells = pd.read_parquet(finished / "cells.parquet")
    first = [
        "cell_id",
        "sample",
        "patient",
        "image",
        "x0",
        "y0",
        "x1",
        "y1",
        "attention",
        "anomaly",
        "weight",
    ]
    assert list(cells)[: 14 + len(prob)] == [*first, "contribution", "anomaly_p", "anomaly_q", *prob]
    assert list(cells)[14 + len(prob) :] == [
        *("cell_label", "label", "method", "run", "fold"),
        *("anomaly_low", "anomaly_high", "verdict"),
    ]


def test_every_sample_is_predicted_once_by_every_method(finished, cohort):
    samples = pd.read_csv(finished / "samples.csv")
    expected = pd.read_csv(cohort / "manifest.csv")["sample"].nunique()
    assert (samples.groupby("method")["sample"].nunique() == expected).all()
    assert len(samples) == expected * len(METHODS)
    np.testing.assert_allclose(samples.filter(like="prob_").sum(axis=1), 1, atol=1e-5)


def test_every_sample_has_a_deletion_curve_of_the_class_called(finished):
    samples, curves = (pd.read_csv(finished / f"{name}.csv") for name in ("samples", "deletion"))
    assert list(curves) == [
        *("sample", "patient", "label", "fold", "run", "method", "predicted", "k"),
        *("probability", "without_top", "without_random"),
    ]
    cells = pd.read_parquet(finished / "cells.parquet").groupby(["method", "sample"]).size()
    for (method, sample), rows in curves.groupby(["method", "sample"]):
        assert rows["k"].tolist() == [k for k in (1, 2, 4, 8) if k < cells[method, sample]]
    both = curves.merge(samples, on=["sample", "method"], suffixes=("", "_said"))
    assert len(both) == len(curves)
    assert set(zip(curves["sample"], curves["method"], strict=True)) == set(
        cells[cells > 1].index.swaplevel()
    )
    assert (both["predicted"] == both["predicted_said"]).all()
    np.testing.assert_allclose(both["probability"], both.filter(like="prob_").max(axis=1))
    gains = (curves["without_random"] - curves["without_top"]).groupby([curves["method"], curves["sample"]])
    metrics = json.loads((finished / "metrics.json").read_text())["deletion"]
    for method, gain in gains.mean().groupby("method").mean().items():
        assert metrics[method]["deletion_gain"]["value"] == pytest.approx(gain)
        assert gain > 0


@pytest.mark.usefixtures("no_page")
def test_numbers_of_one_site_are_of_its_patients_while_the_tables_have_all(cohort, tmp_path):
    manifest = pd.read_csv(cohort / "manifest.csv", dtype=str)
    site = manifest["site"].iloc[0]
    settings = quick(**{"study.evaluate_on": f"site={site}", "study.methods": ("mean",)})
    metrics = commands.study(
        cohort / "manifest.csv", tmp_path / "run", settings=settings, cells=cohort / "cells.csv", jobs=1
    )
    theirs = manifest.loc[manifest["site"] == site, "patient"].nunique()
    assert metrics["deletion"]["mean"]["deletion_gain"]["n"] == theirs
    curves = pd.read_csv(tmp_path / "run" / "deletion.csv")
    assert theirs < curves["patient"].nunique() == manifest["patient"].nunique()


def test_no_patient_is_in_two_folds(finished):
    splits = pd.read_csv(finished / "splits.csv")
    folds = splits.drop_duplicates(["run", "patient", "fold"])
    assert not folds.duplicated(["run", "patient"]).any()


def test_every_number_comes_with_interval_and_patients(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["methods"]) == set(METHODS)
    for found in metrics["methods"].values():
        for estimate in found.values():
            assert {"value", "low", "high", "n", "unit"} <= set(estimate)
    assert metrics["instances"]["default"]["anomaly"]["auroc"]["value"] is not None


def test_the_store_opens_as_anndata(finished):
    cells = read_zarr(finished / "cells.zarr")
    assert isinstance(cells, AnnData)
    assert "shape" in cells.obsm
    assert {"sample", "patient", "label", "image", "x0", "y0", "x1", "y1", "det_score", "area"} <= set(
        cells.obs
    )


@pytest.mark.parametrize(("few", "processes"), [(1000, 1), (0, 2)])
def test_few_cells_are_described_by_one_process(cohort, tmp_path, monkeypatch, few, processes):
    from hemomil.commands import cells
    from hemomil.commands.run_folder import open_run
    from hemomil.commands.source import load_source

    asked = []

    def parallel(n_jobs, **more):
        asked.append(n_jobs)
        return Parallel(n_jobs=1, **more)

    monkeypatch.setattr(cells, "FEW_CELLS", few)
    monkeypatch.setattr(cells, "Parallel", parallel)
    source = load_source(cohort / "manifest.csv", quick(), cells=cohort / "cells.csv")
    store = cells.prepare(source, open_run(tmp_path / "run", "study", quick(), {}), SILENT, jobs=2)
    assert asked == [processes]
    assert np.isfinite(read_zarr(store).obsm["shape"]).all()


def test_a_cell_without_a_mask_leaves_the_others_theirs(cohort, tmp_path):
    from hemomil.commands import cells
    from hemomil.commands.run_folder import open_run
    from hemomil.commands.source import load_source

    known = json.loads((cohort / "coco.json").read_text())
    for annotation in known["annotations"][::5]:
        del annotation["segmentation"]
    (tmp_path / "some.json").write_text(json.dumps(known))

    def described(name, given):
        source = load_source(cohort / "manifest.csv", quick(), cells=given)
        return read_zarr(
            cells.prepare(source, open_run(tmp_path / name, "study", quick(), {}), SILENT, jobs=1)
        )

    every, some = described("every", cohort / "coco.json"), described("some", tmp_path / "some.json")
    kept = (some.obs["mask_rle"] != "").to_numpy()
    assert 0 < (~kept).sum() < len(kept) / 4
    np.testing.assert_array_equal(some.obsm["shape"][kept], every.obsm["shape"][kept])
    assert (some.obsm["shape"][~kept] != every.obsm["shape"][~kept]).any(axis=1).all()


@pytest.mark.usefixtures("no_page")
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(
    finished, cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr("hemomil.commands.cells.FEW_CELLS", 0)
    commands.study(
        cohort / "manifest.csv", tmp_path / "run", settings=quick(), cells=cohort / "cells.csv", jobs=2
    )
    for name in TABLES:
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.usefixtures("no_page")
def test_a_killed_run_resumes_to_the_same_tables(finished, cohort, unchecked, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "hemomil.cli", "study", str(cohort / "manifest.csv"), "-o", str(run),
        "--cells", str(cohort / "cells.csv"), "--jobs", "1", "--quiet",
        *(word for key, value in QUICK.items() for word in ("--set", f"{key}={_toml(value)}")),
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    _wait_for(lambda: list(run.glob(".work/jobs/*/cells.parquet")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "run.json").exists()
    with threadpool_limits(limits=2), unchecked():  # as on a machine with more cores
        commands.study(cohort / "manifest.csv", run, settings=quick(), cells=cohort / "cells.csv", jobs=1)
    for name in TABLES:
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


def _toml(value: object) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)


def _wait_for(ready, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "no job finished"
        time.sleep(0.02)


def test_an_unfinished_run_of_other_settings_is_refused(cohort, tmp_path):
    from hemomil.commands.run_folder import open_run

    inputs = {"manifest": cohort / "manifest.csv"}
    open_run(tmp_path / "run", "study", quick(), inputs)
    open_run(tmp_path / "run", "study", quick(), inputs)  # the same command goes on
    with pytest.raises(RunFolderError, match="other settings"):
        open_run(tmp_path / "run", "study", quick(seed=1), inputs)


def test_a_finished_run_is_not_overwritten_without_force(finished, cohort):
    before = (finished / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match="finished run"):
        commands.study(cohort / "manifest.csv", finished, settings=quick(), cells=cohort / "cells.csv")
    assert (finished / "run.json").read_bytes() == before


def test_force_never_empties_a_folder_that_is_no_run(cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run folder"):
        commands.study(
            cohort / "manifest.csv", tmp_path, settings=quick(), cells=cohort / "cells.csv", force=True
        )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("train") / "run"
    commands.train(cohort / "manifest.csv", run, settings=quick(), cells=cohort / "cells.csv", jobs=1)
    return run


def test_predict_needs_no_labels_and_repeats_the_training_process(trained, cohort, tmp_path):
    """Another folder, another process, part of the samples, no label column: the same probabilities."""
    manifest = pd.read_csv(cohort / "manifest.csv", dtype=str)
    some = manifest[manifest["sample"].isin(sorted(set(manifest["sample"]))[::2])].drop(columns="label")
    (tmp_path / "images").mkdir()
    for image in set(some["image"]):
        (tmp_path / image).write_bytes((cohort / image).read_bytes())
    some.to_csv(tmp_path / "manifest.csv", index=False)
    known = pd.read_csv(cohort / "cells.csv").drop(columns="cell_label")
    known[known["image"].isin(set(some["image"]))].to_csv(tmp_path / "cells.csv", index=False)
    subprocess.run(
        [
            sys.executable, "-m", "hemomil.cli", "predict", "manifest.csv", "-o", "out",
            "--model", str(trained), "--cells", "cells.csv", "--quiet",
        ],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    said = pd.read_csv(tmp_path / "out" / "samples.csv").set_index("sample")
    before = pd.read_csv(trained / "samples.csv").set_index("sample").loc[said.index]
    columns = [name for name in said if name.startswith("prob_")]
    np.testing.assert_array_equal(said[columns], before[columns])
    np.testing.assert_array_equal(said["novelty_p"], before["novelty_p"])
    assert said["label"].isna().all()
    assert (tmp_path / "out" / "report.html").exists()


def test_a_trained_model_says_whether_its_explanations_hold(trained):
    check = json.loads((trained / "run.json").read_text())["explanation_check"]
    assert check["samples"] > 0
    assert check["fall"] > check["random_fall"]


def test_a_model_refuses_other_features(trained, cohort, tmp_path):
    from hemomil.commands.model_folder import load_model, refuse_other_features

    fingerprint = dict(load_model(trained / "model").fingerprint)
    refuse_other_features(fingerprint, fingerprint)
    with pytest.raises(FeaturesError, match="not those of the model"):
        refuse_other_features(fingerprint, {**fingerprint, "kinds": ["embedding"]})


def test_a_damaged_model_is_named(trained, cohort, tmp_path):
    broken = tmp_path / "broken"
    (broken / "model").mkdir(parents=True)
    (broken / "run.json").write_text("{}")
    (broken / "model" / "model.json").write_bytes((trained / "model" / "model.json").read_bytes())
    (broken / "model" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(HemomilError, match="no usable model"):
        commands.predict(cohort / "manifest.csv", tmp_path / "out", model=broken)
    assert not (tmp_path / "out").exists()


def test_a_sample_without_cells_is_counted_and_named(cohort, unchecked, tmp_path):
    known = pd.read_csv(cohort / "cells.csv")
    manifest = pd.read_csv(cohort / "manifest.csv", dtype=str)
    lost = manifest["sample"].iloc[0]
    gone = set(manifest.loc[manifest["sample"] == lost, "image"])
    known[~known["image"].isin(gone)].to_csv(tmp_path / "cells.csv", index=False)
    run = tmp_path / "run"
    settings = quick(**SIMPLE)
    with unchecked():
        commands.study(cohort / "manifest.csv", run, settings=settings, cells=tmp_path / "cells.csv", jobs=1)
    notices = json.loads((run / "run.json").read_text())["notices"]
    assert [n["subject"] for n in notices if n["kind"] == "no-cells"] == [lost]
    samples = pd.read_csv(run / "samples.csv")
    assert samples.loc[samples["sample"] == lost, "predicted"].isna().all()
    assert set(samples.loc[samples["sample"] == lost, "method"]) == {"att", "mean"}
    assert lost in (run / "report.html").read_text()


@pytest.mark.usefixtures("no_page")
def test_an_unreadable_image_stops_the_run_unless_it_is_to_be_skipped(cohort, tmp_path):
    broken = _copy(cohort, tmp_path / "cohort")
    manifest = pd.read_csv(broken / "manifest.csv", dtype=str)
    bad = manifest["image"].iloc[0]
    (broken / bad).write_bytes((broken / bad).read_bytes()[:200])
    with pytest.raises(HemomilError, match=Path(bad).name) as refused:
        commands.study(
            broken / "manifest.csv", tmp_path / "run", settings=quick(), cells=broken / "cells.csv"
        )
    assert "--skip-unreadable" in str(refused.value)
    assert not (tmp_path / "run").exists()
    settings = quick(skip_unreadable=True, **SIMPLE)
    commands.study(
        broken / "manifest.csv", tmp_path / "run", settings=settings, cells=broken / "cells.csv", jobs=1
    )
    notices = json.loads((tmp_path / "run" / "run.json").read_text())["notices"]
    assert any(n["kind"] == "image-skipped" and bad in n["text"] for n in notices)


def _copy(folder: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"study.folds": 50}, "fold"),
        ({"control": "healthy"}, "control"),
        ({"exclude": ["nonsense=1"]}, "nonsense"),
        ({"study.evaluate_on": "site=nowhere"}, "nowhere"),
        ({"study.group": "stie"}, "stie"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(cohort, tmp_path, flags, message):
    with pytest.raises(HemomilError, match=message) as refused:
        commands.study(
            cohort / "manifest.csv", tmp_path / "run", settings=quick(**flags), cells=cohort / "cells.csv"
        )
    assert refused.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("mil.epoch=5", "did you mean epochs"),
        ("folds=3", "not a setting"),
        ("study.folds=1", "greater than or equal"),
        ("study.methods=['atention']", "did you mean 'att"),
        ("nonsense", "not key=value"),
        ("preset=papr", "papr"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_meant(assignment, message):
    with pytest.raises(SettingsError, match=message):
        commands.resolve_settings(assignments=[assignment])


def test_flags_win_over_assignments_and_these_over_the_file(tmp_path):
    (tmp_path / "run.toml").write_text("seed = 1\n[study]\nfolds = 4\nruns = 2\n")
    settings = commands.resolve_settings(
        config=tmp_path / "run.toml",
        assignments=["seed=2", "study.runs=3"],
        flags={"study.runs": 7, "seed": None},
    )
    assert (settings.seed, settings.study.folds, settings.study.runs) == (2, 4, 7)


@pytest.mark.usefixtures("no_page")
def test_brought_features_are_studied_without_images(tmp_path):
    rng = np.random.default_rng(0)
    obs = [
        {"sample": f"s{s}", "patient": f"p{s}", "label": "control" if s % 2 else "ill"}
        for s in range(12)
        for _ in range(5)
    ]
    known = pd.DataFrame(obs, index=[f"c{i}" for i in range(60)])
    known["cell_label"] = np.where((known["label"] == "ill") & (np.arange(60) % 5 < 4), "ill", "control")
    x = rng.normal(size=(60, 4)).astype(np.float32)
    x[known["cell_label"] == "ill", 0] += 5
    cells = AnnData(x, obs=known)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    settings = quick(**{"mil.epochs": 30, "study.methods": ("mean",)})
    metrics = commands.study(tmp_path / "cells.h5ad", tmp_path / "run", settings=settings, jobs=1)
    assert metrics["methods"]["mean"]["macro_auroc"]["value"] > 0.9
    # the one healthy cell in five of an ill sample is told from the others, so labels stay with their cells
    assert metrics["instances"]["mean"]["anomaly"]["auroc"]["value"] > 0.9


@pytest.mark.usefixtures("no_page")
def test_the_detector_and_its_explanations_are_scored_by_the_truth(cohort, tmp_path):
    run = tmp_path / "run"
    # small images: half of the cells lie at the border, and left out of bags they count as lost
    settings = quick(**{"detect.border": "keep"})
    metrics = commands.study(
        cohort / "manifest.csv", run, settings=settings, truth=cohort / "cells.csv", jobs=1
    )
    assert metrics["detection"]["recall"]["value"] > 0.7
    assert metrics["detection"]["precision"]["value"] > 0.7
    assert metrics["instances"]["default"]["anomaly"]["auroc"]["value"] is not None


def test_fields_without_any_cell_leave_a_message_and_no_folder(tmp_path):
    from PIL import Image

    (tmp_path / "blank").mkdir()
    rows = ["image,sample,patient,label"]
    for k in range(4):
        Image.new("RGB", (300, 300), (235, 230, 230)).save(tmp_path / "blank" / f"{k}.png")
        rows.append(f"blank/{k}.png,s{k},p{k},{'control' if k % 2 else 'ill'}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    with pytest.raises(SettingsError, match="no cell was found in any image"):
        commands.study(tmp_path / "manifest.csv", tmp_path / "run", settings=quick(), jobs=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_shuffled_labels_learn_nothing(cohort, tmp_path):
    manifest = pd.read_csv(cohort / "manifest.csv", dtype=str)
    patients = manifest.drop_duplicates("patient")[["patient", "label"]]
    shuffled = dict(
        zip(patients["patient"], np.random.default_rng(3).permutation(patients["label"]), strict=True)
    )
    manifest["label"] = manifest["patient"].map(shuffled)
    manifest["image"] = [str(cohort / image) for image in manifest["image"]]
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    known = pd.read_csv(cohort / "cells.csv")
    known["image"] = [str(cohort / image) for image in known["image"]]
    known.to_csv(tmp_path / "cells.csv", index=False)
    settings = quick(**{"mil.epochs": 30, "study.runs": 3})
    metrics = commands.study(
        tmp_path / "manifest.csv", tmp_path / "run", settings=settings, cells=tmp_path / "cells.csv"
    )
    area = metrics["methods"]["default"]["macro_auroc"]
    assert area["low"] < 0.5


@pytest.mark.usefixtures("no_page")
def test_the_paper_preset_reads_roi_maps_and_predicts_the_same_again(few_cells, tmp_path):
    flags = {"preset": "paper", "method": "anomaly+att+sic", "mil.epochs": 1, "describe.kinds": ["roi"]}
    settings = commands.resolve_settings(flags=flags)
    known = few_cells / "cells.csv"
    commands.train(few_cells / "manifest.csv", tmp_path / "run", settings=settings, cells=known, jobs=1)
    assert read_zarr(tmp_path / "run" / "cells.zarr").obsm["roi"].shape[1:] == (256, 14, 14)
    commands.predict(
        few_cells / "manifest.csv", tmp_path / "out", model=tmp_path / "run", cells=known, jobs=1
    )
    columns = ["prob_control", "prob_scd"]
    before, after = (pd.read_csv(tmp_path / name / "samples.csv")[columns] for name in ("run", "out"))
    np.testing.assert_array_equal(before, after)


@pytest.mark.usefixtures("no_page")
def test_roi_maps_are_kept_on_request_though_no_method_reads_them(few_cells, tmp_path):
    settings = quick(**SIMPLE, **{"describe.kinds": ["shape", "roi"], "detect.diameter": 40.0})
    commands.train(
        few_cells / "manifest.csv", tmp_path / "run", settings=settings, cells=few_cells / "cells.csv", jobs=1
    )
    assert set(read_zarr(tmp_path / "run" / "cells.zarr").obsm) == {"shape", "roi"}


@pytest.mark.usefixtures("no_page")
def test_cells_cut_by_the_border_are_counted_in_the_run_and_marked_by_detect(few_cells, tmp_path):
    commands.detect(few_cells / "manifest.csv", tmp_path / "cells", settings=quick())
    table = pd.read_csv(tmp_path / "cells" / "cells.csv")
    assert 0 < table["border"].sum() < len(table)
    images = pd.read_csv(tmp_path / "cells" / "images.csv")
    assert images["border_cells"].sum() == table["border"].sum()
    assert images["cells"].sum() == len(table)
    assert images["edge_width"].between(0.01, 0.6).all()
    commands.study(
        few_cells / "manifest.csv",
        tmp_path / "run",
        settings=quick(**SIMPLE),
        cells=tmp_path / "cells" / "cells.csv",
        jobs=1,
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (notice,) = [n for n in record["notices"] if n["kind"] == "cells-cut-by-border"]
    assert f"{table['border'].sum()} of {len(table)} cells" in notice["text"]
    assert len(pd.read_parquet(tmp_path / "run" / "cells.parquet")) == 2 * (1 - table["border"]).sum()
