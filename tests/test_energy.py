"""The energy of a run: counted where codecarbon is installed, and never in the way."""

import importlib.util
import json
import logging
import socket
import sys
import time
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from hemomil.commands.energy import metered


class FakeTracker:
    """As codecarbon's, with a log line, a warning and a print of its own at every step."""

    made: "list[FakeTracker]" = []  # noqa: RUF012
    fails_at = ""
    country_name: str | None = "Germany"
    hardware = ("RAM()", "CPU(Cpu Load)")
    gpus = 0

    def __init__(self, **how):
        self.how, self.calls = how, []
        self._conf = {"hardware": list(self.hardware)}
        self._step("init")
        FakeTracker.made.append(self)

    def _step(self, name):
        self.calls.append(name)
        logging.getLogger("codecarbon").critical("a line of codecarbon")
        warnings.warn("codecarbon warns", DeprecationWarning, stacklevel=1)
        if self.fails_at == name:
            raise RuntimeError(f"codecarbon fails at {name}")

    def start(self):
        self._step("start")

    def stop(self):
        self._step("stop")
        self.final_emissions_data = SimpleNamespace(
            energy_consumed=0.25,
            emissions=0.1,
            country_iso_code=self.how["country_iso_code"],
            country_name=self.country_name,
            codecarbon_version="9.9",
            gpu_count=self.gpus,
            gpu_model="1 x H100" if self.gpus else "",
        )


@pytest.fixture
def fake(monkeypatch, capfd):
    module = ModuleType("codecarbon")
    tracker = type("Tracker", (FakeTracker,), {})
    module.OfflineEmissionsTracker = tracker
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    FakeTracker.made.clear()
    log = logging.getLogger("codecarbon")
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    yield tracker
    log.removeHandler(handler)


def test_a_run_says_what_it_took(fake, capfd):
    facts = {"classes": ["control"]}
    with metered(facts, "deu"):
        assert FakeTracker.made[0].calls == ["init", "start"]
    assert FakeTracker.made[0].calls == ["init", "start", "stop"]
    assert facts["energy"] == {
        "energy_kwh": 0.25,
        "co2_kg": 0.1,
        "country": "DEU",
        "how": "codecarbon 9.9: whole machine; processor estimated from load and rated power; "
        "memory estimated; no graphics card; electricity of Germany",
    }
    assert facts["classes"] == ["control"]
    json.dumps(facts, allow_nan=False)
    assert capfd.readouterr() == ("", "")


def test_it_says_when_a_counter_was_read_and_whose_electricity_was_assumed(fake):
    fake.hardware, fake.country_name, fake.gpus = ("RAM()", "GPU", "CPU(Intel Rapl)"), None, 1
    facts = {}
    with metered(facts):
        pass
    assert FakeTracker.made[0].how["country_iso_code"] is None
    assert facts["energy"]["country"] is None
    for words in ("its energy counter", "1 x H100 by its driver", "mean electricity of the world"):
        assert words in facts["energy"]["how"]


def test_codecarbon_is_asked_for_no_file_and_no_network(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with metered({}, "FRA"):
        pass
    how = FakeTracker.made[0].how
    assert how["output_methods"] == [] == how["output_handlers"]
    assert how["emissions_endpoint"] is None
    assert not how["electricitymaps_api_token"]
    assert how["output_dir"] != "."


@pytest.mark.parametrize("step", ["init", "start", "stop"])
def test_a_codecarbon_that_fails_does_not_stop_the_run(fake, step, capfd):
    fake.fails_at = step
    facts, ran = {}, False
    with metered(facts, "DEU"):
        ran = True
    assert ran
    assert facts["energy"] is None
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_run_is_the_runs_own_and_the_tracker_is_stopped(fake):
    facts = {}
    with pytest.raises(ZeroDivisionError), metered(facts, "DEU"):
        1 / 0  # noqa: B018
    assert FakeTracker.made[0].calls[-1] == "stop"
    assert facts["energy"]["energy_kwh"] == 0.25


def test_other_programs_keep_their_log(fake):
    log = logging.getLogger("codecarbon")
    with metered({}, "DEU"):
        assert not log.disabled
    assert not log.disabled


def test_without_codecarbon_there_is_none_and_not_a_word(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    facts = {}
    with metered(facts, "DEU"):
        pass
    assert facts == {"energy": None}
    assert capfd.readouterr() == ("", "")


needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="the extra [energy] is not installed"
)


@needs_codecarbon
@pytest.mark.parametrize(("country", "expected"), [("DEU", "DEU"), ("", None), ("XXX", None)])
def test_the_real_tracker_counts_offline_silently_and_writes_nothing(
    country, expected, tmp_path, monkeypatch, capfd
):
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\nsave_to_file = true\nemissions_endpoint = http://localhost:1\nlog_level = debug\n"
    )
    monkeypatch.chdir(tmp_path)

    touched = []

    def refuse(*address):
        touched.append(address)
        raise OSError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    facts = {}
    with metered(facts, country):
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            sum(range(1000))
    energy = facts["energy"]
    assert touched == []
    assert energy["country"] == expected
    assert 0 < energy["energy_kwh"] < 0.01
    assert 0 < energy["co2_kg"] < 0.01
    assert ("mean electricity of the world" in energy["how"]) == (expected is None)
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]
    assert capfd.readouterr() == ("", "")
