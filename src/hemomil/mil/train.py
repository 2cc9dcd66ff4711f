"""Learn one network from bags: packs of bags, the two losses, and the healthy reference refitted on the way.

Axes: N cells of a pack, B bags of a pack, K classes, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from hemomil.errors import FeaturesError
from hemomil.mil.encoder import RoiEncoder
from hemomil.mil.network import MILNetwork, blank_network, initialise
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import Evidence
from hemomil.mil.reference import CrossFitted, HealthyReference, fit_crossfitted, fit_gaussian
from hemomil.mil.settings import MILSettings, Parts
from hemomil.streams import stream, stream_seed

VECTOR_CHUNK = 8192
"""Vectors embedded at once; bounds memory, not results."""


@dataclass(frozen=True)
class TrainingBags:
    """What is learned from: cells and class of each bag, and the group of its donor if that is a control."""

    cells: list[Float[Tensor, "_ ..."]]
    targets: Int64[Tensor, "S"]
    donor_groups: Int64[Tensor, "S"]
    """Which of the groups of control donors; -1 for bags of other classes."""

    def __len__(self) -> int:
        return len(self.cells)

    def laid_out_for(self, network: MILNetwork) -> "TrainingBags":
        """The same bags, RoI maps cut into patches if the encoder reads those."""
        if not isinstance(network.encoder, RoiEncoder):
            return self
        return replace(self, cells=[RoiEncoder.patches(cells) for cells in self.cells])

    @property
    def controls(self) -> list[int]:
        """Rows of the control bags."""
        return torch.nonzero(self.donor_groups >= 0)[:, 0].tolist()


def embed(
    network: MILNetwork, cells: Float[Tensor, "N ..."], chunk: int, device: torch.device | str
) -> Float[Tensor, "N H"]:
    """Embeddings of any number of cells, a chunk at a time."""
    chunks = [network.encoder(part.to(device, torch.float32)) for part in torch.split(cells, chunk)]
    return torch.cat(chunks)


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
        self.dropout_stream = torch.Generator(device).manual_seed(stream_seed(seed, "dropout"))
        self.optimiser = torch.optim.Adam(
            self.network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def run(self, progress: Callable[[int], None] = lambda epoch: None) -> MILNetwork:
        """All epochs; `progress` hears the number of each one done."""
        for epoch in range(self.settings.epochs):
            if self.weighs_distance and epoch % self.settings.refit_every == 0:
                self.refit()
            self.epoch(epoch)
            progress(epoch + 1)
        if self.weighs_distance:
            self.refit()
        self.network.eval()
        return self.network

    def epoch(self, epoch: int) -> None:
        """One pass over the bags in an order of its own."""
        order = stream(self.seed, "order", epoch).permutation(len(self.bags)).tolist()
        size = self.settings.batch_bags
        for start in range(0, len(order), size):
            loss = self.loss(order[start : start + size], epoch)
            if not torch.isfinite(loss):
                raise FeaturesError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}",
                    hint="lower mil.learning_rate, or look for extreme values among the features",
                )
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()

    def loss(self, rows: list[int], epoch: int) -> Float[Tensor, ""]:
        """(1 - beta) CE of bags + beta CE of cells told their bag's label; beta = decay^epoch, from 0 on."""
        evidence, segments = self.evidence(rows)
        targets = self.bags.targets[rows].to(self.device)
        bag_logits = self.network.pooling(evidence, segments)
        bag_loss = functional.cross_entropy(bag_logits, targets)
        if self.parts.pooling == "instance":
            return self._cell_loss(evidence, segments, targets)
        if not self.parts.instance_loss:
            return bag_loss
        beta = self.settings.instance_decay**epoch
        return (1 - beta) * bag_loss + beta * self._cell_loss(evidence, segments, targets)

    def _cell_loss(
        self, evidence: Evidence, segments: Segments, targets: Int64[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Mean over bags of the mean over their cells, so that a large bag counts like a small one."""
        logits = self.network.cell_logits(evidence)
        losses = functional.cross_entropy(logits, targets[segments.bag], reduction="none")
        return segments.mean(losses).mean()

    def evidence(self, rows: list[int]) -> tuple[Evidence, Segments]:
        """A pack of bags, encoded; distances carry no gradient, as in the paper's code."""
        cells = torch.cat([self.bags.cells[row] for row in rows]).to(self.device, torch.float32)
        segments = Segments.of_sizes([len(self.bags.cells[row]) for row in rows], self.device)
        z = self.network.encoder(cells)
        distances = self._distances(z.detach(), rows, segments) if self.weighs_distance else None
        return self.network.read(self._dropped(z), distances, self.reference), segments

    def _distances(self, z: Float[Tensor, "N H"], rows: list[int], segments: Segments) -> Float[Tensor, "N"]:
        if self.crossfitted is None:
            return self.reference.distance(z)
        groups = self.bags.donor_groups[rows].to(self.device)
        return self.crossfitted.distance(z, groups[segments.bag])

    def _dropped(self, z: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        share = self.settings.dropout
        if share == 0:
            return z
        kept = torch.rand(z.shape, generator=self.dropout_stream, device=self.device) >= share
        return z * kept / (1 - share)

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the healthy reference to the control cells as they are embedded now."""
        self.network.eval()
        chunk = self.settings.chunk_cells if self.bags.cells[0].dim() > 2 else VECTOR_CHUNK
        rows = self.bags.controls
        z = torch.cat([embed(self.network, self.bags.cells[row], chunk, self.device) for row in rows]).cpu()
        sizes = torch.tensor([len(self.bags.cells[row]) for row in rows])
        groups = torch.repeat_interleave(self.bags.donor_groups[rows], sizes)
        self.crossfitted = fit_healthy(self.reference, z, groups, self.settings, self.seed, self.device)
        self.network.train()


def fit_healthy(
    reference: HealthyReference,
    z: Float[Tensor, "M H"],
    groups: Int64[Tensor, "M"],
    settings: MILSettings,
    seed: int,
    device: torch.device,
) -> CrossFitted | None:
    """Fit `reference` to control cells; where training asks for it, also without each group of donors."""
    seed = stream_seed(seed, "mixture")
    reference.set_gaussian(*fit_gaussian(z, settings, seed))
    if not settings.crossfit_training or int(groups.max()) == 0:
        reference.set_scale(reference.distance(z.to(device)).cpu())
        return None
    fitted = fit_crossfitted(z, groups, settings, seed)
    reference.set_scale(fitted.distance(z, groups))
    return CrossFitted(fitted.means.to(device), fitted.choleskys.to(device))
