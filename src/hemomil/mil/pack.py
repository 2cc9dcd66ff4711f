"""Ragged bags, packed: cells of several bags one after another; sums, softmaxes and maxima within each.

Axes: N cells of all bags, B bags, C anything. No padding, no loop over bags.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Which of B bags each of N cells belongs to; cells of a bag are neighbours."""

    bag: Int64[Tensor, "N"]
    n_bags: int

    @classmethod
    def of_sizes(cls, sizes: list[int], device: torch.device | str = "cpu") -> "Segments":
        """The segments of bags with these numbers of cells."""
        # torch's own way takes ten times as long
        bag_N = np.repeat(np.arange(len(sizes)), np.asarray(sizes, dtype=np.int64))
        return cls(torch.from_numpy(bag_N).to(device), len(sizes))

    @classmethod
    def singletons(cls, n: int, device: torch.device | str = "cpu") -> "Segments":
        """Every cell alone in a bag of its own."""
        return cls(torch.arange(n, device=device), n)

    @cached_property
    def sizes(self) -> Int64[Tensor, "B"]:
        """Number of cells of each bag."""
        return torch.bincount(self.bag, minlength=self.n_bags)

    def sum(self, values: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """Sum within each bag."""
        return values.new_zeros(self.n_bags, *values.shape[1:]).index_add(0, self.bag, values)

    def mean(self, values: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """Mean within each bag."""
        counts = self.sizes.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
        return self.sum(values) / counts

    def max(self, values: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """Maximum within each bag; -inf in an empty one."""
        index = self.bag.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
        lowest = values.new_full((self.n_bags, *values.shape[1:]), -torch.inf)
        return lowest.scatter_reduce(0, index, values, reduce="amax", include_self=True)

    def _exp(self, scores: Float[Tensor, "N *C"]) -> tuple[Float[Tensor, "N *C"], Float[Tensor, "B *C"]]:
        """exp(score - top of the bag), and the top: nothing overflows, and -inf counts for nothing."""
        limits = torch.finfo(scores.dtype)
        top = self.max(scores.detach()).clamp_(limits.min, limits.max)
        return torch.exp(scores - top[self.bag]), top

    def softmax(self, scores: Float[Tensor, "N *C"]) -> Float[Tensor, "N *C"]:
        """Shares of each bag that sum to 1; all 0 in a bag whose scores are all -inf."""
        exp, _ = self._exp(scores)
        total = self.sum(exp)
        tiny = torch.finfo(total.dtype).tiny
        return exp / total.clamp_min(tiny)[self.bag]

    def logsumexp(self, scores: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """log of the sum of exp(score) within each bag."""
        exp, top = self._exp(scores)
        return torch.log(self.sum(exp)) + top
