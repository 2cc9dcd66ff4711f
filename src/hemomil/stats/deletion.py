"""Whether the cells that are said to count do: what a diagnosis loses without them, and without random ones.

Axes: S samples, P patients, B bootstrap draws, G numbers of cells taken out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from hemomil.stats.curves import Band
from hemomil.stats.draws import Resampled, estimate, mean_of_runs, mean_over_samples, over_runs, patient_draws
from hemomil.stats.scored import groups, indices

REMOVED = ("without_top", "without_random")
"""Columns of deletion.csv: without the cells of highest contribution, and without random ones."""


def deletion_metrics(
    table: pd.DataFrame, *, seed: int, n_boot: int = 1000
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per method `deletion_gain` (see `over_runs`): how much more counting cells matter than random ones.

    `table` is deletion.csv: sample, patient, run, method, k, without_top, without_random. The gain is the
    mean over samples of the mean over k of without_random − without_top, in units of probability (−1 to 1):
    how much more of the predicted class's probability is lost with the k cells of highest contribution than
    with k random ones. 0: they count no more than any; below 0: less. It is null with fewer than 5 patients.

    Notes
    -----
    Pixel flipping with cells for pixels: the area over the perturbation curve of Samek et al. 2017
    (doi 10.1109/TNNLS.2016.2599820) minus that of random orders, and the deletion curve of RISE (Petsiuk et
    al. 2018). Bags without their cells may be unlike any that the model was trained on. Where many alike
    cells make the diagnosis, little is lost whichever are taken out, and a right explanation has a low gain.
    A contribution is what is lost without the one cell, so at k = 1 no other choice does better; only above
    that can it fail. A model with flatter probabilities has less to lose: the gain alone ranks no methods.
    """
    if table.empty:
        return {}
    patients = sorted(set(table["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    gains = table.assign(gain=table["without_random"] - table["without_top"])
    return {
        method: over_runs([{"deletion_gain": gain} for gain in _means(rows, "gain", patients, draws)])
        for method, rows in groups(gains, "method").items()
    }


def _means(
    rows: pd.DataFrame, column: str, patients: Sequence[str], draws: Int[np.ndarray, "B P"]
) -> list[Resampled]:
    """Mean over samples of the column's mean within each, run by run."""
    found = []
    for run in groups(rows, "run").values():
        samples = run.groupby(["sample", "patient"], as_index=False)[column].mean()
        owners = indices(samples["patient"].tolist(), patients)
        found.append(mean_over_samples(samples[column].to_numpy(np.float64), owners, draws))
    return found


def deletion_bands(table: pd.DataFrame, method: str, *, seed: int, n_boot: int = 1000) -> dict[str, Band]:
    """Mean probability of the predicted class at each number of cells taken out, 0 among them, by `REMOVED`.

    Of the samples that have every k of the table, so that all points are of the same ones; NaN with fewer
    than 5 patients. Averaged over runs; the bands are pointwise 95 % intervals over patients.
    """
    grid = sorted(table["k"].unique().tolist())
    rows = table[table["method"] == method]
    rows = rows[rows.groupby(["run", "sample"])["k"].transform("size") == len(grid)]
    return {name: _band(rows, name, grid, seed, n_boot) for name in REMOVED}


def _band(rows: pd.DataFrame, column: str, grid: Sequence[int], seed: int, n_boot: int) -> Band:
    x = np.array([0, *grid], dtype=np.float64)
    if rows.empty:
        return Band(x=x, **dict.fromkeys(("value", "low", "high"), np.full(len(x), np.nan)), n=0)
    patients = sorted(set(rows["patient"]))
    draws = patient_draws(len(patients), n_boot, seed=seed)
    runs = [_means(rows, "probability", patients, draws)]
    runs += [_means(rows[rows["k"] == k], column, patients, draws) for k in grid]
    points = [estimate(mean_of_runs(found)) for found in runs]
    value, low, high = np.array([[p.value, p.low, p.high] for p in points], dtype=np.float64).T
    return Band(x=x, value=value, low=low, high=high, n=points[0].n)
