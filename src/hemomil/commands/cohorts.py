"""`simulate`, `init` and `check`: cohorts made, found in a folder tree, and examined. No torch."""

from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from hemomil.cohort import (
    Problem,
    check_images,
    exclude,
    init_manifest,
    read_cells,
    read_manifest,
    summary,
    whole_image_cells,
)
from hemomil.commands.console import SILENT, Talk
from hemomil.errors import ManifestError, SettingsError
from hemomil.simulate import SimulateSettings
from hemomil.simulate import simulate as draw_cohort
from hemomil.types import Cells, Cohort


def simulate(output: Path, *, settings: SimulateSettings | None = None, talk: Talk = SILENT) -> Path:
    """Draw a cohort of blood smears; returns its manifest."""
    settings = settings or SimulateSettings()
    with talk.counting("drawing smears") as count:
        draw_cohort(output, settings, count)
    talk.say(f"wrote {output / 'manifest.csv'}")
    return output / "manifest.csv"


def simulation(
    seed: int | None = None,
    patients: str | None = None,
    samples: str | None = None,
    images: int | None = None,
) -> SimulateSettings:
    """Settings of a simulated cohort from what the command line gives.

    `patients` like `control=6,scd=3`; `samples` like that, or one number for every class.
    """
    one = samples is not None and "=" not in samples
    given = {
        "seed": seed,
        "samples": samples if one else _counts("--samples", samples),
        "images": images,
        "patients": _counts("--patients", patients),
    }
    try:
        return SimulateSettings.model_validate(
            {key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, p['loc']))} = {p['input']!r}: {p['msg']}" for p in error.errors()]
        raise SettingsError(
            "this cohort cannot be drawn: " + "; ".join(lines), hint="see hemomil simulate -h"
        ) from None


def _counts(flag: str, text: str | None) -> dict[str, str] | None:
    """`control=6,scd=3` as a mapping; SettingsError where it is not that."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise SettingsError(f"{flag} {text!r} is not CLASS=N,CLASS=N", hint="for example control=6,scd=3")
    return {name.strip(): count.strip() for name, _, count in pairs}


def init(tree: Path, *, output: Path | None = None, talk: Talk = SILENT) -> Path:
    """Turn a folder tree label/patient/sample/*.png into a manifest; returns its path."""
    manifest = output or tree / "manifest.csv"
    if manifest.exists():
        raise ManifestError(f"{manifest} exists", hint="remove it, or name another file with -o")
    cohort = init_manifest(tree, manifest)
    talk.say(f"wrote {manifest}: {len(cohort.samples)} samples; classes {', '.join(cohort.classes)}")
    return manifest


def check(
    manifest: Path, *, cells: Path | None = None, control: str = "control", leave_out: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, list[Problem]]:
    """Counts per class, and every problem that the images have, with its row.

    Raises ManifestError or CellsError, listing everything, where a table itself cannot be read.
    """
    cohort = read_manifest(manifest, control=control, labels_needed=False)
    for condition in leave_out:
        cohort = exclude(cohort, condition)
    problems = check_images(cohort)
    return summary(cohort, _cells(cohort, cells) if not problems else None), problems


def _cells(cohort: Cohort, cells: Path | None) -> Cells | None:
    if cells:
        return read_cells(cells, cohort)
    kinds = {image.kind for sample in cohort.samples for image in sample.images}
    return whole_image_cells(cohort) if kinds == {"cell"} else None
