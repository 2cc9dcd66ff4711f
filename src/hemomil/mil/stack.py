"""Networks of the paper side by side: encoders as grouped products, all else on bags of one length.

Axes: M networks, A of them (those that read), T cells of all, B bags of each, L cells of the longest bag,
H embedding, K classes, C inputs and D outputs of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from hemomil.mil.grouped import Encoders, Reading, of_first, precision
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

    @property
    def real(self) -> Bool[Tensor, "A B L"]:
        """Which places have a cell."""
        return torch.arange(self.longest, device=self.sizes.device) < self.sizes[:, :, None]


class Stack:
    """Weights of M networks of the paper's making, and what they make of cells."""

    def __init__(self, networks: Sequence[MILNetwork], settings: MILSettings, device: torch.device) -> None:
        self.settings = settings
        self.encoders = Encoders(networks, precision(settings), device)
        own = [dict(_heads(network)) for network in networks]
        like = {name: weight for heads in own for name, weight in heads.items()}
        self.heads = {
            name: torch.stack([heads.get(name, torch.zeros_like(weight)) for heads in own]).to(device)
            for name, weight in like.items()
        }
        for head in self.heads.values():
            head.requires_grad_()
        self.mixing = Mixing([network.parts for network in networks], settings, device)

    @property
    def weights(self) -> list[Float[Tensor, "M *D"]]:
        """Everything that is learned."""
        return [*self.encoders.weights, *(head.detach() for head in self.heads.values())]

    def gradients(self) -> list[Float[Tensor, "M *D"]]:
        """Of the weights, in the same order; they are let go."""
        of_heads = []
        for head in self.heads.values():
            assert head.grad is not None, "a head that some network has is asked in every step"
            of_heads.append(head.grad)
            head.grad = None
        return [*self.encoders.gradients(), *of_heads]

    @torch.no_grad()
    def unstack(self, networks: Sequence[MILNetwork]) -> None:
        """Give each network its weights."""
        self.encoders.unstack(networks)
        for number, network in enumerate(networks):
            for name, weight in _heads(network):
                weight.copy_(self.heads[name][number])

    def in_bags(self, z: Float[Tensor, "T H"], bags: Bags) -> Float[Tensor, "A B L H"]:
        """Embeddings bag by bag, filled up with zeros."""
        whole = z.new_zeros(bags.sizes.numel() * bags.longest, z.shape[1])
        filled = whole.index_copy(0, bags.place, z[: len(bags.place)])
        return filled.view(*bags.sizes.shape, bags.longest, -1)

    def judge(
        self, z: Float[Tensor, "A B L H"], distances: Float[Tensor, "A B L"], bags: Bags
    ) -> Float[Tensor, "A B K"]:
        """Class logits of bags (eq. 5); `distances` are zeros for the methods that do not weigh by them."""
        scores = self._linear(torch.tanh(self._linear(z, "attention.0")), "attention.2")[..., 0]
        weights = self.mixing.weights(scores, distances, bags.real, self.heads)
        votes = torch.matmul(z.flatten(1, 2), self._of("pooling.classifier.weight", len(z)).mT)
        summed = (weights[..., None] * votes.view(*weights.shape, -1)).sum(dim=2)
        return summed + self._of("pooling.classifier.bias", len(z))[:, None]

    def losses(
        self,
        z: Float[Tensor, "A B L H"],
        distances: Float[Tensor, "A B L"],
        bags: Bags,
        epoch: int,
    ) -> Float[Tensor, "A"]:
        """Loss of each network, as `Trainer.loss`."""
        of_bags = _cross_entropy(self.judge(z, distances, bags), bags.targets)
        if "instance.0.weight" in self.heads:
            told = bags.targets[:, :, None].expand(-1, -1, bags.longest)
            of_cells = _cross_entropy(self._instance(z), told).masked_fill(~bags.real, 0).sum(dim=2)
            beta = self.mixing.told[: len(z), None] * self.settings.instance_decay**epoch
            of_bags = (1 - beta) * of_bags + beta * of_cells / bags.sizes.clamp_min(1)
        some = bags.sizes > 0
        return of_bags.masked_fill(~some, 0).sum(dim=1) / some.sum(dim=1)

    def _instance(self, z: Float[Tensor, "A B L H"]) -> Float[Tensor, "A B L K"]:
        logits = self._linear(z, "instance.0")
        return self._linear(logits, "instance.1") if "instance.1.weight" in self.heads else logits

    def _linear(self, values: Float[Tensor, "A B L C"], name: str) -> Float[Tensor, "A B L D"]:
        """A layer of each network; zeros where none has it."""
        n, *shape, _ = values.shape
        if f"{name}.weight" not in self.heads:
            return values.new_zeros(n, *shape, 1)
        weight, bias = self._of(f"{name}.weight", n), self._of(f"{name}.bias", n)
        return torch.baddbmm(bias[:, None], values.flatten(1, 2), weight.mT).view(n, *shape, -1)

    def _of(self, name: str, n: int) -> Float[Tensor, "A *D"]:
        return of_first(self.heads[name], n)


class Mixing:
    """How each network mixes attention, distance and a uniform into the weight of a cell."""

    def __init__(self, parts: Sequence[Parts], settings: MILSettings, device: torch.device) -> None:
        of = partial(torch.tensor, device=device, dtype=torch.float32)
        slots = [
            [slot for slot, has in enumerate((p.attention, p.distance, p.uniform)) if has] for p in parts
        ]
        self.raw = settings.distance_weights == "raw"
        self.told = of([float(p.instance_loss) for p in parts])
        """1: cells are told the bag's label."""
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


def _heads(network: MILNetwork) -> list[tuple[str, Tensor]]:
    """Names and weights of all but the encoder."""
    named = network.named_parameters()
    return [(name, weight.data) for name, weight in named if not name.startswith("encoder.")]


def _shares(scores: Float[Tensor, "A B L"], real: Bool[Tensor, "A B L"]) -> Float[Tensor, "A B L"]:
    """Softmax over the cells of each bag."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~real, lowest).softmax(dim=2) * real


def _cross_entropy(logits: Float[Tensor, "*N K"], targets: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Of each by itself."""
    flat = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
