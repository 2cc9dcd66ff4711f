"""How far a site's healthy cells lie from those that a model learned health from; every donor counts alike.

Axes: D donors, F features, B bootstrap draws.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import ks_2samp, median_abs_deviation

from hemomil.stats.draws import LEVELS, MIN_PATIENTS, estimate, mean_over_samples, patient_draws
from hemomil.types import Estimate


def feature_shifts(
    donor_means: Float[np.ndarray, "D F"], names: Sequence[str], *, seed: int, n_boot: int = 1000
) -> pd.DataFrame:
    """A row per feature: feature, shift, low, high, donor_spread.

    `donor_means` are in standard deviations of the old controls' cells, from their mean. `shift` is the
    median of the donors, `low` and `high` its 95 % interval (NaN with fewer than 5 donors), `donor_spread`
    the scaled median absolute deviation.

    Notes
    -----
    The interval is over the donors of the site. How sure the old mean is, the model does not know.
    """
    n_donors = len(donor_means)
    low = high = np.full(len(names), np.nan)
    if n_donors >= MIN_PATIENTS:
        draws = patient_draws(n_donors, n_boot, seed=seed)
        medians_BF = [np.median(np.repeat(donor_means, times, axis=0), axis=0) for times in draws]
        low, high = np.percentile(medians_BF, LEVELS, axis=0)
    return pd.DataFrame(
        {
            "feature": list(names),
            "shift": np.median(donor_means, axis=0),
            "low": low,
            "high": high,
            "donor_spread": median_abs_deviation(donor_means, axis=0, scale="normal"),
        }
    )


def ks_from(cells: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Kolmogorov-Smirnov statistic between each donor's scores and those of all `others`.

    Tables of cells have `donor` and `score`. The statistic only: cells of one donor are no independent draws.
    """
    return cells.groupby("donor")["score"].agg(lambda scores: _ks(scores, others["score"]))


def ks_among(cells: pd.DataFrame) -> pd.Series:
    """The same between each donor and the other ones of its table: what is usual. NaN for a single donor."""
    apart = {
        donor: _ks(own["score"], cells.loc[cells["donor"] != donor, "score"])
        for donor, own in cells.groupby("donor")
    }
    return pd.Series(apart, dtype=np.float64)


def _ks(scores: pd.Series, others: pd.Series) -> float:
    if others.empty:
        return np.nan
    return float(ks_2samp(scores, others, method="asymp").statistic)


def ks_of_donors(cells: pd.DataFrame, others: pd.DataFrame) -> tuple[float, float]:
    """Statistic and p-value of the Kolmogorov-Smirnov test between the donors' median scores."""
    medians = [table.groupby("donor")["score"].median() for table in (cells, others)]
    found = ks_2samp(*medians)
    return float(found.statistic), float(found.pvalue)


def donor_mean(of_donor: pd.Series, *, seed: int, n_boot: int = 1000) -> Estimate:
    """Mean of a number of each donor, with its interval over donors; no value with fewer than 5 of them."""
    n_donors = len(of_donor)
    draws = patient_draws(n_donors, n_boot, seed=seed)
    values = of_donor.to_numpy(dtype=np.float64)
    return estimate(mean_over_samples(values, np.arange(n_donors), draws))
