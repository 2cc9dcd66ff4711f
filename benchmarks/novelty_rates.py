"""Do the error rates of novelty hold? Flags, discoveries, shares, sets and intervals against the truth.

Run `OMP_NUM_THREADS=1 python benchmarks/novelty_rates.py [--only flags …] [--run RUN]`; it prints markdown
(minutes). RUN is a folder of `hemomil train` with shape features: its control donors are split again and
again. Simulated cells are Gaussian; `rho` is the share of their variance that a donor's cells have in common.
± is one standard error over repetitions, each with its own control donors.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.covariance import empirical_covariance, oas

from hemomil.novelty import (
    Calibration,
    ConformalSets,
    DonorBootstrap,
    HealthyTails,
    abnormal_share_low,
    apply_temperature,
    benjamini_hochberg,
    fit_temperature,
    flag_threshold,
)
from hemomil.stats import Scored, calibration_metrics

GROUPS = 5
"""Donors are left out of the reference in so many groups."""
RATES = (0.01, 0.05)
WAYS = ("in sample", "random cells", "donors", "judges", "each donor", "p-value")
"""How a threshold is learned: from the cells that the reference was fitted to; from a random fifth of the
cells left out; from a fifth of the donors left out; the same, and new cells scored by the references
without a fifth too, on average; from each donor left out; p-values of the third."""
COLUMNS = [f"{way} {100 * rate:g} %" for rate in RATES for way in WAYS]


def donors(rng, n_donors, n_cells, size, rho):
    """Cells of donors, and the donor of each."""
    donor = np.repeat(np.arange(n_donors), n_cells)
    common = np.sqrt(rho) * rng.normal(size=(n_donors, size))[donor]
    return common + np.sqrt(1 - rho) * rng.normal(size=(len(donor), size)), donor


def distances(cells, reference, covariance=lambda cells: oas(cells)[0]):
    """Mahalanobis distance of cells to a Gaussian of the reference."""
    inverse = np.linalg.inv(np.linalg.cholesky(covariance(reference) + 1e-6 * np.eye(cells.shape[1])))
    return np.linalg.norm((cells - reference.mean(axis=0)) @ inverse.T, axis=1)


def left_out(cells, group, new):
    """Each cell scored by a reference without its group, and new cells by all of these, on average."""
    known, unknown, groups = np.empty(len(cells)), np.zeros(len(new)), np.unique(group)
    for g in groups:
        scores = distances(np.concatenate([cells[group == g], new]), cells[group != g])
        known[group == g], of_new = np.split(scores, [len(scores) - len(new)])
        unknown += of_new / len(groups)
    return known, unknown


def calibrated(cells, donor, group=None, new=None):
    """Calibration on scores of donors left out, in groups; new cells scored by the references without one."""
    names = [str(d) for d in donor]
    group = donor % GROUPS if group is None else group
    known, unknown = left_out(cells, group, cells[:0] if new is None else new)
    return Calibration.fit(known, names, names), unknown


def claims(cells, donor, new, new_donor):
    """Share of new healthy donors of whom it is claimed that some of their cells are abnormal."""
    names = [str(d) for d in donor]
    tails = HealthyTails.fit(left_out(cells, donor % GROUPS, cells[:0])[0], names, names)
    scores = distances(new, cells)
    return np.mean([abnormal_share_low(scores[new_donor == d], tails) > 0 for d in np.unique(new_donor)])


def flagged(rng, cells, donor, new):
    """Share of a new donor's healthy cells that each way flags at each rate."""
    scores = distances(new, cells)
    calibration, judged = calibrated(cells, donor, new=new)
    p = calibration.cell_p(scores)
    pooled = {
        "in sample": distances(cells, cells),
        "random cells": left_out(cells, rng.integers(GROUPS, size=len(cells)), cells[:0])[0],
    }
    by_donor = {
        "donors": (scores, calibration),
        "judges": (judged, calibration),
        "each donor": (scores, calibrated(cells, donor, group=donor)[0]),
    }
    found = {}
    for rate in RATES:
        for way, known in pooled.items():
            found[way, rate] = (scores > np.quantile(known, 1 - rate)).mean()
        for way, (told, known) in by_donor.items():
            found[way, rate] = (told > flag_threshold(known, rate)).mean()
        found["p-value", rate] = (p <= rate).mean()
    return found


def percents(runs):
    """Mean and standard error over repetitions, in percent."""
    return plus_minus([[100 * run[way, rate] for rate in RATES for way in WAYS] for run in runs], digits=2)


def flags(repeats=24, n_cells=60, n_new=40):
    print(f"\n### Flags on healthy new donors, %; {repeats} x {n_new} new donors, {n_cells} cells each\n")
    header(COLUMNS, "rho", "dimensions", "donors")
    for rho in (0.0, 0.15, 0.3):
        for size in (16, 64, 256):
            for n_donors in (20, 33, 100):
                runs = []
                for k in range(repeats):
                    rng = np.random.default_rng([k, size, n_donors, int(100 * rho)])
                    known, new = (donors(rng, n, n_cells, size, rho) for n in (n_donors, n_new))
                    runs.append(flagged(rng, *known, new[0]))
                row(percents(runs), rho, size, n_donors)


def discoveries(repeats=12, size=16, rho=0.15, level=0.1, n_cells=200, shift=1.25):
    """Samples with abnormal cells that lie apart in every dimension."""
    print(f"\n### q ≤ {level:g}: power, {size} dimensions, rho {rho:g}, {n_cells} cells a sample\n")
    columns = ["false discoveries", "power", "power, true law", "power, paper's distance", "fewest found"]
    header(columns, "donors", "abnormal share")
    for n_donors in (33, 100, 300):
        for share in (0.05, 0.2, 0.5):
            found = []
            for k in range(repeats):
                rng = np.random.default_rng([k, n_donors, int(100 * share)])
                cells, donor = donors(rng, n_donors, n_cells, size, rho)
                new = donors(rng, 10, n_cells, size, rho)[0]
                sick = np.arange(len(new)) % n_cells < share * n_cells
                new[sick] += shift
                found.append(discovered(cells, donor, new, sick, level, n_cells))
            row([*plus_minus(found), int(np.ceil(n_cells / level / (n_donors + 1)))], n_donors, share)


def discovered(cells, donor, new, sick, level, n_cells):
    """False discovery rate and power by q-values; power at that rate of the true law and of the paper's."""
    calibration, _ = calibrated(cells, donor)
    p = calibration.cell_p(distances(new, cells))
    q = np.concatenate([benjamini_hochberg(part) for part in np.split(p, len(p) // n_cells)])
    found, sick_SN = (q <= level).reshape(-1, n_cells), sick.reshape(-1, n_cells)
    false = (found & ~sick_SN).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
    paper, truth = distances(new, cells, empirical_covariance), np.linalg.norm(new, axis=1)
    powers = [power_at(scores, sick, level) for scores in (truth, paper)]
    return [false.mean(), (q <= level)[sick].mean(), *powers]


def power_at(scores, sick, level):
    """Share of the abnormal cells above the lowest threshold, chosen with the truth, with such an error."""
    order = np.argsort(-scores)
    false = np.cumsum(~sick[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(false <= level)
    return sick[order][: last[-1] + 1].sum() / sick.sum() if len(last) else 0.0


def shares(repeats=40, n_new=10):
    print(f"\n### Lower 95 % bound on the abnormal share: coverage, mean; {repeats} x {n_new} new donors\n")
    cases = [(0.0, 0), (0.02, 20), (0.1, 3), (0.1, 20), (0.5, 3), (0.5, 20)]
    header([f"share {share:g}, {shift} SD" for share, shift in cases], "rho", "donors", "cells")
    for rho in (0.0, 0.15, 0.3):
        for n_donors, n_cells in ((19, 60), (33, 200), (100, 200)):
            held = np.empty((repeats, n_new, len(cases)))
            bounds = np.empty_like(held)
            for k in range(repeats):
                rng = np.random.default_rng([k, n_donors, n_cells, int(100 * rho)])
                scores, donor = donors(rng, n_donors, n_cells, 1, rho)
                names = [str(d) for d in donor]
                tails = HealthyTails.fit(scores[:, 0], names, names, seed=k)
                for i, new in enumerate(donors(rng, n_new, n_cells, 1, rho)[0].reshape(n_new, -1)):
                    for j, (share, shift) in enumerate(cases):
                        sick = np.arange(n_cells) < round(share * n_cells)
                        bounds[k, i, j] = abnormal_share_low(new + shift * sick, tails)
                        held[k, i, j] = bounds[k, i, j] <= sick.mean()
            told = zip(plus_minus(held.mean(axis=1)), bounds.mean(axis=(0, 1)), strict=True)
            row([f"{coverage}, {bound:.3f}" for coverage, bound in told], rho, n_donors, n_cells)


PATIENTS = (33, 13, 3, 9, 13)
"""Of each class, as in the paper."""
NAMES = ("control", "scd", "thal", "xero", "hs")


def patients(rng, counts, samples, sharpness=1.0):
    """Class probabilities of samples of patients who differ, with labels (as numbers) and patients."""
    truth = np.repeat(np.arange(len(counts)), counts)
    logits = 1.5 * np.eye(len(counts))[truth] + rng.normal(size=(len(truth), len(counts)))
    patient = np.repeat(np.arange(len(truth)), samples)
    logits = logits[patient] + 0.5 * rng.normal(size=(len(patient), len(counts)))
    return softmax(sharpness * logits, axis=1), truth[patient], patient


def sets(repeats=100, n_new=10):
    print(f"\n### Sets of classes: share of patients denied their class; {repeats} x {n_new} new ones each\n")
    header([*(f"class of {n}" for n in PATIENTS), "classes in a set"], "error")
    for alpha in (0.1, 0.2):
        missed, sizes = [], []
        for k in range(repeats):
            rng = np.random.default_rng([k, 7])
            probabilities, truth, patient = patients(rng, PATIENTS, 5)
            labels, names = [NAMES[t] for t in truth], [str(p) for p in patient]
            fitted = ConformalSets.fit(probabilities, labels, names, classes=NAMES)
            new, new_truth, _ = patients(rng, (n_new,) * len(PATIENTS), 1)
            found = [fitted.classes_of(row, alpha) for row in new]
            wrong = [NAMES[t] not in some for t, some in zip(new_truth, found, strict=True)]
            missed.append(np.reshape(wrong, (len(PATIENTS), n_new)).mean(axis=1))
            sizes.append(np.mean([len(some) for some in found]))
        row([*plus_minus(missed), f"{np.mean(sizes):.2f}"], alpha)


def temperatures(repeats=60, sharpness=3.0):
    print("\n### Temperature: calibration error and surprise (log loss) of 20,000 new patients\n")
    header(["temperature", "error", "error, scaled", "surprise", "surprise, scaled"], "patients", "told")
    for factor in (1, 2, 5):
        for sharp in (1.0, sharpness):
            found = []
            for k in range(repeats):
                rng = np.random.default_rng([k, factor])
                counts = [factor * n for n in PATIENTS]
                probabilities, truth, patient = patients(rng, counts, 5, sharp)
                labels, names = [NAMES[t] for t in truth], [str(p) for p in patient]
                temperature = fit_temperature(probabilities, labels, names, classes=NAMES)
                new, new_truth, _ = patients(rng, [280 * n for n in PATIENTS], 1, sharp)
                scaled = apply_temperature(new, temperature)
                said = [judged(new, new_truth), judged(scaled, new_truth)]
                found.append([temperature, *np.transpose(said).ravel()])
            row(plus_minus(found), sum(counts), "as they are" if sharp == 1 else f"{sharp:g} times too sure")


def judged(probabilities, truth):
    """Expected calibration error and mean log loss."""
    everyone = np.ones((1, len(truth)), dtype=np.int64)
    called = probabilities.argmax(axis=1)
    of = Scored(truth=truth, called=called, probabilities=probabilities, patients=np.arange(len(truth)))
    surprise = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    return calibration_metrics(of, everyone)["ece"].value, surprise


def intervals(repeats=15, n_cells=60, rho=0.15):
    print(f"\n### 95 % intervals of a score: coverage of its median over other donors; rho {rho:g}\n")
    header(["coverage", "width / score", "µs a cell"], "dimensions", "donors")
    for size in (16, 77):
        for n_donors in (20, 33, 100):
            new = donors(np.random.default_rng([size, n_donors]), 20, 10, size, rho)[0]
            new[::2] *= 1.7
            others = (donors(np.random.default_rng([k, 1]), n_donors, n_cells, size, rho) for k in range(40))
            truth = np.median([distances(new, cells) for cells, _ in others], axis=0)
            inside, width, seconds = [], [], []
            for k in range(repeats):
                cells, donor = donors(np.random.default_rng([k, 2]), n_donors, n_cells, size, rho)
                bootstrap = DonorBootstrap.fit(cells, [str(d) for d in donor], seed=k)
                start = time.process_time()
                low, high = bootstrap.interval(new)
                seconds.append(time.process_time() - start)
                inside.append(((low <= truth) & (truth <= high)).mean())
                width.append(((high - low) / truth).mean())
            cost = 1e6 * np.median(seconds) / len(new)
            row([*plus_minus(np.column_stack([inside, width])), f"{cost:.0f}"], size, n_donors)


def real(run, repeats=30):
    """Control donors of a run, split again and again into known and new ones; standardised by the known."""
    from hemomil.describe import read_bags

    bags = [bag for bag in read_bags(run / "cells.zarr", ("shape",)) if bag.label == "control"]
    cells = np.concatenate([bag.features for bag in bags]).astype(np.float64)
    owner = np.unique([bag.patient for bag in bags for _ in bag.cell_ids], return_inverse=True)[1]
    n_all = owner.max() + 1
    print(f"\n### Flags on held-out control donors of a run, %; {n_all} donors, {repeats} splits\n")
    header([*COLUMNS, "bound > 0"], "donors known")
    for n_known in (n for n in (20, 33, 100) if n + 10 <= n_all):
        runs, claimed = [], []
        for k in range(repeats):
            rng = np.random.default_rng([k, n_known])
            place = rng.permutation(n_all)[owner]
            known = place < n_known
            scale = cells[known].std(axis=0)
            space = (cells - cells[known].mean(axis=0)) / np.where(scale > 1e-9, scale, 1)
            runs.append(flagged(rng, space[known], place[known], space[~known]))
            claimed.append([100 * claims(space[known], place[known], space[~known], place[~known])])
        row([*percents(runs), *plus_minus(claimed, digits=2)], n_known)


def plus_minus(runs, digits=3):
    """Means of columns with their standard errors, as text; a row per repetition."""
    errors = np.std(runs, axis=0) / np.sqrt(len(runs) - 1)
    return [f"{m:.{digits}f} ± {e:.{digits}f}" for m, e in zip(np.mean(runs, axis=0), errors, strict=True)]


def header(columns, *keys):
    names = [*keys, *columns]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))


def row(values, *keys):
    print("| " + " | ".join(map(str, [*keys, *values])) + " |", flush=True)


PARTS = {part.__name__: part for part in (flags, discoveries, shares, sets, temperatures, intervals)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--run", type=Path, help="a folder of hemomil train")
    asked = parser.parse_args()
    for name in asked.only:
        PARTS[name]()
    if asked.run:
        real(asked.run)
