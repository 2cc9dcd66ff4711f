"""From the cells of a bag to class logits, and what the bag would say without each one of them.

Axes: N cells of all bags, B bags, K classes, C channels of pooling weights, V values pooled, Q quantiles,
M some of the cells.

`forward` pools, `weights` says with which weight, `without_each` gives in closed form the N bags that lack
one cell each: O(N) work. A cell with more than half of its bag's weight is never subtracted (all digits would
cancel): there is at most one in each bag, so the rest of the bag is simply pooled again.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hemomil.mil.pack import Segments


@dataclass(frozen=True)
class Evidence:
    """What pooling needs to know of each cell; all of it can be read in chunks and joined."""

    values: Float[Tensor, "N V"]
    """What is pooled: class votes, or embeddings."""
    channels: Float[Tensor, "N C"]
    """Logarithms of pooling weights before they are shared out within the bag; attention comes first."""
    instance: Float[Tensor, "N K"] | None = None
    """Class logits of each cell by a classifier of its own."""

    @classmethod
    def join(cls, chunks: list["Evidence"]) -> "Evidence":
        """That of all chunks, one after the other."""
        first = [chunk.instance for chunk in chunks if chunk.instance is not None]
        return cls(
            torch.cat([chunk.values for chunk in chunks]),
            torch.cat([chunk.channels for chunk in chunks]),
            torch.cat(first) if first else None,
        )

    @property
    def tensors(self) -> list[Float[Tensor, "N _"]]:
        """All of it, in the order of the fields."""
        told = [self.values, self.channels, self.instance]
        return [tensor for tensor in told if tensor is not None]

    def at(self, rows: Int64[Tensor, "M"]) -> "Evidence":
        """Of these cells only; a cell may be named more than once."""
        instance = None if self.instance is None else self.instance[rows]
        return Evidence(self.values[rows], self.channels[rows], instance)


class Pooling(nn.Module, ABC):
    """Turns the evidence of cells into class logits of bags."""

    @abstractmethod
    def values(self, z: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """What is pooled of each cell."""

    @abstractmethod
    def forward(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """Class logits of each bag."""

    @abstractmethod
    def weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Weight of each cell in the logit of each class."""

    @abstractmethod
    def without_each(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Class logits of the bag of each cell, without that cell; means nothing in a bag of one."""

    def alone(self, evidence: Evidence) -> Float[Tensor, "N K"]:
        """Class logits of each cell as a bag of its own."""
        return self.forward(evidence, Segments.singletons(len(evidence.values), evidence.values.device))


class WeightedPooling(Pooling):
    """Eq. 5: z_B = sum_n (w_a a_n + w_d d_n) z_n, then one linear layer.

    The linear layer is applied to the cells before they are summed, which is the same sum; so no pass over
    embeddings is needed to take a cell out again. `free` is the paper's 1x1 convolution without bias, which
    may turn negative; `convex` are shares of one.
    """

    def __init__(self, embedding: int, n_classes: int, channels: int, *, mixing: str, raw_last: bool) -> None:
        super().__init__()
        self.classifier = nn.Linear(embedding, n_classes)
        self.raw_last = raw_last
        self.convolution = nn.Linear(channels, 1, bias=False) if channels > 1 and mixing == "free" else None
        convex = channels > 1 and mixing == "convex"
        self.share_logits = nn.Parameter(torch.zeros(channels)) if convex else None

    def values(self, z: Float[Tensor, "N H"]) -> Float[Tensor, "N K"]:
        """Class votes: a cell's part of the logits, before its weight."""
        return z @ self.classifier.weight.T

    def coefficients(self, like: Float[Tensor, "N C"]) -> Float[Tensor, "C"]:
        """How much each channel counts: (w_a, w_d)."""
        if self.convolution is not None:
            return self.convolution.weight[0]
        if self.share_logits is not None:
            return self.share_logits.softmax(dim=0)
        return like.new_ones(like.shape[1])

    def shares(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N C"]:
        """Each channel shared out within its bag; raw distances stay as they are."""
        shares = bags.softmax(evidence.channels)
        if self.raw_last:
            shares = torch.cat([shares[:, :-1], evidence.channels[:, -1:]], dim=1)
        return shares

    def _cell_weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N"]:
        return self.shares(evidence, bags) @ self.coefficients(evidence.channels)

    def forward(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """Votes summed by weight."""
        return self.with_bias(self.votes(evidence, bags))

    def votes(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """The same before the bias is added."""
        return bags.sum(self._cell_weights(evidence, bags)[:, None] * evidence.values)

    def with_bias(self, votes: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Class logits of bags, from their votes."""
        return votes + self.classifier.bias

    def weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """w_a a_n + w_d d_n, the same for every class."""
        return self._cell_weights(evidence, bags)[:, None].expand_as(evidence.values)

    def without_each(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """The other cells share out the weight anew."""
        last = evidence.channels.shape[1] - 1
        rest = self.classifier.bias.expand_as(evidence.values)
        for channel, coefficient in enumerate(self.coefficients(evidence.channels)):
            scores = evidence.channels[:, channel]
            leave_out = sum_without_each if self.raw_last and channel == last else mean_without_each
            rest = rest + coefficient * leave_out(scores, evidence.values, bags)
        return rest


def sum_without_each(
    weights: Float[Tensor, "N"], values: Float[Tensor, "N V"], bags: Segments
) -> Float[Tensor, "N V"]:
    """Weighted sum over the bag of each cell, without that cell."""
    weighted = weights[:, None] * values
    return bags.sum(weighted)[bags.bag] - weighted


def mean_without_each(
    scores: Float[Tensor, "N"], values: Float[Tensor, "N V"], bags: Segments
) -> Float[Tensor, "N V"]:
    """Mean over the bag of each cell by the softmax of the scores of all others."""
    share = bags.softmax(scores)
    dominant = share > 0.5
    kept = torch.where(dominant, torch.zeros_like(share), share)
    rest = sum_without_each(share, values, bags) / (1 - kept)[:, None]
    others = bags.softmax(torch.where(dominant, -torch.inf, scores))
    without_dominant = bags.sum(others[:, None] * values)[bags.bag]
    return torch.where(dominant[:, None], without_dominant, rest)


class MaxPooling(Pooling):
    """The largest value of each dimension of the embedding, then one linear layer."""

    def __init__(self, embedding: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(embedding, n_classes)

    def values(self, z: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """The embedding itself."""
        return z

    def forward(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """Class logits of the largest values."""
        logits: Tensor = self.classifier(bags.max(evidence.values))
        return logits

    def _is_top(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N H"]:
        """1 / (number of cells that share the maximum) where a cell has it, else 0."""
        top = (evidence.values == bags.max(evidence.values)[bags.bag]).to(evidence.values.dtype)
        return top / bags.sum(top)[bags.bag]

    def weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Share of dimensions in which the cell is largest."""
        share = self._is_top(evidence, bags).mean(dim=1)
        return share[:, None].expand(-1, self.classifier.out_features)

    def without_each(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Where the cell is largest, the second largest steps in."""
        alone_on_top = self._is_top(evidence, bags) == 1
        second = bags.max(evidence.values.masked_fill(alone_on_top, -torch.inf))[bags.bag]
        second = torch.where(torch.isfinite(second), second, torch.zeros_like(second))
        top = bags.max(evidence.values)[bags.bag]
        logits: Tensor = self.classifier(torch.where(alone_on_top, second, top))
        return logits


class LogSumExpPooling(Pooling):
    """log-sum-exp over cells of their class logits: p_k is class k's share of the bag's sum of exp(logit).

    The number of cells shifts all classes alike, so bag size says nothing. With `normalised`, each cell's
    probabilities are averaged instead (an instance classifier).
    """

    def __init__(self, embedding: int, n_classes: int, *, normalised: bool) -> None:
        super().__init__()
        self.classifier = nn.Linear(embedding, n_classes)
        self.normalised = normalised

    def values(self, z: Float[Tensor, "N H"]) -> Float[Tensor, "N K"]:
        """Class logits of each cell."""
        logits: Tensor = self.classifier(z)
        return logits.log_softmax(dim=1) if self.normalised else logits

    def forward(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """log-sum-exp of the cells' logits."""
        return bags.logsumexp(evidence.values)

    def alone(self, evidence: Evidence) -> Float[Tensor, "N K"]:
        """Of a single cell, its own logits."""
        return evidence.values

    def weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Share of the cell in the bag's sum of exp(logit), by class."""
        return bags.softmax(evidence.values)

    def without_each(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """log(exp(total) - exp(logit))."""
        share = bags.softmax(evidence.values)
        dominant = share > 0.5
        kept = torch.where(dominant, torch.zeros_like(share), share)
        rest = bags.logsumexp(evidence.values)[bags.bag] + torch.log1p(-kept)
        without_dominant = bags.logsumexp(evidence.values.masked_fill(dominant, -torch.inf))[bags.bag]
        return torch.where(dominant, without_dominant, rest)


class QuantilePooling(Pooling):
    """Quantiles of the bag's distances to the healthy reference, then one linear layer."""

    LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(len(self.LEVELS), n_classes)

    def values(self, z: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
        """The distance itself."""
        return z

    def forward(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "B K"]:
        """Class logits of the quantiles."""
        return self._logits(self.quantiles(evidence.values[:, 0], bags))

    def _logits(self, quantiles: Float[Tensor, "M Q"]) -> Float[Tensor, "M K"]:
        """In double precision: standardisation is folded into the weights, so large terms cancel."""
        weight, bias = self.classifier.weight.double(), self.classifier.bias.double()
        logits: Tensor = nn.functional.linear(quantiles.double(), weight, bias).to(quantiles.dtype)
        return logits

    def quantiles(self, distances: Float[Tensor, "N"], bags: Segments) -> Float[Tensor, "B Q"]:
        """Linear-interpolated quantiles of each bag, as `numpy.quantile`."""
        ordered, _ = _sorted_in_bags(distances, bags)
        first_B = bags.sizes.cumsum(0) - bags.sizes
        low, high, part = self._positions(bags.sizes, distances)
        start = first_B[:, None]
        return torch.lerp(ordered[start + low], ordered[start + high], part)

    def _positions(
        self, sizes: Tensor, like: Float[Tensor, "N"]
    ) -> tuple[Tensor, Tensor, Float[Tensor, "M Q"]]:
        """Ranks below and above each quantile of bags of these sizes, and how far between them it lies."""
        top = (sizes - 1).clamp_min(0)[:, None]
        position = top * like.new_tensor(self.LEVELS)
        low = position.floor().long()
        return low, torch.minimum(low + 1, top), position - low

    def weights(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """1/N: every cell counts once."""
        return (1 / bags.sizes[bags.bag].to(evidence.values.dtype))[:, None].expand(
            -1, self.classifier.out_features
        )

    def without_each(self, evidence: Evidence, bags: Segments) -> Float[Tensor, "N K"]:
        """Ranks above the missing cell move down by one."""
        ordered, rank = _sorted_in_bags(evidence.values[:, 0], bags)
        first_N = (bags.sizes.cumsum(0) - bags.sizes)[bags.bag][:, None]
        low, high, part = self._positions(bags.sizes[bags.bag] - 1, ordered)
        # ranks from the missing cell's own upwards move up by one
        last = len(ordered) - 1
        below = ordered[(first_N + low + (low >= rank[:, None])).clamp_max(last)]
        above = ordered[(first_N + high + (high >= rank[:, None])).clamp_max(last)]
        return self._logits(torch.lerp(below, above, part))


def _sorted_in_bags(values: Float[Tensor, "N"], bags: Segments) -> tuple[Float[Tensor, "N"], Tensor]:
    """Values in ascending order bag by bag, and the rank of each cell within its bag."""
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(bags.bag[order], stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    first_N = (bags.sizes.cumsum(0) - bags.sizes)[bags.bag]
    return values[order], place - first_N
