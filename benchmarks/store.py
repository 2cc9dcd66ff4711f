"""Size and reading of a store of RoI maps against the published way: a gzip pickle of fp32 arrays per sample.

Also how long the paper's model takes from these files to a diagnosis.

Run `OMP_NUM_THREADS=1 python benchmarks/store.py [--json FILE]` (about 2 minutes, 1.2 GB on the disk of
TMPDIR and as much memory). The maps are random, none of them negative, half of the numbers zero, as after a
ReLU, with all digits of single precision. Files lie in the page cache, so this is about unpacking, not about
the disk. Both ways look at every byte they read: ours reads every bag, of the pickles there is every fifth.
"""

import gzip
import pickle
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from hemomil.describe import StoreWriter, read_bags
from hemomil.mil import AnomalyMIL, MILSettings
from hemomil.mil.pack import Segments
from hemomil.mil.roi_encoder import settled_weights
from hemomil.types import Cells, Cohort, ImageRow, Sample
from mil import METHOD, PlainPaper
from timing import Row, agree, alternate, main, spread, told, versus

BAGS, CELLS = 300, 30
PICKLED = slice(None, None, 5)
LEVEL = 6
"""gzip's; Python's 9 takes eight times as long to write these, and reads as fast."""


def maps(bag):
    """RoI maps of one sample."""
    noise = np.random.default_rng(bag).standard_normal((CELLS, 256, 14, 14), dtype=np.float32)
    return np.maximum(noise, 0, out=noise)


def cohort():
    """Samples with the cells of one image each."""
    samples = tuple(
        Sample(
            sample=f"s{k:03d}",
            patient=f"p{k:03d}",
            label="control",
            images=(ImageRow(image=f"{k}.png", path=Path(f"{k}.png"), row=k + 2),),
        )
        for k in range(BAGS)
    )
    names = [s.sample for s in samples for _ in range(CELLS)]
    n = len(names)
    cells = Cells(
        cell_ids=tuple(f"{name}/{i % CELLS:04d}" for i, name in enumerate(names)),
        samples=tuple(names),
        images=tuple(f"{i // CELLS}.png" for i in range(n)),
        boxes=np.tile([1.0, 2.0, 9.0, 8.0], (n, 1)),
        scores=np.ones(n),
        masks=(None,) * n,
        cell_labels=(None,) * n,
    )
    return cells, Cohort(samples=samples)


def written(folder):
    """The same maps as a store and as pickles."""
    store, pickles = folder / "cells.zarr", folder / "pickles"
    pickles.mkdir()
    with StoreWriter(store, *cohort(), ("roi",)) as writer:
        for bag in range(BAGS):
            values = maps(bag)
            writer.write(slice(bag * CELLS, (bag + 1) * CELLS), "roi", values)
            if bag in range(BAGS)[PICKLED]:
                with gzip.open(pickles / f"s{bag:03d}.pkl.gz", "wb", compresslevel=LEVEL) as file:
                    pickle.dump(values, file)
    return store, sorted(pickles.iterdir())


def touched(values):
    """A number that depends on every byte, and costs next to nothing."""
    return int(np.bitwise_xor.reduce(np.ascontiguousarray(values).reshape(-1).view(np.uint64)))


def unpickled(path):
    with gzip.open(path, "rb") as file:
        return pickle.load(file)


def size(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def benchmark():
    with tempfile.TemporaryDirectory() as name:
        store, pickles = written(Path(name))
        raw = BAGS * CELLS * 256 * 14 * 14 * 4
        packed = sum(map(size, pickles)) / (raw * len(pickles) / BAGS)
        yield told(
            Row(
                name=f"size of a store of {BAGS * CELLS} RoI maps, next to fp32",
                value=size(store) / raw,
                at_most=0.5,
                note=f"gzip pickles of fp32: {packed:.2f}",
            )
        )
        bags = read_bags(store, ["roi"])
        # half of a subnormal half float is as near as half precision comes to a number next to zero
        worst = max(
            agree(bag.features.astype(np.float32) + 1, unpickled(path) + 1, 5e-4)["error"]
            for bag, path in zip(bags[PICKLED], pickles, strict=True)
        )
        del bags
        tasks = {
            "plain": lambda: [touched(unpickled(path)) for path in pickles],
            "ours": lambda: [touched(bag.features) for bag in read_bags(store, ["roi"])],
        }
        rounds = alternate(tasks)
        per_bag = {"plain": 1e3 / len(pickles), "ours": 1e3 / BAGS}
        ms = {name: [seconds[name] * factor for seconds in rounds] for name, factor in per_bag.items()}
        yield told(
            Row(
                name=f"reading {BAGS} bags of {CELLS} RoI maps, per bag: gzip pickles of fp32",
                **spread([plain / ours for plain, ours in zip(ms["plain"], ms["ours"], strict=True)]),
                at_least=10,
                plain_ms=statistics.median(ms["plain"]),
                ours_ms=statistics.median(ms["ours"]),
                error=worst,
                allowed=5e-4,
                note="half precision against single, of 1 + value",
            )
        )
        yield judged(store, pickles)


def judged(store, pickles):
    """The paper's model asked for the same bags, from their files on: reading counts on both sides."""
    bags = read_bags(store, ["roi"])[PICKLED]
    labels = [("control", "target")[number % 2] for number in range(len(bags))]
    model = AnomalyMIL(METHOD, MILSettings.preset("paper", epochs=1)).fit(bags, labels)
    core = model.core_
    published = PlainPaper(core.members[0], core.reference)
    segments = Segments.of_sizes([CELLS])

    @torch.no_grad()
    def plain():
        cells = (torch.from_numpy(unpickled(path)) for path in pickles)
        return torch.stack([published.read(of_bag)[0].softmax(dim=-1).flatten() for of_bag in cells])

    @torch.no_grad()
    def ours():
        read = (core.read(torch.from_numpy(bag.features))[0][0] for bag in read_bags(store, ["roi"])[PICKLED])
        with settled_weights():  # as `AnomalyMIL.predict_cells` does
            return torch.cat(
                [core.members[0].pooling(evidence, segments).softmax(dim=1) for evidence in read]
            )

    return versus(
        f"judging {len(bags)} bags of {CELLS} RoI maps from files, fp32: gzip pickles, the published loop",
        plain,
        ours,
        **agree(ours(), plain(), 1e-3),
        note="probabilities; half precision against single",
    )


if __name__ == "__main__":
    main("store", __doc__, [benchmark])
