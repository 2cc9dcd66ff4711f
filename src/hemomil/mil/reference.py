"""What is healthy: a Gaussian (mixture) of control cells, and how far a cell lies from it (eq. 3).

Axes: N cells, M control cells, H embedding, R references (one made without each group of donors).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from torch import Tensor, nn

from hemomil.mil.settings import MILSettings
from hemomil.mil.whitening import Whitening

BLOCK = 1024
"""Cells that are centred at a time in double precision: bounds memory, stays in the cache."""
PANEL = 128
"""Dimensions of the embedding whose products with all before are computed at a time."""


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a Gaussian, in double precision; two of them add up."""

    n: int
    mean: Float64[Tensor, "H"]
    scatter: Float64[Tensor, "H H"]
    """Sum of outer products of deviations from the mean."""

    @classmethod
    def of(cls, cells: Float[Tensor, "M H"]) -> "Moments":
        """The moments of some cells, seen once: deviations are from the mean of the first few."""
        near = cells[:BLOCK].mean(dim=0, dtype=torch.float64)
        total, scatter = torch.zeros_like(near), near.new_zeros(len(near), len(near))
        room = near.new_empty(min(BLOCK, len(cells)), len(near))
        for block in torch.split(cells, BLOCK):
            deviations = room[: len(block)].copy_(block).sub_(near)
            total += deviations.sum(dim=0)
            _add_lower_product(scatter, deviations)
        off = total / len(cells)
        scatter = scatter.tril() + scatter.tril(-1).T - len(cells) * torch.outer(off, off)
        return cls(len(cells), near + off, scatter)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both together (Chan, Golub & LeVeque 1979)."""
        n = self.n + other.n
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), self.scatter + other.scatter + between)

    def covariance(self, settings: MILSettings) -> Float64[Tensor, "H H"]:
        """Maximum-likelihood covariance as scikit-learn regularises it, or shrunk towards a sphere."""
        covariance = self.scatter / self.n
        if settings.covariance == "shrunk":
            covariance = shrink(covariance, self.n)
        return covariance + settings.reg_covar * _identity(covariance)


def _add_lower_product(total: Float64[Tensor, "H H"], rows: Float64[Tensor, "M H"]) -> None:
    """Add `rows.T @ rows`, whose upper triangle is not needed: of most of it nothing is computed."""
    for columns in torch.split(torch.arange(len(total)), PANEL):
        start, end = int(columns[0]), int(columns[-1]) + 1
        total[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])


def shrink(covariance: Float64[Tensor, "H H"], n: int) -> Float64[Tensor, "H H"]:
    """Oracle approximating shrinkage (Chen et al. 2010, eq. 23), as `sklearn.covariance.oas`."""
    size = len(covariance)
    alpha = covariance.square().mean()
    mu = covariance.trace() / size
    denominator = (n + 1.0) * (alpha - mu.square() / size)
    weight = 1.0 if denominator == 0 else min(float((alpha + mu.square()) / denominator), 1.0)
    return (1 - weight) * covariance + weight * mu * _identity(covariance)


def _identity(like: Float64[Tensor, "H H"]) -> Float64[Tensor, "H H"]:
    return torch.eye(len(like), dtype=torch.float64, device=like.device)


def cholesky(covariance: Float64[Tensor, "H H"]) -> Float64[Tensor, "H H"]:
    """Lower factor; a covariance that rounding made indefinite gets the smallest diagonal that mends it.

    Fewer control cells than dimensions, or embedding units that are zero for every one of them, end up here.
    """
    extra = torch.finfo(torch.float64).eps * float(covariance.diagonal().mean().clamp_min(1e-12))
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    while failed:
        extra *= 10
        factor, failed = torch.linalg.cholesky_ex(covariance + extra * _identity(covariance))
    return factor


class HealthyReference(nn.Module):
    """A Gaussian of healthy cells. Buffers in double precision, saved with the model."""

    mean: Float64[Tensor, "H"]
    cholesky: Float64[Tensor, "H H"]
    centre: Float64[Tensor, ""]
    spread: Float64[Tensor, ""]

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("cholesky", torch.eye(size, dtype=torch.float64))
        self.whitening = Whitening(self.mean, self.cholesky)
        self.register_load_state_dict_post_hook(_whiten)  # type: ignore[no-untyped-call]
        # distances of healthy cells of donors that the reference did not see: 95th percentile, and how far it
        # lies from the median; `bounded` is measured in these
        self.register_buffer("centre", torch.zeros((), dtype=torch.float64))
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))

    def set_gaussian(self, mean: Float64[Tensor, "H"], covariance: Float64[Tensor, "H H"]) -> None:
        """Take over a mean and a covariance."""
        self.mean.copy_(mean)
        self.cholesky.copy_(cholesky(covariance))
        _whiten(self)

    def set_scale(self, distances: Float[Tensor, "M"]) -> None:
        """Learn what distance is ordinary from control cells that the reference did not see."""
        median, high = torch.quantile(distances.double(), distances.new_tensor([0.5, 0.95]).double())
        self.centre.copy_(high)
        self.spread.copy_((high - median).clamp_min(1e-6))

    def distance(self, cells: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        """Mahalanobis distance of each cell to the healthy reference (eq. 3), in standard deviations."""
        return self.whitening.distance(cells)

    def bounded(self, distances: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """log of a weight in (0, 1): 1/2 at the healthy 95th percentile, .12 at the healthy median."""
        steepness = 2 / self.spread
        return nn.functional.logsigmoid(steepness * (distances - self.centre)).to(distances.dtype)


def _whiten(reference: HealthyReference, *_: object) -> None:
    """Also called after the state of a saved reference was loaded."""
    reference.whitening = Whitening(reference.mean, reference.cholesky)


def fit_gaussian(
    cells: Float[Tensor, "M H"], settings: MILSettings, seed: int
) -> tuple[Float64[Tensor, "H"], Float64[Tensor, "H H"]]:
    """Mean and covariance of the mixture fitted to control cells: in closed form for one component."""
    if settings.components == 1 and settings.mixture == "gaussian":
        moments = Moments.of(cells)
        return moments.mean, moments.covariance(settings)
    return _mixture_moments(cells, settings, seed)


def _mixture_moments(
    cells: Float[Tensor, "M H"], settings: MILSettings, seed: int
) -> tuple[Float64[Tensor, "H"], Float64[Tensor, "H H"]]:
    kind = GaussianMixture if settings.mixture == "gaussian" else BayesianGaussianMixture
    mixture = kind(
        n_components=min(settings.components, len(cells)),
        covariance_type="full",
        max_iter=settings.em_iterations,
        reg_covar=settings.reg_covar,
        random_state=seed % 2**32,
    )
    mixture.fit(cells.double().cpu().numpy())
    weights, means = mixture.weights_, mixture.means_
    mean = weights @ means
    between = np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    covariance = np.einsum("k,kij->ij", weights, mixture.covariances_) + between
    return torch.from_numpy(mean).to(cells.device), torch.from_numpy(covariance).to(cells.device)


@dataclass(frozen=True)
class CrossFitted:
    """References made without each group of control donors; the last one is made with all of them."""

    whitenings: tuple[Whitening, ...]

    def to(self, device: torch.device) -> "CrossFitted":
        """The same on another device."""
        return CrossFitted(tuple(each.to(device) for each in self.whitenings))

    def distance(self, cells: Float[Tensor, "N H"], without: Int64[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Distance of each cell to the reference without group `without`; -1: with all groups."""
        distances = cells.new_empty(len(cells))
        for group in torch.unique(without).tolist():
            asked = without == group
            # the last reference is the one with all groups, which is where -1 points
            distances[asked] = self.whitenings[group].distance(cells[asked])
        return distances


def fit_crossfitted(
    cells: Float[Tensor, "M H"], group: Int64[Tensor, "M"], settings: MILSettings, seed: int
) -> CrossFitted:
    """One reference without each group of donors, and one with all; moments are added, not summed anew."""
    n_groups = int(group.max()) + 1
    if settings.components == 1 and settings.mixture == "gaussian":
        return crossfitted_of([Moments.of(cells[group == g]) for g in range(n_groups)], settings)
    fits = [fit_gaussian(cells[group != g], settings, seed) for g in range(n_groups)]
    return _crossfitted([*fits, fit_gaussian(cells, settings, seed)])


def crossfitted_of(parts: list[Moments], settings: MILSettings) -> CrossFitted:
    """The Gaussians without each of these groups of donors, and with all."""
    sums = [added(parts[:g] + parts[g + 1 :]) for g in range(len(parts))] + [added(parts)]
    return _crossfitted([(moments.mean, moments.covariance(settings)) for moments in sums])


def _crossfitted(fits: list[tuple[Float64[Tensor, "H"], Float64[Tensor, "H H"]]]) -> CrossFitted:
    return CrossFitted(tuple(Whitening(mean, cholesky(covariance)) for mean, covariance in fits))


def added(parts: list[Moments]) -> Moments:
    """The moments of all parts together."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class StreamedMoments:
    """Moments of the control cells of each group of donors, from embeddings that come by a few at a time."""

    PENDING = 1024
    """Cells that wait until their moments are taken: adding up matrices for every bag costs more."""

    def __init__(self, n_groups: int) -> None:
        self._pending: list[list[Tensor]] = [[] for _ in range(n_groups)]
        self._moments: list[Moments | None] = [None] * n_groups

    def add(self, cells: Float[Tensor, "M H"], group: int) -> None:
        """Note some cells of donors of one group."""
        self._pending[group].append(cells)
        if sum(map(len, self._pending[group])) >= self.PENDING:
            self._fold(group)

    def _fold(self, group: int) -> None:
        if not self._pending[group]:
            return
        before, new = self._moments[group], Moments.of(torch.cat(self._pending[group]).cpu())
        self._moments[group] = new if before is None else before + new
        self._pending[group].clear()

    def take(self) -> list[Moments]:
        """The moments of each group since they were last taken; every group has to have come by."""
        for group in range(len(self._moments)):
            self._fold(group)
        taken = [moments for moments in self._moments if moments is not None]
        assert len(taken) == len(self._moments), "a group of control donors did not come by"
        self._moments = [None] * len(taken)
        return taken
