"""Time what the mil room replaces: per-cell distances, scikit-learn's fit, one bag at a time.

Run `OMP_NUM_THREADS=1 python benchmarks/mil.py`. Rivals run in turns in one process on one thread; a ratio is
the median over rounds of (rival / ours), with its range.
"""

import statistics
import time

import numpy as np
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.mixture import GaussianMixture

from hemomil.mil import MILSettings
from hemomil.mil.reference import HealthyReference, fit_gaussian
from hemomil.mil.settings import PARTS
from hemomil.mil.train import Trainer, TrainingBags

ROUNDS = 5
PAPER = MILSettings.preset("paper")


def ratio(name, rival, ours):
    """Print how many times longer the rival takes."""
    ratios, own = [], []
    for round_ in range(ROUNDS + 1):
        times = []
        for task in (rival, ours):
            start = time.perf_counter()
            task()
            times.append(time.perf_counter() - start)
        if round_:  # the first round warms up
            ratios.append(times[0] / times[1])
            own.append(times[1])
    middle, ms = statistics.median(ratios), 1e3 * statistics.median(own)
    print(f"{name:58s} {middle:7.1f}x  [{min(ratios):.1f}, {max(ratios):.1f}]  ours {ms:.1f} ms", flush=True)


def distances(n=200, size=500):
    rng = np.random.default_rng(0)
    controls, cells = rng.normal(size=(2000, size)), rng.normal(size=(n, size))
    reference = HealthyReference(size)
    reference.set_gaussian(*fit_gaussian(torch.from_numpy(controls), PAPER, 0))
    mixture = GaussianMixture(1, covariance_type="full", random_state=0).fit(controls)
    centre, precision = mixture.means_[0], mixture.precisions_[0]
    ratio(
        f"distances of {n} cells, {size}-d: scipy, cell by cell",
        lambda: [mahalanobis(cell, centre, precision) for cell in cells],
        lambda: reference.distance(torch.from_numpy(cells)),
    )


def fits(n=5000, size=500):
    controls = np.random.default_rng(0).normal(size=(n, size))
    cells = torch.from_numpy(controls)
    ratio(
        f"reference of {n} cells, {size}-d: scikit-learn, float64",
        lambda: GaussianMixture(1, covariance_type="full", random_state=0).fit(controls),
        lambda: HealthyReference(size).set_gaussian(*fit_gaussian(cells, PAPER, 0)),
    )


def make_trainer(cells, feature_shape, settings):
    targets = torch.arange(len(cells)) % 2
    bags = TrainingBags(cells, targets, torch.where(targets == 0, targets, -1))
    return Trainer(bags, PARTS["att+sic"], feature_shape, 2, settings, seed=0, device=torch.device("cpu"))


def epochs(name, feature_shape, n_bags, n_cells, packed, **settings):
    generator = torch.Generator().manual_seed(0)
    cells = [torch.randn(n_cells, *feature_shape, generator=generator) for _ in range(n_bags)]
    base = MILSettings.preset("paper" if len(feature_shape) > 1 else "default", **settings)
    one = make_trainer(cells, feature_shape, base.model_copy(update={"batch_bags": 1}))
    many = make_trainer(cells, feature_shape, base.model_copy(update={"batch_bags": packed}))
    ratio(
        f"epoch of {name}: one bag at a time / packs of {packed}", lambda: one.epoch(0), lambda: many.epoch(0)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    distances()
    fits()
    epochs("256 bags of 30 vectors, 80-d", (80,), 256, 30, 16)
    epochs("16 bags of 12 RoI maps", (256, 14, 14), 16, 12, 16)
