"""From what was measured of a cell to its embedding z.

Axes: N cells, F features, H embedding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hemomil.mil.roi_encoder import RoiEncoder
from hemomil.mil.settings import MILSettings


class VectorEncoder(nn.Sequential):
    """Standardised vectors to z, through a hidden layer or (the paper's last step) without one."""

    def __init__(self, features: int, hidden: int, embedding: int) -> None:
        first = [nn.Linear(features, hidden), nn.ReLU()] if hidden else []
        super().__init__(*first, nn.Linear(hidden or features, embedding), nn.ReLU())


class FeatureSpace(nn.Module):
    """Features as vectors, in standard deviations of the training controls' cells, clipped.

    RoI maps become the mean and the maximum of each channel. Fixed before any network is trained, so that
    what is strange in it does not depend on what was learned.
    """

    mean: Float[Tensor, "F"]
    scale: Float[Tensor, "F"]

    def __init__(self, feature_shape: tuple[int, ...], clip: float | None) -> None:
        super().__init__()
        self.maps = len(feature_shape) > 1
        self.size = 2 * feature_shape[0] if self.maps else feature_shape[0]
        self.clip = clip
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))

    def flatten(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N F"]:
        """Vectors as they are; maps as mean and maximum of each channel."""
        cells = cells.to(torch.float32)
        if not self.maps:
            return cells
        return torch.cat([cells.flatten(2).mean(dim=2), cells.flatten(2).amax(dim=2)], dim=1)

    def learn(self, controls: Float[Tensor, "M F"], everyone: Float[Tensor, "N F"]) -> None:
        """Take mean and SD from the controls; a feature that never varies among them takes everyone's SD."""
        controls, everyone = controls.double(), everyone.double()
        mean = controls.mean(dim=0)
        floor = 1e-6 * mean.abs().clamp_min(1e-6)
        scale = controls.std(dim=0, correction=0)
        scale = torch.where(scale > floor, scale, everyone.std(dim=0, correction=0))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > floor, scale, torch.ones_like(scale)))

    def forward(self, cells: Float[Tensor, "N ..."]) -> Float[Tensor, "N F"]:
        """Standardised vectors of cells."""
        return self.standardise(self.flatten(cells))

    def standardise(self, vectors: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """The same of cells that are flat already."""
        vectors = (vectors - self.mean) / self.scale
        return vectors if self.clip is None else vectors.clamp(-self.clip, self.clip)


def make_encoder(feature_shape: tuple[int, ...], settings: MILSettings) -> nn.Sequential:
    """The encoder that the settings ask for, for features of this shape."""
    if reads_maps(feature_shape, settings):
        return RoiEncoder(settings.embedding)
    size = FeatureSpace(feature_shape, None).size
    return VectorEncoder(size, settings.hidden, settings.embedding)


def reads_maps(feature_shape: tuple[int, ...], settings: MILSettings) -> bool:
    """Whether the encoder takes RoI maps themselves rather than vectors of the feature space."""
    return len(feature_shape) > 1 and settings.roi == "convolutions"
