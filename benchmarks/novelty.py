"""Which scorer finds the strange cells? Every scorer in every space, on the folds of a study.

    python benchmarks/novelty.py cells DATA SIMULATED WORK [SET ...]      describe the cells of each set
    python benchmarks/novelty.py fit WORK SEED METHOD [SET ...]           networks, for their embeddings
    python benchmarks/novelty.py table WORK SEED [SET ...] [SCORER ...]   the table, as Markdown
    python benchmarks/novelty.py flags WORK SEED [SET ...]                false flags of `default`'s jury
    python benchmarks/novelty.py said RUN ...                             what studies said of test samples

Abnormal cells are ranked among all cells of the test samples of diseased patients, as `hemomil.stats`
does it. Intervals are over patients; differences to the paper's distance are on the same draws.
Sets: nih, iml, chula, simulated; `chula-unseen` are the classes that chula is never taught, and
`simulated-unseen` the cohort's diseases left out in turn. SIMULATED is the cohort of docs/results.md.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.cohort import read_manifest
from hemomil.commands import fitting
from hemomil.commands.cells import prepare
from hemomil.commands.console import SILENT
from hemomil.commands.protocol import Job, protocol
from hemomil.commands.run_folder import open_run
from hemomil.commands.settings import resolve_settings
from hemomil.commands.source import load_source
from hemomil.describe import read_bags, read_obs
from hemomil.mil import AnomalyMIL
from hemomil.novelty.calibration import LEVEL, Calibration, flag_threshold
from hemomil.novelty.combined import Surprise
from hemomil.novelty.scorers import SCORERS, fit_scorer, held_out_scores
from hemomil.stats import Resampled, estimate, patient_draws
from hemomil.stats.ranking import rank_draws
from hemomil.streams import stream_seed

CONTROL = "control"
FILES = {
    "nih": ("nih_malaria/manifest.csv", None),
    "iml": ("iml_malaria/manifest.csv", "iml_malaria/cells.csv"),
    "chula": ("chula_rbc12/manifest.csv", "chula_rbc12/cells.csv"),
    "simulated": ("manifest.csv", "cells.csv"),
}
UNSEEN = {"chula": ("macrocyte", "teardrop", "burr", "schistocyte", "hypochromia"), "simulated": ("each",)}
"""Classes that are never taught, or left out in turn."""
DRAWS = 500
PAPER = "anomaly+att+sic"
JOINED = ("gaussian", "shrunk", "halved", "relative", "knn", "forest", "combined")
"""Scorers of the frozen features and the embedding side by side."""
ALONE = "alone"
"""A network's own probability that a cell, by itself, is not healthy."""


# --- cells and networks


def settings_of(of_set, seed):
    left_out = list(UNSEEN.get(of_set, ()))
    return resolve_settings(flags={"seed": seed, "study.runs": 1, "study.leave_out": left_out})


def source_of(of_set, data, simulated):
    manifest, cells = FILES[of_set]
    folder = simulated if of_set == "simulated" else data
    return load_source(folder / manifest, settings_of(of_set, 0), cells=cells and folder / cells)


def describe(data, simulated, work, sets):
    """The shape features of every cell, once for every set."""
    for of_set in sets:
        source = source_of(of_set, data, simulated)
        run = open_run(work / of_set, "study", settings_of(of_set, 0), source.inputs)
        prepare(source, run, SILENT, jobs=1)
        (work / of_set / "manifest").write_text(str(source.inputs["manifest"]))
        print(of_set, len(read_obs(run.path / "cells.zarr")), "cells", flush=True)


def jobs_of(work, of_set, seed, method=PAPER):
    cohort = read_manifest(Path((work / of_set / "manifest").read_text()), control=CONTROL)
    return protocol(cohort, settings_of(of_set, seed)).jobs([method])


def fit(work, seed, method, sets):
    """Train on every fold; keep what the network makes of each cell."""
    for of_set in sets:
        bags = read_bags(work / of_set / "cells.zarr", ["shape"])
        own = {bag.sample: bag for bag in bags}
        for job in jobs_of(work, of_set, seed, method):
            path = work / of_set / "fits" / f"{seed}-{job.name}.npz"
            if path.exists():
                continue
            path.parent.mkdir(exist_ok=True)
            without = (f"without-{job.left_out}",) if job.left_out else ()
            names = (method, f"run-{job.run}", f"fold-{job.fold}", *without)  # as `study` names them
            model = AnomalyMIL(method, control=CONTROL, seed=stream_seed(seed, *names))
            model.fit([own[sample] for sample in job.train if sample in own])
            np.savez(path, **seen_by(model, bags))
            print(of_set, path.name, flush=True)


def seen_by(model, bags):
    """Of every cell of the set: its place in the frozen space, its embedding, its probability of control."""
    with torch.no_grad():
        cells = [torch.from_numpy(bag.features) for bag in bags]
        frozen = [model.core_.space(part) for part in cells]
        judged = [model.core_.judged(part) for part in cells]
    alone = [said.cell_probabilities[:, 0] for said in model.predict_cells(bags)]
    return {
        "frozen": torch.cat(frozen).numpy(),
        "embedding": torch.cat(judged).numpy(),
        "healthy": np.concatenate(alone),
    }


# --- scores


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One job of one set: every cell of the set, and which are whose."""

    work: Path
    seed: int
    job: Job
    obs: pd.DataFrame
    healthy: np.ndarray
    background: np.ndarray
    """Control cells of training samples, and all cells of these."""
    test: np.ndarray
    """Cells of known class of diseased test samples."""
    unseen: bool
    """Whether these are of classes that were not taught."""

    def seen(self, method):
        """What a network of this method made of the cells."""
        name = self.job.name.replace(PAPER, method, 1)
        return np.load(self.work / "fits" / f"{self.seed}-{name}.npz")

    def cells(self, space):
        """All cells in a space: frozen, the embedding of a method, or both side by side in healthy SD."""
        if space == "frozen":
            return self.seen(PAPER)["frozen"]
        if space.startswith("frozen|"):
            z = self.seen(space.removeprefix("frozen|"))["embedding"]
            scale = np.maximum(z[self.healthy].std(axis=0), 1e-3)
            return np.hstack([self.cells("frozen"), (z - z[self.healthy].mean(axis=0)) / scale])
        return self.seen(space)["embedding"]

    def scores(self, space, scorer):
        if scorer == ALONE:
            return self.logits(space)[self.test]
        return self.kept(f"{space}-{scorer}", lambda: self.fitted(space, scorer))

    def held_out(self, space, scorer):
        """Scores of the training controls' cells, by scorers that did not see their donor.

        A network did see them: what it says of a cell alone is too healthy here.
        """
        if scorer == ALONE:
            return self.logits(space)[self.healthy]
        return self.kept(f"{space}-{scorer}-held", lambda: held_out_scores(*self.given(space, scorer)))

    def logits(self, method):
        p = self.seen(method)["healthy"].astype(np.float64).clip(1e-12, 1 - 1e-12)
        return np.log1p(-p) - np.log(p)

    def given(self, space, scorer):
        cells, donors = self.cells(space), self.obs["patient"].to_numpy()[self.healthy]
        return scorer, cells[self.healthy], donors, cells[self.background]

    def fitted(self, space, scorer):
        return fit_scorer(*self.given(space, scorer)).score_samples(self.cells(space)[self.test])

    def kept(self, what, make):
        tested = "unseen" if self.job.left_out is None and self.unseen else "test"
        path = self.work / "scores" / f"{self.seed}-{self.job.name}-{what}-{tested}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            np.save(path, make())
        return np.load(path)


def folds_of(work, of_set, seed):
    """The folds of a set; `-unseen`: as they meet classes that were not taught."""
    base = of_set.removesuffix("-unseen")
    obs = read_obs(work / base / "cells.zarr")
    for job in jobs_of(work, base, seed):
        if (job.left_out is not None) != (of_set == "simulated-unseen"):
            continue
        train = obs["sample"].isin(job.train).to_numpy()
        tested = obs["sample"].isin(job.test) & (obs["label"] != CONTROL) & obs["cell_label"].notna()
        if base == "chula":
            tested &= obs["label"].isin(UNSEEN[base]) == of_set.endswith("-unseen")
        yield Fold(
            work=work / base,
            seed=seed,
            job=job,
            obs=obs,
            healthy=train & (obs["label"] == CONTROL).to_numpy(),
            background=train,
            test=tested.to_numpy(),
            unseen=of_set.endswith("-unseen"),
        )


def single(space, scorer):
    return lambda fold: fold.scores(space, scorer)


def joined(parts, how):
    """Scores told as how improbable they are among held-out healthy donors, then summed or such."""

    def score(fold):
        return how([Surprise.fit(fold.held_out(*p)).of(fold.scores(*p)) for p in parts], axis=0)

    return score


# --- the table


def ranked(cells, scores):
    """AUROC and average precision of abnormal cells among all, on the patients and on every draw of them."""
    abnormal = (cells["cell_label"] != CONTROL).to_numpy()
    names, owner = np.unique(cells["patient"].to_numpy(), return_inverse=True)
    draws = patient_draws(len(names), DRAWS, seed=0)
    drawn = rank_draws(abnormal, scores, owner, draws)
    values = roc_auc_score(abnormal, scores), average_precision_score(abnormal, scores)
    return [Resampled(value=float(v), draws=d, n=len(names)) for v, d in zip(values, drawn, strict=True)]


def row_of(folds, score):
    cells = pd.concat([fold.obs[fold.test] for fold in folds])
    return ranked(cells, np.concatenate([score(fold) for fold in folds]))


def shown(metric):
    made = estimate(metric)
    return "–" if made.value is None else f"{made.value:.3f} [{made.low:.3f}, {made.high:.3f}]"


def apart(metric, paper):
    return Resampled(value=metric.value - paper.value, draws=metric.draws - paper.draws, n=metric.n)


def table(work, seed, sets, rows):
    """Markdown, one table a set: a row per scorer and space."""
    for of_set in sets:
        folds = list(folds_of(work, of_set, seed))
        paper = row_of(folds, rows["paper"])
        print(f"\n### {of_set}, seed {seed}, {paper[0].n} patients\n")
        print("| scorer / space | AP | AP − paper's | AUROC | AUROC − paper's |\n|---|---|---|---|---|")
        for name, score in rows.items():
            found = row_of(folds, score)
            told = [f"{shown(found[k])} | {shown(apart(found[k], paper[k]))}" for k in (1, 0)]
            print(f"| {name} | {' | '.join(told)} |", flush=True)


# --- false flags


def flags(work, seed, sets):
    """Cells of healthy test donors that `default`'s jury flags; ± is one standard error over donors."""
    columns = ("set", "donors", "flagged at 1 %", "at 5 %", "abnormal", "undecided", "samples with p ≤ .05")
    print("\n" + heading(columns))
    for of_set in sets:
        jobs = [job for job in jobs_of(work, of_set, seed, "default") if job.left_out is None]
        rows = [row for job in jobs for row in flagged(work, of_set, seed, job)]
        donors = 100 * pd.DataFrame(rows).groupby("patient").mean()
        told = [f"{donors[c].mean():.2f} ± {donors[c].sem():.2f} %" for c in donors]
        print(f"| {of_set} | {len(donors)} | {' | '.join(told)} |", flush=True)


def flagged(work, of_set, seed, job):
    """Of each healthy test sample of a fold, as `study` would judge it: shares of its cells, and its p."""
    bags = {bag.sample: bag for bag in read_bags(work / of_set / "cells.zarr", ["shape"])}
    train, test = ([bags[name] for name in names if name in bags] for names in (job.train, job.test))
    settings = settings_of(of_set, seed)
    own = stream_seed(seed, job.method, f"run-{job.run}", f"fold-{job.fold}")
    model, jury = fitting.fit(train, job.method, settings, seed=own)
    samples = [bag.sample for bag in train if bag.label == CONTROL for _ in bag.cell_ids]
    known = Calibration.fit(*model.control_scores_, samples)
    healthy = [bag for bag in test if bag.label == CONTROL]
    for bag, of in zip(healthy, fitting.predict(model, jury, healthy)[1], strict=True):
        typical = of.scores.mean(axis=1)
        yield {
            "patient": bag.patient,
            "1 %": (typical > flag_threshold(known, 0.01)).mean(),
            "5 %": (typical > flag_threshold(known, 0.05)).mean(),
            "abnormal": (of.verdict == "abnormal").mean(),
            "undecided": (of.verdict == "undecided").mean(),
            "samples": float(jury.sample_p(of) <= LEVEL),
        }


# --- what a study said


SAID = (
    "run, method",
    "cells, AP",
    "cells of healthy donors: abnormal",
    "undecided",
    "abnormal cells of the ill: abnormal",
    "undecided",
    "healthy cells of the ill: abnormal",
    "healthy samples: p ≤ .05",
    "floor",
    "AUROC of p",
)
SAID_OF_UNSEEN = ("unseen", "method", "cells", "samples, p", "patients, p", "patients, 1 − p(control)")


def said(runs):
    """Verdicts and p-values of finished studies, a row per method, then of the diseases left out."""
    metrics = {run: json.loads((run / "metrics.json").read_text()) for run in runs}
    print(heading(SAID))
    for run in runs:
        cells, samples = pd.read_parquet(run / "cells.parquet"), pd.read_csv(run / "samples.csv")
        for method, of_cells in cells.groupby("method"):
            ap = metrics[run]["instances"][method]["anomaly"]["ap"]["value"]
            told = verdicts(of_cells, samples[samples["method"] == method])
            print(f"| {run.name}, `{method}` | {ap:.3f} | {' | '.join(told)} |")
    print("\n" + heading(SAID_OF_UNSEEN))
    names = ("auroc_novelty", "auroc_novelty_patient", "auroc_abnormal_probability_patient")
    for run in runs:
        for disease, of_disease in metrics[run].get("unseen", {}).items():
            for method, of in of_disease.items():
                areas = [of["instances"]["anomaly"]["auroc"], *(of[name] for name in names)]
                print(f"| {run.name}: {disease} | `{method}` | {' | '.join(map(between, areas))} |")


def heading(columns):
    return f"| {' | '.join(columns)} |\n|" + "---|" * len(columns)


def verdicts(cells, samples):
    """The columns of `said` for one method of one study; ± is one standard error over donors."""
    healthy, known = cells["label"] == CONTROL, cells["cell_label"].notna()
    strange = cells["cell_label"] != CONTROL
    of_donors = cells[healthy].groupby("patient")["verdict"]
    told = []
    for verdict in ("abnormal", "undecided"):
        shares = 100 * of_donors.apply(lambda of, word=verdict: (of == word).mean())
        told.append(f"{shares.mean():.2f} ± {shares.sem():.2f} %")
    ill, spared = (cells[~healthy & known & which]["verdict"] for which in (strange, ~strange))
    told += [f"{100 * (ill == verdict).mean():.0f} %" for verdict in ("abnormal", "undecided")]
    told.append(f"{100 * (spared == 'abnormal').mean():.2f} %")
    well = samples["label"] == CONTROL
    told.append(f"{100 * (samples[well]['novelty_p'] <= LEVEL).mean():.1f} %")
    told.append(f"{samples['novelty_floor'].min():.3f}")
    return [*told, f"{roc_auc_score(~well, -samples['novelty_p']):.3f}"]


def between(estimate):
    if estimate["value"] is None:
        return f"fewer than 5 patients ({estimate['n']})"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def all_rows(alone=("att+sic", "lse")):
    """Every scorer in every space, then joined ones; `alone`: methods whose p(control) of a cell enters."""
    rows = {"paper": single(PAPER, "gaussian")}
    for space in ("frozen", PAPER):
        rows |= {f"`{scorer}` / {space}": single(space, scorer) for scorer in SCORERS}
    rows |= {f"`{scorer}` / frozen, {PAPER}": single(f"frozen|{PAPER}", scorer) for scorer in JOINED}
    rows |= {f"1 − p(control) of `{method}`": single(method, ALONE) for method in alone}
    for name, parts in sums_of(alone).items():
        rows[f"sum: {name}"] = joined(parts, np.sum)
        rows[f"max: {name}"] = joined(parts, np.max)
    return rows


def rows_of(scorers):
    """These scorers in the embedding, beside the paper's distance."""
    return {"paper": single(PAPER, "gaussian")} | {
        f"`{scorer}` / {PAPER}": single(PAPER, scorer) for scorer in scorers
    }


def sums_of(alone):
    """Which scores are joined. All but the frozen ones are of the embedding."""
    frozen, learned = ("frozen", "shrunk"), (PAPER, "gaussian")
    halved, relative, neighbours = (PAPER, "halved"), (PAPER, "relative"), (PAPER, "knn")
    told = {"frozen + embedding": [frozen, learned], "halved + relative": [halved, relative]}
    told["halved + forest"] = [halved, (PAPER, "forest")]
    for method in alone:
        own = (method, ALONE)
        told[f"frozen + embedding + knn + p of `{method}`"] = [frozen, learned, neighbours, own]
        told[f"halved + p of `{method}`"] = [halved, own]
    return told


def main(task, *words):
    if task == "cells":
        data, simulated, work, *sets = words
        describe(Path(data), Path(simulated), Path(work), sets or list(FILES))
    elif task == "fit":
        work, seed, method, *sets = words
        fit(Path(work), int(seed), method, sets or list(FILES))
    elif task == "flags":
        work, seed, *sets = words
        flags(Path(work), int(seed), sets or list(FILES))
    elif task == "table":
        work, seed, *named = words
        scorers = [name for name in named if name in SCORERS]
        sets = [name for name in named if name not in SCORERS]
        rows = rows_of(scorers) if scorers else all_rows()
        table(Path(work), int(seed), sets or [*FILES, *(f"{name}-unseen" for name in UNSEEN)], rows)
    elif task == "said":
        said([Path(word) for word in words])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
