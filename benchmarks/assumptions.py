"""Which methods respect the assumptions of multiple instance learning: the unit tests of Raff & Holt 2023.

Run `OMP_NUM_THREADS=1 python benchmarks/assumptions.py`; a Markdown table comes out, a row as soon as it is
known. Every method has the settings of preset `default`. A cell of the table: the verdict, the mean AUROC on
training bags → the mean on test bags, and in brackets the lowest and highest of the latter over seeds.
Verdicts that differ between seeds are counted.
"""

import argparse
from collections import Counter
from functools import partial

import torch

from hemomil.mil import METHODS
from hemomil.mil.assumptions import UNIT_TESTS, Sizes, try_method


def summary(outcomes):
    """One cell of the table."""
    counts = Counter(found.verdict for found in outcomes)
    verdict = ", ".join(
        kind if len(counts) == 1 else f"{kind} {n} of {len(outcomes)}" for kind, n in counts.most_common()
    )
    train, test = ([getattr(found, f"{split}_auroc") for found in outcomes] for split in ("train", "test"))
    return f"{verdict}: {mean(train):.2f} → {mean(test):.2f} [{min(test):.2f}, {max(test):.2f}]"


def mean(values):
    return sum(values) / len(values)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--train", type=int, default=400, help="training bags")
    options.add_argument("--test", type=int, default=200, help="test bags")
    options.add_argument("--methods", default=",".join(METHODS), help="joined by commas")
    chosen = options.parse_args()
    sizes = Sizes(train=chosen.train, test=chosen.test)
    units = {name: [make(seed, sizes) for seed in range(chosen.seeds)] for name, make in UNIT_TESTS.items()}
    out = partial(print, flush=True)
    out(f"{sizes.train} training bags, {sizes.test} test bags, {sizes.features} features")
    out(f"preset default, {chosen.seeds} seeds\n")
    out(f"| method | {' | '.join(units)} |\n|---|{'---|' * len(units)}")
    for method in chosen.methods.split(","):
        cells = [
            summary([try_method(unit, method, seed=seed) for seed, unit in enumerate(seeds)])
            for seeds in units.values()
        ]
        out(f"| `{method}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
