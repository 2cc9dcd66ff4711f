"""Training by several processes that torchrun starts: the numbers of one."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from hemomil import commands
from hemomil.errors import SettingsError
from hemomil.mil import AnomalyMIL, MILSettings
from mil_cohorts import make_bag, make_cohort, make_roi_cohort
from test_protocol import brought, cohort, quick

TEAM = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PAPER = MILSettings.preset("paper", epochs=2, refit_every=1, chunk_cells=2)
DEFAULT = MILSettings(epochs=3, embedding=8)


def uneven_roi_cohort():
    """One bag has a single cell: one process has nothing to encode then."""
    bags = make_roi_cohort(4)
    return [*bags[:-1], make_bag("one", bags[-1].features[:1], label=bags[-1].label)]


def trained():
    """What is learned of RoI maps one bag at a time, and of vectors in packs."""
    models = {
        "maps": AnomalyMIL("anomaly+att+sic", PAPER).fit(uneven_roi_cohort()),
        "vectors": AnomalyMIL("anomaly+att", DEFAULT).fit(make_cohort(5)),
    }
    return {
        f"{kind}/{name}": value
        for kind, model in models.items()
        for name, value in model.to_state()[0].items()
    }


def main(folder):
    """Train as one of two, and write down what this one has learned."""
    torch.distributed.init_process_group("gloo")
    np.savez(f"{folder}/{torch.distributed.get_rank()}.npz", **trained())
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns(tmp_path):
    subprocess.run([*TEAM, __file__, str(tmp_path)], check=True, timeout=240)
    alone = trained()
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_train_under_torchrun_writes_one_run_folder_with_the_same_predictions(tmp_path):
    file = brought(tmp_path, cohort())
    commands.train(file, tmp_path / "alone", settings=quick())
    command = [*TEAM, "-m", "hemomil.cli", "train", str(file), "-o", str(tmp_path / "team"), "--quiet"]
    sets = [f"--set=mil.epochs={quick().mil.epochs}", f"--set=mil.members={quick().mil.members}"]
    subprocess.run([*command, *sets], check=True, timeout=240)
    alone, team = (pd.read_csv(tmp_path / name / "samples.csv") for name in ("alone", "team"))
    numbers = [name for name in alone if name.startswith("prob_")]
    np.testing.assert_allclose(team[numbers], alone[numbers], atol=1e-4)
    assert (team["sample"] == alone["sample"]).all()


def test_other_commands_refuse_to_be_started_twice(tmp_path, monkeypatch):
    file = brought(tmp_path, cohort())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="torchrun has started `study` more than once"):
        commands.study(file, tmp_path / "run", settings=quick())
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(sys.argv[1])
