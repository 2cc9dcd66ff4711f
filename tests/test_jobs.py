"""The jobs of a study whose networks are trained at once."""

import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed

from hemomil import commands, describe
from hemomil.commands import jobs
from hemomil.commands.workers import learning_processes
from hemomil.errors import SettingsError

pytestmark = pytest.mark.usefixtures("no_pages", "unchecked_shapes")

FLAGS = {
    "preset": "paper", "study.methods": ("att", "anomaly+att+sic", "anomaly-quantiles"), "study.runs": 1,
    "study.folds": 2, "study.bootstrap": 100, "mil.epochs": 1, "detect.diameter": 40.0,
}  # fmt: skip
TABLES = ("samples.csv", "cells.parquet", "deletion.csv", "metrics.json")


def study(cohort: Path, run: Path, *, jobs: int = 1, **flags: object) -> Path:
    settings = commands.resolve_settings(flags={**FLAGS, **flags})
    commands.study(cohort / "manifest.csv", run, settings=settings, cells=cohort / "cells.csv", jobs=jobs)
    return run


@pytest.fixture(scope="module")
def judged_here() -> list[str]:
    """Jobs of `together` whose networks were judged in this process."""
    return []


@pytest.fixture(scope="module")
def together(few_cells: Path, judged_here: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tell = jobs._tell
    run = tmp_path_factory.mktemp("together") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jobs, "_tell", lambda job, *what: (judged_here.append(job.name), tell(job, *what)))
        return study(few_cells, run, jobs=2, **{"study.side_by_side": True})


def test_networks_trained_at_once_are_judged_by_threads(together, judged_here):
    assert sorted(name.split("__")[0] for name in judged_here) == ["anomaly+att+sic"] * 2 + ["att"] * 2


def test_networks_trained_at_once_say_what_they_say_trained_one_by_one(few_cells, together, tmp_path):
    alone = study(few_cells, tmp_path / "run")
    for name, read in (("samples.csv", pd.read_csv), ("cells.parquet", pd.read_parquet)):
        found, expected = read(together / name), read(alone / name)
        assert found.columns.tolist() == expected.columns.tolist()
        for column in found:
            if column.startswith("prob_"):
                np.testing.assert_allclose(found[column], expected[column], rtol=1e-3)
            elif column in ("sample", "fold", "method", "cell_id"):
                assert found[column].tolist() == expected[column].tolist()


def test_a_killed_study_ends_with_the_same_tables(few_cells, together, tmp_path, monkeypatch):
    told = []

    def killed(job, *what):
        if len(told) == 3:
            raise KeyboardInterrupt
        told.append(job.name)
        tell(job, *what)

    tell = jobs._tell
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "_tell", killed)
        with pytest.raises(KeyboardInterrupt):
            study(few_cells, tmp_path / "run", **{"study.side_by_side": True})
    assert len(told) == 3
    heard = []
    monkeypatch.setattr(jobs, "_tell", lambda job, *what: (heard.append(job.name), tell(job, *what)))
    study(few_cells, tmp_path / "run", **{"study.side_by_side": True})
    assert len(heard) == 3
    assert not set(heard) & set(told)
    for name in TABLES:
        assert (tmp_path / "run" / name).read_bytes() == (together / name).read_bytes(), name


def test_processes_of_a_study_begin_with_what_training_needs():
    loaded = delayed(lambda name: name in __import__("sys").modules)
    needed = ("torch._dynamo", "hemomil.mil.model")
    with learning_processes():
        assert Parallel(n_jobs=2)(map(loaded, needed)) == [True, True]


def test_a_job_gives_its_memory_back_when_nothing_holds_its_cells(few_cells, tmp_path, monkeypatch):
    """Without that its process would have grown by more than joblib allows, with maps of many cells."""
    read, cells, given_back = describe.read_bags, [], []

    def watched(*what):
        bags = read(*what)
        cells[:] = [weakref.ref(bag.features) for bag in bags]
        return bags

    monkeypatch.setattr(describe, "read_bags", watched)
    monkeypatch.setattr(
        jobs, "give_back_memory", lambda: given_back.append(not any(of_bag() is not None for of_bag in cells))
    )
    study(few_cells, tmp_path / "run", **{"study.methods": ("att",)})
    assert given_back == [True, True]


def test_one_process_is_not_a_cluster(few_cells, tmp_path):
    settings = commands.resolve_settings(flags={**FLAGS, "study.side_by_side": True})
    with pytest.raises(SettingsError, match="side_by_side"):
        commands.study(
            few_cells / "manifest.csv",
            tmp_path / "run",
            settings=settings,
            cells=few_cells / "cells.csv",
            cluster="tcp://127.0.0.1:1",
        )


def test_a_gpu_that_is_not_there_is_missed_before_any_work(few_cells, tmp_path):
    settings = commands.resolve_settings(flags={**FLAGS, "mil.device": "cuda:77"})
    with pytest.raises(SettingsError, match="cuda:77"):
        commands.study(few_cells / "manifest.csv", tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()
