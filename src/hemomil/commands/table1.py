"""Table 1 of a study, table1.csv, .txt, .tex and .html: what the methods reach, and whether they differ."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hemomil.commands.settings import Settings
from hemomil.files import write_text
from hemomil.report.table1 import COLUMNS, Table1, table1_files
from hemomil.stats import MIN_PATIENTS, OVERALL, Difference, compare_methods

PAPER = "anomaly+att+sic"
CLEAR = 0.05
"""Adjusted p below which a method counts as different."""

Compared = Mapping[tuple[str, str], Difference]
"""By method and metric."""


def write_table1(
    run: Path,
    samples: pd.DataFrame,
    classes: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    settings: Settings,
) -> None:
    """Write Table 1 into a run folder.

    `samples` are the rows of samples.csv that `metrics` (by method, as in metrics.json) are of, all with a
    prediction. Raises SettingsError where methods did not score the same samples.
    """
    for suffix, text in table1_files(table1(samples, classes, metrics, settings)).items():
        write_text(run / f"table1.{suffix}", text)


def table1(
    samples: pd.DataFrame,
    classes: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    settings: Settings,
) -> Table1:
    """The metrics and differences of a study, side by side."""
    reference = reference_method(list(metrics))
    leaders = {key: leader for key in _keys(metrics) if (leader := _highest(metrics, key)) is not None}
    against = sorted({reference, *leaders.values()}) if reference else []
    found = {name: _compared(samples, classes, name, settings) for name in against}
    best = {key: leader for key, leader in leaders.items() if _clearly_best(found.get(leader, {}), key)}
    of_class = samples.groupby("label")["patient"].nunique()
    return Table1(
        rows=pd.DataFrame(
            list(_rows(metrics, found[reference] if reference else {}, best)), columns=list(COLUMNS)
        ),
        reference=reference,
        runs=samples["run"].nunique(),
        patients=samples["patient"].nunique(),
        small={
            name: int(of_class[name]) for name in classes if of_class.get(name, MIN_PATIENTS) < MIN_PATIENTS
        },
        evaluated_on=settings.study.evaluate_on or None,
    )


def reference_method(methods: Sequence[str]) -> str | None:
    """The paper's method if it is there, else the first; None for a single method."""
    if len(methods) < 2:
        return None
    return PAPER if PAPER in methods else methods[0]


def _rows(
    metrics: Mapping[str, Mapping[str, Any]], compared: Compared, best: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for suffix in ("", "_patient"):
        for method, own in metrics.items():
            for metric in [name for name in OVERALL if f"{name}{suffix}" in own]:
                key = f"{metric}{suffix}"
                estimate = {name: own[key][name] for name in ("value", "sd_runs", "low", "high", "n")}
                told = {"level": suffix.removeprefix("_") or "sample", "method": method, "metric": metric}
                yield (
                    told | estimate | _apart(compared.get((method, key))) | {"best": best.get(key) == method}
                )


def _apart(found: Difference | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "p": found.p,
        "p_adjusted": found.p_adjusted,
    }


def _clearly_best(compared: Compared, metric: str) -> bool:
    """Whether the reference of these comparisons differs from every other method; not where there is none."""
    others = [found for (_, key), found in compared.items() if key == metric]
    return bool(others) and all(map(_clear, others))


def _keys(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    there = next(iter(metrics.values()))
    return [key for name in OVERALL for key in (name, f"{name}_patient") if key in there]


def _highest(metrics: Mapping[str, Mapping[str, Any]], key: str) -> str | None:
    values = {method: own[key]["value"] for method, own in metrics.items() if own[key]["value"] is not None}
    return max(values, key=lambda method: values[method]) if len(values) == len(metrics) else None


def _clear(found: Difference) -> bool:
    return found.p_adjusted is not None and found.p_adjusted < CLEAR


def _compared(samples: pd.DataFrame, classes: Sequence[str], reference: str, settings: Settings) -> Compared:
    found = compare_methods(
        samples,
        classes,
        reference=reference,
        control=settings.control,
        seed=settings.seed,
        n_boot=settings.study.bootstrap,
    )
    return {(one.method, one.metric): one for one in found}
