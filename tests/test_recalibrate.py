"""A model meets a new site: its controls make a new reference and calibration, and no diagnosis changes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat, read_h5ad

from hemomil import commands
from hemomil.commands import recalibration as module
from hemomil.commands.drift import drift_text
from hemomil.commands.recalibration import recalibrate
from hemomil.errors import FeaturesError, ManifestError, RunFolderError, SettingsError

pytestmark = pytest.mark.usefixtures("no_pages", "unchecked_shapes")

FEATURES = ("size", "pallor", "red", "blue", "rim", "edge")
STAIN = {"red": 4.0, "blue": -2.0}
"""How the new site differs, in standard deviations of a cell."""
METHODS = ("default", "anomaly+att+sic", "anomaly-quantiles", "att")


def brought(path, donors, *, seed=0, shift=None, labels=("control",), cells=24, features=FEATURES):
    """Cells of donors who differ a little; half of the cells of an ill one are large and pale."""
    rng = np.random.default_rng(seed)
    obs, x = [], []
    for k in range(donors):
        label = labels[k % len(labels)]
        own = rng.normal(size=(cells, len(features))) + 0.2 * rng.normal(size=len(features))
        if label == "ill":
            own[: cells // 2, :2] += 4
        own += [(shift or {}).get(name, 0) for name in features]
        obs += [(f"{path.stem}-s{k}", f"{path.stem}-p{k:02d}", label)] * cells
        x.append(own)
    table = pd.DataFrame(obs, columns=["sample", "patient", "label"])
    table.index = [f"{path.stem}-{row}" for row in range(len(table))]
    values = np.concatenate(x).astype(np.float32)
    AnnData(values, obs=table, var=pd.DataFrame(index=list(features))).write_h5ad(path)
    return path


def quick(**flags):
    return commands.resolve_settings(
        flags={
            "mil.epochs": 20,
            "mil.members": 2,
            "study.bootstrap": 200,
            "features": ("embedding",),
            **flags,
        }
    )


def learned(folder, **flags):
    """A model of the first site: 30 control donors and 30 ill ones."""
    data = brought(folder / "home.h5ad", 60, labels=("control", "ill"))
    commands.train(data, folder / "model", settings=quick(**flags), jobs=1)
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def away(model, tmp_path_factory):
    """The model, recalibrated on 25 control donors of a site of another stain."""
    folder = tmp_path_factory.mktemp("away")
    controls = brought(folder / "away.h5ad", 25, seed=1, shift=STAIN)
    recalibrate(model, controls, folder / "new", jobs=1)
    return folder / "new"


def drift_of(run):
    return json.loads((run / "drift.json").read_text())


def notices_of(run):
    """The texts of each kind, one below the other."""
    notices = pd.DataFrame(json.loads((run / "run.json").read_text())["notices"], columns=["kind", "text"])
    return notices.groupby("kind")["text"].agg("\n".join).to_dict()


def test_the_features_that_moved_are_named_and_how_far(away):
    moved = pd.read_csv(away / "drift.csv").set_index("feature")
    assert list(moved.index[:2]) == ["red", "blue"]
    assert set(moved.index) == set(FEATURES)
    for name, shift in STAIN.items():
        assert moved.loc[name, "shift"] == pytest.approx(shift, abs=0.3)
        assert moved.loc[name, "low"] < moved.loc[name, "shift"] < moved.loc[name, "high"]
    assert (moved["shift"].iloc[2:].abs() < 0.5).all()
    assert moved.loc["red", "clipped"] > 0.05 > moved.loc["size", "clipped"]
    assert [row["feature"] for row in drift_of(away)["moved_most"]][:2] == ["red", "blue"]


def test_the_old_calibration_flags_too_many_and_the_new_one_holds(away):
    drift = drift_of(away)
    assert drift["old"]["flagged_0.05"]["low"] > 0.25
    assert drift["new"]["flagged_0.05"]["high"] < 0.05
    assert 0.02 < drift["new"]["beyond_0.05"]["value"] < 0.08
    assert drift["old"]["flagged_0.01"]["value"] is None  # 30 donors give no p-value of 0.01
    assert drift["old"]["ks"]["low"] > drift["old"]["ks_among_controls"]["high"]
    assert drift["old"]["ks_of_donor_medians"]["p"] < 1e-6
    assert drift["new"]["ks"]["value"] < drift["old"]["ks_among_controls"]["high"] + 0.1


def test_a_donor_of_the_site_is_judged_by_the_others_only(model, tmp_path):
    """Their own cells would make an odd donor look usual."""
    usual, odd = brought(tmp_path / "usual.h5ad", 3), brought(tmp_path / "odd.h5ad", 1, shift={"red": 9.0})
    concat([read_h5ad(usual), read_h5ad(odd)]).write_h5ad(tmp_path / "all.h5ad")
    drift = recalibrate(model, tmp_path / "all.h5ad", tmp_path / "new", jobs=1)
    found = {donor["donor"]: donor["new_beyond_0.05"] for donor in drift["by_donor"]}
    assert found["odd-p00"] == 1
    assert max(found[f"usual-p{k:02d}"] for k in range(3)) < 0.1


def test_p_values_hold_for_donors_to_come_of_the_new_site(model, away, tmp_path):
    data = brought(tmp_path / "later.h5ad", 40, seed=2, shift=STAIN)
    flagged = {}
    for name, run in (("old", model), ("new", away)):
        commands.predict(data, tmp_path / name, model=run, jobs=1)
        cells = pd.read_parquet(tmp_path / name / "cells.parquet")
        flagged[name] = (cells["anomaly_p"] <= 0.05).groupby(cells["patient"]).mean().mean()
    assert flagged["new"] < 0.05 < 0.3 < flagged["old"]


def test_no_drift_is_found_where_there_is_none(model, tmp_path):
    controls = brought(tmp_path / "same.h5ad", 25, seed=3)
    drift = recalibrate(model, controls, tmp_path / "new", jobs=1)
    assert drift["old"]["ks_of_donor_medians"]["p"] > 0.05
    assert drift["old"]["flagged_0.05"]["value"] < 0.05
    assert max(abs(row["shift"]) for row in drift["moved_most"]) < 0.3
    assert drift["certified"]
    assert drift["networks_hold"]
    assert notices_of(tmp_path / "new") == {}


@pytest.mark.parametrize("method", METHODS)
def test_a_recalibrated_model_gives_every_diagnosis_to_the_last_bit(method, tmp_path):
    home = learned(tmp_path, method=method)
    controls = brought(tmp_path / "away.h5ad", 6, seed=1, shift=STAIN)
    recalibrate(home, controls, tmp_path / "new", jobs=1)
    data = brought(tmp_path / "later.h5ad", 6, seed=2, shift=STAIN, labels=("control", "ill"))
    said = []
    for name, run in (("old", home), ("again", tmp_path / "new")):
        commands.predict(data, tmp_path / f"said-{name}", model=run, jobs=1)
        said.append(pd.read_parquet(tmp_path / f"said-{name}" / "cells.parquet"))
    same = ["attention", "weight", "contribution", *said[0].filter(like="prob_")]
    pd.testing.assert_frame_equal(said[0][same], said[1][same], check_exact=True)
    assert (said[0]["anomaly"] != said[1]["anomaly"]).mean() > 0.99
    samples = [pd.read_csv(tmp_path / f"said-{name}" / "samples.csv") for name in ("old", "again")]
    of_site = ["novelty_p", "novelty_floor", "abnormal_low"]
    pd.testing.assert_frame_equal(*(table.drop(columns=of_site) for table in samples), check_exact=True)
    assert [table["novelty_floor"].unique().tolist() for table in samples] == [
        [pytest.approx(1 / 31)],
        [pytest.approx(1 / 7)],
    ]


def test_too_few_donors_are_used_but_certify_nothing(model, tmp_path):
    controls = brought(tmp_path / "few.h5ad", 4, seed=1)
    drift = recalibrate(model, controls, tmp_path / "new", jobs=1)
    assert (drift["certified"], drift["donors"], drift["needed"]) == (False, 4, 19)
    assert "19 donors are needed" in notices_of(tmp_path / "new")["few-control-donors"]
    assert "WARNING: the calibration is not certified" in drift_text(drift)
    assert drift["new"]["beyond_0.05"]["value"] is None  # not estimable with fewer than 5 donors
    assert pd.read_csv(tmp_path / "new" / "drift.csv")["low"].isna().all()
    assert (tmp_path / "new" / "model" / "model.json").exists()


def test_what_is_certified_depends_on_the_level(model, tmp_path):
    controls = brought(tmp_path / "some.h5ad", 12, seed=1)
    lenient = recalibrate(model, controls, tmp_path / "lenient", level=0.1, jobs=1)
    strict = recalibrate(model, controls, tmp_path / "strict", level=0.01, jobs=1)
    assert lenient["certified"]
    assert not strict["certified"]
    assert "99 donors" in notices_of(tmp_path / "strict")["few-control-donors"]
    # whoever reads p-values at 0.05 is still warned
    assert "0.05 needs 19 donors" in notices_of(tmp_path / "lenient")["few-control-donors"]


def test_one_donor_is_refused(model, tmp_path):
    with pytest.raises(SettingsError, match=r"1 control donor: .* needs 2 at least, .* 19") as refused:
        recalibrate(model, brought(tmp_path / "one.h5ad", 1), tmp_path / "new", jobs=1)
    assert refused.value.hint
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("level", [0.0, 1.0, 5.0])
def test_a_level_that_is_no_error_rate_is_refused(model, tmp_path, level):
    with pytest.raises(SettingsError, match="error rate"):
        recalibrate(model, tmp_path / "any.csv", tmp_path / "new", level=level)


def test_controls_that_the_networks_call_ill_are_warned_of(model, tmp_path):
    controls = brought(tmp_path / "large.h5ad", 20, seed=1, shift={"size": 4.0, "pallor": 4.0})
    drift = recalibrate(model, controls, tmp_path / "new", jobs=1)
    assert drift["called_control"]["value"] < 0.5
    assert not drift["networks_hold"]
    assert "does not mend the diagnosis" in notices_of(tmp_path / "new")["controls-called-ill"]
    assert "WARNING: the networks call" in drift_text(drift)
    said = {donor["donor"]: donor["called_control"] for donor in drift["by_donor"]}
    commands.predict(controls, tmp_path / "said", model=model, jobs=1)
    samples = pd.read_csv(tmp_path / "said" / "samples.csv").set_index("patient")
    assert said == (samples["predicted"] == "control").astype(float).to_dict()


def test_features_of_another_make_are_refused(model, tmp_path):
    other = brought(tmp_path / "other.h5ad", 3, features=(*FEATURES[:-1], "sheen"))
    with pytest.raises(FeaturesError, match="not those of the model"):
        recalibrate(model, other, tmp_path / "new", jobs=1)
    assert not (tmp_path / "new").exists()


def test_a_model_is_not_recalibrated_onto_itself(model, tmp_path):
    before = (model / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match="is the model"):
        recalibrate(model, brought(tmp_path / "c.h5ad", 3), model, force=True)
    assert (model / "run.json").read_bytes() == before


def test_a_finished_run_is_not_overwritten_without_force(model, away, tmp_path):
    controls = brought(tmp_path / "c.h5ad", 3)
    with pytest.raises(RunFolderError, match="finished run"):
        recalibrate(model, controls, away, jobs=1)
    shutil.copytree(away, tmp_path / "new")
    assert recalibrate(model, controls, tmp_path / "new", jobs=1, force=True)["donors"] == 3


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(model, away, tmp_path, monkeypatch):
    controls = brought(tmp_path / "away.h5ad", 25, seed=1, shift=STAIN)

    def fail(*_):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(module, "moved_features", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            recalibrate(model, controls, tmp_path / "new", jobs=1)
    assert not (tmp_path / "new" / "run.json").exists()
    recalibrate(model, controls, tmp_path / "new", jobs=1)
    for name in ("drift.json", "drift.csv", "model/model.safetensors", "model/model.json"):
        assert (tmp_path / "new" / name).read_bytes() == (away / name).read_bytes(), name


@pytest.fixture(scope="module")
def home_images(cohort, tmp_path_factory):
    """A model of images of the first of two simulated sites, with the second site's manifest beside."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(cohort, folder / "cohort")
    manifest = pd.read_csv(cohort / "manifest.csv", dtype=str)
    known = pd.read_csv(cohort / "cells.csv", dtype=str)
    for name, site in zip(("home", "away"), sorted(set(manifest["site"])), strict=True):
        own = manifest[manifest["site"] == site]
        own.to_csv(folder / "cohort" / f"{name}.csv", index=False)
        known[known["image"].isin(own["image"])].to_csv(folder / "cohort" / f"{name}-cells.csv", index=False)
    settings = quick(features=("shape",))
    cells = folder / "cohort" / "home-cells.csv"
    commands.train(folder / "cohort" / "home.csv", folder / "model", settings=settings, cells=cells, jobs=1)
    return folder


def test_images_without_labels_are_controls(home_images, tmp_path):
    sites = pd.read_csv(home_images / "cohort" / "away.csv", dtype=str)
    controls = sites[sites["label"] == "control"]
    path = home_images / "cohort" / "unlabelled.csv"
    controls.drop(columns="label").to_csv(path, index=False)
    known = pd.read_csv(home_images / "cohort" / "away-cells.csv", dtype=str)
    known[known["image"].isin(controls["image"])].to_csv(tmp_path / "cells.csv", index=False)
    drift = recalibrate(home_images / "model", path, tmp_path / "new", cells=tmp_path / "cells.csv", jobs=1)
    assert drift["donors"] == controls["patient"].nunique() == 3
    assert drift["cells"] == len(known[known["image"].isin(controls["image"])])
    # another stain: colours moved farther than healthy donors of the first site differ
    assert abs(drift["moved_most"][0]["shift"]) > 2
    assert drift["old"]["ks_of_donor_medians"]["statistic"] == 1
    names = {entry.name for entry in (tmp_path / "new").iterdir()}
    assert names == {"run.json", "settings.toml", "cells.zarr", "model", "drift.json", "drift.csv"}
    assert (tmp_path / "new" / "drift.json").read_text() == json.dumps(drift, indent=2) + "\n"


def test_samples_that_are_no_controls_are_refused_row_by_row(home_images, tmp_path):
    manifest = home_images / "cohort" / "away.csv"
    rows = pd.read_csv(manifest, dtype=str)
    with pytest.raises(ManifestError, match="no controls") as refused:
        recalibrate(home_images / "model", manifest, tmp_path / "new", jobs=1)
    ill = rows[rows["label"] != "control"]
    for row, label in zip(ill.index + 2, ill["label"], strict=True):
        assert f"row {row}: " in str(refused.value)
        assert f"is labelled {label!r}" in str(refused.value)
    assert str(refused.value).count("row ") == len(ill)
    assert not (tmp_path / "new").exists()


def test_samples_brought_as_features_are_refused_by_name(model, tmp_path):
    mixed = brought(tmp_path / "mixed.h5ad", 4, labels=("control", "ill"))
    with pytest.raises(ManifestError, match="'mixed-s1' is labelled 'ill'"):
        recalibrate(model, mixed, tmp_path / "new", jobs=1)
