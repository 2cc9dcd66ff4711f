"""A trained model as one graph of tensor operations, which is what ONNX can hold.

Axes: N cells of one bag, K classes, H embedding, E networks averaged, C anything.
"""

import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hemomil.mil.core import Core
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import WeightedPooling
from hemomil.mil.reference import HealthyReference

OUTPUTS = ("probabilities", "attention", "anomaly")


class OneBag(Segments):
    """Cells that are all of one bag: sums and maxima over all, which ONNX has."""

    @property
    def sizes(self) -> Int64[Tensor, "B"]:
        """The number of cells."""
        return torch.ones_like(self.bag).sum()[None]

    def sum(self, values: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """Sum of the bag."""
        return values.sum(dim=0, keepdim=True)

    def max(self, values: Float[Tensor, "N *C"]) -> Float[Tensor, "B *C"]:
        """Maximum of the bag."""
        return values.amax(dim=0, keepdim=True)


class StraightReference(HealthyReference):
    """A healthy reference whose distances are one product in double precision: a graph does not branch."""

    def __init__(self, reference: HealthyReference) -> None:
        super().__init__(len(reference.mean))
        self.load_state_dict(reference.state_dict())

    def distance(self, cells: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        """Mahalanobis distance of each cell, as `HealthyReference.distance`."""
        white = (cells - self.mean) @ self.whitening.inverse
        distances: Tensor = torch.linalg.vector_norm(white, dim=1).to(cells.dtype)
        return distances


class Graph(nn.Module):
    """What `AnomalyMIL.predict_cells` says of one bag: class probabilities, attention, anomaly."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = copy.deepcopy(core).cpu().eval()
        for name, module in list(self.core.named_children()):
            if isinstance(module, HealthyReference):
                setattr(self.core, name, StraightReference(module))

    def forward(
        self, cells: Float[Tensor, "N ..."]
    ) -> tuple[Float[Tensor, "K"], Float[Tensor, "N"], Float[Tensor, "N"]]:
        """In single precision; attention is NaN where the method has none."""
        evidence, anomaly = self.core._read(cells)  # in one piece: a graph has no loop over chunks
        bag = OneBag(torch.zeros_like(anomaly, dtype=torch.int64), 1)
        pairs = list(zip(self.core.members, evidence, strict=True))
        logits_EK = torch.stack([member.pooling(read, bag)[0] for member, read in pairs]).double()
        shares = [
            member.pooling.shares(read, bag)[:, 0].double()
            for member, read in pairs
            if member.attention is not None and isinstance(member.pooling, WeightedPooling)
        ]
        attention = torch.stack(shares).mean(dim=0) if shares else torch.full_like(anomaly, torch.nan)
        return logits_EK.softmax(dim=1).mean(dim=0).float(), attention.float(), anomaly.float()
