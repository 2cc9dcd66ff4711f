"""Networks side by side: encoders of maps as grouped products, all else on bags of one length.

Axes: M networks, A of them (those that read), T cells of all, B bags of each, L cells of the longest bag,
H embedding, K classes, C inputs and D outputs of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from hemomil.mil.grouped import CellStore, Encoders, Reading, of_first, precision
from hemomil.mil.network import MILNetwork
from hemomil.mil.settings import MILSettings, Parts


@dataclass(frozen=True)
class Bags(Reading):
    """Cells read as bags of known class."""

    place: Int64[Tensor, "R"]
    """Where each cell that counts belongs among A x B x L; those that only fill up come last."""
    sizes: Int64[Tensor, "A B"]
    """Number of cells; 0 where a network has fewer bags."""
    targets: Int64[Tensor, "A B"]
    longest: int
    counts: list[int]
    """Number of cells of each network."""

    @property
    def real(self) -> Bool[Tensor, "A B L"]:
        """Which places have a cell."""
        return torch.arange(self.longest, device=self.sizes.device) < self.sizes[:, :, None]

    def spread(self, values: Shaped[Tensor, "R *C"]) -> Shaped[Tensor, "P *C"]:
        """Values of the cells that count, each in its place among A x B x L; zeros elsewhere."""
        n = self.sizes.numel() * self.longest
        if n == len(values):
            return values
        return values.new_zeros(n, *values.shape[1:]).index_copy(0, self.place, values)


class VectorStore:
    """Vectors of all bags, each network's own: it may have standardised them in its own way."""

    def __init__(self, bags: Sequence[Float[Tensor, "_ F"]], device: torch.device) -> None:
        self.sizes = [len(bag) for bag in bags]
        self.starts = np.cumsum([0, *self.sizes])[:-1].tolist()
        self.vectors = torch.cat([bag.to(device) for bag in bags])
        self.device = self.vectors.device


class Stack(ABC):
    """Weights of M networks, and what they make of cells."""

    def __init__(
        self, networks: Sequence[MILNetwork], settings: MILSettings, device: torch.device, *, encoders: bool
    ) -> None:
        self.settings = settings
        own = [_named(network, encoders=encoders) for network in networks]
        like = {name: weight for heads in own for name, weight in heads.items()}
        self.heads = {
            name: torch.stack([heads.get(name, torch.zeros_like(weight)) for heads in own]).to(device)
            for name, weight in like.items()
        }
        for head in self.heads.values():
            head.requires_grad_()
        parts = [network.parts for network in networks]
        self.kinds = Kinds(parts, device)
        self.mixing = Mixing(parts, settings, device)

    @abstractmethod
    def encode(self, read: Reading) -> Float[Tensor, "T H"]:
        """Embeddings of cells, as the networks' encoders make them but for the order of sums."""

    def embed(self, bags: Bags) -> Float[Tensor, "A B L H"]:
        """Embeddings bag by bag; what is filled up means nothing."""
        z = bags.spread(self.encode(bags)[: len(bags.place)])
        return z.view(*bags.sizes.shape, bags.longest, -1)

    @property
    def weights(self) -> list[Float[Tensor, "M *D"]]:
        """Everything that is learned."""
        return [head.detach() for head in self.heads.values()]

    def gradients(self) -> list[Float[Tensor, "M *D"]]:
        """Of the weights, in the same order; they are let go."""
        found = []
        for head in self.heads.values():
            found.append(torch.zeros_like(head) if head.grad is None else head.grad)
            head.grad = None
        return found

    def refresh(self) -> None:  # noqa: B027
        """After a step on the weights: nothing follows them."""

    @torch.no_grad()
    def unstack(self, networks: Sequence[MILNetwork]) -> None:
        """Give each network its weights."""
        for number, network in enumerate(networks):
            own = dict(network.named_parameters())
            for name, head in self.heads.items():
                if name in own:
                    own[name].copy_(head[number])

    def judge(
        self, z: Float[Tensor, "A B L H"], distances: Float[Tensor, "A B L"], bags: Bags
    ) -> Float[Tensor, "A B K"]:
        """Class logits of bags; `distances` are zeros for the methods that do not weigh by them."""
        return self._pooled(z, self._votes(z), distances, bags)

    def losses(
        self,
        z: Float[Tensor, "A B L H"],
        distances: Float[Tensor, "A B L"],
        bags: Bags,
        epoch: int,
    ) -> Float[Tensor, "A"]:
        """Loss of each network, as `Trainer.loss`."""
        votes = self._votes(z)
        losses = _cross_entropy(self._pooled(z, votes, distances, bags), bags.targets)
        if self.kinds.some_told:
            told = bags.targets[:, :, None].expand(-1, -1, bags.longest)
            of_cells = _cross_entropy(self._alone(z, votes), told).masked_fill(~bags.real, 0).sum(dim=2)
            beta = self.kinds.beta(len(z), self.settings.instance_decay**epoch)[:, None]
            losses = (1 - beta) * losses + beta * of_cells / bags.sizes.clamp_min(1)
        some = bags.sizes > 0
        return losses.masked_fill(~some, 0).sum(dim=1) / some.sum(dim=1)

    def _votes(self, z: Float[Tensor, "A B L H"]) -> Float[Tensor, "A B L K"]:
        """What the pooling's linear layer makes of each cell, without its bias."""
        votes = torch.matmul(z.flatten(1, 2), self._of("pooling.classifier.weight", len(z)).mT)
        return votes.view(*z.shape[:3], -1)

    def _pooled(
        self,
        z: Float[Tensor, "A B L H"],
        votes: Float[Tensor, "A B L K"],
        distances: Float[Tensor, "A B L"],
        bags: Bags,
    ) -> Float[Tensor, "A B K"]:
        summed = self._summed(votes, bags) if self.kinds.some_summed else None
        if not self.kinds.some_weighted:
            assert summed is not None
            return summed
        scores = self._linear(torch.tanh(self._linear(z, "attention.0")), "attention.2")[..., 0]
        weights = self.mixing.weights(scores, distances, bags.real, self.heads)[..., None]
        weighted = (weights * votes).sum(dim=2) + self._of("pooling.classifier.bias", len(z))[:, None]
        return weighted if summed is None else torch.where(self.kinds.summed[: len(z)], summed, weighted)

    def _summed(self, votes: Float[Tensor, "A B L K"], bags: Bags) -> Float[Tensor, "A B K"]:
        lowest = torch.finfo(votes.dtype).min
        return self._logits(votes).masked_fill(~bags.real[..., None], lowest).logsumexp(dim=2)

    def _logits(self, votes: Float[Tensor, "A B L K"]) -> Float[Tensor, "A B L K"]:
        """What log-sum-exp pooling pools, which is what a cell says by itself."""
        logits = votes + self._of("pooling.classifier.bias", len(votes))[:, None, None]
        if not self.kinds.some_normalised:
            return logits
        normalised = self.kinds.normalised[: len(votes), None]
        return torch.where(normalised, logits.log_softmax(dim=3), logits)

    def _alone(
        self, z: Float[Tensor, "A B L H"], votes: Float[Tensor, "A B L K"]
    ) -> Float[Tensor, "A B L K"]:
        """Class logits of single cells: by a classifier of their own, where a network has one."""
        if "instance.0.weight" not in self.heads:
            return self._logits(votes)
        own = self._linear(z, "instance.0")
        own = self._linear(own, "instance.1") if "instance.1.weight" in self.heads else own
        if not self.kinds.some_summed:
            return own
        return torch.where(self.kinds.summed[: len(z), None], self._logits(votes), own)

    def _linear(self, values: Float[Tensor, "A B L C"], name: str) -> Float[Tensor, "A B L D"]:
        """A layer of each network; zeros where none has it."""
        n, *shape, _ = values.shape
        if f"{name}.weight" not in self.heads:
            return values.new_zeros(n, *shape, 1)
        weight, bias = self._of(f"{name}.weight", n), self._of(f"{name}.bias", n)
        return torch.baddbmm(bias[:, None], values.flatten(1, 2), weight.mT).view(n, *shape, -1)

    def _of(self, name: str, n: int) -> Float[Tensor, "A *D"]:
        return of_first(self.heads[name], n)


class MapStack(Stack):
    """Networks that read RoI maps: their encoders are grouped products."""

    def __init__(self, networks: Sequence[MILNetwork], settings: MILSettings, store: CellStore) -> None:
        super().__init__(networks, settings, store.device, encoders=False)
        self.store = store
        self.encoders = Encoders(networks, precision(settings), store.device)

    def encode(self, read: Reading) -> Float[Tensor, "T H"]:
        """By grouped products."""
        return self.encoders.encode(self.store, read)

    @property
    def weights(self) -> list[Float[Tensor, "M *D"]]:
        """Those of the encoders first."""
        return [*self.encoders.weights, *super().weights]

    def gradients(self) -> list[Float[Tensor, "M *D"]]:
        """In the same order."""
        return [*self.encoders.gradients(), *super().gradients()]

    def refresh(self) -> None:
        """The encoders' copies follow."""
        self.encoders.refresh()

    def unstack(self, networks: Sequence[MILNetwork]) -> None:
        """Encoders, then the rest."""
        self.encoders.unstack(networks)
        super().unstack(networks)


class VectorStack(Stack):
    """Networks that read vectors: their encoders are among the heads."""

    def __init__(self, networks: Sequence[MILNetwork], settings: MILSettings, store: VectorStore) -> None:
        super().__init__(networks, settings, store.device, encoders=True)
        self.store = store

    def encode(self, read: Reading) -> Float[Tensor, "T H"]:
        """The cells of each network as if they were one bag."""
        counts = torch.diff(read.ends, prepend=read.ends.new_zeros(1)).long()
        longest, network = int(counts.max()), torch.arange(len(counts), device=counts.device)
        own = torch.repeat_interleave(network, counts)
        place = torch.arange(len(own), device=own.device) - (read.ends - counts)[own] + longest * own
        rows = read.cells.new_zeros(len(counts) * longest)
        rows[place] = read.cells
        z = self._encoded(self.store.vectors[rows].view(len(counts), 1, longest, -1))
        return z.flatten(0, 2)[place]

    def embed(self, bags: Bags) -> Float[Tensor, "A B L H"]:
        """All of them at once."""
        rows = bags.spread(bags.cells[: len(bags.place)])
        return self._encoded(
            self.store.vectors.index_select(0, rows).view(*bags.sizes.shape, bags.longest, -1)
        )

    def _encoded(self, vectors: Float[Tensor, "A B L F"]) -> Float[Tensor, "A B L H"]:
        z = self._linear(vectors, "encoder.0").relu()
        return self._linear(z, "encoder.2").relu() if "encoder.2.weight" in self.heads else z


class Kinds:
    """Which networks pool and learn how."""

    def __init__(self, parts: Sequence[Parts], device: torch.device) -> None:
        summed = [p.pooling != "weighted" for p in parts]
        normalised = [p.pooling == "instance" for p in parts]
        told = [p.instance_loss for p in parts]
        self.some_summed, self.some_weighted = any(summed), not all(summed)
        self.some_normalised, self.some_told = any(normalised), any(told) or any(normalised)
        self.summed = torch.tensor(summed, device=device)[:, None, None]
        """By log-sum-exp."""
        self.normalised = torch.tensor(normalised, device=device)[:, None, None]
        """An instance classifier: learns from cells alone."""
        self.told = torch.tensor(told, device=device, dtype=torch.float32)
        """1: cells are told the bag's label, less and less."""

    def beta(self, n: int, decay: float) -> Float[Tensor, "A"]:
        """Weight of the cells' loss for each of the first n networks."""
        return torch.where(self.normalised[:n, 0, 0], 1, self.told[:n] * decay)


class Mixing:
    """How each network mixes attention, distance and a uniform into the weight of a cell."""

    def __init__(self, parts: Sequence[Parts], settings: MILSettings, device: torch.device) -> None:
        of = partial(torch.tensor, device=device, dtype=torch.float32)
        slots = [
            [slot for slot, has in enumerate((p.attention, p.distance, p.uniform)) if has] for p in parts
        ]
        self.raw = settings.distance_weights == "raw"
        self.alone = of([[float(own == [slot]) for slot in range(3)] for own in slots])
        """1: the only weight."""
        self.placed = of(
            [
                [[float(len(own) > 1 and own[place] == slot) for slot in range(3)] for place in range(2)]
                for own in slots
            ]
        )
        """1: the weight that is mixed in with this of the learned coefficients."""

    def weights(
        self,
        scores: Float[Tensor, "A B L"],
        distances: Float[Tensor, "A B L"],
        real: Bool[Tensor, "A B L"],
        learned: dict[str, Tensor],
    ) -> Float[Tensor, "A B L"]:
        """w_a a_n + w_d d_n."""
        far = distances * real if self.raw else _shares(distances, real)
        shares = torch.stack([_shares(scores, real), far, _shares(torch.zeros_like(far), real)], dim=-1)
        return (shares * self._coefficients(len(scores), learned)[:, None, None]).sum(dim=-1)

    def _coefficients(self, n: int, learned: dict[str, Tensor]) -> Float[Tensor, "A 3"]:
        if "pooling.convolution.weight" in learned:
            mixed = learned["pooling.convolution.weight"][:n, 0]
        elif "pooling.share_logits" in learned:
            mixed = learned["pooling.share_logits"][:n].softmax(dim=1)
        else:
            return self.alone[:n]
        return self.alone[:n] + (mixed[:, :, None] * self.placed[:n]).sum(dim=1)


def _named(network: MILNetwork, *, encoders: bool) -> dict[str, Tensor]:
    """Weights by name, those of the encoder too or not."""
    named = network.named_parameters()
    return {name: weight.data for name, weight in named if encoders or not name.startswith("encoder.")}


def _shares(scores: Float[Tensor, "A B L"], real: Bool[Tensor, "A B L"]) -> Float[Tensor, "A B L"]:
    """Softmax over the cells of each bag."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~real, lowest).softmax(dim=2) * real


def _cross_entropy(logits: Float[Tensor, "*N K"], targets: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Of each by itself."""
    flat = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
