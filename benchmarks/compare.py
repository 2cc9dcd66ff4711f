"""One method of one study against another's of a second study, on the same samples, paired by patient.

Run `python benchmarks/compare.py RUN1 METHOD1 RUN2 METHOD2 [COLUMN=VALUE]`: metrics of the first minus those
of the second, with 95 % interval and p (`hemomil.stats.compare_methods`); and how much better each number
ranks the cells of known class in samples that are not control. Runs that only one study made are left out.
`COLUMN=VALUE`: only samples of which the manifest says so, as in `study --evaluate-on`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.stats import compare_methods
from hemomil.stats.draws import patient_draws
from hemomil.stats.ranking import rank_draws

SCORES = ("anomaly", "attention", "contribution")
DRAWS = 500


def told(run, method, condition):
    """samples.csv of one method, without what was not judged; and the study's own description."""
    about = json.loads((run / "run.json").read_text())
    samples = pd.read_csv(run / "samples.csv", dtype={"sample": str, "patient": str, "label": str})
    samples = samples[(samples["method"] == method) & samples["predicted"].notna()]
    if condition:
        column, value = condition.split("=")
        manifest = pd.read_csv(about["data"]["manifest"], dtype=str)
        samples = samples[samples["sample"].isin(manifest.loc[manifest[column] == value, "sample"])]
    return samples, about


def main(first, method, second, other, condition=None):
    mine, about = told(Path(first), method, condition)
    theirs, _ = told(Path(second), other, condition)
    runs = set(mine["run"]) & set(theirs["run"])
    same_folds = mine.merge(theirs, on=["run", "sample"])
    same_folds = (same_folds["fold_x"] == same_folds["fold_y"]).all()
    rows = [mine.assign(method="first"), theirs.assign(method="second")]
    samples = pd.concat(rows, ignore_index=True)
    samples = samples[samples["run"].isin(runs)]
    print(f"{first} {method} minus {second} {other}: runs {sorted(runs)}, the same folds: {same_folds}")
    found = compare_methods(
        samples, about["classes"], reference="second", control=about["control"], seed=about["seed"]
    )
    for row in (row for row in found if row.value is not None):
        interval = f"{row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        print(f"{row.metric:28} {interval} p {row.p:.3f}, {row.n} patients")
    cells = [judged(Path(run), name, set(of["sample"])) for run, name, of in
             ((first, method, mine), (second, other, theirs))]  # fmt: skip
    if all(len(table) for table in cells):
        compare_cells(*cells, sorted(runs), about)


def judged(run, method, samples):
    """cells.parquet of one method: cells of known class in these samples."""
    cells = pd.read_parquet(run / "cells.parquet", filters=[("method", "==", method)])
    if "cell_label" not in cells:
        return cells.iloc[:0]
    return cells[cells["sample"].isin(samples) & cells["cell_label"].notna()]


def compare_cells(mine, theirs, runs, about):
    """Average precision and AUROC, first minus second, on the same draws of the same patients."""
    control = about["control"]
    mine, theirs = (cells[cells["label"] != control] for cells in (mine, theirs))
    patients = sorted(set(mine["patient"]) & set(theirs["patient"]))
    column = pd.Series(range(len(patients)), index=patients)
    draws = patient_draws(len(patients), DRAWS, seed=about["seed"])
    for score in SCORES:
        found = []
        for run in runs:
            of_run = [
                cells[(cells["run"] == run) & cells["patient"].isin(patients)] for cells in (mine, theirs)
            ]
            if any(cells[score].isna().any() for cells in of_run):
                break
            values, drawn = [], []
            for cells in of_run:
                abnormal = (cells["cell_label"] != control).to_numpy()
                scores = cells[score].to_numpy(dtype=np.float64)
                values.append((average_precision_score(abnormal, scores), roc_auc_score(abnormal, scores)))
                owner = cells["patient"].map(column).to_numpy()
                area, precision = rank_draws(abnormal, scores, owner, draws)
                drawn.append((precision, area))
            found.append((np.subtract(*values), np.subtract(*drawn)))
        if len(found) < len(runs):
            continue
        values = np.mean([value for value, _ in found], axis=0)
        low, high = np.nanpercentile(np.mean([drawn for _, drawn in found], axis=0), (2.5, 97.5), axis=1)
        for k, metric in enumerate(("AP", "AUROC")):
            interval = f"{values[k]:+.3f} [{low[k]:+.3f}, {high[k]:+.3f}]"
            print(f"{'cells, ' + score + ', ' + metric:28} {interval}, {len(patients)} patients")


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
