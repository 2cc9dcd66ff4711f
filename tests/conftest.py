"""What tests share: where the real images lie, if they do, single-threaded torch, and who runs which test."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Two test processes on two cores: with two OpenMP threads each, they wait for one another by spinning.
os.environ["OMP_NUM_THREADS"] = "1"

TOGETHER = {
    "commands",
    "explain_command",
    "export",
    "export_onnx",
    "jobs",
    "recalibrate",
    "report",
    "report_cells",
}
"""Modules whose own fixtures take seconds: one process runs all of their tests, and makes these once."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Of all other modules every test goes where there is room (`--dist loadgroup` knows no pytest 9)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            return module if Path(module).stem.removeprefix("test_") in TOGETHER else nodeid

    return ByFixtures(config, log)


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


@pytest.fixture(scope="session")
def few_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one of two classes, for what looks at every image with a network: that takes its time."""
    from hemomil.simulate import SimulateSettings, simulate

    folder = tmp_path_factory.mktemp("few") / "cohort"
    few = SimulateSettings(
        patients={"control": 4, "scd": 3}, samples=1, images=1, cells=(5, 8), size=(200, 240)
    )
    simulate(folder, few)
    return folder


@contextmanager
def pages_left_out() -> Iterator[None]:
    """`study`, `train` and `predict` that draw no figures and no page."""
    from hemomil.commands import cross_validation, training

    with pytest.MonkeyPatch.context() as patched:
        for module in (cross_validation, training):
            patched.setattr(module, "write_page", lambda run: None)
        yield


@pytest.fixture
def no_page() -> Iterator[None]:
    """For a test that looks at other files: a page takes seconds, and has tests of its own."""
    with pages_left_out():
        yield


@pytest.fixture(scope="module")
def no_pages() -> Iterator[None]:
    """The same for a whole module."""
    with pages_left_out():
        yield


@contextmanager
def shapes_left_unchecked() -> Iterator[None]:
    """Whole studies whose every call is not checked for shapes and types: the checks take half the time."""
    import jaxtyping

    checked = not jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.fixture(scope="session")
def unchecked() -> Callable[[], AbstractContextManager[None]]:
    """Makes a block in which shapes and types are not checked, for what a test needs and does not test."""
    return shapes_left_unchecked


@pytest.fixture(scope="module")
def unchecked_shapes() -> Iterator[None]:
    """For a module that fits whole models again and again: shapes and types are not checked at each call.

    `test_commands.py` runs `study`, `train`, `predict` and `detect` with these checks.
    """
    with shapes_left_unchecked():
        yield
