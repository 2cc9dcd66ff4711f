"""The jobs of a study: one method on one fold of one run each, its findings kept in a folder of its own.

A finished job is kept, so that a killed study goes on where it stopped. Jobs run next to each other, each on
one thread, with the same numbers wherever they run.

On a GPU the networks of all jobs that allow it are trained at once instead, in this process. A study that was
killed then trains all of them again and goes on with those that had not been judged: which networks are
trained together decides the last digits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from joblib import Parallel, delayed

from hemomil.commands.console import Talk
from hemomil.commands.fitting import blank_model, jury_for, predict, without
from hemomil.commands.inner_folds import inner_folds
from hemomil.commands.protocol import Job, Protocol
from hemomil.commands.run_folder import RunFolder
from hemomil.commands.settings import Settings
from hemomil.commands.tables import cell_rows, deletion_rows, sample_rows, write_cells
from hemomil.commands.workers import on_one_thread
from hemomil.errors import SettingsError
from hemomil.explain import deletion_curve
from hemomil.files import written_whole
from hemomil.memory import give_back_memory
from hemomil.streams import stream_seed
from hemomil.types import Bag

if TYPE_CHECKING:
    from hemomil.mil import AnomalyMIL


def is_side_by_side(settings: Settings, *, here: bool) -> bool:
    """Whether networks are to be trained at once: as asked for; left open: on a GPU. `here`: on this machine.

    Raises SettingsError for a device that is not there, or for one process asked for on a cluster.
    """
    asked = settings.study.side_by_side
    if not here:
        if asked:
            raise SettingsError(
                "study.side_by_side trains in one process on this machine, --cluster on others",
                hint="leave out one of the two",
            )
        return False
    if settings.mil.device == "cpu":
        return bool(asked)
    from hemomil.mil.model import torch_device

    on_gpu = torch_device(settings.mil).type == "cuda"
    return on_gpu if asked is None else asked


def run_jobs(
    store: Path, plan: Protocol, run: RunFolder, talk: Talk, jobs: int, *, side_by_side: bool
) -> None:
    """All jobs but those that an earlier, killed run has finished."""
    keep, settings = run.work / "jobs", run.settings
    everything = plan.jobs(settings.study.methods)
    todo = _unfinished(everything, keep)
    if todo and side_by_side:
        _run_side_by_side(store, everything, settings, keep, talk, jobs)
        todo = _unfinished(todo, keep)
    work = (delayed(run_job)(store, job, settings, keep) for job in todo)
    done = Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")(work)
    for _ in talk.track(done, "training", len(todo)):
        pass


def _run_side_by_side(
    store: Path, jobs: Sequence[Job], settings: Settings, keep: Path, talk: Talk, n_threads: int
) -> None:
    """Those of the jobs whose networks can be trained at once, unless all of them are finished."""
    from hemomil.describe import read_bags
    from hemomil.mil import fit_side_by_side
    from hemomil.mil.settings import parts_of
    from hemomil.mil.side_by_side import can_stand

    bags = {bag.sample: bag for bag in read_bags(store, settings.features)}
    shape = next(iter(bags.values())).features.shape[1:]
    some = [job for job in jobs if can_stand(parts_of(job.method), shape, settings.mil)]
    todo = _unfinished(some, keep)
    if not todo:
        return
    models = [blank_model(job.method, settings, _seed(job, settings)) for job in some]
    with talk.counting("training side by side") as progress:
        fit_side_by_side(models, [_those(bags, job.train) for job in some], progress)
    fitted = {job.name: model for job, model in zip(some, models, strict=True)}
    work = (delayed(_tell)(job, fitted[job.name], bags, store, settings, keep) for job in todo)
    at_once = min(n_threads, len(todo))
    with on_one_thread():
        done = Parallel(n_jobs=at_once, backend="threading", return_as="generator_unordered")(work)
        for _ in talk.track(done, "judging", len(todo)):
            pass


def run_job(store: Path, job: Job, settings: Settings, keep: Path) -> None:
    """Fit on the training samples, predict the test samples, check their explanations, keep the tables."""
    _fit_and_tell(store, job, settings, keep)
    give_back_memory()  # joblib stops a process that holds 300 MB more than after its first job


def _fit_and_tell(store: Path, job: Job, settings: Settings, keep: Path) -> None:
    from hemomil.describe import read_bags

    with on_one_thread():
        bags = {bag.sample: bag for bag in read_bags(store, settings.features)}
        model = blank_model(job.method, settings, _seed(job, settings))
        _tell(job, model.fit(_those(bags, job.train)), bags, store, settings, keep)


def _seed(job: Job, settings: Settings) -> int:
    left_out = (f"without-{job.left_out}",) if job.left_out else ()
    return stream_seed(settings.seed, job.method, f"run-{job.run}", f"fold-{job.fold}", *left_out)


def _those(bags: dict[str, Bag], names: tuple[str, ...]) -> list[Bag]:
    """The bags of these samples, but for samples in which no cell was found."""
    return [bags[name] for name in names if name in bags]


def _tell(
    job: Job, model: "AnomalyMIL", bags: dict[str, Bag], store: Path, settings: Settings, keep: Path
) -> None:
    """Predict the test samples with a model that was fitted, and keep the tables."""
    import torch

    from hemomil.describe import read_obs

    torch.set_num_threads(1)  # each thread has a number of its own
    train, test = _those(bags, job.train), _those(bags, job.test)
    n_inner = inner_folds(train, settings) if settings.inner_folds else 0
    jury = jury_for(model, train, settings, n_inner=n_inner)
    predictions, flags = predict(model, jury, test)
    told: dict[str, Any] = {"method": job.method, "run": job.run, "fold": job.fold}
    samples = sample_rows(test, predictions, flags, jury, **told)
    cells = cell_rows(test, predictions, flags, read_obs(store), **told)
    if job.left_out:  # nothing is made of the curves of a class that was left out
        test, predictions = [], []
    curves = [
        deletion_curve(without(model, jury), bag, said, seed=settings.seed)
        for bag, said in zip(test, predictions, strict=True)
    ]
    deleted = deletion_rows(test, predictions, curves, **told)
    for name, table in (("samples", samples), ("deletion", deleted)):
        with written_whole(keep / job.name / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)
    write_cells(keep / job.name / "cells.parquet", cells)


def _unfinished(jobs: Sequence[Job], keep: Path) -> list[Job]:
    """The table of cells is written last."""
    return [job for job in jobs if not (keep / job.name / "cells.parquet").exists()]


def read_jobs(plan: Protocol, run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Samples, cells, deletion curves of all jobs, by method, run, fold; `left_out`: the class left out."""
    methods = run.settings.study.methods
    jobs = sorted(plan.jobs(methods), key=lambda job: (methods.index(job.method), job.run, job.fold))
    folders = [(run.work / "jobs" / job.name, job.left_out) for job in jobs]
    samples, cells, deleted = (
        pd.concat([pd.read_parquet(f / name).assign(left_out=c) for f, c in folders], ignore_index=True)
        for name in ("samples.parquet", "cells.parquet", "deletion.parquet")
    )
    return samples, cells, deleted
