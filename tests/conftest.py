"""What tests share: where the real images lie, if they do, and single-threaded torch."""

import os
from pathlib import Path

import pytest

# Two test processes on two cores: with two OpenMP threads each, they wait for one another by spinning.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (HEMOMIL_DATA, else ../shared/data); skipped where it is absent."""
    folder = Path(os.environ.get("HEMOMIL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "nih_malaria" / "manifest.csv").is_file():
        pytest.skip("no real images here: set HEMOMIL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated cohort: manifest.csv, cells.csv, images/, three classes, two sites."""
    from hemomil.simulate import SimulateSettings, simulate

    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    patients = {"control": 6, "scd": 5, "hs": 5}
    settings = SimulateSettings(
        patients=patients, samples=1, images=1, cells=(8, 12), size=(240, 320), sites=2
    )
    simulate(folder, settings)
    return folder
