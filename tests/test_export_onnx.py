"""A trained model as ONNX says what the model says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from hemomil import commands
from hemomil.commands.export import export_onnx
from hemomil.commands.exported_network import OUTPUTS, StraightReference
from hemomil.commands.model_folder import TrainedModel, load_model, save_model
from hemomil.errors import ModelError, RunFolderError, SettingsError
from hemomil.export import network
from hemomil.mil import METHODS, AnomalyMIL, MILSettings
from hemomil.novelty.jury import Jury
from hemomil.types import Bag

pytestmark = pytest.mark.usefixtures("no_pages", "unchecked_shapes")

SIZES = (1, 2, 5, 33, 600)
EXPORT = """
import sys
from pathlib import Path
from hemomil.commands.export import export_onnx
from hemomil.errors import ModelError
from hemomil.export import network
*runs, refused = sys.argv[1:]
for run in map(Path, runs):
    export_onnx(run, run / "model.onnx")
if refused:
    network.TOLERANCE = -1.0
    try:
        export_onnx(Path(refused), Path(refused) / "model.onnx")
    except ModelError as error:
        print(error)
"""
POOLINGS = ("default", "anomaly+att+sic", "max", "anomaly-quantiles")
"""A method with each way of pooling; `default` has two."""


def export(*runs: Path, refused: Path | str = "") -> str:
    """Export in a process of its own: torch cannot trace functions whose shapes are checked as they run.

    Then also `refused`, if there is one, with a check that none can pass: what is said of it.
    """
    command = [sys.executable, "-W", "error", "-c", EXPORT, *map(str, runs), str(refused)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(shape: tuple[int, ...], size: int, seed: int = 0, label: str | None = None) -> Bag:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, *shape)).astype(np.float32)
    if label == "ill":
        features[: size // 2, 0] += 3
    ids = tuple(f"{seed}/{k}" for k in range(size))
    return Bag(sample=f"s{seed}", patient=f"p{seed}", label=label, features=features, cell_ids=ids)


def trained_run(folder: Path, method: str, shape: tuple[int, ...] = (4,), **changes: object) -> Path:
    """A run folder that has a model and nothing else."""
    settings = MILSettings(epochs=2, embedding=6, **changes)
    bags = [drawn(shape, 9, seed, ("control", "ill", "other")[seed % 3]) for seed in range(9)]
    model = AnomalyMIL(method, settings).fit(bags)
    scores, patients = model.control_scores_
    about = commands.resolve_settings(flags={"method": method}).model_copy(update={"mil": settings})
    trained = TrainedModel(
        model=model,
        jury=Jury.fit(scores, patients, patients, np.zeros(len(scores), dtype=np.int64)),
        settings=about,
        fingerprint={"kinds": ["shape"], "names": ["a", "b", "c", "d"]},
    )
    save_model(folder / "model", trained)
    (folder / "run.json").write_text("{}")
    return folder


def says_the_same(run: Path, shape: tuple[int, ...] = (4,), within: float = 1e-5) -> None:
    model = load_model(run / "model").model
    for size in SIZES:
        bag = drawn(shape, size, seed=size)
        (said,) = model.predict_cells([bag])
        found = network.run_onnx(run / "model.onnx", bag.features)
        assert set(found) == set(OUTPUTS)
        for name, values in found.items():
            expected = getattr(said, name)
            assert values.shape == expected.shape
            np.testing.assert_allclose(values, expected, rtol=within, atol=within)


class Exported(NamedTuple):
    """What one process has exported: it needs seconds to begin."""

    drawn: dict[str, Path]
    """Run folders of small models, by method."""
    trained: Path
    """A run that `train` made."""
    refused: Path
    said: str
    """Of the one that was refused."""


@pytest.fixture(scope="module")
def exported(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("onnx")
    runs = {method: trained_run(folder / method, method) for method in POOLINGS}
    settings = commands.resolve_settings(flags={"method": "anomaly+att+sic", "mil.epochs": 2})
    trained, refused = folder / "run", trained_run(folder / "refused", "max")
    commands.train(cohort / "manifest.csv", trained, settings=settings, cells=cohort / "cells.csv", jobs=1)
    said = export(*runs.values(), trained, refused=refused)
    return Exported(runs, trained, refused, said)


@pytest.mark.parametrize("method", POOLINGS)
def test_onnxruntime_says_what_the_model_says_of_bags_of_any_size(exported, method):
    says_the_same(exported.drawn[method])


def test_the_file_says_what_it_takes_and_gives_and_nothing_of_this_computer(exported):
    model = onnx.load(exported.drawn["default"] / "model.onnx")
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == ["control", "ill", "other"]
    assert json.loads(told["input_fingerprint"])["names"] == ["a", "b", "c", "d"]
    assert float(told["temperature"]) == 1
    assert told["method"] == "default"
    assert told["hemomil_version"]
    assert [entry.name for entry in model.graph.input] == ["cells"]
    assert [entry.name for entry in model.graph.output] == list(OUTPUTS)
    content = (exported.drawn["default"] / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b"site-packages" not in content


def test_the_order_of_cells_does_not_matter(exported):
    cells = drawn((4,), 20).features
    order = np.random.default_rng(1).permutation(20)
    for run in exported.drawn.values():
        one, other = (network.run_onnx(run / "model.onnx", part) for part in (cells, cells[order]))
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-6)
        np.testing.assert_allclose(one["anomaly"][order], other["anomaly"], atol=1e-6)


def test_a_solved_reference_gives_the_same_distances():
    import torch

    model = AnomalyMIL("anomaly", MILSettings(epochs=1, embedding=6)).fit(
        [drawn((4,), 9, seed, "ill" if seed % 2 else "control") for seed in range(6)]
    )
    cells = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    reference = model.core_.reference
    torch.testing.assert_close(StraightReference(reference).distance(cells), reference.distance(cells))


def test_a_file_that_does_not_repeat_the_model_is_removed(exported):
    run = exported.drawn["max"]
    cells = drawn((4,), 7).features
    told = network.run_onnx(run / "model.onnx", cells)
    network.refuse_if_different(run / "model.onnx", cells, told)
    for name in ("probabilities", "anomaly"):
        wrong = {**told, name: told[name] + 2e-3 * (1 + np.abs(told[name]))}
        with pytest.raises(ModelError, match=f"of 7 cells, {name} is .* where"):
            network.refuse_if_different(run / "model.onnx", cells, wrong)
    with pytest.raises(ModelError, match="attention"):  # the method has none: NaN is said, not a number
        network.refuse_if_different(run / "model.onnx", cells, {"attention": np.zeros(7)})
    assert "does not repeat the model" in exported.said
    assert {path.name for path in exported.refused.iterdir()} == {"model", "run.json"}


def test_nothing_is_overwritten_without_force(exported):
    with pytest.raises(RunFolderError, match="already there"):
        export_onnx(exported.drawn["max"], exported.drawn["max"] / "model.onnx")


def test_a_run_without_a_model_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"has no model/model\.json") as refused:
        export_onnx(tmp_path, tmp_path / "model.onnx")
    assert "hemomil train" in refused.value.hint


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SettingsError, match="needs onnxscript") as refused:
        export_onnx(tmp_path, tmp_path / "model.onnx")
    assert "hemomil[onnx]" in refused.value.hint


def test_a_model_in_bfloat16_is_refused(tmp_path):
    run = trained_run(tmp_path / "run", "mean", bfloat16=True)
    with pytest.raises(ModelError, match="bfloat16"):
        export_onnx(run, run / "model.onnx")


def test_a_train_run_is_tried_on_its_own_cells(exported):
    from hemomil.describe import read_bags

    run = exported.trained
    model = load_model(run / "model").model
    for bag in read_bags(run / "cells.zarr", ["shape"])[:3]:
        (said,) = model.predict_cells([bag])
        network.refuse_if_different(
            run / "model.onnx", bag.features, {name: getattr(said, name) for name in OUTPUTS}
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"mixing": "free", "distance_weights": "raw", "hidden": 5, "clip": None}]
)
def test_every_method_can_be_exported(tmp_path, changes):
    runs = [trained_run(tmp_path / method, method, **changes) for method in METHODS]
    export(*runs)
    for run in runs:
        says_the_same(run)


@pytest.mark.slow
@pytest.mark.parametrize("roi", ["averages", "convolutions"])
def test_models_of_roi_maps_can_be_exported(tmp_path, roi):
    shape = (256, 14, 14)
    runs = [
        trained_run(tmp_path / method, method, shape, roi=roi) for method in ("default", "anomaly+att+sic")
    ]
    export(*runs)
    for run in runs:
        says_the_same(run, shape, within=network.TOLERANCE)
