"""How far cells lie from a Gaussian: centred, times the inverse of its factor, and the length of that.

Axes: N cells, H embedding.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from hemomil.products import linear

BLOCK = 1024
"""Cells that are whitened at a time: bounds memory, stays in the cache."""
PANEL = 128
"""Columns that are computed at a time: above the diagonal of the last ones there is nothing to multiply."""
MANY = 256
"""Dimensions from which on single precision is worth it: with few, distances cost next to nothing."""
INFLATION = 40.0
"""Inflation of variance up to which single precision is enough: errors of up to 8e-7 were seen."""


class Whitening(nn.Module):
    """What distances from a Gaussian are computed with: follows from its mean and covariance, not saved."""

    mean: Float64[Tensor, "H"]
    inverse: Float64[Tensor, "H H"]
    """Of the covariance's upper factor: cells times this have unit variances and no correlation."""
    high: Float32[Tensor, "H"]
    low: Float32[Tensor, "H"]
    """The mean in single precision, and what that leaves of it."""
    precisions: Float32[Tensor, "H"]
    """Diagonal of the inverse covariance."""
    inflation: Float64[Tensor, ""]
    """Mean variance inflation of the dimensions: 1 where they do not correlate."""

    def __init__(self, mean: Float64[Tensor, "H"], factor: Float64[Tensor, "H H"]) -> None:
        """`factor`: lower Cholesky factor of the covariance."""
        super().__init__()
        identity = torch.eye(len(factor), dtype=torch.float64, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()
        precisions = inverse.square().sum(dim=1)
        derived = {
            "mean": mean.clone(),
            "inverse": inverse,
            "high": mean.float(),
            "low": (mean - mean.float()).float(),
            "precisions": precisions.float(),
            "inflation": (factor.square().sum(dim=1) * precisions).mean(),
            # the inverse in single precision, panel by panel as products take it
            **{f"single_{k}": panel.float().contiguous() for k, panel in enumerate(_panels(inverse))},
        }
        for name, values in derived.items():
            self.register_buffer(name, values, persistent=False)

    def distance(self, cells: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        """Mahalanobis distance of each cell, in standard deviations (paper, eq. 3).

        In double precision. Cells in single precision that have many dimensions are measured in it where that
        changes no distance by more than a millionth.
        """
        many = cells.dtype == torch.float32 and len(self.mean) >= MANY
        single = many and bool(self.inflation <= INFLATION)
        of_some = self._in_single if single else self._in_double
        return torch.cat([of_some(some) for some in torch.split(cells, BLOCK)])

    def _in_double(self, cells: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        return _squares(cells.double() - self.mean, _panels(self.inverse)).sqrt_().to(cells.dtype)

    def _in_single(self, cells: Float32[Tensor, "N H"]) -> Float32[Tensor, "N"]:
        """But for cells whose distance is the small difference of large numbers.

        Rounding each of its numbers, relative to itself, by u changes a distance by about
        u * sqrt(sum of centred^2 * precisions). That, next to the distance and squared, is what is limited.
        """
        centred = (cells - self.high).sub_(self.low)
        singles = (getattr(self, f"single_{k}") for k in range(-(-len(self.mean) // PANEL)))
        squares = _squares(centred, singles)
        doubtful = ~(centred.square_() @ self.precisions < INFLATION * squares)
        distances = squares.sqrt_()
        if doubtful.any():
            distances[doubtful] = self._in_double(cells[doubtful])
        return distances


def _panels(inverse: Float[Tensor, "H H"]) -> Iterator[Float[Tensor, "P _"]]:
    """Some of its columns at a time, as rows, and of each what is not below the diagonal."""
    for start in range(0, len(inverse), PANEL):
        yield inverse[: start + PANEL, start : start + PANEL].T


def _squares(centred: Float[Tensor, "N H"], panels: Iterable[Float[Tensor, "P _"]]) -> Float[Tensor, "N"]:
    """Squared length of each whitened cell."""
    total = centred.new_zeros(len(centred))
    for panel in panels:
        total += linear(centred[:, : panel.shape[1]], panel).square_().sum(dim=1)
    return total
