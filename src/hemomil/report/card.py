"""The model card of a run: what it is for, what it rests on, how good it is, and what it cannot do.

Only what the run folder knows is said; a line that nothing is known for is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hemomil.report.figures import headline_metrics
from hemomil.report.tables import RunTables, records
from hemomil.report.words import estimate_text, explain_metric, metric_title

FEW_PATIENTS = 5
USE = (
    (
        "intended use",
        "Research: to find which cells of a blood smear go with a disorder that is known of the patient "
        "only, and to put samples and cells in an order for an expert's eye.",
    ),
    (
        "not for",
        "Diagnosis, screening, treatment or monitoring of a person. This is not a medical device. Not for "
        "other stains, microscopes, cameras or laboratories without measuring again.",
    ),
    ("users", "Researchers in hematology and in machine learning, who can judge a blood smear by eye."),
)
LIMITS = (
    (
        "other disorders",
        "Only the classes that it was trained on can be named. Any other disorder gets the name of one of "
        "these; only the anomaly of its cells may tell.",
    ),
    ("artefacts", "Dirt, drying, overlaps and the edges of a smear are strange too, also in healthy people."),
    ("explanations", "Attention and contribution say what the model used, not which cells are diseased."),
    (
        "shortcuts",
        "A difference of stain, camera or site between the classes can be learned in place of the disorder.",
    ),
)
SETTINGS = {
    "preset": ("preset",),
    "features of the cells": ("features",),
    "epochs": ("mil", "epochs"),
    "folds": ("study", "folds"),
    "trainings per fold": ("study", "runs"),
    "left out of the run": ("exclude",),
}


@dataclass(frozen=True, slots=True)
class CardPart:
    """A part of the card: its heading and its lines, each with its name."""

    heading: str
    lines: tuple[tuple[str, str], ...]


def model_card(tables: RunTables) -> tuple[CardPart, ...]:
    """The parts of the card, in the order shown."""
    parts = (
        ("Use", iter(USE)),
        ("Data", _data(tables)),
        ("Method", _method(tables)),
        ("What healthy means", _healthy(tables)),
        ("How well it reads", _metrics(tables)),
        ("Limits", _limits(tables)),
    )
    return tuple(CardPart(heading, lines) for heading, made in parts if (lines := tuple(made)))


def _data(tables: RunTables) -> Iterator[tuple[str, str]]:
    yield "all", _counted(tables.samples)
    for name in tables.classes:
        own = tables.samples[tables.samples["label"] == name]
        if len(own):
            yield name, _counted(own)
    unknown = tables.samples[tables.samples["label"] == ""]
    if len(unknown):
        yield "class not known", _counted(unknown)
    sites = _sites(tables)
    if sites:
        yield "sites", sites


def _counted(samples: pd.DataFrame) -> str:
    patients = samples.loc[samples["patient"] != "", "patient"].nunique()
    counts = {"patient": patients, "sample": len(samples), "cell": int(samples["cells"].sum())}
    return ", ".join(_number(count, noun) for noun, count in counts.items() if count or noun == "sample")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _sites(tables: RunTables) -> str:
    """Samples of each site, where the manifest can be read and names them."""
    if tables.manifest is None or tables.manifest.suffix != ".csv" or not tables.manifest.is_file():
        return ""
    manifest = pd.read_csv(tables.manifest, dtype=str, keep_default_na=False)
    if not {"site", "sample"} <= set(manifest.columns):
        return ""
    own = manifest[manifest["sample"].isin(tables.samples["sample"]) & (manifest["site"] != "")]
    counts = own.groupby("site")["sample"].nunique()
    return ", ".join(f"{site} ({_number(count, 'sample')})" for site, count in counts.items())


def _method(tables: RunTables) -> Iterator[tuple[str, str]]:
    yield "method shown", tables.method
    if len(tables.methods) > 1:
        yield "compared with", ", ".join(name for name in tables.methods if name != tables.method)
    yield "classes it can name", ", ".join(tables.classes)
    if "command" in tables.about:
        yield "made by", f"hemomil {tables.about.get('version', '')} {tables.about['command']}"
    for name, keys in SETTINGS.items():
        found = _found(tables.about.get("settings") or {}, keys)
        if found not in (None, "", [], {}):
            yield name, ", ".join(map(str, found)) if isinstance(found, list) else str(found)
    if "seed" in tables.about:
        yield "seed", str(tables.about["seed"])


def _found(settings: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _healthy(tables: RunTables) -> Iterator[tuple[str, str]]:
    healthy = tables.samples[tables.samples["label"] == tables.control]
    yield "healthy class", tables.control
    if len(healthy):
        yield "healthy donors here", _counted(healthy)
    if "novelty_floor" in tables.samples:
        floors = pd.to_numeric(tables.samples["novelty_floor"], errors="coerce").dropna()
        if len(floors):
            yield "smallest novelty p possible", f"{floors.max():.2g}"


def _metrics(tables: RunTables) -> Iterator[tuple[str, str]]:
    """The metrics that lead, of the shown method, each with its interval."""
    estimates = tables.estimates
    own = estimates[(estimates["method"] == tables.method) & (estimates["score"] == "")]
    own = own[own["metric"].isin(headline_metrics(estimates))]
    for row in records(own):
        rests = f", {int(row['n'])} {row['unit']}" if pd.notna(row["n"]) else ""
        meaning = explain_metric(str(row["metric"]))
        yield metric_title(str(row["metric"])), f"{estimate_text(row)}{rests}. {meaning}".strip()
    if own.empty:
        yield "not measured", "This run has no patients set aside; hemomil study measures on new ones."


def _limits(tables: RunTables) -> Iterator[tuple[str, str]]:
    known = tables.samples[(tables.samples["label"] != "") & (tables.samples["patient"] != "")]
    patients = known.groupby("label")["patient"].nunique()
    few = [f"{name} ({patients[name]})" for name in tables.classes if patients.get(name, 99) < FEW_PATIENTS]
    if few:
        yield "few patients", f"Classes of fewer than {FEW_PATIENTS} patients: {', '.join(few)}."
    yield from LIMITS
    notices = tables.about.get("notices") or []
    if notices:
        kinds = dict.fromkeys(str(notice.get("kind", "")).replace("-", " ") for notice in notices)
        yield (
            "warnings of this run",
            f"{len(notices)}: {', '.join(kinds)}. They stand at the top of the report.",
        )
