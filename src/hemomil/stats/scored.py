"""A study's samples as arrays: which class they are, which was called, how probable each class was.

Axes: S samples, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from hemomil.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Samples with their true class, the class called, and the probabilities, as indices."""

    truth: Int[np.ndarray, "S"]
    called: Int[np.ndarray, "S"]
    probabilities: Float[np.ndarray, "S K"]
    patients: Int[np.ndarray, "S"]
    """Column of each sample's patient in the draws."""

    def patients_where(self, rows: Bool[np.ndarray, "S"]) -> int:
        """How many patients these rows belong to."""
        return len(np.unique(self.patients[rows]))


def indices(values: Sequence[str], names: Sequence[str]) -> Int[np.ndarray, "S"]:
    """Position of each value among the names; SettingsError for one that is not there."""
    position = {name: index for index, name in enumerate(names)}
    strange = sorted(set(values) - set(position))
    if strange:
        raise SettingsError(
            f"labels {', '.join(map(repr, strange))} are not among the classes {', '.join(map(repr, names))}",
            hint="set these samples aside with --exclude, or score them as unseen with --leave-out",
        )
    return np.array([position[value] for value in values], dtype=np.int64)


def groups(table: pd.DataFrame, column: str) -> dict[Any, pd.DataFrame]:
    """The rows of each value, in the order in which the values first appear."""
    return {value: table[table[column] == value] for value in table[column].unique()}


def scored_runs(rows: pd.DataFrame, classes: Sequence[str], patients: Sequence[str]) -> dict[Any, Scored]:
    """The rows of one method, run by run; a run's folds are scored together."""
    return {run: _scored(table, classes, patients) for run, table in groups(rows, "run").items()}


def _scored(table: pd.DataFrame, classes: Sequence[str], patients: Sequence[str]) -> Scored:
    # sorted, so that sums run in one order whatever the order of the rows
    table = table.sort_values("sample", kind="stable")
    return Scored(
        truth=indices(table["label"].tolist(), classes),
        called=indices(table["predicted"].tolist(), classes),
        probabilities=table[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64),
        patients=indices(table["patient"].tolist(), patients),
    )
