"""Cost and memory of bags of a thousand to a million cells, and memory of searching many fields.

Run `OMP_NUM_THREADS=1 python benchmarks/scale.py [--json FILE]` (about 6 minutes, 8 GB). Every measurement is
made in a process of its own. Cells are random vectors of 80 numbers. Extra memory is the most that was held
while working, beyond what was held before (the features among it) and the results. It also draws
docs/images/cost-per-cell.svg. Linux only: it reads /proc.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image

from hemomil.commands.cells import detect_all
from hemomil.commands.console import SILENT
from hemomil.commands.fitting import fit
from hemomil.commands.fitting import predict as fitting_predict
from hemomil.commands.settings import Settings
from hemomil.detect import Detector, DetectSettings
from hemomil.mil import AnomalyMIL, MILSettings
from hemomil.mil.settings import PARTS
from hemomil.mil.train import Trainer, TrainingBags
from hemomil.segmentation import Masks
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream
from hemomil.types import Bag
from timing import Row, forget_peak, main, resident, told

FEATURES = 80
SIZES = (1_000, 10_000, 100_000, 1_000_000)
METHODS = ("default", "anomaly+att+sic")
FIELDS = (5, 20)
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "cost-per-cell.svg"
CLASSES = ("control", "target")
SETTINGS = MILSettings.preset("default", epochs=1)


# --- in a process of its own


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, FEATURES), dtype=np.float32)


def bag_of(n, seed=0):
    label = CLASSES[seed % 2]
    ids = tuple(map(str, range(n)))
    return Bag(sample=f"s{seed}", patient=f"p{seed}", label=label, features=vectors(n, seed), cell_ids=ids)


def predict(method, n):
    """Bags of n cells, judged by a small trained model."""
    model = AnomalyMIL(method, SETTINGS).fit([bag_of(50, seed) for seed in range(12)])
    bag = bag_of(n)
    model.predict_cells([bag_of(1000)])

    def result_bytes():
        (judged,) = model.predict_cells([bag])
        values = (getattr(judged, name) for name in judged.__slots__)
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    return measured(result_bytes, n)


def judge(method, n):
    """As `predict`, and the jury says what is strange."""
    small = [bag_of(50, seed) for seed in range(12)]
    model, jury = fit(small, method, Settings(mil=SETTINGS), seed=0)
    bag = bag_of(n)
    fitting_predict(model, jury, [bag_of(1000)])

    def result_bytes():
        (judged,), (flags,) = fitting_predict(model, jury, [bag])
        told = [getattr(part, name) for part in (judged, flags) for name in part.__slots__]
        return sum(value.nbytes for value in (*told, *flags.interval) if isinstance(value, np.ndarray))

    return measured(result_bytes, n)


def train(method, n):
    """Steps on one bag of n cells; the reference was fitted to small bags of controls before."""
    cells = [torch.from_numpy(vectors(50, seed)) for seed in range(10)]
    groups = torch.tensor([*(k % 5 for k in range(10)), -1])
    targets = (groups < 0).long()
    bags = TrainingBags([*cells, torch.from_numpy(vectors(n))], targets, groups)
    parts = PARTS[method].of_member(0)
    trainer = Trainer(bags, parts, (FEATURES,), 2, SETTINGS, seed=0, device=torch.device("cpu"))
    if trainer.weighs_distance:
        trainer.refit()

    def step(rows):
        loss = trainer.loss(rows, 3)
        trainer.optimiser.zero_grad()
        loss.backward()
        trainer.optimiser.step()
        return 0

    step([0])
    return measured(lambda: step([10]), n)


def measured(task, n):
    """CPU seconds (median) and extra bytes; `task` says how many bytes its results take."""
    forget_peak()
    before, _ = resident()
    times, extras = [], []
    for _ in range(2 if n > 100_000 else 5):  # before, the same was done to a small bag
        start = time.process_time()
        kept = task()
        times.append(time.process_time() - start)
        extras.append(resident()[1] - before - kept)
    return {"seconds": statistics.median(times), "extra": max(extras[0], 0)}


def detect(_, fields):
    """The shipped detector over files of fields, as `hemomil detect` reads them.

    The same few fields again and again: one with more cells takes more. The peak, and what is kept of masks.
    """
    detector = Detector.shipped(settings=DetectSettings(threads=1))
    with tempfile.TemporaryDirectory() as name:
        paths = {f"{k}.png": Path(name) / f"{k}.png" for k in range(fields)}
        for k, path in enumerate(paths.values()):
            rng = stream(0, "benchmark-field", k % FIELDS[0])
            told = random_field_settings(rng, size=(960, 1280), diameter=(50.0, 80.0))
            Image.fromarray(draw_field(rng, told).image).save(path)
        forget_peak()
        found = detect_all(paths, detector, Path(name), SILENT).values()
        peak = resident()[1]
    masks = Masks(chain.from_iterable(detections.masks.texts for detections in found))
    return {
        "peak": peak,
        "cells": len(masks),
        "masks": sum(map(sys.getsizeof, masks.texts)),
        "drawn": sum(mask.nbytes for mask in masks),
    }


WORK = {work.__name__: work for work in (predict, judge, train, detect)}


# --- all of them


def apart(work, method, n):
    """What a process of its own measures."""
    words = [sys.executable, __file__, work, method, str(n)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def free_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def bags():
    """Cost per cell next to that of a bag of a thousand, and the memory of the largest."""
    curves = {}
    works = (predict, "predict_cells"), (judge, "diagnosis and jury"), (train, "a training step")
    for work, what in works:
        for method in METHODS if work is not judge else METHODS[:1]:
            found = grown(work.__name__, method)
            curves[f"{what}, {method}"] = {n: 1e6 * seen["seconds"] / n for n, seen in found.items()}
            yield from bag_rows(f"{what}, {method}", found)
    draw(curves)


def grown(work, method):
    """Measurements by number of cells, as far as memory goes."""
    found = {}
    for n in SIZES:
        before = found.get(n // 10, {"extra": 0})
        if 10 * before["extra"] > free_bytes() / 2:
            print(f"skipped: {work}, {method}, {n:,} cells: memory is short", flush=True)
            break
        found[n] = apart(work, method, n)
    return found


def bag_rows(what, found):
    costs = {n: 1e6 * seen["seconds"] / n for n, seen in found.items()}
    first, last = min(found), max(found)
    dear = ", ".join(f"{n:,}: {cost:.2f}" for n, cost in costs.items())
    large = ", ".join(f"{n:,}: {1e-9 * seen['extra']:.3f}" for n, seen in found.items())
    yield told(
        Row(
            name=f"{what}: cost of a cell in a bag of {last:,} next to {first:,}",
            value=costs[last] / costs[first],
            at_most=1.2,
            note=f"µs a cell at {dear}",
        )
    )
    yield told(
        Row(
            name=f"{what}: extra memory for {last:,} cells",
            value=1e-9 * found[last]["extra"],
            unit="GB",
            at_most=0.5,
            note=f"GB at {large}",
        )
    )


def fields():
    """Peak memory of a few fields and of more."""
    few, many = (apart("detect", "shipped", n) for n in FIELDS)
    yield told(
        Row(
            name=f"finding cells: peak memory over {FIELDS[1]} files next to {FIELDS[0]}, the same fields",
            value=many["peak"] / few["peak"],
            at_most=1.05,
            note=f"{1e-9 * few['peak']:.2f} and {1e-9 * many['peak']:.2f} GB; {many['cells']} cells, "
            f"whose masks take {1e-6 * many['masks']:.1f} MB, {1e-6 * many['drawn']:.1f} if drawn",
        )
    )


# --- the figure


def draw(curves):
    """Cost per cell against cells; Okabe and Ito's colours, and a marker each."""
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 11, "svg.hashsalt": "hemomil", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = zip(("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00"), "osvD^", strict=True)
    for (name, costs), (colour, marker) in zip(curves.items(), styles, strict=True):
        axes.plot(list(costs), list(costs.values()), color=colour, marker=marker, label=name)
    axes.set(xscale="log", xlabel="cells in the bag", ylabel="CPU time, µs a cell")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WORK:
        torch.set_num_threads(1)
        print(json.dumps(WORK[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
    else:
        main("scale", __doc__, [bags, fields])
