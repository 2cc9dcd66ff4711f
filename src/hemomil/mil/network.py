"""The network of one method: encoder, attention, classifier of cells, pooling.

Axes: N cells, B bags, H embedding, K classes, C channels of pooling weights.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hemomil.mil.encoder import make_encoder
from hemomil.mil.pooling import (
    Evidence,
    LogSumExpPooling,
    MaxPooling,
    Pooling,
    QuantilePooling,
    WeightedPooling,
)
from hemomil.mil.reference import HealthyReference
from hemomil.mil.settings import MILSettings, Parts


class Attention(nn.Sequential):
    """v(z): embedding -> hidden -> tanh -> 1; its softmax over the bag is attention (Ilse et al. 2018)."""

    def __init__(self, embedding: int, hidden: int) -> None:
        super().__init__(nn.Linear(embedding, hidden), nn.Tanh(), nn.Linear(hidden, 1))


class InstanceClassifier(nn.Sequential):
    """Classes of a single cell, told the bag's label (Sadafi et al. 2020)."""

    def __init__(self, embedding: int, bottleneck: int, n_classes: int) -> None:
        # no non-linearity after the bottleneck, as in the paper's code
        first = [nn.Linear(embedding, bottleneck)] if bottleneck else []
        super().__init__(*first, nn.Linear(bottleneck or embedding, n_classes))


class MILNetwork(nn.Module):
    """Everything that gradients change."""

    def __init__(
        self, parts: Parts, feature_shape: tuple[int, ...], n_classes: int, settings: MILSettings
    ) -> None:
        super().__init__()
        self.parts = parts
        self.distance_weights = settings.distance_weights
        self.in_bfloat16 = settings.bfloat16
        size = settings.embedding
        quantiles = parts.pooling == "quantiles"
        self.encoder = nn.Identity() if quantiles else make_encoder(feature_shape, settings)
        self.attention = Attention(size, settings.attention_hidden) if parts.attention else None
        self.instance = (
            InstanceClassifier(size, settings.instance_hidden, n_classes) if parts.instance_head else None
        )
        self.pooling = make_pooling(parts, n_classes, settings)

    def encode(self, cells: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        """Embeddings, in single precision also where they are computed in bfloat16."""
        if not self.in_bfloat16:
            single: Tensor = self.encoder(cells)
            return single
        with torch.autocast(cells.device.type, torch.bfloat16):
            return self.encoder(cells).to(torch.float32)  # type: ignore[no-any-return]

    def read(
        self,
        z: Float[Tensor, "N H"],
        distances: Float[Tensor, "N"] | None,
        reference: HealthyReference | None,
    ) -> Evidence:
        """What pooling needs of embedded cells; distances where the method weighs by them."""
        channels: list[Tensor] = []
        if self.attention is not None:
            channels.append(self.attention(z)[:, 0])
        if self.parts.pooling == "weighted" and self.parts.distance:
            assert distances is not None
            channels.append(self._distance_channel(distances, reference))
        if self.parts.uniform:
            channels.append(z.new_zeros(len(z)))
        return Evidence(
            self.pooling.values(z),
            torch.stack(channels, dim=1) if channels else z.new_zeros(len(z), 0),
            self.instance(z) if self.instance is not None else None,
        )

    def _distance_channel(
        self, distances: Float[Tensor, "N"], reference: HealthyReference | None
    ) -> Float[Tensor, "N"]:
        if self.distance_weights == "share":
            assert reference is not None
            return reference.bounded(distances)
        return distances

    def cell_logits(self, evidence: Evidence) -> Float[Tensor, "N K"]:
        """Class logits of each cell alone: by its own classifier if there is one, else as a bag of one."""
        return evidence.instance if evidence.instance is not None else self.pooling.alone(evidence)


def make_pooling(parts: Parts, n_classes: int, settings: MILSettings) -> Pooling:
    """The pooling of a method."""
    match parts.pooling:
        case "max":
            return MaxPooling(settings.embedding, n_classes)
        case "logsumexp" | "instance":
            return LogSumExpPooling(settings.embedding, n_classes, normalised=parts.pooling == "instance")
        case "quantiles":
            return QuantilePooling(n_classes)
        case "weighted":
            return WeightedPooling(
                settings.embedding,
                n_classes,
                parts.attention + parts.distance + parts.uniform,
                mixing=settings.mixing,
                raw_last=parts.distance and settings.distance_weights == "raw",
            )


def blank_network(
    parts: Parts, feature_shape: tuple[int, ...], n_classes: int, settings: MILSettings
) -> MILNetwork:
    """A network whose weights are still to be drawn or loaded; making it draws nothing."""
    with torch.device("meta"):
        network = MILNetwork(parts, feature_shape, n_classes, settings)
    return network.to_empty(device="cpu")


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """torch's own initial weights, uniform in +-1/sqrt(fan-in), but drawn from a stream with a name."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            # drawn in the order of its axes, however it lies in memory
            drawn = torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=generator)
            with torch.no_grad():
                layer.weight.copy_(drawn)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        if isinstance(layer, WeightedPooling) and layer.share_logits is not None:
            nn.init.zeros_(layer.share_logits)
