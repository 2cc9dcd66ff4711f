"""The viewer on cohorts too large for one file: first paint, colour switch, memory of the server.

    python benchmarks/view.py [--samples 200] [--cells 1000] [--rounds 5]

Draws a run folder, starts `hemomil view` on it in a process of its own, and looks at it in Chromium. Prints
JSON: medians over rounds, each in a browser window that has cached nothing.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from hemomil.streams import stream
from timing import machine

CLASSES = ("control", "sickle", "spherocytosis", "thalassemia")
SIDE, PITCH = (800, 600), 50
PER_IMAGE = (SIDE[0] // PITCH) * (SIDE[1] // PITCH)
DRAWN = 20
"""Different pictures; the other names of images are links to them."""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
TARGETS = {"list_first_paint_ms": 2000, "sample_first_paint_ms": 2000, "colour_switch_ms": 200}
TWO_FRAMES = """button => new Promise(done => {
  const start = performance.now();
  button.click();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""
VIEW = """
import sys
from pathlib import Path
from hemomil.commands.console import Talk
from hemomil.commands.viewing import view
view(Path(sys.argv[1]), port=0, open_browser=False, talk=Talk())
"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def draw_field(rng):
    """A field with a cell in every square of a grid, and their boxes."""
    image = Image.new("RGB", SIDE, (236, 228, 222))
    draw = ImageDraw.Draw(image)
    boxes = []
    for y in range(0, SIDE[1], PITCH):
        for x in range(0, SIDE[0], PITCH):
            width, height = rng.integers(26, 40, 2)
            left, top = x + int(rng.integers(2, 10)), y + int(rng.integers(2, 10))
            box = (left, top, left + int(width), top + int(height))
            draw.ellipse(box, fill=(196, 118, 112))
            draw.ellipse((left + 9, top + 9, left + 17, top + 17), fill=(222, 172, 166))
            boxes.append(box)
    return image, np.array(boxes, dtype=np.float64)


def make_run(folder, n_samples, n_cells):
    """A run folder as `predict` writes it, with `n_cells` cells in each sample."""
    rng = stream(0, "view-benchmark")
    images = folder / "cohort" / "images"
    images.mkdir(parents=True)
    (folder / "cohort" / "manifest.csv").write_text("image,sample\n")
    drawn = []
    for i in range(DRAWN):
        picture, boxes = draw_field(rng)
        picture.save(images / f"drawn{i}.jpg", quality=90)
        drawn.append(boxes)
    run = folder / "run"
    run.mkdir()
    labels = [CLASSES[i % len(CLASSES)] for i in range(n_samples)]
    cells = pd.concat([_cells(rng, images, i, n_cells, drawn) for i in range(n_samples)], ignore_index=True)
    cells.to_parquet(run / "cells.parquet", index=False)
    _samples(rng, labels).to_csv(run / "samples.csv", index=False)
    about = {
        "command": "predict",
        "version": "0.1.0",
        "classes": list(CLASSES),
        "control": "control",
        "methods": ["default"],
        "data": {"manifest": str(folder / "cohort" / "manifest.csv")},
    }
    (run / "run.json").write_text(json.dumps(about))
    return run


def _cells(rng, images, sample, n, drawn):
    numbers = np.arange(n)
    fields = numbers // PER_IMAGE
    which = (sample + fields) % DRAWN
    boxes = np.stack([drawn[w][k % PER_IMAGE] for w, k in zip(which, numbers, strict=True)])
    names = []
    for field in range(int(fields[-1]) + 1):
        name = f"{sample:04d}-{field}.jpg"
        os.link(images / f"drawn{(sample + field) % DRAWN}.jpg", images / name)
        names.append(f"images/{name}")
    anomaly = rng.gamma(6, 1.2, n)
    attention = rng.dirichlet(np.ones(n))
    table = {
        "cell_id": [f"s{sample:04d}/{k:05d}" for k in numbers],
        "sample": f"s{sample:04d}",
        "patient": f"p{sample // 2:04d}",
        "image": [names[field] for field in fields],
        **dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True)),
        "attention": attention,
        "anomaly": anomaly,
        "weight": attention,
        "contribution": rng.normal(0, 0.1, n),
        "anomaly_p": 1 / (1 + anomaly**2),
        "anomaly_q": 1 / (1 + anomaly),
    }
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), n)
    return pd.DataFrame(table | {f"prob_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)})


def _samples(rng, labels):
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), len(labels))
    table = {
        "sample": [f"s{i:04d}" for i in range(len(labels))],
        "patient": [f"p{i // 2:04d}" for i in range(len(labels))],
        "label": labels,
        "method": "default",
        "predicted": [CLASSES[k] for k in probabilities.argmax(axis=1)],
        "novelty_p": rng.random(len(labels)),
    }
    return pd.DataFrame(table | {f"prob_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)})


@contextmanager
def serving(run):
    """The viewer in a process of its own: its address, its process id, and seconds until it answered."""
    command = [sys.executable, "-c", VIEW, str(run)]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stderr.readline().strip()
            yield address, process.pid, time.perf_counter() - start
        finally:
            process.kill()


def megabytes(pid, what):
    """VmRSS, what the process now has in memory, or VmHWM, the most it had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024)


def look(browser, address, sample):
    """Milliseconds of one visit with an empty cache: list, then a sample, then each colouring."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(address)
    page.locator("#samples tbody tr").first.wait_for()
    found = {
        "list_first_paint_ms": page.evaluate(FIRST_PAINT),
        "list_filled_ms": page.evaluate("performance.now()"),
    }
    page.goto("about:blank")
    with page.expect_response(lambda answer: "/images/" in answer.url and "/pictures/" in answer.url):
        page.goto(f"{address}#/sample/{sample}")
    found["sample_first_paint_ms"] = page.evaluate(FIRST_PAINT)
    found["sample_image_there_ms"] = page.evaluate("performance.now()")
    switches = [
        page.locator(f"[data-mode={mode}]").evaluate(TWO_FRAMES)
        for mode in ("attention_ratio", "contribution", "class", "anomaly")
    ]
    context.close()
    return found | {"colour_switch_ms": max(switches)}


def measure(run, n_samples, rounds):
    """Medians over rounds, the first of which warms up and does not count."""
    with serving(run) as (address, pid, seconds), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        visits = [look(browser, address, f"s{k * 7 % n_samples:04d}") for k in range(rounds + 1)][1:]
        browser.close()
        found = {name: round(statistics.median(visit[name] for visit in visits), 1) for name in visits[0]}
        memory = {"server_rss_mb": megabytes(pid, "VmRSS"), "server_peak_mb": megabytes(pid, "VmHWM")}
        return {"server_ready_s": round(seconds, 1), **found, **memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--cells", type=int, default=1000, help="in each sample")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), given.samples, given.cells)
        found = measure(run, given.samples, given.rounds)
    size = {"samples": given.samples, "cells": given.samples * given.cells, "rounds": given.rounds}
    where = {"targets": TARGETS, "load": os.getloadavg()[0], "machine": machine()}
    print(json.dumps(size | found | where, indent=2))


if __name__ == "__main__":
    main()
