"""Divide samples into folds that never separate a patient, every class in every part as far as it can be.

Axes: S samples, K classes, V folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import StratifiedGroupKFold

from hemomil.cohort.choose import known_column, sample_value
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.errors import SettingsError
from hemomil.streams import stream
from hemomil.types import Cohort, Notice, class_order

DRAWS = 20
"""Divisions drawn; the most balanced is taken. Only labels are looked at, so nothing leaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Which fold each sample is tested in, and what could not be balanced."""

    fold: Int[np.ndarray, "S"]
    notices: tuple[Notice, ...]


def fold_units(cohort: Cohort, group: str = "patient") -> list[tuple[str, str, str]]:
    """(sample, group, label) of each labelled sample, for `make_folds`; the group a patient or another column.

    Raises SettingsError if the column is unknown or blank for a sample, or would separate a patient.
    """
    column = known_column(cohort, group)
    labelled = [s for s in cohort.samples if s.label is not None]
    blank = [s.sample for s in labelled if sample_value(s, column) is None]
    if blank:
        raise SettingsError(
            f"{len(blank)} samples have no single {column} (the first is {blank[0]!r})",
            hint=f"fill in {column} for every row, or group by patient",
        )
    _refuse_separated(cohort, column)
    return [(s.sample, sample_value(s, column) or "", s.label or "") for s in labelled]


def _refuse_separated(cohort: Cohort, column: str) -> None:
    groups: dict[str, set[str]] = {}
    for s in cohort.samples:
        groups.setdefault(s.patient, set()).add(sample_value(s, column) or "")
    for patient, names in groups.items():
        if len(names) > 1 and column != "sample":
            raise SettingsError(
                f"patient {patient!r} has samples of {len(names)} values of {column}: {', '.join(sorted(names))}",
                hint="folds by this column would separate the patient; group by patient",
            )
    if column in ("sample", "label"):
        raise SettingsError(
            f"folds cannot be grouped by {column}", hint="group by patient, or by a column like site"
        )


def make_folds(
    samples: Sequence[tuple[str, str, str]], n_folds: int, *, seed: int, run: int = 0, group: str = "patient"
) -> Folds:
    """The test fold of each (sample, patient, label), 0 to n_folds - 1.

    scikit-learn's StratifiedGroupKFold over whole patients, in an order drawn from
    `stream(seed, "folds", run)`; of several draws the one whose folds resemble the cohort most. A
    patient may have samples of several classes. `group` names the second entry where it is not the
    patient. Every class is in every training part; where it is missing from a test fold, or a
    fold has less than half or more than twice its share, a Notice says so. Raises SettingsError if a
    class has fewer patients than there are folds.
    """
    _refuse_few(samples, n_folds, group)
    patients = np.array([patient for _, patient, _ in samples])
    names, labels = np.unique([label for *_, label in samples], return_inverse=True)
    rng = stream(seed, "folds", run)
    draws = [_draw(patients, labels, n_folds, rng) for _ in range(DRAWS)]
    fold = min(draws, key=lambda fold: _imbalance(_counts(fold, labels, n_folds)))
    counts_VK = _counts(fold, labels, n_folds)
    _refuse_untrainable(counts_VK, names, group)
    return Folds(fold=fold, notices=tuple(_notices(counts_VK, names)))


def _refuse_few(samples: Sequence[tuple[str, str, str]], n_folds: int, group: str) -> None:
    if n_folds < 2:
        raise SettingsError(f"{n_folds} folds are none", hint="use at least 2 folds")
    if not samples:
        raise SettingsError(
            "there are no labelled samples to divide into folds", hint="fill in the label column"
        )
    groups: dict[str, set[str]] = {}
    for _, patient, label in samples:
        groups.setdefault(label, set()).add(patient)
    problems = [
        Problem(
            None,
            f"class {label!r}",
            f"has {len(groups[label])} {group}{'s' if len(groups[label]) > 1 else ''} for {n_folds} folds",
            f"use at most {max(2, min(map(len, groups.values())))} folds, or leave a class out by --exclude label=NAME",
        )
        for label in class_order(list(groups), "")
        if len(groups[label]) < n_folds
    ]
    refuse_if_any(problems, SettingsError, "the division into folds")


def _draw(
    patients: np.ndarray, labels: np.ndarray, n_folds: int, rng: np.random.Generator
) -> Int[np.ndarray, "S"]:
    fold = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
    for number, (_, test) in enumerate(splitter.split(labels, labels, patients)):
        fold[test] = number
    return fold


def _counts(fold: Int[np.ndarray, "S"], labels: np.ndarray, n_folds: int) -> Int[np.ndarray, "V K"]:
    """Samples of each class in each fold."""
    counts_VK = np.zeros((n_folds, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts_VK, (fold, labels), 1)
    return counts_VK


def _imbalance(counts_VK: Int[np.ndarray, "V K"]) -> tuple[int, float]:
    """Classes missing from folds, then how far the counts are from equal shares."""
    share_VK = counts_VK / counts_VK.sum(axis=0) * len(counts_VK)
    return int((counts_VK == 0).sum()), float(np.square(share_VK - 1).sum())


def _refuse_untrainable(counts_VK: Int[np.ndarray, "V K"], names: np.ndarray, group: str) -> None:
    for k in np.flatnonzero((counts_VK > 0).sum(axis=0) < 2):
        raise SettingsError(
            f"all samples of class {names[k]!r} fall into one fold, so that it cannot be learned for it",
            hint=f"use fewer folds, or bring more {group}s of this class",
        )


def _notices(counts_VK: Int[np.ndarray, "V K"], names: np.ndarray) -> list[Notice]:
    notices = []
    for k, name in enumerate(names):
        counts = ", ".join(map(str, counts_VK[:, k]))
        share = counts_VK[:, k].sum() / len(counts_VK)
        if (counts_VK[:, k] == 0).any():
            text = f"class {name!r} is missing from the test part of a fold; its samples by fold: {counts}"
            notices.append(Notice(kind="class-missing-from-fold", subject=str(name), text=text))
        elif (counts_VK[:, k] < share / 2).any() or (counts_VK[:, k] > share * 2).any():
            text = f"class {name!r} could not be divided evenly; its samples by fold: {counts}"
            notices.append(Notice(kind="uneven-folds", subject=str(name), text=text))
    return notices
