"""Train several networks of the paper side by side on one device, as `Trainer` trains each of them.

The cells of all cohorts lie on the device once. In each step every network reads its next bags; a network
that has none left waits for the others. Weights are those of `Trainer` but for the order of sums.

Axes: M networks, A of them that have bags left, B bags of a step, L cells of the longest bag, H embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hemomil.errors import FeaturesError
from hemomil.mil.encoder import reads_maps
from hemomil.mil.grouped import CellStore, Reading, precision
from hemomil.mil.network import MILNetwork, blank_network, initialise
from hemomil.mil.reference import HealthyReference
from hemomil.mil.settings import MILSettings, Parts
from hemomil.mil.stack import Bags, Stack
from hemomil.mil.train import fit_healthy
from hemomil.streams import stream, stream_seed

Value = TypeVar("Value")

FILLED = {"cuda": 512}
"""Cells of a step are filled up to a multiple of this: memory let go then fits the next step."""
LONGEST = 32
"""So is the longest bag."""
CELL_NUMBERS = 150_000
"""That a step keeps of each cell: its patches, and what the gradient needs."""
WEIGHT_NUMBERS = 6
"""That a step keeps of each weight: itself, gradient, two moments, a copy, the gradient of that."""
SPARE = 0.8
"""How much of the memory that is free is used."""


@dataclass(frozen=True)
class Training:
    """What one network learns from."""

    bags: Int64[np.ndarray, "S"]
    """Numbers of its bags in the store."""
    targets: Int64[np.ndarray, "S"]
    donor_groups: Int64[np.ndarray, "S"]
    """Which of the groups of control donors; -1 for bags of other classes."""
    parts: Parts
    seed: int

    @property
    def controls(self) -> Int64[np.ndarray, "_"]:
        """Rows of the control bags."""
        return np.flatnonzero(self.donor_groups >= 0)


def can_stand(parts: Parts, feature_shape: tuple[int, ...], settings: MILSettings) -> bool:
    """Whether networks of this making can stand side by side: those of Table 1, trained as the paper does."""
    return (
        reads_maps(feature_shape, settings)
        and parts.pooling == "weighted"
        and not parts.ensemble
        and not parts.frozen_reference
        and settings.dropout == 0
        and settings.reference_updates == "refit"
        and not (parts.distance and settings.crossfit_training)
    )


@dataclass(frozen=True)
class Trained:
    """A network that has learned, and its embeddings of the control cells that it learned from."""

    network: MILNetwork
    controls: Float[Tensor, "_ H"]


def store_for(
    bags: Sequence[Float[Tensor, "_ ..."]], settings: MILSettings, device: torch.device
) -> CellStore | None:
    """The maps of all bags on the device; nothing where they do not fit."""
    kind = precision(settings)
    if CellStore.nbytes(sum(map(len, bags)), kind) > _free(device) * SPARE:
        return None
    return CellStore(bags, kind, device)


def train_side_by_side(
    store: CellStore,
    trainings: Sequence[Training],
    feature_shape: tuple[int, ...],
    n_classes: int,
    settings: MILSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Trained]:
    """Train a network on each of these, as many at once as memory allows; `progress` hears epochs."""
    each = at_once(store, trainings, feature_shape, n_classes, settings)
    starts = range(0, len(trainings), each)
    done, total = count(1), len(starts) * settings.epochs
    for start in starts:
        side = SideBySide(store, trainings[start : start + each], feature_shape, n_classes, settings)
        networks = side.run(lambda epoch: progress(next(done), total))
        controls = side.controls()
        del side  # its memory is for the next ones
        yield from map(Trained, networks, controls)


def at_once(
    store: CellStore,
    trainings: Sequence[Training],
    feature_shape: tuple[int, ...],
    n_classes: int,
    settings: MILSettings,
) -> int:
    """How many networks can be trained side by side; at least one, whatever becomes of it."""
    bags = np.unique(np.concatenate([training.bags for training in trainings]))
    largest = np.sort(store.sizes[bags])[-settings.batch_bags :].sum()
    with torch.device("meta"):
        network = MILNetwork(trainings[0].parts, feature_shape, n_classes, settings)
    weights = sum(weight.numel() for weight in network.parameters())
    numbers = CELL_NUMBERS * max(int(largest), settings.chunk_cells) + 2 * WEIGHT_NUMBERS * weights
    fit = SPARE * _free(store.device) / (numbers * precision(settings).itemsize)
    return max(1, int(min(fit, len(trainings))))


def _free(device: torch.device) -> float:
    """Bytes of memory; of a processor's own it is not asked."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


class SideBySide:
    """Networks on their way from random weights to learned ones, all at once."""

    def __init__(
        self,
        store: CellStore,
        trainings: Sequence[Training],
        feature_shape: tuple[int, ...],
        n_classes: int,
        settings: MILSettings,
    ) -> None:
        self.store, self.settings = store, settings
        self.device = store.device
        # those with most bags first: whoever has a step left is then among the first
        self.order = sorted(range(len(trainings)), key=lambda number: -len(trainings[number].bags))
        self.trainings = [trainings[number] for number in self.order]
        self.networks = [
            blank_network(training.parts, feature_shape, n_classes, settings) for training in self.trainings
        ]
        for network, training in zip(self.networks, self.trainings, strict=True):
            initialise(network, torch.Generator().manual_seed(stream_seed(training.seed, "weights")))
        self.stack = Stack(self.networks, settings, self.device)
        sizes = [len(training.bags) for training in self.trainings]
        ends = [number for number in range(1, len(sizes)) if sizes[number] < sizes[number - 1]]
        self.in_step = list(pairwise([0, *ends, len(sizes)]))
        """Networks of equally many bags, whose steps are counted alike: from, to."""
        self.vectors = [
            [nn.Parameter(weight[start:end]) for weight in self.stack.weights] for start, end in self.in_step
        ]
        self.optimiser = torch.optim.Adam(
            [weight for of_some in self.vectors for weight in of_some],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        measured = [number for number, training in enumerate(self.trainings) if training.parts.distance]
        self.references = References(measured, settings, self.device)

    def run(self, progress: Callable[[int], None] = lambda epoch: None) -> list[MILNetwork]:
        """All epochs; the networks in the order of their trainings."""
        for epoch in range(self.settings.epochs):
            if epoch % self.settings.refit_every == 0:
                self.refit()
            self.epoch(epoch)
            progress(epoch + 1)
        self.stack.unstack(self.networks)
        return [network.to(self.device).eval() for network in self._as_given(self.networks)]

    def _as_given(self, values: Sequence[Value]) -> list[Value]:
        """From the order of the stack to that of the trainings."""
        return [values[number] for number in np.argsort(self.order)]

    def epoch(self, epoch: int) -> None:
        """Every network passes over its bags, in an order of its own."""
        size = self.settings.batch_bags
        orders = [
            stream(training.seed, "order", epoch).permutation(len(training.bags))
            for training in self.trainings
        ]
        found = []
        for start in range(0, len(orders[0]), size):
            rows = [order[start : start + size] for order in orders if len(order) > start]
            found.append(self.step(self.bags(rows), epoch))
        if not torch.isfinite(torch.stack(found)).all():  # asked once, as the device is waited for
            raise FeaturesError(
                f"the loss of a network became infinite in epoch {epoch + 1}",
                hint="lower mil.learning_rate, or look for extreme values among the features",
            )

    def step(self, bags: Bags, epoch: int) -> Float[Tensor, ""]:
        """One step of each network; the sum of their losses."""
        loss = self.losses(bags, epoch).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self._update(len(bags.ends))
        return loss.detach()

    def losses(self, bags: Bags, epoch: int) -> Float[Tensor, "A"]:
        """Loss of each network on these bags; distances carry no gradient, as in the paper's code."""
        z = self.stack.in_bags(self.stack.encoders.encode(self.store, bags), bags)
        return self.stack.losses(z, self.references.distances(z.detach()), bags, epoch)

    def bags(self, rows: Sequence[Int64[np.ndarray, "_"]]) -> Bags:
        """Some of the bags of each of the first networks, by row."""
        numbers = np.full((len(rows), max(map(len, rows))), -1)
        targets = np.zeros_like(numbers)
        for number, (of_network, training) in enumerate(zip(rows, self.trainings, strict=False)):
            numbers[number, : len(of_network)] = training.bags[of_network]
            targets[number, : len(of_network)] = training.targets[of_network]
        return self.pack(numbers, targets)

    def pack(self, numbers: Int64[np.ndarray, "A B"], targets: Int64[np.ndarray, "A B"]) -> Bags:
        """Bags of the store, -1 where there is none, for each of the first networks."""
        sizes = np.where(numbers >= 0, self.store.sizes[numbers], 0)
        longest = _filled(int(sizes.max()), LONGEST)
        flat = sizes.ravel()
        cells = _ranges(self.store.starts[numbers.ravel()], flat)
        place = _ranges(np.arange(len(flat)) * longest, flat)
        read = self._reading(cells, sizes.sum(axis=1))
        at, counts, classes = map(self._sent, (place, sizes, targets))
        return Bags(read.cells, read.ends, at, counts, classes, longest)

    def _reading(self, cells: Int64[np.ndarray, "T"], counts: Int64[np.ndarray, "A"]) -> Reading:
        """Cells on their way to the device; what fills them up goes to the last network."""
        missing = _filled(len(cells), FILLED.get(self.device.type, 1)) - len(cells)
        ends = np.cumsum(counts)
        ends[-1] += missing
        return Reading(self._sent(np.pad(cells, (0, missing))), self._sent(ends.astype(np.int32)))

    def _sent(self, values: np.ndarray) -> Tensor:
        """On its way to the device, which is not waited for."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _update(self, n: int) -> None:
        """A step of Adam for the first n networks."""
        gradients = self.stack.gradients()
        for (start, end), weights in zip(self.in_step, self.vectors, strict=True):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient[start:end] if end <= n else None
        self.optimiser.step()
        self.stack.encoders.refresh()

    def refit(self) -> None:
        """Fit the healthy references to the control cells as they are embedded now."""
        measured = self.references.measured
        if not measured:
            return
        for number, z in zip(measured, self._controls(measured), strict=True):
            self.references.fit(number, z, self._control_groups(number), self.trainings[number].seed)
        self.references.gather()

    def controls(self) -> list[Float[Tensor, "_ H"]]:
        """Embeddings of the control cells of each network, in the order of the trainings."""
        return self._as_given(self._controls(range(len(self.trainings))))

    def _control_groups(self, number: int) -> Int64[Tensor, "_"]:
        """Of each control cell of a network, the group of its donor."""
        training = self.trainings[number]
        sizes = self.store.sizes[training.bags[training.controls]]
        return self._sent(np.repeat(training.donor_groups[training.controls], sizes))

    @torch.no_grad()
    def _controls(self, numbers: Sequence[int]) -> list[Float[Tensor, "_ H"]]:
        """Embeddings of the control cells of these networks of the stack."""
        known = {number: self._control_cells(self.trainings[number]) for number in numbers}
        found: dict[int, list[Tensor]] = {number: [] for number in numbers}
        each = self.settings.chunk_cells
        for start in range(0, max(map(len, known.values())), each):
            parts = [
                known.get(number, np.empty(0, int))[start : start + each] for number in range(len(self.order))
            ]
            counts = np.array([len(part) for part in parts])
            z = self.stack.encoders.encode(self.store, self._reading(np.concatenate(parts), counts))
            pieces = torch.split(z[: counts.sum()], counts.tolist())
            for number in numbers:
                found[number].append(pieces[number])
        return [torch.cat(found[number]) for number in numbers]

    def _control_cells(self, training: Training) -> Int64[np.ndarray, "_"]:
        numbers = training.bags[training.controls]
        return _ranges(self.store.starts[numbers], self.store.sizes[numbers])


class References:
    """The healthy references of those networks that weigh cells by distance."""

    def __init__(self, measured: Sequence[int], settings: MILSettings, device: torch.device) -> None:
        self.measured, self.settings, self.device = list(measured), settings, device
        self.own = {number: HealthyReference(settings.embedding).to(device) for number in measured}
        self.gather()

    def fit(self, number: int, z: Float[Tensor, "_ H"], groups: Int64[Tensor, "_"], seed: int) -> None:
        """Fit that of one network."""
        fit_healthy(self.own[number], z, groups, self.settings, seed)

    def gather(self) -> None:
        """After fits: put together what all of them are measured with."""
        own = list(self.own.values())
        self.rows = torch.tensor(self.measured, dtype=torch.int64, device=self.device)
        if own:
            self.mean = torch.stack([each.mean for each in own])
            self.inverse = torch.stack([each.whitening.inverse for each in own])
            self.centre = torch.stack([each.centre for each in own])
            self.spread = torch.stack([each.spread for each in own])

    def distances(self, z: Float[Tensor, "A B L H"]) -> Float[Tensor, "A B L"]:
        """Of each cell as its network weighs it (eq. 3), in double precision; 0 for networks that do not."""
        some = sum(number < len(z) for number in self.measured)
        found = z.new_zeros(z.shape[:3])
        if some == 0:
            return found
        rows = self.rows[:some]
        centred = z[rows].flatten(1, 2).double() - self.mean[:some, None]
        far = torch.linalg.vector_norm(torch.bmm(centred, self.inverse[:some]), dim=2)
        if self.settings.distance_weights == "share":
            steepness = 2 / self.spread[:some, None]
            far = nn.functional.logsigmoid(steepness * (far - self.centre[:some, None]))
        return found.index_copy(0, rows, far.to(z.dtype).view(some, *z.shape[1:3]))


def _ranges(starts: Int64[np.ndarray, "S"], sizes: Int64[np.ndarray, "S"]) -> Int64[np.ndarray, "_"]:
    """So many numbers from each of the starts on, one range behind the other."""
    found: np.ndarray = np.arange(sizes.sum()) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    return found


def _filled(number: int, to: int) -> int:
    """The next multiple."""
    return -(-number // to) * to
