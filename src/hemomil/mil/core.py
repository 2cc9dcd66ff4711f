"""All of a model that is learned and saved, and how it reads the cells of a bag.

Axes: N cells of a bag, M of them at a time, H embedding.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hemomil.mil.encoder import FeatureSpace, reads_maps
from hemomil.mil.network import MILNetwork, blank_network
from hemomil.mil.pooling import Evidence
from hemomil.mil.reference import HealthyReference
from hemomil.mil.settings import MILSettings, Parts
from hemomil.mil.train import VECTOR_CHUNK


class Core(nn.Module):
    """All that is learned and saved: feature space, networks, healthy references."""

    def __init__(
        self,
        parts: Parts,
        feature_shape: tuple[int, ...],
        n_classes: int,
        settings: MILSettings,
        witnesses: int = 0,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.reads_maps = reads_maps(feature_shape, settings) and parts.pooling != "quantiles"
        self.chunk = settings.chunk_cells if len(feature_shape) > 1 else VECTOR_CHUNK
        self.space = FeatureSpace(feature_shape, settings.clip)
        members = settings.members if parts.ensemble else 1
        self.networks = nn.ModuleList(
            [blank_network(parts.of_member(k), feature_shape, n_classes, settings) for k in range(members)]
        )
        self.reference = HealthyReference(self.space.size if parts.frozen_reference else settings.embedding)
        self.has_judges = parts.witnesses and settings.witnesses
        self.judging = min(1, members - 1)
        """Which network of an ensemble says where a cell lies that is to be judged; witnesses are as it."""
        self.witnesses = nn.ModuleList(
            [
                blank_network(parts.of_member(self.judging), feature_shape, n_classes, settings)
                for _ in range(witnesses)
            ]
        )
        self.witness_spaces = nn.ModuleList(
            [FeatureSpace(feature_shape, settings.clip) for _ in range(witnesses)]
        )
        """Each witness has its own: mean and SD would tell it of the donors that it is not to know."""
        self.site_reference: HealthyReference | None = None
        """Made of another laboratory's controls: anomaly is read from it, what pooling weighs by is not."""

    def add_site_reference(self) -> HealthyReference:
        """A blank site reference in place of none, or of the one before."""
        self.site_reference = HealthyReference(len(self.reference.mean)).to(self.device)
        return self.site_reference

    @property
    def members(self) -> list[MILNetwork]:
        """The networks whose probabilities are averaged."""
        return cast(list[MILNetwork], list(self.networks))

    @property
    def judges(self) -> list[tuple[FeatureSpace, MILNetwork]]:
        """The network in whose embedding cells are judged, then each witness, each with the space it reads.

        None for a method without.
        """
        if not self.has_judges:
            return []
        spaces = cast(list[FeatureSpace], [self.space, *self.witness_spaces])
        networks = cast(list[MILNetwork], [self.members[self.judging], *self.witnesses])
        return list(zip(spaces, networks, strict=True))

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.space.mean.device

    def inputs(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        """What encoders take: RoI maps as they are, or standardised vectors."""
        return cells if self.reads_maps else self.space(cells)

    def embedded(self, cells: Float[Tensor, "N ..."]) -> list[Float[Tensor, "N H"]]:
        """Where cells lie for each of the judges, read in chunks."""
        return in_chunks(self._embedded, cells, self.chunk)

    def _embedded(self, cells: Float[Tensor, "N ..."]) -> list[Float[Tensor, "N H"]]:
        cells = cells.to(self.device)
        if self.reads_maps:
            return [network.encode(cells) for _, network in self.judges]
        flat = self.space.flatten(cells)
        return [network.encode(space.standardise(flat)) for space, network in self.judges]

    def judged(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        """The vectors whose distance to the healthy reference counts, read in chunks."""
        return in_chunks(lambda part: [self._judged(part.to(self.device))], cells, self.chunk)[0]

    def _judged(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        if self.parts.frozen_reference:
            vectors: Tensor = self.space(cells)
            return vectors
        return self.members[0].encode(self.inputs(cells))

    def read(self, cells: Float[Tensor, "N ..."]) -> tuple[list[Evidence], Float[Tensor, "N"]]:
        """Evidence of one bag's cells for each network, and their anomaly; embeddings live a chunk long."""

        def read(part: Float[Tensor, "M ..."]) -> list[Tensor]:
            evidence, anomaly = self._read(part.to(self.device))
            return [*(tensor for of_network in evidence for tensor in of_network.tensors), anomaly]

        *tensors, anomaly = in_chunks(read, cells, self.chunk)
        evidence = []
        for member in self.members:
            count = 2 if member.instance is None else 3
            evidence.append(Evidence(*tensors[:count]))
            tensors = tensors[count:]
        return evidence, anomaly

    def _read(self, cells: Float[Tensor, "N ..."]) -> tuple[list[Evidence], Float[Tensor, "N"]]:
        if self.parts.frozen_reference:
            judged = self._judged(cells)
            distances = self.reference.distance(judged)
            inputs = distances[:, None] if self.parts.pooling == "quantiles" else self.inputs(cells)
            z = [member.encode(inputs) for member in self.members]
        else:
            inputs = self.inputs(cells)
            z = [member.encode(inputs) for member in self.members]
            judged = z[0]
            distances = self.reference.distance(judged)
        pairs = zip(self.members, z, strict=True)
        evidence = [member.read(of_member, distances, self.reference) for member, of_member in pairs]
        site = self.site_reference
        return evidence, distances if site is None else site.distance(judged)


def in_chunks(
    read: Callable[[Float[Tensor, "M ..."]], list[Tensor]], cells: Float[Tensor, "N ..."], chunk: int
) -> list[Tensor]:
    """What `read` makes of the cells, so many at a time.

    Memory for all is taken at once: results kept one by one, among what each chunk needs for a moment, leave
    holes that nothing fits into.
    """
    first = read(cells[:chunk])
    if len(cells) <= chunk:
        return first
    whole = [tensor.new_empty(len(cells), *tensor.shape[1:]) for tensor in first]
    for start in range(0, len(cells), chunk):
        parts = first if start == 0 else read(cells[start : start + chunk])
        for tensor, part in zip(whole, parts, strict=True):
            tensor[start : start + chunk] = part
    return whole
