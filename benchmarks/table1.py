"""The whole protocol of the paper's Table 1 on one GPU: folds x runs x methods, side by side in one process.

Simulated RoI maps of as many cells, bags, patients and classes as the paper had; from maps in memory to the
probabilities of held-out bags. Epochs that do not fit into --minutes are extrapolated from those that did,
and the row says so.
"""

import argparse
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from hemomil.mil.grouped import CellStore, precision
from hemomil.mil.settings import PARTS, MILSettings
from hemomil.mil.side_by_side import SideBySide, Training, at_once
from hemomil.mil.train import Trainer, TrainingBags
from hemomil.streams import stream_seed
from mil import ROI, TRAINING_FLOP
from timing import RESULTS, Row, commit, cpu_model, keep, told

METHODS = ("att", "att+sic", "anomaly", "anomaly+att", "anomaly+att+sic")
PATIENTS = {"control": 33, "hs": 13, "scd": 13, "thalassemia": 3, "xerocytosis": 9}
BAGS = {"control": 181, "hs": 89, "scd": 170, "thalassemia": 25, "xerocytosis": 56}
"""Of each class, as in the paper."""
N_CELLS = 109_000
STRANGE = 0.15
"""Share of the cells of an ill patient that show something."""


def cohort(device, n_cells, seed=0):
    """Maps of each bag, half of their numbers zero; class and patient."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(BAGS)), list(BAGS.values()))
    patients = np.concatenate(
        [100 * kind + np.arange(BAGS[name]) % PATIENTS[name] for kind, name in enumerate(BAGS)]
    )
    sizes = rng.integers(4, 11, size=len(labels)) * rng.uniform(12, 45, size=len(labels))
    sizes = np.maximum(1, np.round(sizes * n_cells / sizes.sum())).astype(int)
    generator = torch.Generator(device).manual_seed(seed)
    signs = torch.randn(len(BAGS), ROI[0], 1, 1, generator=generator, device=device)
    maps = []
    for label, size in zip(labels, sizes, strict=True):
        cells = torch.randn(int(size), *ROI, generator=generator, device=device)
        if label:
            cells[: max(1, int(STRANGE * size))] += 0.2 * signs[label]
        maps.append(cells.relu_().half().cpu())
    return maps, labels, patients


def trainings(labels, patients, folds, runs):
    """What each network learns from, and the bags it is asked about; methods x runs x folds."""
    found, asked = [], []
    for run in range(runs):
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=run).split(labels, labels, patients)
        for (fold, (seen, held_out)), method in product(enumerate(split), METHODS):
            _, group = np.unique(patients[seen], return_inverse=True)
            groups = np.where(labels[seen] == 0, group % 5, -1)
            seed = stream_seed(0, method, f"run-{run}", f"fold-{fold}")
            found.append(Training(seen, labels[seen], groups, PARTS[method], seed))
            asked.append(held_out)
    return found, asked


class Watched(SideBySide):
    """With the seconds of each epoch, and how many of them fit into the time there is."""

    def __init__(self, *what, until):
        super().__init__(*what)
        self.until, self.seconds, self.refits = until, [], []

    def epoch(self, epoch):
        start = time.monotonic()
        if start > self.until:
            return
        super().epoch(epoch)
        self.seconds.append(time.monotonic() - start)
        if epoch % 10 == 0:
            print(f"epoch {epoch + 1}: {self.seconds[-1]:.2f} s", flush=True)

    def refit(self):
        start = time.monotonic()
        if start > self.until:
            return
        super().refit()
        torch.cuda.synchronize()
        self.refits.append(time.monotonic() - start)


@torch.no_grad()
def held_out(side, asked):
    """Probabilities of the bags that each network did not see, in the order of the stack."""
    asked = [asked[number] for number in side.order]
    found = [np.empty((len(bags), len(BAGS))) for bags in asked]
    for at in range(max(map(len, asked))):
        numbers = np.array([[bags[at] if at < len(bags) else -1] for bags in asked])
        pack = side.pack(numbers, np.zeros_like(numbers))
        z = side.stack.in_bags(side.stack.encoders.encode(side.store, pack), pack)
        said = side.stack.judge(z, side.references.distances(z), pack).softmax(dim=2).cpu().numpy()
        for number, bags in enumerate(asked):
            if at < len(bags):
                found[number][at] = said[number, 0]
    return asked, found


def alone(maps, training, settings, device, n_bags=60):
    """Seconds that one network by itself needs for a bag, its maps on the device."""
    bags = TrainingBags(
        [maps[bag].to(device) for bag in training.bags[:n_bags]],
        torch.from_numpy(training.targets[:n_bags]),
        torch.from_numpy(training.donor_groups[:n_bags]),
    )
    trainer = Trainer(bags, training.parts, ROI, len(BAGS), settings, seed=0, device=device)
    if trainer.weighs_distance:
        trainer.refit()
    seconds = []
    for epoch in range(3):
        start = time.monotonic()
        trainer.epoch(epoch)
        torch.cuda.synchronize()
        seconds.append((time.monotonic() - start) / n_bags)
    return min(seconds[1:])


def protocol(minutes, epochs, n_cells, folds=3, runs=5):
    """The rows of the table."""
    device = torch.device("cuda")
    settings = MILSettings.preset("paper", epochs=epochs, bfloat16=True, device="cuda")
    maps, labels, patients = cohort(device, n_cells)
    torch.cuda.empty_cache()
    learned, asked = trainings(labels, patients, folds, runs)
    start = time.monotonic()
    store = CellStore(maps, precision(settings), device)
    torch.cuda.synchronize()
    stored = time.monotonic() - start
    assert at_once(store, learned, ROI, len(BAGS), settings) == len(learned), "not all fit side by side"
    side = Watched(store, learned, ROI, len(BAGS), settings, until=start + 60 * minutes)
    made = time.monotonic() - start - stored
    side.run()
    side.until = float("inf")  # the last references, of the networks as they are now, are not left out
    side.refit()
    asked, said = held_out(side, asked)
    whole = time.monotonic() - start
    done, refits = len(side.seconds), -(-epochs // settings.refit_every) + 1
    missing = (epochs - done) * np.median(side.seconds) + (refits - len(side.refits)) * np.median(side.refits)
    cells = sum(len(maps[bag]) for training in learned for bag in training.bags)
    rate = TRAINING_FLOP * cells / np.median(side.seconds) / 1e12
    complete = done == epochs and len(side.refits) == refits
    far = "all measured" if complete else f"{done} of {epochs} epochs measured, the others extrapolated"
    yield told(
        Row(
            name=f"Table 1's protocol, one GPU: {len(METHODS)} methods, {runs} runs, {folds} folds, "
            f"{len(maps)} bags, {sum(map(len, maps)):,} cells, {epochs} epochs",
            value=(whole + missing) / 60,
            unit="min",
            at_most=10,
            note=f"{far}; maps to the device {stored:.0f} s, networks made {made:.0f} s, "
            f"{sum(side.refits):.0f} s for {len(side.refits)} refits of references",
        )
    )
    low, middle, high = np.quantile(side.seconds, [0, 0.5, 1])
    yield told(
        Row(
            name="an epoch of all networks side by side, bf16",
            value=middle,
            low=low,
            high=high,
            unit="s",
            note=f"{rate:.0f} TFLOP/s of what results need; {torch.cuda.max_memory_allocated() / 1e9:.0f} GB",
        )
    )
    each = np.mean([alone(maps, learned[k], settings, device) for k in range(len(METHODS))])
    steps = sum(len(training.bags) for training in learned)
    yield told(
        Row(
            name="an epoch of one network after another, on the same GPU, to that side by side",
            value=each * steps / middle,
            note=f"by `Trainer`, {1e3 * each:.1f} ms a bag, 60 bags of one network of each method measured",
        )
    )
    for method in METHODS:
        yield told(auroc(method, side, asked, said, labels, runs))


def auroc(method, side, asked, said, labels, runs):
    """How well held-out bags are told apart: a simulated sign, to see that something was learned."""
    own = [k for k, training in enumerate(side.trainings) if training.parts == PARTS[method]]
    truth = np.concatenate([labels[asked[k]] for k in own])
    found = np.concatenate([said[k] for k in own])
    value = roc_auc_score(truth, found, multi_class="ovr", average="macro")
    return Row(name=f"macro AUROC of held-out bags, {method}", value=value, unit="", note="simulated maps")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "table1.json")
    parser.add_argument("--minutes", type=float, default=20, help="no further epoch is begun after these")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--cells", type=int, default=N_CELLS)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: the protocol of Table 1 needs a GPU, and there is none")
        return
    on = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    keep(asked.json, on, protocol(asked.minutes, asked.epochs, asked.cells))


if __name__ == "__main__":
    main()
