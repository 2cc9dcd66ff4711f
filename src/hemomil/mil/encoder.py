"""From what was measured of a cell to its embedding z.

Axes: N cells, F features, H embedding. RoI maps are N 256 14 14, their patches N 49 1024.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import linear, pad, relu

from hemomil.mil.settings import MILSettings

ROI_SHAPE = (256, 14, 14)
WIDE = 304
"""The 301 channels of the first layer, filled up with zeros: kernels for odd widths are slow."""


class _Windows(NamedTuple):
    """Windows of the second layer, of its 4 x 4, that see the same of the padding."""

    at: list[tuple[int, int]]
    """Row and column."""
    seen: list[int]
    """Which of a window's 2 x 2 positions, row by row, are more than padding."""


WINDOWS = (
    _Windows([(0, 0)], [3]),
    _Windows([(0, 1), (0, 2), (0, 3)], [2, 3]),
    _Windows([(1, 0), (2, 0), (3, 0)], [1, 3]),
    _Windows([(row, column) for row in (1, 2, 3) for column in (1, 2, 3)], [0, 1, 2, 3]),
)
PATCH_ORDER = [
    7 * (2 * row + k // 2 - 1) + 2 * column + k % 2 - 1
    for windows in WINDOWS
    for row, column in windows.at
    for k in windows.seen
]
"""The 7 x 7 patches of a map, those of a window together."""
PIXEL_ORDER = [
    14 * (2 * (patch // 7) + k // 2) + 2 * (patch % 7) + k % 2 for patch in PATCH_ORDER for k in range(4)
]
"""The 14 x 14 pixels of a map, those of a patch together."""
POOL_ORDER = [
    [at for windows in WINDOWS for at in windows.at].index((2 * row + k // 2, 2 * column + k % 2))
    for row in (0, 1)
    for column in (0, 1)
    for k in range(4)
]
"""The windows above, those that are pooled together."""


class RoiEncoder(nn.Sequential):
    """The paper's encoder of RoI maps: 14x14 -> 9x9 -> 4x4 -> 2x2 -> 1x1, then z in R^500 (Sec. 2).

    The layers hold the weights. Since no two windows of any of them overlap, they are computed as matrix
    products of patches, and what the first two make of padding alone is computed once, not for every cell:
    the same numbers but for rounding.
    """

    def __init__(self, embedding: int = 500) -> None:
        super().__init__(
            nn.Conv2d(256, 301, kernel_size=2, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(301, 500, kernel_size=2, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=2),
            nn.Conv2d(500, 650, kernel_size=2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(650, embedding),
            nn.ReLU(),
        )

    @staticmethod
    def patches(maps: Shaped[Tensor, "N 256 14 14"]) -> Shaped[Tensor, "N 49 1024"]:
        """The maps cut into the 7 x 7 windows of the first convolution that see more than padding.

        Laying a map out takes some hundredths of a training step: worth doing once, before training.
        """
        return maps.flatten(2).transpose(1, 2)[:, PIXEL_ORDER].reshape(len(maps), 49, 1024)

    def forward(self, cells: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        """Embeddings of RoI maps, or of their `patches`."""
        patches = (self.patches(cells) if cells.dim() == 4 else cells).to(torch.float32)
        n, of = len(patches), dict(self.named_parameters())
        missing = WIDE - len(of["0.bias"])
        bias = pad(of["0.bias"], (0, missing))
        seen = relu(linear(patches, pad(_rows(of["0.weight"]), (0, 0, 0, missing)), bias))
        fewer = _second_layer(seen, relu(bias), _rows(of["2.weight"], WIDE), of["2.bias"])
        pooled = fewer.reshape(n, 4, 4, fewer.shape[2]).amax(dim=2).flatten(1)
        last = relu(linear(pooled, _rows(of["5.weight"]), of["5.bias"]))
        return relu(linear(last, of["8.weight"], of["8.bias"]))


def _second_layer(
    seen: Float[Tensor, "N 49 C"],
    padding: Float[Tensor, "C"],
    kernel: Float[Tensor, "D P"],
    bias: Float[Tensor, "D"],
) -> Float[Tensor, "N 16 D"]:
    """The windows of the second convolution in `POOL_ORDER`.

    `seen` and `padding` are what the first one makes of the patches and of padding.
    """
    kernel_DKC = kernel.reshape(len(kernel), 4, -1)
    of_position, of_padding_DK = kernel_DKC.unbind(dim=1), kernel_DKC @ padding
    parts = torch.split(seen, [len(windows.at) * len(windows.seen) for windows in WINDOWS], dim=1)
    outputs: list[Tensor] = []
    for windows, part in zip(WINDOWS, parts, strict=True):
        blind = [k for k in range(4) if k not in windows.seen]
        weight = torch.cat([of_position[k] for k in windows.seen], dim=1)
        rows = part.reshape(-1, weight.shape[1])
        values = linear(rows, weight, bias + of_padding_DK[:, blind].sum(dim=1))
        outputs += values.reshape(len(seen), len(windows.at), len(kernel)).unbind(dim=1)
    return relu(torch.stack([outputs[window] for window in POOL_ORDER], dim=1))


def _rows(weight: Float[Tensor, "O I 2 2"], inputs: int | None = None) -> Float[Tensor, "O P"]:
    """A 2 x 2 kernel as a matrix for patches with channels last, its input channels filled up with zeros."""
    kernel = weight.permute(0, 2, 3, 1)
    return pad(kernel, (0, (inputs or weight.shape[1]) - weight.shape[1])).flatten(1)


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
