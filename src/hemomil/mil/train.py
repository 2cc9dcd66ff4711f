"""Learn one network from bags: packs of bags, the two losses, and the healthy reference refitted on the way.

Axes: N cells of a pack, B bags of a pack, K classes, F features.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hemomil.errors import FeaturesError
from hemomil.mil.network import MILNetwork, blank_network, initialise
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import Evidence
from hemomil.mil.reference import (
    CrossFitted,
    HealthyReference,
    StreamedMoments,
    added,
    crossfitted_of,
    fit_crossfitted,
    fit_gaussian,
)
from hemomil.mil.roi_encoder import RoiEncoder
from hemomil.mil.settings import MILSettings, Parts
from hemomil.mil.sharing import gathered, own_rows, sum_gradients
from hemomil.streams import stream, stream_seed

VECTOR_CHUNK = 8192
"""Vectors embedded at once; bounds memory, not results."""
KEPT_MAPS = 4096
"""Of packs with more RoI maps, a chunk's inner layers (a ninth of a megabyte a cell) are not kept for the
gradient but computed again."""
KEPT_VECTORS = 65_536
"""Of packs with more vectors, neither are embeddings (a quarter of a kilobyte a cell, several times over)."""
LAID_OUT_BYTES = 4 * 2**30
"""Of training bags up to this size the RoI maps are cut into patches once, larger ones in each step anew."""


@dataclass(frozen=True)
class TrainingBags:
    """What is learned from: cells and class of each bag, and the group of its donor if that is a control."""

    cells: list[Float[Tensor, "_ ..."]]
    targets: Int64[Tensor, "S"]
    donor_groups: Int64[Tensor, "S"]
    """Which of the groups of control donors; -1 for bags of other classes."""

    def __len__(self) -> int:
        return len(self.cells)

    def at(self, rows: Int64[Tensor, "_"]) -> "TrainingBags":
        """Some of the bags."""
        return TrainingBags(
            [self.cells[row] for row in rows.tolist()], self.targets[rows], self.donor_groups[rows]
        )

    def laid_out_for(self, network: MILNetwork) -> "TrainingBags":
        """The same bags, RoI maps cut into patches if the encoder reads those and memory can be had.

        Where it reads in bfloat16 they are rounded once instead of in every step: the same numbers.
        """
        if not isinstance(network.encoder, RoiEncoder) or self.nbytes > LAID_OUT_BYTES:
            return self
        kind = torch.bfloat16 if network.in_bfloat16 else None
        patches = (RoiEncoder.patches(cells) for cells in self.cells)
        return replace(self, cells=[of_bag.to(kind or of_bag.dtype) for of_bag in patches])

    @cached_property
    def sizes(self) -> list[int]:
        """Cells of each bag; torch's own `len` takes three microseconds."""
        return [len(cells) for cells in self.cells]

    @cached_property
    def classes(self) -> list[int]:
        """The targets as numbers, for picking a few."""
        return self.targets.tolist()

    @property
    def nbytes(self) -> int:
        """Memory that the cells take."""
        return sum(cells.nbytes for cells in self.cells)

    @property
    def controls(self) -> list[int]:
        """Rows of the control bags."""
        return torch.nonzero(self.donor_groups >= 0)[:, 0].tolist()


def embed(
    network: MILNetwork, cells: Float[Tensor, "N ..."], chunk: int, device: torch.device | str
) -> Float[Tensor, "N H"]:
    """Embeddings of any number of cells, a chunk at a time; processes that train together share them out.

    The gradient is exact. Of many RoI maps it costs a second pass through the encoder, and memory for the
    inner layers of one chunk only.
    """
    own = cells[own_rows(len(cells))]
    again = torch.is_grad_enabled() and cells.dim() > 2 and len(own) > KEPT_MAPS
    unkept = partial(checkpoint, network.encode, use_reentrant=False, preserve_rng_state=False)
    encode = unkept if again else network.encode
    parts = [encode(part.to(device)) for part in torch.split(own, chunk)]
    return gathered(torch.cat(parts) if len(parts) > 1 else parts[0], len(cells))


def adam(weights: Iterable[nn.Parameter], settings: MILSettings, device: torch.device) -> torch.optim.Adam:
    """torch's Adam as the settings ask for it, the fastest way for these weights."""
    known = list(weights)
    kind = torch.optim.Adam if all(weight.is_contiguous() for weight in known) else _Adam
    return kind(
        known,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def refuse_infinite(loss: Float[Tensor, ""], epoch: int) -> None:
    """Raises FeaturesError for a loss that nothing can be learned from."""
    if not torch.isfinite(loss):
        raise FeaturesError(
            f"the loss became {loss.item()} in epoch {epoch + 1}",
            hint="lower mil.learning_rate, or look for extreme values among the features",
        )


class _Adam(torch.optim.Adam):
    """Adam that sees each weight as a vector, its numbers as they lie in memory.

    Of a gradient whose axes lie in another order, torch's fused Adam makes a copy that it does not use: a
    tenth of a step.
    """

    def __init__(self, weights: Iterable[nn.Parameter], **options: Any) -> None:
        self.weights = list(weights)
        super().__init__([nn.Parameter(_as_it_lies(weight.data)) for weight in self.weights], **options)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:  # type: ignore[override]
        for weight, vector in zip(self.weights, self.param_groups[0]["params"], strict=True):
            if weight.grad is None:
                vector.grad = None
            else:
                assert _layout(weight.grad) == _layout(weight), "autograd's promise for dense weights"
                vector.grad = _as_it_lies(weight.grad)
        super().step()


def _layout(dense: Tensor) -> list[int]:
    """Steps in memory along its axes, but for those of a single number, where they mean nothing."""
    return [step for step, size in zip(dense.stride(), dense.shape, strict=True) if size > 1]


def _as_it_lies(dense: Tensor) -> Tensor:
    """The numbers of a tensor without holes, in the order of memory."""
    return dense.as_strided((dense.numel(),), (1,), dense.storage_offset())


class Trainer:
    """One network on its way from random weights to learned ones."""

    def __init__(
        self,
        bags: TrainingBags,
        parts: Parts,
        feature_shape: tuple[int, ...],
        n_classes: int,
        settings: MILSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.parts, self.settings = parts, settings
        self.seed, self.device = seed, device
        self.network = blank_network(parts, feature_shape, n_classes, settings)
        self.bags = bags.laid_out_for(self.network)
        initialise(self.network, torch.Generator().manual_seed(stream_seed(seed, "weights")))
        self.network.to(device)
        self.weighs_distance = parts.distance and not parts.frozen_reference
        self.reference = HealthyReference(settings.embedding).to(device)
        self.crossfitted: CrossFitted | None = None
        streamed = self.weighs_distance and settings.reference_updates == "streamed"
        self.stream = StreamedMoments(int(bags.donor_groups.max()) + 1) if streamed else None
        self.control_distances: list[Tensor] = []
        self.dropout_stream = torch.Generator(device).manual_seed(stream_seed(seed, "dropout"))
        self.optimiser = adam(self.network.parameters(), settings, device)

    def run(self, progress: Callable[[int], None] = lambda epoch: None) -> MILNetwork:
        """All epochs; `progress` hears the number of each one done."""
        for epoch in range(self.settings.epochs):
            if self.weighs_distance and self._is_due(epoch):
                self.refit()
            self.epoch(epoch)
            if self.stream is not None:
                self.refresh()
            progress(epoch + 1)
        if self.weighs_distance:
            self.refit()
        return self.network.eval()

    def _is_due(self, epoch: int) -> bool:
        return epoch == 0 if self.stream is not None else epoch % self.settings.refit_every == 0

    def packs(self, epoch: int) -> list[list[int]]:
        """Rows of the bags of each step of an epoch, in an order of its own."""
        order = stream(self.seed, "order", epoch).permutation(len(self.bags)).tolist()
        size = self.settings.batch_bags
        return [order[start : start + size] for start in range(0, len(order), size)]

    def epoch(self, epoch: int) -> None:
        """One pass over the bags."""
        for rows in self.packs(epoch):
            loss = self.loss(rows, epoch)
            refuse_infinite(loss, epoch)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sum_gradients(self.network.encoder)
            self.optimiser.step()

    def loss(self, rows: list[int], epoch: int) -> Float[Tensor, ""]:
        """(1 - beta) CE of bags + beta CE of cells told their bag's label; beta = decay^epoch, from 0 on."""
        evidence, segments = self.evidence(rows)
        targets = self.targets(rows)
        return self.weighed(
            lambda: functional.cross_entropy(self.network.pooling(evidence, segments), targets),
            lambda: self.cell_losses(evidence, segments, targets).mean(),
            epoch,
        )

    def weighed(
        self, of_bags: Callable[[], Float[Tensor, ""]], of_cells: Callable[[], Float[Tensor, ""]], epoch: int
    ) -> Float[Tensor, ""]:
        """The two losses, as this method weighs them in this epoch; none is computed for nothing."""
        if self.parts.pooling == "instance":
            return of_cells()
        if not self.parts.instance_loss:
            return of_bags()
        beta = self.settings.instance_decay**epoch
        return (1 - beta) * of_bags() + beta * of_cells()

    def targets(self, rows: list[int]) -> Int64[Tensor, "B"]:
        """Classes of these bags."""
        return torch.tensor([self.bags.classes[row] for row in rows], device=self.device)

    def cell_losses(
        self, evidence: Evidence, segments: Segments, targets: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Mean over the cells of each bag, so that a large bag counts like a small one."""
        logits = self.network.cell_logits(evidence)
        losses = functional.cross_entropy(logits, targets[segments.bag], reduction="none")
        return segments.mean(losses)

    def evidence(self, rows: list[int]) -> tuple[Evidence, Segments]:
        """A pack of bags, encoded; distances carry no gradient, as in the paper's code."""
        bags = [self.bags.cells[row] for row in rows]
        segments = Segments.of_sizes([self.bags.sizes[row] for row in rows], self.device)
        cells = torch.cat(bags) if len(bags) > 1 else bags[0]
        groups = self.bags.donor_groups[rows].to(self.device) if self.weighs_distance else None
        if cells.dim() == 2 and len(cells) > KEPT_VECTORS and own_rows(len(cells)) == slice(0, len(cells)):
            return self._evidence_of_many(cells, segments, groups), segments
        z = self._embed(cells)
        distances = None if groups is None else self._distances(z.detach(), segments.bag, groups)
        return self.network.read(self._dropped(z, self.dropout_stream), distances, self.reference), segments

    def _evidence_of_many(
        self, cells: Float[Tensor, "N F"], segments: Segments, groups: Int64[Tensor, "B"] | None
    ) -> Evidence:
        """A chunk at a time, of which nothing but its evidence is kept: the gradient is exact, and costs
        another pass.
        """
        seeds = torch.randint(
            2**62, (-(-len(cells) // VECTOR_CHUNK),), generator=self.dropout_stream, device=self.device
        )
        chunks = [slice(start, start + VECTOR_CHUNK) for start in range(0, len(cells), VECTOR_CHUNK)]
        distances = segments.bag.new_empty(len(cells), dtype=torch.float32)
        if groups is not None:
            with torch.no_grad():
                for rows in chunks:
                    z = self.network.encode(cells[rows].to(self.device))
                    distances[rows] = self._distances(z, segments.bag[rows], groups)

        def read(rows: slice, seed: int) -> Evidence:
            """The evidence of some cells; the same whenever it is asked for."""
            z = self.network.encode(cells[rows].to(self.device))
            drawn = torch.Generator(self.device).manual_seed(seed)
            known = None if groups is None else distances[rows]
            return self.network.read(self._dropped(z, drawn), known, self.reference)

        return Evidence.join(
            [
                checkpoint(read, rows, seed, use_reentrant=False, preserve_rng_state=False)
                for rows, seed in zip(chunks, seeds.tolist(), strict=True)
            ]
        )

    def _distances(
        self, z: Float[Tensor, "N H"], bag: Int64[Tensor, "N"], groups: Int64[Tensor, "B"]
    ) -> Float[Tensor, "N"]:
        """Distances of the cells of bags of these groups of donors, and noted for the next reference."""
        if self.crossfitted is None:
            distances = self.reference.distance(z)
        else:
            distances = self.crossfitted.distance(z, groups[bag])
        if self.stream is not None:
            self._note(z, distances, bag, groups)
        return distances

    def _embed(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        chunk = self.settings.chunk_cells if cells.dim() > 2 else VECTOR_CHUNK
        return embed(self.network, cells, chunk, self.device)

    def _note(
        self,
        z: Float[Tensor, "N H"],
        distances: Float[Tensor, "N"],
        bag: Int64[Tensor, "N"],
        groups: Int64[Tensor, "B"],
    ) -> None:
        """Keep what the next reference is made of: embeddings of controls, and how far off they lay."""
        assert self.stream is not None
        bags, counts = torch.unique_consecutive(bag, return_counts=True)
        sizes = counts.tolist()
        for group, of_bag, far in zip(
            groups[bags].tolist(), torch.split(z, sizes), torch.split(distances, sizes), strict=True
        ):
            if group >= 0:
                self.stream.add(of_bag, group)
                self.control_distances.append(far)

    def _dropped(self, z: Float[Tensor, "N H"], drawn: torch.Generator) -> Float[Tensor, "N H"]:
        share = self.settings.dropout
        if share == 0:
            return z
        drawn_NH = torch.rand(z.shape, generator=drawn, device=self.device)
        return z * drawn_NH.ge_(share).div_(1 - share)

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the healthy reference to the control cells as they are embedded now."""
        self.network.eval()
        rows = self.bags.controls
        z = torch.cat([self._embed(self.bags.cells[row]) for row in rows])
        sizes = torch.tensor([len(self.bags.cells[row]) for row in rows])
        groups = torch.repeat_interleave(self.bags.donor_groups[rows], sizes).to(self.device)
        self.crossfitted = fit_healthy(self.reference, z, groups, self.settings, self.seed)
        self.network.train()

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the reference of the controls' embeddings that the steps of an epoch came by.

        Each is as the weights were at its step, and the scale of distances is that of the reference before:
        up to an epoch old, but no cell is embedded for it.
        """
        assert self.stream is not None
        parts, settings = self.stream.take(), self.settings
        everyone = added(parts)
        self.reference.set_gaussian(everyone.mean, everyone.covariance(settings))
        self.reference.set_scale(torch.cat(self.control_distances).cpu())
        self.control_distances.clear()
        if self.crossfitted is not None:
            self.crossfitted = crossfitted_of(parts, settings).to(self.device)


def fit_healthy(
    reference: HealthyReference,
    z: Float[Tensor, "M H"],
    groups: Int64[Tensor, "M"],
    settings: MILSettings,
    seed: int,
) -> CrossFitted | None:
    """Fit `reference` to control cells; where training asks for it, also without each group of donors.

    All on one device.
    """
    seed = stream_seed(seed, "mixture")
    reference.set_gaussian(*fit_gaussian(z, settings, seed))
    if not settings.crossfit_training or int(groups.max()) == 0:
        reference.set_scale(reference.distance(z))
        return None
    fitted = fit_crossfitted(z, groups, settings, seed)
    reference.set_scale(fitted.distance(z, groups))
    return fitted
