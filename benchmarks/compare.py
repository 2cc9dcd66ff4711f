"""One method of one study against another's of a second study, on the same samples, paired by patient.

Run `python benchmarks/compare.py RUN1 METHOD1 RUN2 METHOD2 [COLUMN=VALUE]`: metrics of the first minus those
of the second, with 95 % interval and p (`hemomil.stats.compare_methods`), and the average precision at which
each number ranks cells of positive samples. Runs that only one study made are left out. `COLUMN=VALUE`:
only samples of which the manifest says so, as in `study --evaluate-on`.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from hemomil.stats import compare_methods


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
    for run, name in ((first, method), (second, other)):
        scores = json.loads((Path(run) / "metrics.json").read_text()).get("instances", {}).get(name, {})
        print("cells, AP:", name, {key: round(score["ap"]["value"], 3) for key, score in scores.items()})


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
