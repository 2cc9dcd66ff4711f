"""A run folder to look at: drawn fields, two methods, two runs, cells with and without scores."""

import json

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from hemomil.streams import stream

CLASSES = ("control", "sickle", "spherocytosis")
PER_IMAGE, IMAGES = 12, 2
PER_SAMPLE = PER_IMAGE * IMAGES


def draw_field(path, rng):
    """Twelve cells on a field; returns their boxes."""
    image = Image.new("RGB", (300, 220), (236, 228, 222))
    draw = ImageDraw.Draw(image)
    boxes = []
    for i in range(PER_IMAGE):
        x, y = 18 + 70 * (i % 4) + int(rng.integers(0, 12)), 12 + 70 * (i // 4) + int(rng.integers(0, 10))
        box = (x, y, x + 40, y + int(rng.integers(24, 42)))
        draw.ellipse(box, fill=(196, 118, 112))
        boxes.append(box)
    image.save(path)
    return boxes


def make_run(folder, samples=6, **about):
    """A finished study in `folder`/run, and its images in `folder`/cohort."""
    rng = stream(0, "view-test")
    images = folder / "cohort" / "images"
    images.mkdir(parents=True)
    (folder / "cohort" / "manifest.csv").write_text("image,sample\n")
    run = folder / "run"
    run.mkdir()
    cells, rows = [], []
    for i in range(samples):
        cells.append(_cells(images, i, rng))
        rows.append(_sample(i, rng))
    write_tables(run, pd.DataFrame(rows), pd.concat(cells, ignore_index=True))
    record = {
        "command": "study",
        "version": "0.1.0",
        "classes": list(CLASSES),
        "control": "control",
        "methods": ["att", "default"],
        "data": {"manifest": str(folder / "cohort" / "manifest.csv")},
    }
    (run / "run.json").write_text(json.dumps(record | about))
    return run


def write_tables(run, samples, cells):
    """Every method and run side by side; only `default`, run 0, is as given."""
    both = [(method, number) for method in ("att", "default") for number in (1, 0)]
    pd.concat([samples.assign(method=m, run=r) for m, r in both]).to_csv(run / "samples.csv", index=False)
    parts = [
        cells.assign(method=m, run=r, anomaly=cells["anomaly"] + 100 * (m == "att") + 50 * r) for m, r in both
    ]
    pd.concat(parts, ignore_index=True).to_parquet(run / "cells.parquet", index=False)


def shown_cells(run):
    """Of cells.parquet, what the viewer shows."""
    return pd.read_parquet(run / "cells.parquet").query("method == 'default' and run == 0")


def _cells(images, sample, rng):
    names = [f"images/{sample}-{k}.png" for k in range(IMAGES)]
    boxes = np.array([box for name in names for box in draw_field(images.parent / name, rng)], dtype=float)
    attention = rng.dirichlet(np.ones(PER_SAMPLE))
    anomaly = rng.gamma(6, 1.2, PER_SAMPLE)
    table = {
        "cell_id": [f"s{sample:02d}/{k:03d}" for k in range(PER_SAMPLE)],
        "sample": f"s{sample:02d}",
        "patient": f"p{sample // 2:02d}",
        "image": np.repeat(names, PER_IMAGE),
        **dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True)),
        "attention": attention,
        "anomaly": anomaly,
        "weight": attention,
        "contribution": rng.normal(0, 0.1, PER_SAMPLE),
        "anomaly_p": 1 / (1 + anomaly**2),
        "anomaly_q": 1 / (1 + anomaly),
    }
    alone = rng.dirichlet(np.ones(len(CLASSES)), PER_SAMPLE)
    return pd.DataFrame(table | {f"prob_{name}": alone[:, k] for k, name in enumerate(CLASSES)})


def _sample(i, rng):
    probabilities = rng.dirichlet(np.ones(len(CLASSES)))
    row = {
        "sample": f"s{i:02d}",
        "patient": f"p{i // 2:02d}",
        "label": CLASSES[i % 3],
        "fold": i % 3,
        "predicted": CLASSES[int(probabilities.argmax())],
        "novelty_p": rng.random(),
    }
    return row | {f"prob_{name}": p for name, p in zip(CLASSES, probabilities, strict=True)}
