"""Time the mil room against the plain way it is usually written: one bag and one distance at a time.

Run `OMP_NUM_THREADS=1 python benchmarks/mil.py [--json FILE]` (about 8 minutes). How: see timing.py. RoI maps
are random and stored in half precision; the plain way gets the same numbers in single precision.
"""

import time
from copy import deepcopy

import numpy as np
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.mixture import GaussianMixture
from torch.nn import functional

from hemomil.mil import AnomalyMIL, MILSettings
from hemomil.mil.in_step import InStep
from hemomil.mil.pack import Segments
from hemomil.mil.reference import HealthyReference, fit_gaussian
from hemomil.mil.roi_encoder import RoiEncoder, settled_weights
from hemomil.mil.settings import PARTS
from hemomil.mil.train import Trainer, TrainingBags
from hemomil.streams import stream
from hemomil.types import Bag
from timing import Row, agree, alternate, has_bf16, machine, main, matmul_seconds, spread, told, versus

PAPER = MILSettings.preset("paper")
METHOD = "anomaly+att+sic"
ROI = (256, 14, 14)
CPU = torch.device("cpu")
LATE = 3
"""Epoch at which both losses count; in epoch 0 the bag's weighs nothing."""
FORWARD_FLOP = 2 * (49 * 1024 * 301 + 49 * 301 * 500 + 4 * 500 * 650 + 650 * 500)
"""Of a cell, as the encoder is computed: 49 patches of 1024 numbers to 301 channels, each seen by one window
of the second layer (500), then 4 x 500 to 650 to 500. Products with padding and the 3 channels that fill up
the 301 do not count."""
TRAINING_FLOP = 3 * FORWARD_FLOP - 2 * 49 * 1024 * 301
"""Forward, and twice as much backward, but nothing asks for the gradient of the maps."""


# --- the plain way


class PlainPaper:
    """The published loop, with the same weights and the same reference as a network of ours."""

    def __init__(self, network, reference, settings=PAPER):
        self.network = deepcopy(network)
        for weight in self.network.parameters():  # those of ours lie in memory as its products need them
            weight.data = weight.data.contiguous()
        self.mean = reference.mean.numpy()
        factor = reference.cholesky.numpy()
        self.precision = np.linalg.inv(factor @ factor.T)
        self.decay = settings.instance_decay
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def read(self, cells):
        """Class logits of a bag, and of each of its cells."""
        net, z = self.network, cells
        for layer in net.encoder:
            z = layer(z)
        attention = torch.softmax(net.attention(z)[:, 0], dim=0)
        embedded = z.detach().double().numpy()
        far = torch.tensor([mahalanobis(cell, self.mean, self.precision) for cell in embedded])
        shares = torch.stack([attention, torch.softmax(far, dim=0).float()])
        kernel = net.pooling.convolution.weight[:, :, None]
        weights = functional.conv1d(shares[None], kernel)[0]
        return net.pooling.classifier(weights @ z), net.instance(z)

    def loss(self, cells, target, epoch):
        bag, alone = self.read(cells)
        beta = self.decay**epoch
        of_cells = functional.cross_entropy(alone, target.expand(len(cells)))
        return (1 - beta) * functional.cross_entropy(bag, target[None]) + beta * of_cells

    def epoch(self, bags, targets, order, epoch):
        """One pass, one bag a step; the losses."""
        losses = []
        for row in order:
            loss = self.loss(bags[row], targets[row], epoch)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            losses.append(loss.item())
        return losses


# --- the same, ours


class Watched(Trainer):
    """Ours, remembering its losses, and how long it took to collect what the reference is made of."""

    def loss(self, rows, epoch):
        value = super().loss(rows, epoch)
        self.losses = [*getattr(self, "losses", []), value.detach()]
        return value

    def _note(self, *what):
        start = time.process_time()
        super()._note(*what)
        self.noting = getattr(self, "noting", 0.0) + time.process_time() - start


def maps(n, seed=0):
    """Random RoI maps, none of them negative, half of the numbers zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *ROI, generator=generator).relu_().half()


def paper_trainer(n_bags, n_cells, **changes):
    """Ours before its first epoch, its reference fitted; its bags and targets."""
    bags = [maps(n_cells, seed) for seed in range(n_bags)]
    targets = torch.arange(n_bags) % 2
    learned = TrainingBags(bags, targets, torch.where(targets == 0, targets, -1))
    settings = MILSettings.preset("paper", **changes)
    trainer = Watched(learned, PARTS[METHOD], ROI, 2, settings, seed=0, device=CPU)
    trainer.refit()
    return trainer, [bag.float() for bag in bags], targets


def order(trainer, bags, epoch):
    return stream(trainer.seed, "order", epoch).permutation(len(bags)).tolist()


# --- rows


def distances(size=500):
    """Of cells correlated as the paper's network embeds nih (variance inflation 28 to 30), and more."""
    yield from distances_of(1.03, size, ((torch.float32, 15, 1e-6), (torch.float64, 8, 1e-12)))
    yield from distances_of(1.0, size, ((torch.float32, None, 1e-6),))


def distances_of(own, size, kinds):
    """`own`: how much of a dimension is its own; the less, the more the others say of it."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(size, size)) / np.sqrt(size) + own * np.eye(size)
    controls = torch.from_numpy(rng.normal(size=(5000, size)) @ factor)
    reference = HealthyReference(size)
    reference.set_gaussian(*fit_gaussian(controls, PAPER, 0))
    lower = reference.cholesky
    precision, mean = np.linalg.inv((lower @ lower.T).numpy()), reference.mean.numpy()
    for n in (200, 2000):
        for kind, at_least, allowed in kinds:
            cells = torch.from_numpy(rng.normal(size=(n, size)) @ factor).to(kind)
            yield distance_row(reference, cells, mean, precision, at_least, allowed)


def distance_row(reference, cells, mean, precision, at_least, allowed):
    rows = cells.double().numpy()

    def plain():
        return [mahalanobis(row, mean, precision) for row in rows]

    kind = str(cells.dtype).removeprefix("torch.")
    return versus(
        f"distances of {len(cells)} cells, {cells.shape[1]}-d, {kind}: scipy cell by cell",
        plain,
        lambda: reference.distance(cells),
        repeat=max(1, 2000 // len(cells)),
        at_least=at_least,
        note=f"variance inflation {reference.whitening.inflation:.0f}",
        **agree(reference.distance(cells), plain(), allowed),
    )


def fits(n=20_000, size=500):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    cells = torch.from_numpy(rng.normal(size=(n, size)) @ factor + rng.normal(size=size)).float()
    doubles = cells.double().numpy()

    def plain():
        return GaussianMixture(1, covariance_type="full", random_state=0).fit(doubles)

    def ours():
        reference = HealthyReference(size)
        mean, covariance = fit_gaussian(cells, PAPER, 0)
        reference.set_gaussian(mean, covariance)
        return mean, covariance

    mixture, (mean, covariance) = plain(), ours()
    expected = torch.from_numpy(np.vstack([mixture.means_, mixture.covariances_[0]]))
    found = torch.vstack([mean[None], covariance])
    # next to the largest: a covariance of nearly zero has no digits to agree on
    scale = expected.abs().max()
    yield versus(
        f"reference of {n} cells, {size}-d: scikit-learn, float64",
        plain,
        ours,
        at_least=10,
        **agree((found - expected) / scale + 1, torch.ones_like(found), 1e-6),
    )


def refreshes(n_bags=12, n_cells=50):
    """What the reference costs in each epoch: a second pass now and then, or collected on the way."""
    yield refresh_row("a second pass every 5 epochs", paper_trainer(n_bags, n_cells)[0])
    if "reference_updates" in MILSettings.model_fields:
        streamed = paper_trainer(n_bags, n_cells, reference_updates="streamed")[0]
        yield refresh_row("collected on the way", streamed)
    else:
        print("skipped: reference_updates = streamed, a setting that is not there yet", flush=True)


def refresh_row(way, trainer):
    """Share of an epoch that goes into the reference."""
    streamed = trainer.stream is not None if hasattr(trainer, "stream") else False
    each = 1 if streamed else PAPER.refit_every
    collecting = []

    def epoch():
        trainer.noting = 0.0
        trainer.epoch(LATE)
        collecting.append(trainer.noting)

    rounds = alternate({"epoch": epoch, "refresh": trainer.refresh if streamed else trainer.refit})
    shares = [
        100 * (seconds["refresh"] / each + noting) / seconds["epoch"]
        for seconds, noting in zip(rounds, collecting[1:], strict=True)
    ]
    middle = {name: 1e3 * np.median([seconds[name] for seconds in rounds]) for name in rounds[0]}
    return told(
        Row(
            name=f"reference refresh, share of an epoch: {way}",
            unit="%",
            **spread(shares),
            at_most=3,
            note=f"{middle['refresh']:.0f} ms once, an epoch {middle['epoch']:.0f} ms",
        )
    )


def epochs(n_bags=12, n_cells=30):
    """An epoch of the paper's model: the same updates, the same losses, the same weights afterwards."""
    yield epoch_row("fp32", n_bags, n_cells, at_least=2.0, allowed=1e-4)
    if "bfloat16" not in MILSettings.model_fields:
        print("skipped: an epoch in bf16, a setting (bfloat16) that is not there yet", flush=True)
    elif not has_bf16():
        print("skipped: an epoch in bf16, for which this CPU has no instructions", flush=True)
    else:
        yield epoch_row("bf16", n_bags, n_cells, at_least=3.3, allowed=5e-2, bfloat16=True)


def epoch_row(kind, n_bags, n_cells, at_least, allowed, **changes):
    ours, bags, targets = paper_trainer(n_bags, n_cells, **changes)
    plain = PlainPaper(ours.network, ours.reference)
    expected = plain.epoch(bags, targets, order(ours, bags, LATE), LATE)
    ours.epoch(LATE)
    same = agree(torch.stack(ours.losses), expected, allowed)
    apart = weights_apart(ours.network, plain.network)
    assert apart <= allowed, f"weights are {apart:.1e} apart"
    epochs = {"plain": LATE, "ours": LATE}

    def next_epoch(of):
        epochs[of] += 1
        return epochs[of]

    def plain_epoch():
        epoch = next_epoch("plain")
        plain.epoch(bags, targets, order(ours, bags, epoch), epoch)

    return versus(
        f"paper model, {kind}, an epoch of {n_bags} bags of {n_cells}: the published loop",
        plain_epoch,
        lambda: ours.epoch(next_epoch("ours")),
        at_least=at_least,
        note=f"losses; weights after an epoch {apart:.1e}",
        **same,
    )


def weights_apart(found, expected):
    """Largest distance between two layers' weights, relative to their length."""
    pairs = zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def packs():
    """Small bags: 32 in a step. Fewer steps, so other weights; but of one step the same loss."""
    yield pack_row("fp32", at_least=3, allowed=1e-4)
    if has_bf16():
        yield pack_row("bf16", at_least=5.5, allowed=5e-2, bfloat16=True)


def pack_row(kind, at_least, allowed, n_bags=32, n_cells=12, packed=32, **changes):
    ours, bags, targets = paper_trainer(n_bags, n_cells, batch_bags=packed, **changes)
    plain = PlainPaper(ours.network, ours.reference)
    rows = list(range(packed))
    with torch.no_grad():
        expected = torch.stack([plain.loss(bags[row], targets[row], LATE) for row in rows]).mean()
        same = agree(ours.loss(rows, LATE), expected, allowed)
    return versus(
        f"paper model, {kind}, bags of {n_cells} cells in packs of {packed}: one at a time",
        lambda: plain.epoch(bags, targets, range(n_bags), LATE),
        lambda: ours.epoch(LATE),
        at_least=at_least,
        note="loss of a pack",
        **same,
    )


def ensembles(n_bags=180, n_cells=30, n_features=80):
    """An epoch of the eleven networks of `default`, in step and one after the other: the same weights."""
    settings = MILSettings.preset("default")
    bags = [
        torch.randn(n_cells, n_features, generator=torch.Generator().manual_seed(k)) for k in range(n_bags)
    ]
    targets = torch.arange(n_bags) % 2
    learned = TrainingBags(bags, targets, torch.where(targets == 0, torch.arange(n_bags) % 5, -1))
    making = PARTS["default"]
    makings = [making.of_member(k) for k in range(6)] + [making.of_member(1)] * 5

    def trainers():
        return [
            Trainer(learned, own, (n_features,), 2, settings, seed=seed, device=CPU)
            for seed, own in enumerate(makings)
        ]

    alone, together = trainers(), trainers()
    groups = [
        InStep([trainer for trainer in together if trainer.parts == own]) for own in dict.fromkeys(makings)
    ]

    def one_by_one():
        for trainer in alone:
            trainer.epoch(LATE)

    def in_step():
        for group in groups:
            group.epoch(LATE)

    one_by_one()
    in_step()
    networks = [[trainer.network for trainer in some] for some in (together, alone)]
    apart = max(weights_apart(*pair) for pair in zip(*networks, strict=True))
    assert apart == 0, f"weights are {apart:.1e} apart"
    yield versus(
        f"`default`, an epoch of its 11 networks, {n_bags} bags of {n_cells}: one after the other",
        one_by_one,
        in_step,
        error=apart,
        allowed=0.0,
        note="weights after an epoch",
    )


def inference():
    """Bags judged by the paper's model."""
    yield from inference_rows("fp32", at_least=2.4, allowed=1e-4)
    if has_bf16():
        yield from inference_rows("bf16", at_least=4.4, allowed=5e-2, bfloat16=True)


def inference_rows(kind, at_least, allowed, n_bags=2, n_cells=200, **changes):
    bags = [
        Bag(
            sample=f"s{k}",
            patient=f"p{k}",
            label=("control", "target")[k % 2],
            features=maps(n_cells, k).numpy(),
            cell_ids=tuple(f"s{k}/{i}" for i in range(n_cells)),
        )
        for k in range(n_bags)
    ]
    model = AnomalyMIL(METHOD, MILSettings.preset("paper", epochs=1, **changes)).fit(bags)
    core = model.core_
    plain = PlainPaper(core.members[0], core.reference)
    features = [torch.from_numpy(bag.features) for bag in bags]
    floats = [cells.float() for cells in features]
    segments = Segments.of_sizes([n_cells])

    @torch.no_grad()
    def judge():
        return torch.cat([plain.read(cells)[0].softmax(dim=-1).reshape(1, -1) for cells in floats])

    @torch.no_grad()
    def forward():
        with settled_weights():  # as `AnomalyMIL.predict_cells` does
            read = [core.read(cells)[0][0] for cells in features]
        return torch.cat([core.members[0].pooling(evidence, segments).softmax(dim=1) for evidence in read])

    name = f"inference of the paper model, {kind}, bags of {n_cells}"
    same = agree(forward(), judge(), allowed)
    yield versus(f"{name}: one distance at a time", judge, forward, at_least=at_least, **same)
    same = agree(model.predict_proba(bags), judge(), allowed)
    yield versus(
        f"{name}, with what each cell counted",
        judge,
        lambda: model.predict_cells(bags),
        note="ours also gives weight, contribution and probabilities of each cell",
        **same,
    )


def share_of_peak(n_cells=200):
    """GFLOP/s of the RoI encoder next to those of a square matrix product, in turns.

    From what the store holds and from what training does: maps, and patches, in half precision.
    """
    encoder = RoiEncoder()
    cells = maps(n_cells)
    patches = RoiEncoder.patches(cells)
    upstream = torch.randn(n_cells, 500)

    def forward():
        with torch.no_grad():
            encoder(cells)

    def training():
        encoder.zero_grad()
        encoder(patches).backward(upstream)

    matmuls = []
    tasks = {
        "forward": forward,
        "training": training,
        "peak": lambda: matmuls.append(matmul_seconds(best_of=5)),
    }
    rounds = alternate(tasks)
    peaks = [2 * 1024**3 / seconds for seconds in matmuls[1:]]
    for of, flop, at_least in (("forward", FORWARD_FLOP, 65), ("training", TRAINING_FLOP, 50)):
        shares = [100 * flop * n_cells / r[of] / peak for r, peak in zip(rounds, peaks, strict=True)]
        ms = 1e3 * np.median([r[of] for r in rounds])
        yield told(
            Row(
                name=f"RoI encoder, fp32, {of} of {n_cells} cells: share of the matrix peak",
                unit="%",
                **spread(shares),
                at_least=at_least,
                note=f"{1e-6 * flop:.1f} MFLOP a cell, {ms:.0f} ms; "
                f"peak {machine()['fp32_gflops']:.0f} GFLOP/s",
            )
        )


if __name__ == "__main__":
    main("mil", __doc__, [distances, fits, refreshes, epochs, packs, ensembles, inference, share_of_peak])
