"""The paper's encoder of RoI maps, as products of patches.

Axes: N cells, H embedding; in kernels D outputs, C inputs. RoI maps are N 256 14 14, their patches N 49 1024.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial, reduce
from itertools import product
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import max_pool2d, pad, relu

from hemomil.products import linear

WIDE = 304
"""The 301 channels of the first layer, filled up with zeros: kernels for odd widths are slow."""


class Windows(NamedTuple):
    """Windows of the second layer, of its 4 x 4, that see the same of the padding."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    seen: list[int]
    """Which of a window's 2 x 2 positions, row by row, are more than padding."""

    @property
    def at(self) -> list[tuple[int, int]]:
        """Row and column of each."""
        return list(product(self.rows, self.columns))

    @property
    def positions(self) -> slice:
        """The positions that are seen, as a slice."""
        step = self.seen[1] - self.seen[0] if len(self.seen) == 2 else 1
        return slice(self.seen[0], self.seen[-1] + 1, step)

    @property
    def unseen(self) -> list[int]:
        """The positions that are nothing but padding."""
        return [k for k in range(4) if k not in self.seen]

    def patches_of(self, grid: Shaped[Tensor, "N 7 7 ..."]) -> Shaped[Tensor, "N A B K L ..."]:
        """The patches that they see, as a view: row and column of the window, row and column within it."""
        for axis, (places, within) in enumerate(
            ((self.rows, {k // 2 for k in self.seen}), (self.columns, {k % 2 for k in self.seen}))
        ):
            first, size = 2 * places[0] + min(within) - 1, len(places) * len(within)
            some = grid.narrow(1 + 2 * axis, first, size)
            grid = torch.unflatten(some, 1 + 2 * axis, (len(places), len(within)))
        return grid.transpose(2, 3)


WINDOWS = (
    Windows((0,), (0,), [3]),
    Windows((0,), (1, 2, 3), [2, 3]),
    Windows((1, 2, 3), (0,), [1, 3]),
    Windows((1, 2, 3), (1, 2, 3), [0, 1, 2, 3]),
)
SEEN = [len(windows.at) * len(windows.seen) for windows in WINDOWS]
"""How many patches each of the windows above see."""
PLACES = [4 * row + column for windows in WINDOWS for row, column in windows.at]
"""Where in the 4 x 4, row by row, the windows above are."""
POOLED = [
    [PLACES.index(4 * row + column) for row in (top, top + 1) for column in (left, left + 1)]
    for top, left in product((0, 2), repeat=2)
]
"""Which of them are pooled together, row by row."""
FIRST_ORDER, LATER_ORDER = (0, 2, 1, 3), (0, 2, 3, 1)
"""The axes of a kernel (output, input, row, column), as products need them: so they lie in memory."""
AS_ONE = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""What moves a pair of numbers of so many bytes as one."""
PIECE = 100
"""Maps read at a time, at most."""
ROWS = 16
"""The first product has a multiple of so many rows: for 49 x 67 of them oneDNN takes a sixth longer."""
TURNED = 4
"""Maps that are turned over and written as patches at a time, in the cache."""
COPIED = 16
"""Maps whose patches are copied at a time, in the cache."""


class Kernels(NamedTuple):
    """Weights as products take them, each a kernel with its bias."""

    first: tuple[Tensor, Tensor]
    of_windows: Sequence[tuple[Tensor, Tensor]]
    """Those of the second layer, one for each of `WINDOWS`."""
    third: tuple[Tensor, Tensor]
    last: tuple[Tensor, Tensor]


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
        patches = maps.new_empty(len(maps), 49, 1024)
        _write_patches(maps, torch.split(patches, SEEN, dim=1))
        return patches

    def forward(self, cells: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N H"]:
        """Embeddings of RoI maps, or of their `patches`, in the precision of the weights or of autocast."""
        weight = cast(nn.Conv2d, self[0]).weight
        if torch.compiler.is_exporting() or cells.requires_grad:
            layer_by_layer: Tensor = super().forward(cells.to(weight.dtype))  # type: ignore[no-untyped-call]
            return layer_by_layer
        kernels = self._kernels(_precision(weight))
        pieces = [
            _pooled(_FirstLayer.apply(piece, *kernels.first), kernels.of_windows)
            for piece in torch.tensor_split(cells, max(1, -(-len(cells) // PIECE)))
        ]
        pooled = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return linear(linear(pooled, *kernels.third, positive=True), *kernels.last, positive=True)

    def _kernels(self, kind: torch.dtype) -> Kernels:
        """The weights as products take them, in this precision."""
        kept = None if torch.is_grad_enabled() else _KEPT.get()
        if kept is None:
            return self._for_products(kind)
        if (self, kind) not in kept:
            kept[self, kind] = self._for_products(kind)
        return kept[self, kind]

    def _for_products(self, kind: torch.dtype) -> Kernels:
        of = {name: weight.to(kind) for name, weight in self.named_parameters()}
        missing = WIDE - len(of["0.bias"])
        first = pad(of["0.weight"].permute(FIRST_ORDER).flatten(1), (0, 0, 0, missing))
        bias = pad(of["0.bias"], (0, missing))
        second = pad(of["2.weight"].permute(LATER_ORDER), (0, missing)).flatten(1, 2)
        return Kernels(
            (first, bias),
            _of_windows(second, of["2.bias"], relu(bias)),
            (of["5.weight"].permute(LATER_ORDER).flatten(1), of["5.bias"]),
            (of["8.weight"], of["8.bias"]),
        )


_KEPT: ContextVar[dict[tuple[RoiEncoder, torch.dtype], Kernels] | None] = ContextVar("kept", default=None)


@contextmanager
def settled_weights() -> Iterator[None]:
    """Weights of RoI encoders do not change within: as products take them, they are kept from call to call.

    That is a tenth of the time for bags of 30. Calls that ask for a gradient keep nothing.
    """
    before = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(before)


def _precision(weight: Tensor) -> torch.dtype:
    """The precision of products with a weight: that of autocast, else its own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


class _FirstLayer(torch.autograd.Function):
    """The first convolution, rectified, of maps or patches: 49 rows of a map, window by window of the second.

    Patches as products need them take three times the room of what the layer makes of them, so they are not
    kept for the gradient: those that were overwritten meanwhile are laid out again.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        rows = _by_windows(cells, kernel.dtype)
        values = linear(rows, kernel, bias, positive=True)[: 49 * len(cells)]
        ctx.save_for_backward(cells, values)
        ctx.rows = weakref.ref(rows)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:
        cells, values = ctx.saved_tensors
        upstream = torch.ops.aten.threshold_backward(upstream, values, 0)
        rows = _ROOM.rows if ctx.rows() is _ROOM.rows else _by_windows(cells, values.dtype)
        return None, linear(upstream.T, rows[: len(upstream)].T), upstream.sum(dim=0)


def _by_windows(cells: Shaped[Tensor, "N ..."], kind: torch.dtype) -> Shaped[Tensor, "R 1024"]:
    """The patches of all maps that the first of `WINDOWS` see, then those that the next see, and so on.

    Filled up to a multiple of `ROWS`. On a CPU they lie where those of the last call lay.
    """
    n = len(cells)
    filled = -(-49 * n // ROWS) * ROWS
    on_cpu = cells.device.type == "cpu"
    rows = _ROOM.of(filled, kind) if on_cpu else cells.new_empty(filled, 1024, dtype=kind)
    rows[49 * n :] = 0
    parts = torch.split(rows[: 49 * n], [n * size for size in SEEN])
    _write_patches(cells, [part.view(n, size, 1024) for part, size in zip(parts, SEEN, strict=True)])
    return rows


class _Room(threading.local):
    """Memory that a thread keeps for the patches of a piece: asked for anew, it would come page by page."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.rows = self.memory
        """Another tensor whenever something else is to lie there."""

    def of(self, n: int, kind: torch.dtype) -> Shaped[Tensor, "R 1024"]:
        """So many rows of any numbers."""
        size = n * 1024 * kind.itemsize
        if len(self.memory) < size:
            self.memory = torch.empty(size, dtype=torch.uint8)
        self.rows = self.memory[:size].view(kind).view(n, 1024)
        return self.rows


_ROOM = _Room()


def _write_patches(cells: Shaped[Tensor, "N ..."], blocks: Sequence[Shaped[Tensor, "N _ 1024"]]) -> None:
    """Write the patches that each of `WINDOWS` see to its block, in the precision of that."""
    on_cpu = cells.device.type == "cpu"
    through_single = on_cpu and (cells.dtype, blocks[0].dtype) == (torch.float16, torch.bfloat16)
    are_patches = cells.dim() == 3
    at_once = (COPIED if are_patches else TURNED) if on_cpu else max(1, len(cells))
    desk = cache(partial(_Desk, cells))
    for start in range(0, len(cells), at_once):
        some = cells[start : start + at_once]
        parts = torch.split(some, SEEN, dim=1) if are_patches else desk(len(some)).seen(some)
        for block, seen in zip(blocks, parts, strict=True):
            to = block[start : start + at_once].view(seen.shape)
            if through_single:  # faster than torch's direct way
                seen = seen.to(torch.float32, memory_format=torch.contiguous_format)
            to.copy_(seen)


class _Desk:
    """Where some maps are turned over, so that what a window sees of all channels lies together."""

    def __init__(self, like: Shaped[Tensor, "_ 256 14 14"], n: int) -> None:
        """For `n` maps at a time, of numbers like these."""
        self.pairs = like.new_empty(98, 256 * n, dtype=AS_ONE[like.element_size()])
        grid = self.pairs.view(like.dtype).view(7, 2, 7, n, 512).permute(3, 0, 2, 1, 4)
        self.patches = [windows.patches_of(grid) for windows in WINDOWS]

    def seen(self, maps: Shaped[Tensor, "N 256 14 14"]) -> Sequence[Shaped[Tensor, "N ..."]]:
        """Views of the patches that each of `WINDOWS` see; they show the maps that were turned over last."""
        pairs = maps.contiguous().view(self.pairs.dtype)
        self.pairs.copy_(pairs.view(self.pairs.shape[1], 98).T)
        return self.patches


def _of_windows(
    kernel: Float[Tensor, "D 4 C"], bias: Float[Tensor, "D"], padding: Float[Tensor, "C"]
) -> list[tuple[Float[Tensor, "D _"], Float[Tensor, "D"]]]:
    """The second layer for each of `WINDOWS`: the kernel of what they see, and a bias.

    What it makes of `padding`, as the first layer left it, is added to the bias.
    """
    of_position = (kernel @ padding).unbind(dim=1)
    return [
        (
            kernel[:, windows.positions].flatten(1).contiguous(),
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
    if not torch.is_grad_enabled():
        # in less than half the time; with a gradient it would take three times as long
        best = [reduce(torch.maximum, [outputs[k] for k in together]) for together in POOLED]
        return torch.cat(best, dim=1).relu_()
    together = torch.stack([outputs[PLACES.index(place)] for place in range(16)], dim=1)
    pooled = max_pool2d(together.view(n, 4, 4, together.shape[2]).permute(0, 3, 1, 2), 2)
    return relu(pooled.permute(0, 2, 3, 1).flatten(1))
