"""Divide samples into folds that never separate a patient, every class in every part as far as it can be.

Axes: S samples, K classes, V folds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from hemomil.cohort.choose import known_column, sample_value
from hemomil.cohort.problems import Problem, refuse_if_any
from hemomil.errors import SettingsError
from hemomil.streams import stream
from hemomil.types import Cohort, Notice, class_order

DRAWS = 5
"""Divisions with every class in every fold among which the most even is taken. More would make runs alike."""
MOST_DRAWS = 30
"""Divisions drawn in search of these; as many again without stratification, should they all fail."""

FoldUnit = tuple[str, str, str]
"""sample, patient (or another group), label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Which fold each sample is tested in, and what could not be balanced."""

    fold: Int[np.ndarray, "S"]
    notices: tuple[Notice, ...]


def fold_units(cohort: Cohort, group: str = "patient") -> list[FoldUnit]:
    """(sample, group, label) of each labelled sample, for `make_folds`; `group` is patient or another column.

    Raises SettingsError if the column is unknown or blank for a sample, or would separate a patient.
    """
    column = known_column(cohort, group)
    if column in ("sample", "label"):
        hint = "group by patient, or by a column like site"
        raise SettingsError(f"folds cannot be grouped by {column}", hint=hint)
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
        if len(names) > 1:
            raise SettingsError(
                f"patient {patient!r} has several values of {column}: {', '.join(sorted(names))}",
                hint="folds by this column would separate the patient; group by patient",
            )


def make_folds(
    samples: Sequence[FoldUnit], n_folds: int, *, seed: int, run: int = 0, group: str = "patient"
) -> Folds:
    """The test fold of each (sample, patient, label), 0 to n_folds - 1.

    scikit-learn's StratifiedGroupKFold, shuffled by `stream(seed, "folds", run)`, over whole
    patients: each counts once for every class that it has samples of, however many. Of a few draws,
    the one with the most even sample counts is taken; only labels are looked at, so nothing leaks.
    `group` names the second entry where it is not the patient.

    Every class is in every training part. Where it is missing from a test fold, or a fold has less
    than half or more than twice its share of samples, a Notice says so. Raises SettingsError if a
    class has fewer patients than there are folds.
    """
    _refuse_few(samples, n_folds, group)
    groups, patients = np.unique([patient for _, patient, _ in samples], return_inverse=True)
    names, labels = np.unique([label for *_, label in samples], return_inverse=True)
    pairs = np.unique(np.stack([patients, labels], axis=1), axis=0)
    rng = stream(seed, "folds", run)
    kinds = [StratifiedGroupKFold] * MOST_DRAWS + [GroupKFold] * MOST_DRAWS
    draws = (_draw(kind, pairs, len(groups), n_folds, rng)[patients] for kind in kinds)
    fold = _most_even(draws, labels, n_folds)
    counts_VK = _counts(fold, labels, n_folds)
    _refuse_untrainable(counts_VK, names, group)
    return Folds(fold=fold, notices=tuple(_notices(counts_VK, names)))


def folds_by_group(samples: Sequence[FoldUnit], group: str = "site") -> Folds:
    """Every group (site) is a fold of its own, in the order of their names.

    Raises SettingsError if there is one group only, or a class that is nowhere else than in one of them.
    """
    groups, fold = np.unique([name for _, name, _ in samples], return_inverse=True)
    if len(groups) < 2:
        raise SettingsError(
            f"all samples have the same {group}, so that none can be left out",
            hint=f"bring samples with another {group}, or leave patients out (without --site-out)",
        )
    names, labels = np.unique([label for *_, label in samples], return_inverse=True)
    counts_VK = _counts(fold, labels, len(groups))
    for k in np.flatnonzero((counts_VK > 0).sum(axis=0) < 2):
        only = str(groups[counts_VK[:, k].argmax()])
        raise SettingsError(
            f"class {str(names[k])!r} is found at {group} {only!r} only, and cannot be learned without it",
            hint="leave the class out by --exclude label=NAME",
        )
    return Folds(fold=fold.astype(np.int64), notices=tuple(_notices(counts_VK, names)))


def place_unseen(
    unseen: Sequence[FoldUnit],
    known: Sequence[FoldUnit],
    fold: Int[np.ndarray, "S"],
    n_folds: int,
    *,
    seed: int,
    run: int = 0,
) -> Int[np.ndarray, "U"]:
    """The fold in which samples of classes that are never learned are tested.

    `fold` is that of the known samples. A patient who has known samples is tested where they are, so that no
    model meets a patient of its training; other patients are dealt out by `stream(seed, "unseen", run)`.
    """
    taken = {patient: int(number) for (_, patient, _), number in zip(known, fold, strict=True)}
    free = sorted({patient for _, patient, _ in unseen} - set(taken))
    order = stream(seed, "unseen", run).permutation(len(free))
    place = taken | {free[row]: turn % n_folds for turn, row in enumerate(order.tolist())}
    return np.array([place[patient] for _, patient, _ in unseen], dtype=np.int64)


def _refuse_few(samples: Sequence[FoldUnit], n_folds: int, group: str) -> None:
    if n_folds < 2:
        raise SettingsError(f"cannot divide samples into {n_folds} folds", hint="use at least 2 folds")
    if not samples:
        raise SettingsError(
            "there are no labelled samples to divide into folds", hint="fill in the label column"
        )
    groups: dict[str, set[str]] = {}
    for _, patient, label in samples:
        groups.setdefault(label, set()).add(patient)
    fewest = min(map(len, groups.values()))
    fewer = f"use at most {fewest} folds, or " if fewest > 1 else ""
    problems = [
        Problem(
            None,
            f"class {label!r}",
            f"has {len(groups[label])} {group}{'s' * (len(groups[label]) > 1)} for {n_folds} folds",
            f"{fewer}leave a class out by --exclude label=NAME",
        )
        for label in class_order(list(groups), "")
        if len(groups[label]) < n_folds
    ]
    refuse_if_any(problems, SettingsError, "the division into folds")


def _draw(
    kind: type, pairs: Int[np.ndarray, "P 2"], n_groups: int, n_folds: int, rng: np.random.Generator
) -> Int[np.ndarray, "G"]:
    """The fold of each of G patients, from the P distinct pairs of patient and class."""
    patients, labels = pairs.T
    fold = np.zeros(n_groups, dtype=np.int64)
    splitter = kind(n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
    for number, (_, test) in enumerate(splitter.split(labels, labels, patients)):
        fold[patients[test]] = number
    return fold


def _most_even(draws: Iterator[np.ndarray], labels: np.ndarray, n_folds: int) -> Int[np.ndarray, "S"]:
    """The most even of the first few draws that have every class in every fold; failing these, of all."""
    best: np.ndarray | None = None
    n_complete = 0
    for fold in draws:
        unevenness = _unevenness(_counts(fold, labels, n_folds))
        if best is None or unevenness < _unevenness(_counts(best, labels, n_folds)):
            best = fold
        n_complete += unevenness[0] == 0
        if n_complete == DRAWS:
            break
    assert best is not None
    return best


def _counts(fold: Int[np.ndarray, "S"], labels: Int[np.ndarray, "S"], n_folds: int) -> Int[np.ndarray, "V K"]:
    """Samples of each class in each fold."""
    counts_VK = np.zeros((n_folds, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts_VK, (fold, labels), 1)
    return counts_VK


def _unevenness(counts_VK: Int[np.ndarray, "V K"]) -> tuple[int, float]:
    """How many classes are missing from folds; then, squared distance of the counts from equal shares."""
    share_VK = counts_VK / counts_VK.mean(axis=0)
    return int((counts_VK == 0).sum()), float(np.square(share_VK - 1).sum())


def _refuse_untrainable(counts_VK: Int[np.ndarray, "V K"], names: np.ndarray, group: str) -> None:
    for k in np.flatnonzero((counts_VK > 0).sum(axis=0) < 2):
        raise SettingsError(
            f"all samples of class {str(names[k])!r} fall into one fold, so that it cannot be learned for it",
            hint=f"use fewer folds, or bring more {group}s of this class",
        )


def _notices(counts_VK: Int[np.ndarray, "V K"], names: np.ndarray) -> list[Notice]:
    notices = []
    for name, counts_V in zip(map(str, names), counts_VK.T, strict=True):
        share = counts_V.sum() / len(counts_V)
        counted = f"its samples by fold: {', '.join(map(str, counts_V))}"
        if (counts_V == 0).any():
            text = f"class {name!r} is missing from the test part of a fold; {counted}"
            notices.append(Notice(kind="class-missing-from-fold", subject=name, text=text))
        elif (counts_V < share / 2).any() or (counts_V > share * 2).any():
            text = f"class {name!r} could not be divided evenly; {counted}"
            notices.append(Notice(kind="uneven-folds", subject=name, text=text))
    return notices
