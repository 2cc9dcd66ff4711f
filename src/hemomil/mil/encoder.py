"""From what was measured of a cell to its embedding z.

Axes: N cells, F features, H embedding. RoI maps are N 256 14 14, their patches N 49 1024.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import linear, max_pool2d, pad, relu

from hemomil.mil.settings import MILSettings

ROI_SHAPE = (256, 14, 14)
WIDE = 304
"""The 301 channels of the first layer, filled up with zeros: kernels for odd widths are slow."""


class Windows(NamedTuple):
    """Windows of the second layer, of its 4 x 4, that see the same of the padding."""

    at: list[tuple[int, int]]
    """Row and column."""
    seen: list[int]
    """Which of a window's 2 x 2 positions, row by row, are more than padding."""

    @property
    def positions(self) -> slice:
        """The positions that are seen, as a slice."""
        step = self.seen[1] - self.seen[0] if len(self.seen) == 2 else 1
        return slice(self.seen[0], self.seen[-1] + 1, step)

    @property
    def unseen(self) -> list[int]:
        """The positions that are nothing but padding."""
        return [k for k in range(4) if k not in self.seen]


WINDOWS = (
    Windows([(0, 0)], [3]),
    Windows([(0, 1), (0, 2), (0, 3)], [2, 3]),
    Windows([(1, 0), (2, 0), (3, 0)], [1, 3]),
    Windows([(row, column) for row in (1, 2, 3) for column in (1, 2, 3)], [0, 1, 2, 3]),
)
PATCH_ORDER = [
    7 * (2 * row + k // 2 - 1) + 2 * column + k % 2 - 1
    for windows in WINDOWS
    for row, column in windows.at
    for k in windows.seen
]
"""The 7 x 7 patches of a map, window of the second layer by window."""
PAIR_ORDER = [7 * (2 * (patch // 7) + row) + patch % 7 for patch in PATCH_ORDER for row in (0, 1)]
"""The 14 x 7 pairs of neighbouring pixels of a map, both rows of a patch together."""
FIRST_ORDER, LATER_ORDER = (0, 2, 1, 3), (0, 2, 3, 1)
"""The axes of a kernel (output, input, row, column), as products need them: so they lie in memory."""
AS_ONE = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""What moves a pair of numbers of so many bytes as one."""
SEEN = [len(windows.at) * len(windows.seen) for windows in WINDOWS]
"""How many patches each of the windows above see."""
PLACES = [4 * row + column for windows in WINDOWS for row, column in windows.at]
"""Where in the 4 x 4, row by row, the windows above are."""
PIECE = 80
"""Maps read at a time, at most; in half precision twice as many. Their patches then fit into memory that is
at hand: of 200 maps at once in single precision, a sixth of the time went into new memory, page by page."""
ROUNDED = 8
"""Maps whose patches are rounded to bfloat16 at a time: by way of single precision that is faster, as long as
it stays in the cache."""


class RoiEncoder(nn.Sequential):
    """The paper's encoder of RoI maps: 14x14 -> 9x9 -> 4x4 -> 2x2 -> 1x1, then z in R^500 (Sec. 2).

    The layers hold the weights. Since no two windows of any of them overlap, they are computed as matrix
    products of patches, and what the first two make of padding alone is computed once, not for every cell:
    the same numbers but for rounding. Exported, or asked for the gradient of maps, they go layer by layer.
    """

    def __init__(self, embedding: int = 500) -> None:
        first = nn.Conv2d(256, 301, kernel_size=2, stride=2, padding=2)
        second = nn.Conv2d(301, 500, kernel_size=2, stride=2)
        third = nn.Conv2d(500, 650, kernel_size=2, stride=2)
        for layer, order in ((first, FIRST_ORDER), (second, LATER_ORDER), (third, LATER_ORDER)):
            back = [order.index(axis) for axis in range(4)]
            layer.weight.data = layer.weight.data.permute(order).contiguous().permute(back)
        super().__init__(
            first,
            nn.ReLU(),
            second,
            nn.ReLU(),
            nn.MaxPool2d(2, stride=2),
            third,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(650, embedding),
            nn.ReLU(),
        )

    @staticmethod
    def patches(maps: Shaped[Tensor, "N 256 14 14"]) -> Shaped[Tensor, "N 49 1024"]:
        """The maps cut into the 7 x 7 windows of the first convolution that see more than padding.

        Of the 1024 numbers of a window those of its upper row come first, channel by channel. Laying maps out
        takes some hundredths of a training step: worth doing once, before training.
        """
        pairs = maps.contiguous().view(AS_ONE[maps.element_size()]).flatten(2).transpose(1, 2)
        return pairs[:, PAIR_ORDER].view(maps.dtype).reshape(len(maps), 49, 1024)

    def forward(self, cells: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        """Embeddings of RoI maps, or of their `patches`, in the precision of the weights or of autocast."""
        of = dict(self.named_parameters())
        if torch.compiler.is_exporting() or cells.requires_grad:
            layer_by_layer: Tensor = super().forward(cells.to(of["0.weight"].dtype))  # type: ignore[no-untyped-call]
            return layer_by_layer
        kind = _precision(of["0.weight"])
        missing = WIDE - len(of["0.bias"])
        kernel = pad(of["0.weight"].permute(FIRST_ORDER).flatten(1), (0, 0, 0, missing)).to(kind)
        bias = pad(of["0.bias"], (0, missing)).to(kind)
        second = _of_windows(
            pad(of["2.weight"].permute(LATER_ORDER), (0, missing)).flatten(1, 2).to(kind),
            of["2.bias"].to(kind),
            relu(bias),
        )
        pieces: list[Tensor] = []
        at_once = PIECE * 4 // kind.itemsize
        for piece in torch.tensor_split(cells, max(1, -(-len(cells) // at_once))):
            rows = _by_windows(self.patches(piece) if piece.dim() == 4 else piece, kind)
            pieces.append(_pooled(linear(rows, kernel, bias).relu_(), second))
        pooled = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        last = relu(linear(pooled, of["5.weight"].permute(LATER_ORDER).flatten(1), of["5.bias"]))
        return relu(linear(last, of["8.weight"], of["8.bias"]))


def _precision(weight: Tensor) -> torch.dtype:
    """The precision of products with a weight: that of autocast, else its own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _by_windows(patches: Shaped[Tensor, "N 49 1024"], kind: torch.dtype) -> Shaped[Tensor, "R 1024"]:
    """The patches of all maps that the first of `WINDOWS` see, then those that the next see, and so on."""
    n = len(patches)
    rows = patches.new_empty(49 * n, 1024, dtype=kind)
    through_single = (patches.device.type, patches.dtype, kind) == ("cpu", torch.float16, torch.bfloat16)
    at_once = ROUNDED if through_single else max(1, n)
    blocks = torch.split(rows, [n * size for size in SEEN])
    for block, seen in zip(blocks, torch.split(patches, SEEN, dim=1), strict=True):
        whole = block.view(seen.shape)
        for to, some in zip(torch.split(whole, at_once), torch.split(seen, at_once), strict=True):
            to.copy_(some.float() if through_single else some)
    return rows


def _of_windows(
    kernel: Float[Tensor, "D 4 C"], bias: Float[Tensor, "D"], padding: Float[Tensor, "C"]
) -> list[tuple[Float[Tensor, "D _"], Float[Tensor, "D"]]]:
    """The second layer for each of `WINDOWS`: the kernel of what they see, and a bias.

    What it makes of `padding`, as the first layer left it, is added to the bias.
    """
    of_position = (kernel @ padding).unbind(dim=1)
    return [
        (
            kernel[:, windows.positions].flatten(1),
            sum((of_position[k] for k in windows.unseen), start=bias),
        )
        for windows in WINDOWS
    ]


def _pooled(
    seen: Float[Tensor, "R C"], second: Sequence[tuple[Float[Tensor, "D _"], Float[Tensor, "D"]]]
) -> Float[Tensor, "N _"]:
    """The second convolution, pooled: the 2 x 2 positions of the third one's window, row by row.

    `seen` is what the first one makes of the patches.
    """
    n = len(seen) // 49
    outputs: list[Tensor] = []
    parts = torch.split(seen, [n * size for size in SEEN])
    for windows, rows, (kernel, bias) in zip(WINDOWS, parts, second, strict=True):
        values = linear(rows.view(n * len(windows.at), kernel.shape[1]), kernel, bias)
        outputs += values.view(n, len(windows.at), len(bias)).unbind(dim=1)
    together = torch.stack([outputs[PLACES.index(place)] for place in range(16)], dim=1)
    pooled = max_pool2d(together.view(n, 4, 4, together.shape[2]).permute(0, 3, 1, 2), 2)
    return relu(pooled.permute(0, 2, 3, 1).flatten(1))


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
