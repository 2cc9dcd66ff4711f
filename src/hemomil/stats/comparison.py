"""Are two methods different? Every method against a reference, on the same patients.

Axes: S samples, K classes, P patients, B bootstrap draws or swaps, M methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from hemomil.errors import SettingsError
from hemomil.stats.classification import OVERALL, one_row_a_patient, sample_metrics
from hemomil.stats.draws import Resampled, estimate, patient_draws
from hemomil.stats.scored import Scored, groups, scored_runs
from hemomil.stats.study import check_paired, mean_metrics, minus
from hemomil.streams import stream

ROUNDING = 1e-9
"""Differences closer than this are equal: they are sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of `method` minus that of `reference`; None where one of them is not estimable."""

    method: str
    reference: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    """Patients."""
    p: float | None
    p_adjusted: float | None
    """Holm's, for as many methods as were compared on this metric."""


def compare_methods(
    samples: pd.DataFrame,
    classes: Sequence[str],
    *,
    reference: str,
    control: str,
    seed: int,
    n_boot: int = 1000,
    n_permutations: int = 1000,
) -> list[Difference]:
    """Every other method against `reference`, on each metric of `OVERALL` and its `_patient` form, if any.

    `samples` is samples.csv; rows that predict nothing must be set aside first. Value and 95 % interval are
    those of `paired_difference`; all methods share the draws of patients. Raises SettingsError for a method
    that did not score the same samples as the reference in the same runs.

    Notes
    -----
    p is two-sided, from a permutation test: patients at random exchange the predictions of the two methods,
    all samples and runs of a patient together, and p is the share of these exchanges (nobody's among them)
    that set the methods as far apart as they are. It is at least 1 / (n_permutations + 1). Where few patients
    allow no more than `n_permutations` exchanges, each is made once, and p is at least 2 / 2^patients.

    Areas are computed on ranks within a method and run (Venkatraman & Begg 1996). On raw scores a method that
    is merely surer of itself than its equal widens the null: 5 % became 2 to 5 (AUROC) and 1 to 2 (AUPRC).

    The test is exact for accuracy where the methods are exchangeable patient by patient; it is used for the
    weaker claim that they are equally good. In simulated pairs of equals (`benchmarks/coverage.py`) it told
    3 to 6 % of them apart with 30 patients and 4 to 8 % with 70, the interval 5 to 8 %: where the interval
    just excludes 0 and p is above .05, believe p. The intervals are not adjusted for the number of methods.
    Neither knows of other training sets: a study's models are taken as they are, though its patients have
    trained each other's models.
    """
    tables = groups(samples, "method")
    if reference not in tables:
        raise SettingsError(
            f"there is no method {reference!r} to compare with", hint=f"choose one of {', '.join(tables)}"
        )
    for method, rows in tables.items():
        check_paired(method, rows, reference, tables[reference])
    patients = sorted(set(samples["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    swaps = patient_swaps(len(patients), n_permutations, seed=seed)
    runs = {method: scored_runs(rows, classes, patients) for method, rows in tables.items()}
    means = {name: mean_metrics(scored.values(), classes, control, draws) for name, scored in runs.items()}
    found = []
    for method in [name for name in tables if name != reference]:
        swapped = swapped_differences(runs[method], runs[reference], swaps, classes, control)
        for metric, apart in swapped.items():
            drawn = minus(means[method][metric], means[reference][metric])
            found.append(_difference(method, reference, metric, drawn, apart))
    return _adjusted(found)


def patient_swaps(n_patients: int, n_permutations: int, *, seed: int) -> Bool[np.ndarray, "B P"]:
    """Whose predictions two methods exchange: first nobody's, then at random; all ways, if that is fewer."""
    if 2**n_patients <= n_permutations:
        return np.array(list(product([False, True], repeat=n_patients)))
    rng = stream(seed, "stats", "swaps")
    nobody = np.zeros((1, n_patients), dtype=bool)
    return np.concatenate([nobody, rng.random((n_permutations, n_patients)) < 0.5])


def swapped_differences(
    runs: Mapping[Any, Scored],
    reference: Mapping[Any, Scored],
    swaps: Bool[np.ndarray, "B P"],
    classes: Sequence[str],
    control: str,
) -> dict[str, Float[np.ndarray, "B"]]:
    """Per metric: its difference, averaged over runs, after the patients of each swap changed sides."""
    found = [_swapped(scored, reference[run], swaps, classes, control) for run, scored in runs.items()]
    return {metric: np.mean([run[metric] for run in found], axis=0) for metric in found[0]}


def _swapped(
    first: Scored, second: Scored, swaps: Bool[np.ndarray, "B P"], classes: Sequence[str], control: str
) -> dict[str, Float[np.ndarray, "B"]]:
    whole = _swapped_metrics(first, second, swaps, classes, control)
    ours, theirs = one_row_a_patient(first), one_row_a_patient(second)
    if ours is None or theirs is None:
        return whole
    means = _swapped_metrics(ours, theirs, swaps, classes, control)
    return whole | {f"{metric}_patient": drawn for metric, drawn in means.items()}


def _swapped_metrics(
    first: Scored, second: Scored, swaps: Bool[np.ndarray, "B P"], classes: Sequence[str], control: str
) -> dict[str, Float[np.ndarray, "B"]]:
    """Both methods' samples in one table, each patient there twice: a swap is a draw of one of the two."""
    both = stacked(ranked(first), ranked(second), swaps.shape[1])
    ours, theirs = np.concatenate([~swaps, swaps], axis=1), np.concatenate([swaps, ~swaps], axis=1)
    drawn = sample_metrics(both, classes, control, np.concatenate([ours, theirs]).astype(np.int64))
    return {metric: np.subtract(*np.split(drawn[metric].draws, 2)) for metric in OVERALL}


def ranked(scored: Scored) -> Scored:
    """With each probability replaced by its rank among those of its class: all an area depends on."""
    return replace(scored, probabilities=rankdata(scored.probabilities, axis=0))


def stacked(first: Scored, second: Scored, n_patients: int) -> Scored:
    """The samples of both, those of `second` under patients of their own (columns P … 2P−1)."""
    return Scored(
        truth=np.concatenate([first.truth, second.truth]),
        called=np.concatenate([first.called, second.called]),
        probabilities=np.concatenate([first.probabilities, second.probabilities]),
        patients=np.concatenate([first.patients, second.patients + n_patients]),
    )


def _difference(
    method: str, reference: str, metric: str, apart: Resampled, swapped: Float[np.ndarray, "B"]
) -> Difference:
    result = estimate(apart)
    p = None if result.value is None else float(np.mean(np.abs(swapped) >= abs(apart.value) - ROUNDING))
    return Difference(
        method=method,
        reference=reference,
        metric=metric,
        value=result.value,
        low=result.low,
        high=result.high,
        n=result.n,
        p=p,
        p_adjusted=p,
    )


def _adjusted(found: Sequence[Difference]) -> list[Difference]:
    """With Holm's p over the methods of each metric that have one."""
    known = [row for row in found if row.p is not None]
    adjusted: dict[tuple[str, str], float] = {}
    for metric in {row.metric for row in known}:
        family = [row for row in known if row.metric == metric]
        values = holm(np.array([row.p for row in family]))
        adjusted |= {(row.method, metric): float(p) for row, p in zip(family, values, strict=True)}
    return [replace(row, p_adjusted=adjusted.get((row.method, row.metric))) for row in found]


def holm(p: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
    """P-values adjusted so that the chance of one false claim among them stays at the level (Holm 1979)."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted
