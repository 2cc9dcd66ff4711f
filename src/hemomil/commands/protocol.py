"""Who is trained on and who is tested, in every job of a study: folds, sites left out, diseases left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hemomil.cohort import Folds, FoldUnit, fold_units, folds_by_group, make_folds, place_unseen
from hemomil.commands.fitting import refuse_unlearnable
from hemomil.commands.settings import EACH, Settings
from hemomil.errors import SettingsError
from hemomil.novelty import donor_notices
from hemomil.types import Cohort, Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method on one fold of one run; the study's own, or once more without a disease."""

    method: str
    run: int
    fold: int
    left_out: str | None = None
    """The class that is not trained on, where classes are left out one by one."""
    name: str
    """Also the folder that keeps its result."""
    train: tuple[str, ...]
    """Samples."""
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The division of a cohort that every method meets alike."""

    splits: pd.DataFrame
    """sample, patient, fold, run: the fold in which a sample is tested; no patient is in two of a run."""
    labels: dict[str, str]
    """Class of each sample that is trained on or tested."""
    classes: tuple[str, ...]
    """Those that the study tells apart, the control class first."""
    never: tuple[str, ...]
    """Those that are never trained on, and scored as unseen."""
    each: tuple[str, ...]
    """Those that are left out one by one, in jobs of their own."""
    n_folds: int
    notices: tuple[Notice, ...]

    def jobs(self, methods: Sequence[str]) -> list[Job]:
        """Every job, in the order runs, folds, methods; those without a disease last."""
        return [
            self._job(method, run, fold, left_out)
            for left_out in (None, *self.each)
            for run in sorted(self.splits["run"].unique().tolist())
            for fold in range(self.n_folds)
            for method in methods
        ]

    def _job(self, method: str, run: int, fold: int, left_out: str | None) -> Job:
        of_run = self.splits[self.splits["run"] == run]
        untaught = {*self.never, left_out}
        train = of_run["sample"][of_run["fold"] != fold]
        test = of_run["sample"][of_run["fold"] == fold]
        asked = {self.classes[0], left_out}
        return Job(
            method=method,
            run=run,
            fold=fold,
            left_out=left_out,
            name=f"{method}__run{run}__fold{fold}"
            + (f"__without{self.each.index(left_out)}" if left_out else ""),
            train=tuple(name for name in train if self.labels[name] not in untaught),
            test=tuple(name for name in test if left_out is None or self.labels[name] in asked),
        )


def protocol(cohort: Cohort, settings: Settings) -> Protocol:
    """Divide a cohort as the settings say.

    Raises SettingsError where the labels leave nothing to learn, a class is unknown, or a class or a site has
    too few patients.
    """
    never, each = _left_out(cohort, settings)
    kept = tuple(name for name in cohort.classes if name not in never)
    refuse_unlearnable(kept, settings.control)
    units = fold_units(cohort, "site" if settings.study.site_out else settings.study.group)
    known = [unit for unit in units if unit[2] not in never]
    unseen = [unit for unit in units if unit[2] in never]
    patients = {sample.sample: sample.patient for sample in cohort.samples}
    tables: list[pd.DataFrame] = []
    notices: list[Notice] = []
    for run in range(settings.study.runs):
        folds = _folds(known, settings, run)
        n_folds = int(folds.fold.max()) + 1
        placed = place_unseen(unseen, known, folds.fold, n_folds, seed=settings.seed, run=run)
        names = [name for name, *_ in (*known, *unseen)]
        tables.append(
            pd.DataFrame(
                {
                    "sample": names,
                    "patient": [patients[name] for name in names],
                    "fold": [*folds.fold.tolist(), *placed.tolist()],
                    "run": run,
                }
            )
        )
        notices.extend(notice for notice in folds.notices if notice not in notices)
    splits = pd.concat(tables, ignore_index=True)
    return Protocol(
        splits=splits,
        labels={name: label for name, _, label in units},
        classes=kept,
        never=never,
        each=each,
        n_folds=n_folds,
        notices=(*notices, *_few_donors(cohort, splits, settings)),
    )


def _folds(known: Sequence[FoldUnit], settings: Settings, run: int) -> Folds:
    if settings.study.site_out:
        return folds_by_group(known)
    group = settings.study.group
    return make_folds(known, settings.study.folds, seed=settings.seed, run=run, group=group)


def _left_out(cohort: Cohort, settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes that are never trained on, and those left out one by one."""
    asked = settings.study.leave_out
    diseases = tuple(name for name in cohort.classes if name != settings.control)
    if asked == (EACH,):
        if len(diseases) < 2:
            raise SettingsError(
                "with a single disease, leaving it out leaves nothing to learn",
                hint="--leave-out needs at least two classes besides the control",
            )
        return (), diseases
    unknown = [name for name in asked if name not in diseases]
    if unknown:
        raise SettingsError(
            f"{', '.join(map(repr, unknown))} cannot be left out",
            hint=f"leave out {EACH}, or some of: {', '.join(diseases)}",
        )
    return asked, ()


def _few_donors(cohort: Cohort, splits: pd.DataFrame, settings: Settings) -> tuple[Notice, ...]:
    """A warning where the training part with fewest control donors cannot give small p-values."""
    donors = {s.patient for s in cohort.samples if s.label == settings.control}
    held = splits[splits["patient"].isin(donors)].groupby(["run", "fold"])["patient"].nunique()
    return donor_notices(len(donors) - int(held.max()))
