"""Who is trained on and tested in a study: diseases left out, sites left out; and where the jobs run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from hemomil import commands
from hemomil.cohort import folds_by_group, place_unseen
from hemomil.commands.protocol import Protocol, protocol
from hemomil.errors import SettingsError
from hemomil.stats import unseen_metrics
from hemomil.types import Cohort, Sample

pytestmark = pytest.mark.usefixtures("no_pages", "unchecked_shapes")

CLASSES = ("control", "hs", "scd", "xero")


def cohort(patients: int = 6, classes: tuple[str, ...] = CLASSES, samples: int = 2) -> Cohort:
    return Cohort(
        samples=tuple(
            Sample(
                sample=f"{label}-{p}-{s}",
                patient=f"{label}-{p}",
                label=label,
                images=(),
                metadata={"site": "AB"[p % 2]},
            )
            for label in classes
            for p in range(patients)
            for s in range(samples)
        )
    )


def planned(cohort: Cohort, **study: object) -> Protocol:
    flags = {"study.runs": 2, **{f"study.{key}": value for key, value in study.items()}}
    return protocol(cohort, commands.resolve_settings(flags=flags))


def brought(folder: Path, cohort: Cohort) -> Path:
    """Cells of 4 numbers: in half of a diseased sample's cells, the first and one of its disease are high."""
    rng = np.random.default_rng(0)
    obs = [(s.sample, s.patient, s.label, c) for s in cohort.samples for c in range(8)]
    table = pd.DataFrame(obs, columns=["sample", "patient", "label", "cell"])
    x = rng.normal(size=(len(table), 4)).astype(np.float32)
    for column, label in enumerate(CLASSES[1:]):
        odd = ((table["label"] == label) & (table["cell"] < 4)).to_numpy()
        x[np.ix_(odd, [0, column + 1])] += 4
    table.index = [f"c{row}" for row in range(len(table))]
    AnnData(x, obs=table[["sample", "patient", "label"]]).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


QUICK = {
    "study.methods": ("mean", "att"), "study.runs": 1, "study.folds": 2, "study.bootstrap": 100,
    "mil.epochs": 40,
}  # fmt: skip


def quick(**flags: object) -> object:
    return commands.resolve_settings(flags={**QUICK, **flags})


def test_no_patient_is_trained_on_and_tested_and_what_is_left_out_is_never_learned():
    for asked in ((), ("xero",), ("xero", "hs"), ("each",)):
        everyone = cohort()
        plan = planned(everyone, leave_out=asked)
        patient = {s.sample: s.patient for s in everyone.samples}
        for job in plan.jobs(("att", "mean")):
            assert not {patient[s] for s in job.train} & {patient[s] for s in job.test}
            taught = {plan.labels[s] for s in job.train}
            assert taught == set(CLASSES) - {*plan.never, job.left_out}


def test_every_sample_is_tested_once_a_run_by_the_study_and_once_more_without_its_disease():
    plan = planned(cohort(), leave_out=("each",))
    jobs = [job for job in plan.jobs(("att",)) if job.run == 1]
    own = [name for job in jobs if job.left_out is None for name in job.test]
    assert sorted(own) == sorted(plan.labels)
    for disease in CLASSES[1:]:
        tested = [name for job in jobs if job.left_out == disease for name in job.test]
        assert sorted(tested) == sorted(
            s for s, label in plan.labels.items() if label in ("control", disease)
        )
    assert len({job.name for job in plan.jobs(("att", "mean"))}) == 2 * 2 * 3 * 4


def test_a_disease_of_one_patient_can_be_left_out_but_not_learned():
    rare = cohort(1, ("rare",))
    everyone = Cohort(samples=(*cohort().samples, *rare.samples))
    with pytest.raises(SettingsError, match="'rare' has 1 patient for 3 folds"):
        planned(everyone)
    assert planned(everyone, leave_out=("rare",)).classes == CLASSES


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1), st.integers(2, 5), st.integers(0, 3)
)
def test_unseen_samples_are_tested_where_their_patient_is(drawn, n_folds, seed):
    known = [("", f"p{p}", "known") for p, is_known in drawn if is_known]
    unseen = [("", f"p{p}", "unseen") for p, is_known in drawn if not is_known]
    fold = np.array([int(patient[1:]) % n_folds for _, patient, _ in known], dtype=np.int64)
    placed = place_unseen(unseen, known, fold, n_folds, seed=seed)
    where = dict(zip((patient for _, patient, _ in known), fold, strict=True))
    for (_, patient, _), number in zip(unseen, placed, strict=True):
        assert 0 <= number < n_folds
        assert where.setdefault(patient, number) == number


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("zero",), "'zero' cannot be left out"),
        (("control",), "'control' cannot be left out"),
        (("hs", "scd", "xero"), "every sample to learn from has the same label"),
    ],
)
def test_what_cannot_be_left_out_is_refused(asked, message):
    with pytest.raises(SettingsError, match=message):
        planned(cohort(), leave_out=asked)


def test_leaving_out_each_of_one_disease_is_refused():
    with pytest.raises(SettingsError, match="leaves nothing to learn"):
        planned(cohort(classes=("control", "hs")), leave_out=("each",))


def test_a_site_is_tested_by_models_of_the_other_sites():
    everyone = cohort()
    plan = planned(everyone, site_out=True)
    site = {s.sample: s.metadata["site"] for s in everyone.samples}
    assert plan.n_folds == 2
    for job in plan.jobs(("att",)):
        assert {site[s] for s in job.test} == {"AB"[job.fold]}
        assert {site[s] for s in job.train} == {"BA"[job.fold]}


def test_a_class_of_one_site_cannot_be_learned_without_it():
    units = [("a", "north", "control"), ("b", "south", "control"), ("c", "north", "hs")]
    with pytest.raises(SettingsError, match="class 'hs' is found at site 'north' only"):
        folds_by_group(units)
    with pytest.raises(SettingsError, match="all samples have the same site"):
        folds_by_group(units[:1])


def test_diseases_left_out_are_in_tables_of_their_own_and_told_from_health(tmp_path):
    file = brought(tmp_path, cohort())
    run = tmp_path / "run"
    metrics = commands.study(file, run, settings=quick(**{"study.leave_out": ("xero",)}), jobs=1)
    samples, unseen = pd.read_csv(run / "samples.csv"), pd.read_csv(run / "unseen.csv")
    assert "xero" not in set(samples["label"])
    assert not {"prob_xero", "left_out"} & set(samples)
    assert set(unseen["label"]) == {"control", "xero"}
    assert set(unseen["left_out"]) == {"xero"}
    assert "xero" not in set(unseen["predicted"])
    told = metrics["unseen"]["xero"]["mean"]
    assert told["auroc_abnormal_probability"]["value"] > 0.8  # it shares a sign with the diseases seen
    assert set(pd.read_parquet(run / "unseen_cells.parquet")["label"]) == {"control", "xero"}
    assert set(pd.read_csv(run / "deletion.csv")["sample"]) == set(samples["sample"])


def test_each_disease_is_left_out_beside_the_study_which_stays_as_it_was(tmp_path):
    file = brought(tmp_path, cohort())
    plain, each = tmp_path / "plain", tmp_path / "each"
    few = {"mil.epochs": 3}
    commands.study(file, plain, settings=quick(**few), jobs=1)
    metrics = commands.study(file, each, settings=quick(**few, **{"study.leave_out": ("each",)}), jobs=2)
    for name in ("samples.csv", "splits.csv", "cells.parquet", "deletion.csv"):
        assert (plain / name).read_bytes() == (each / name).read_bytes(), name
    assert list(metrics["unseen"]) == ["hs", "scd", "xero"]
    unseen = pd.read_csv(each / "unseen.csv")
    assert (unseen["predicted"] != unseen["left_out"]).all()


def test_unseen_metrics_rank_against_the_controls_of_the_same_models():
    of_models = [("a", "control", 0.5), ("a", "a", 0.1), ("b", "control", 0.9), ("b", "b", 0.95)]
    rows = [
        {"sample": f"{label}{p}", "patient": f"{label}{p}", "label": label, "left_out": out, "run": 0,
         "method": "m", "predicted": "control", "novelty_p": p_value, "prob_control": 0.5}
        for out, label, p_value in of_models
        for p in range(5)
    ]  # fmt: skip
    cells = pd.DataFrame(
        {"sample": f"a{p}", "patient": f"a{p}", "label": "a", "left_out": out, "method": "m", "run": 0,
         "cell_label": kind, "anomaly": anomaly, "attention": 0.0, "contribution": 0.0, "prob_control": 0.5}
        for out, sign in (("a", 1), ("b", -1))
        for p in range(5)
        for kind, anomaly in (("control", 0.0), ("odd", sign * 1.0))
    )  # fmt: skip
    found = unseen_metrics(pd.DataFrame(rows), cells, control="control", seed=0)
    assert found["a"]["m"]["instances"]["anomaly"]["auroc"]["value"] == 1
    assert found["a"]["m"]["auroc_novelty"]["value"] == 1
    assert found["b"]["m"]["auroc_novelty"]["value"] == 0
    assert found["b"]["m"]["auroc_abnormal_probability_patient"]["value"] == 0.5
    few = pd.DataFrame(rows)[lambda table: table["sample"] != "a0"]
    assert unseen_metrics(few, cells, control="control", seed=0)["a"]["m"]["auroc_novelty"]["value"] is None


# Where the jobs run


ADDRESS = "tcp://127.0.0.1:8799"
SCHEDULER = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "8799", "--no-dashboard")
WORKER = ("distributed.cli.dask_worker", ADDRESS, "--nthreads", "1", "--no-dashboard", "--no-nanny")


@pytest.fixture
def cluster():
    """A Dask scheduler and two workers, each a process of its own, on this machine."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([sys.executable, "-m", *command], **quiet) for command in (SCHEDULER, WORKER, WORKER)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_cluster_gives_the_same_bytes_and_a_lost_worker_costs_only_time(tmp_path, cluster):
    file = brought(tmp_path, cohort())
    here, there = tmp_path / "here", tmp_path / "there"
    commands.study(file, here, settings=quick(), jobs=2)
    command = [
        sys.executable,
        "-m",
        "hemomil.cli",
        "study",
        str(file),
        "-o",
        str(there),
        "--cluster",
        ADDRESS,
    ]
    assignments = (word for key, value in QUICK.items() for word in ("--set", f"{key}={toml(value)}"))
    study = subprocess.Popen([*command, "--quiet", *assignments])
    end = time.monotonic() + 120
    while not list(there.glob(".work/jobs/*/cells.parquet")):
        assert study.poll() is None, "the study ended before a worker could be killed"
        assert time.monotonic() < end, "no job finished"
        time.sleep(0.01)
    cluster[1].kill()
    assert study.wait(120) == 0
    with Client(ADDRESS, set_as_default=False) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) > 0
    for name in ("samples.csv", "splits.csv", "cells.parquet", "metrics.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def toml(value: object) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)


def test_a_cluster_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("hemomil.commands.workers.PATIENCE", 1)
    file = brought(tmp_path, cohort())
    with pytest.raises(SettingsError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        commands.study(file, tmp_path / "run", settings=quick(), cluster="tcp://127.0.0.1:1")
    assert not (tmp_path / "run").exists()
