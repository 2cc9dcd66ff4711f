"""Small cohorts of bags for the tests of the mil room."""

import numpy as np

from hemomil.types import Bag

ROI = (256, 14, 14)


def make_bag(name, features, *, patient=None, label=None):
    ids = tuple(f"{name}/{i:04d}" for i in range(len(features)))
    return Bag(sample=name, patient=patient or f"p-{name}", label=label, features=features, cell_ids=ids)


def make_cohort(seed, n=45, *, features=8, shift=3.0, sizes=(3, 16), classes=("control", "sickle", "target")):
    """Bags in which a third of the cells of a disorder are shifted, each disorder its own way."""
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n):
        label = classes[i % len(classes)]
        cells = rng.normal(size=(int(rng.integers(*sizes)), features)).astype(np.float32)
        hallmark = max(1, len(cells) // 3)
        direction = classes.index(label)
        if direction:
            cells[:hallmark, direction] += shift
        bags.append(make_bag(f"s{i:03d}", cells, patient=f"p{i // 2:03d}", label=label))
    return bags


def make_roi_cohort(seed, n=6, *, classes=("control", "sickle", "target")):
    rng = np.random.default_rng(seed)
    return [
        make_bag(
            f"s{i}",
            rng.normal(size=(int(rng.integers(2, 5)), *ROI)).astype(np.float16),
            label=classes[i % len(classes)],
        )
        for i in range(n)
    ]


def without_cell(bag, n):
    """The bag with cell n really deleted."""
    return without_cells(bag, [n])


def without_cells(bag, cells):
    """The bag with these cells really deleted."""
    keep = [i for i in range(len(bag)) if i not in set(cells)]
    ids = tuple(bag.cell_ids[i] for i in keep)
    return Bag(
        sample=bag.sample, patient=bag.patient, label=bag.label, features=bag.features[keep], cell_ids=ids
    )
