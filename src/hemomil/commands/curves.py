"""curves.json of a study: ROC, precision-recall and deletion curves, reliability diagrams: what is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemomil.files import write_json
from hemomil.stats import Band, deletion_bands, precision_recall_band, reliability_diagram, roc_band

DIGITS = 4
DRAWS = 200
"""A pointwise band of a drawing needs no more."""


def write_curves(
    run: Path, samples: pd.DataFrame, deleted: pd.DataFrame, classes: Sequence[str], *, seed: int
) -> None:
    """Write `curves.json`: by method `reliability`, `deletion`; by class `roc`, `precision_recall`, `share`.

    `samples` and `deleted` are the rows of samples.csv and deletion.csv that the metrics are of, all with a
    prediction. What is not estimable is null; numbers have four digits.
    """
    methods = samples["method"].unique().tolist()
    write_json(
        run / "curves.json", {name: _method(samples, deleted, name, classes, seed) for name in methods}
    )


def _method(
    samples: pd.DataFrame, deleted: pd.DataFrame, method: str, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    rows = samples[samples["method"] == method]
    diagram = reliability_diagram(samples, method, classes, seed=seed, n_boot=DRAWS)
    bands = deletion_bands(deleted, method, seed=seed, n_boot=DRAWS)
    names = ("confidence", "accuracy", "low", "high", "share", "patients")
    return {
        "reliability": {name: _rounded(getattr(diagram, name)) for name in names},
        "deletion": {name: _band(band) for name, band in bands.items()},
        "classes": {
            label: {
                "roc": _band(roc_band(samples, method, label, seed=seed, n_boot=DRAWS)),
                "precision_recall": _band(
                    precision_recall_band(samples, method, label, seed=seed, n_boot=DRAWS)
                ),
                "share": round(float((rows["label"] == label).mean()), DIGITS),
            }
            for label in classes
        },
    }


def _band(band: Band) -> dict[str, Any]:
    return {name: _rounded(getattr(band, name)) for name in ("x", "value", "low", "high")} | {"n": band.n}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), DIGITS) for value in values]
