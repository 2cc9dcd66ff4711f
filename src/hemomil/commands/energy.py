"""How much electricity a run took, by codecarbon where that is installed (extra `[energy]`).

codecarbon is kept from everything but counting: no file, no network, no line on the screen, and nothing that
goes wrong in it stops a run.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

COUNTERS = ("rapl", "emi", "gadget", "apple", "raspberry")
"""What codecarbon calls a processor whose own energy counter it reads; any other is estimated."""
SECONDS = 15.0
"""Between two readings."""


@contextmanager
def metered(facts: dict[str, Any], country: str = "") -> Iterator[None]:
    """Note under `energy` what the block used: energy_kwh, co2_kg, country, how; None without codecarbon.

    `country` is an ISO 3166 code of three letters, for the CO2 of its electricity; blank or unknown to
    codecarbon, the mean of the world stands in, `country` is None and `how` says so.

    Notes
    -----
    The whole machine is counted, other programs on it too, but no other machine (a cluster's workers are not
    seen) and no earlier part of a run that was killed. Where the processor's energy counter cannot be read
    (most virtual machines, Linux without the right to read RAPL) its power is estimated from its load and
    rated power, or from 4 W a core where the model is unknown, and memory always from its size: the order of
    magnitude, not a measurement. A graphics card is read from its driver. `how` says which it was.
    """
    tracker = _started(country)
    try:
        yield
    finally:
        facts["energy"] = _stopped(tracker)


def _started(country: str) -> Any:
    """A running tracker; None where there is no codecarbon, or it fails."""
    with suppress(Exception), _unheard():
        tracker = import_module("codecarbon").OfflineEmissionsTracker(
            country_iso_code=country.upper() or None,
            # said in full, because a .codecarbon.config or the environment speaks for what is left unsaid
            output_methods=[],
            output_handlers=[],
            output_dir=tempfile.gettempdir(),
            emissions_endpoint=None,
            electricitymaps_api_token="",
            country_2letter_iso_code=None,
            cloud_provider=None,
            cloud_region=None,
            region=None,
            tracking_mode="machine",
            allow_multiple_runs=True,
            measure_power_secs=SECONDS,
            log_level="critical",
        )
        tracker.start()
        return tracker
    return None


def _stopped(tracker: Any) -> dict[str, Any] | None:
    """What a tracker counted, JSON-ready; None where it counted nothing."""
    with suppress(Exception), _unheard():
        tracker.stop()
        data = tracker.final_emissions_data
        return {
            "energy_kwh": float(data.energy_consumed),
            "co2_kg": float(data.emissions),
            "country": data.country_iso_code if data.country_name else None,
            "how": _how(tracker, data),
        }
    return None


def _how(tracker: Any, data: Any) -> str:
    """One line: which numbers were measured, and whose electricity was assumed."""
    parts = ", ".join(getattr(tracker, "_conf", {}).get("hardware", ())).lower()
    counted = any(word in parts for word in COUNTERS)
    cpu = "processor by its energy counter" if counted else "processor estimated from load and rated power"
    gpu = f"{data.gpu_model} by its driver" if data.gpu_count else "no graphics card"
    mix = f"electricity of {data.country_name}" if data.country_name else "mean electricity of the world"
    return f"codecarbon {data.codecarbon_version}: whole machine; {cpu}; memory estimated; {gpu}; {mix}"


@contextmanager
def _unheard() -> Iterator[None]:
    """Nothing that codecarbon logs or warns of leaves this block."""
    log = logging.getLogger("codecarbon")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
