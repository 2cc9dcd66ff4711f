"""The paper's encoder in many networks at once: grouped products, ragged, in as few passes as can be.

Each network reads cells of its own with weights of its own. What is said in `RoiEncoder` of windows and
padding holds here; gradients are worked out by hand, which saves passes over memory.

Axes: M networks, A of them (those that read), T cells of all, R rows of a product, H embedding, D outputs,
P positions and C inputs of a layer's window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from hemomil.mil.network import MILNetwork
from hemomil.mil.roi_encoder import FIRST_ORDER, LATER_ORDER, SEEN, WINDOWS, RoiEncoder, Windows
from hemomil.mil.settings import MILSettings

POOL_ORDER = [
    [at for windows in WINDOWS for at in windows.at].index((2 * row + k // 2, 2 * column + k % 2))
    for row in (0, 1)
    for column in (0, 1)
    for k in range(4)
]
"""Windows in the order of `WINDOWS`: those that are pooled together."""
ALIGNED = 8
"""Grouped products want widths of 16 bytes: eight numbers in half precision."""
PATCH = 1024
"""Numbers of a patch."""
PIECE = 256
"""Maps cut into patches at a time."""


def precision(settings: MILSettings) -> torch.dtype:
    """Of encoders and what they read."""
    return torch.bfloat16 if settings.bfloat16 else torch.float32


def aligned(width: int) -> int:
    """The width filled up."""
    return -(-width // ALIGNED) * ALIGNED


class CellStore:
    """RoI maps of all bags on the device, cut into patches, window of the second layer by window.

    A number that is always 1 follows each patch: its weights are the biases.
    """

    WIDTH = aligned(PATCH + 1)

    def __init__(
        self, bags: Sequence[Shaped[Tensor, "_ 256 14 14"]], kind: torch.dtype, device: torch.device
    ) -> None:
        self.sizes = np.array([len(bag) for bag in bags])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.device = device
        n_cells = int(self.sizes.sum())
        self.patches = torch.zeros(n_cells, sum(SEEN), self.WIDTH, dtype=kind, device=device)
        self.patches[:, :, PATCH] = 1
        for start, bag in zip(self.starts.tolist(), bags, strict=True):
            for at, piece in enumerate(torch.split(bag, PIECE)):
                to = self.patches[start + at * PIECE :][: len(piece)]
                to[:, :, :PATCH] = RoiEncoder.patches(piece.to(device)).to(kind)

    @classmethod
    def nbytes(cls, n_cells: int, kind: torch.dtype) -> int:
        """Memory that so many cells take."""
        return n_cells * sum(SEEN) * cls.WIDTH * kind.itemsize

    def read(self, cells: Int64[Tensor, "T"], patches: slice) -> Shaped[Tensor, "R C"]:
        """Some of the patches of these cells, one behind the other."""
        wide = self.patches.view(torch.complex128)[:, patches]  # 16 bytes are moved as one
        return wide.index_select(0, cells).view(self.patches.dtype).flatten(0, 1)


@dataclass(frozen=True)
class Reading:
    """Which cells each of A networks reads: one network's after the other's, bag by bag."""

    cells: Int64[Tensor, "T"]
    """Rows of the store."""
    ends: Int32[Tensor, "A"]
    """Where the cells of each network end."""


class Layer:
    """A layer of the encoder in all networks, as grouped products take it.

    It has one more input, which is always 1 and whose weights are the biases, and one more output, which is
    always 1: the next layer's. What fills widths up is zero. Products read a copy where that is less precise.
    """

    def __init__(
        self, weights: Float[Tensor, "M D P C"], biases: Float[Tensor, "M D"], kind: torch.dtype
    ) -> None:
        n, self.outputs, positions, self.inputs = weights.shape
        height, width = aligned(self.outputs + 1), aligned(self.inputs + 1)
        self.weights = torch.zeros(n, height, positions, width, device=weights.device)
        known, bias = self.of(self.weights)
        known.copy_(weights)
        bias.copy_(biases)
        self.read = self.weights.detach().to(kind).requires_grad_()
        self.refresh()

    def of(self, whole: Float[Tensor, "*M _ P _"]) -> tuple[Float[Tensor, "*M D P C"], Float[Tensor, "*M D"]]:
        """Weights and biases among what fills up: views."""
        known = whole[..., : self.outputs, :, :]
        return known[..., : self.inputs], known[..., 0, self.inputs]

    @torch.no_grad()
    def refresh(self) -> None:
        """After a step, which also moves what is no weight: put that back, and let the copy follow."""
        self.weights[:, self.outputs :] = 0
        self.weights[..., self.inputs + 1 :] = 0
        self.weights[:, :, 1:, self.inputs] = 0
        self.weights[:, self.outputs, 0, self.inputs] = 1
        if self.read.dtype != self.weights.dtype:
            self.read.copy_(self.weights)

    def gradient(self) -> Float[Tensor, "M D P C"]:
        """Of all of it, in single precision; it is let go."""
        found, self.read.grad = self.read.grad, None
        assert found is not None
        return found.float()


class Encoders:
    """The encoders of M networks: their weights, and what they make of cells."""

    def __init__(self, networks: Sequence[MILNetwork], kind: torch.dtype, device: torch.device) -> None:
        each = [[_of_products(layer) for layer in _layers(network)] for network in networks]
        self.layers = []
        for of_layer in zip(*each, strict=True):
            weights, biases = (torch.stack(values).to(device) for values in zip(*of_layer, strict=True))
            self.layers.append(Layer(weights, biases, kind))

    @property
    def weights(self) -> list[Float[Tensor, "M D P C"]]:
        """Layer by layer, biases included."""
        return [layer.weights for layer in self.layers]

    def gradients(self) -> list[Float[Tensor, "M D P C"]]:
        """Of the weights, in the same order; they are let go."""
        return [layer.gradient() for layer in self.layers]

    def refresh(self) -> None:
        """After a step on the weights."""
        for layer in self.layers:
            layer.refresh()

    @torch.no_grad()
    def unstack(self, networks: Sequence[MILNetwork]) -> None:
        """Give each network its weights."""
        for number, network in enumerate(networks):
            for layer, known in zip(_layers(network), self.layers, strict=True):
                for own, value in zip(_of_products(layer), known.of(known.weights[number]), strict=True):
                    own.copy_(value)

    def encode(self, store: CellStore, read: Reading) -> Float[Tensor, "T H"]:
        """Embeddings, as `RoiEncoder` makes them but for the order of sums."""
        weights = (of_first(layer.read, len(read.ends)) for layer in self.layers)
        z: Tensor = _Encoded.apply(store, read, self.layers[1].inputs, *weights)
        return z[:, : self.layers[-1].outputs].float()


def _layers(network: MILNetwork) -> list[nn.Conv2d | nn.Linear]:
    """The layers of the encoder that have weights."""
    return [layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _of_products(layer: nn.Conv2d | nn.Linear) -> tuple[Float[Tensor, "D P C"], Float[Tensor, "D"]]:
    """Weights and biases of a layer of the encoder, as products take them: views."""
    assert layer.bias is not None
    weight, bias = layer.weight.data, layer.bias.data
    if isinstance(layer, nn.Linear):
        return weight[:, None], bias
    if layer.in_channels == 256:
        return weight.permute(FIRST_ORDER).view(len(bias), 1, PATCH), bias
    return weight.permute(LATER_ORDER).view(len(bias), 4, -1), bias


def of_first(weights: Shaped[Tensor, "M *D"], n: int) -> Shaped[Tensor, "A *D"]:
    """Those of the first n networks."""
    return weights if n == len(weights) else weights[:n]


class _Encoded(torch.autograd.Function):
    """Embeddings of the cells of all networks, and the gradient of the layers' weights.

    `one`: the input of the second layer that is always 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        store: CellStore,
        read: Reading,
        one: int,
        first: Shaped[Tensor, "A D1 1 C"],
        second: Shaped[Tensor, "A D2 4 D1"],
        third: Shaped[Tensor, "A D3 4 D2"],
        last: Shaped[Tensor, "A D4 1 D3"],
    ) -> Shaped[Tensor, "T D4"]:
        of_padding = _padding(first, second)
        kernels = [_of_window(second, windows, of_padding, one) for windows in WINDOWS]
        patches: list[Tensor] = []
        hidden: list[Tensor] = []
        outputs: list[Tensor] = []
        start = 0
        for windows, kernel in zip(WINDOWS, kernels, strict=True):
            each = len(windows.at) * len(windows.seen)
            patches.append(store.read(read.cells, slice(start, start + each)))
            seen = _product(patches[-1], first, read.ends * each).relu_()
            hidden.append(seen.view(-1, kernel.shape[2]))
            found = _product(hidden[-1], kernel, read.ends * len(windows.at))
            outputs += found.view(len(read.cells), len(windows.at), -1).unbind(dim=1)
            start += each
        together = torch.stack([outputs[window] for window in POOL_ORDER], dim=1)
        pooled, ctx.largest = together.view(len(read.cells), 4, 4, -1).max(dim=2)
        flat = pooled.relu_().flatten(1)
        later = _product(flat, third, read.ends).relu_()
        z = _product(later, last, read.ends).relu_()
        ctx.one, ctx.ends, ctx.patches, ctx.hidden, ctx.kernels = one, read.ends, patches, hidden, kernels
        ctx.save_for_backward(flat, later, z, first, second, third, last)
        return z

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        flat, later, z, first, second, third, last = ctx.saved_tensors
        of_z = _where_positive(upstream[0], z)
        of_last = _outer(of_z, later, ctx.ends)
        of_later = _where_positive(_back(of_z, last, ctx.ends), later)
        of_third = _outer(of_later, flat, ctx.ends)
        of_pooled = _where_positive(_back(of_later, third, ctx.ends), flat).view(len(flat), 4, 1, -1)
        together = of_pooled.new_zeros(len(flat), 4, 4, of_pooled.shape[3])
        outputs = together.scatter_(2, ctx.largest[:, :, None], of_pooled).flatten(1, 2)
        of_kernels: list[Tensor] = []
        of_first: list[Tensor] = []
        start = 0
        for windows, kernel, patches, hidden in zip(
            WINDOWS, ctx.kernels, ctx.patches, ctx.hidden, strict=True
        ):
            n = len(windows.at)
            places = [POOL_ORDER.index(window) for window in range(start, start + n)]
            of_output = torch.stack([outputs[:, place] for place in places], dim=1).flatten(0, 1)
            of_kernels.append(_outer(of_output, hidden, ctx.ends * n))
            of_hidden = _where_positive(_back(of_output, kernel, ctx.ends * n), hidden)
            of_seen = of_hidden.view(len(patches), first.shape[1])
            of_first.append(_outer(of_seen, patches, ctx.ends * (n * len(windows.seen))))
            start += n
        of_all = sum(of_first[1:], start=of_first[0]).view_as(first)
        of_second = _of_kernels(of_kernels, of_all, first, second, ctx.one)
        return None, None, None, of_all, of_second, of_third.view_as(third), of_last.view_as(last)


def _product(
    rows: Shaped[Tensor, "R C"], weights: Shaped[Tensor, "A D *C"], ends: Int32[Tensor, "A"]
) -> Shaped[Tensor, "R D"]:
    """The rows of each network times its own weights."""
    found: Tensor = functional.grouped_mm(rows, weights.flatten(2).mT, offs=ends)
    return found


def _back(
    rows: Shaped[Tensor, "R D"], weights: Shaped[Tensor, "A D *C"], ends: Int32[Tensor, "A"]
) -> Shaped[Tensor, "R C"]:
    """The gradient of what a product was given, from that of what it gave."""
    found: Tensor = functional.grouped_mm(rows, weights.flatten(2), offs=ends)
    return found


def _outer(
    rows: Shaped[Tensor, "R D"], given: Shaped[Tensor, "R C"], ends: Int32[Tensor, "A"]
) -> Shaped[Tensor, "A D C"]:
    """The gradient of the weights of a product."""
    found: Tensor = functional.grouped_mm(rows.mT, given, offs=ends)
    return found


def _where_positive(
    upstream: Shaped[Tensor, "R D"], rectified: Shaped[Tensor, "R D"]
) -> Shaped[Tensor, "R D"]:
    """The gradient of what was rectified."""
    found: Tensor = torch.ops.aten.threshold_backward(upstream, rectified, 0)
    return found


def _padding(first: Shaped[Tensor, "A C 1 _"], second: Shaped[Tensor, "A D 4 C"]) -> Shaped[Tensor, "A D 4"]:
    """What the second layer makes of padding at each position of its window, with its bias at the first."""
    of_first = first[:, :, 0, PATCH].relu()
    return torch.matmul(second.flatten(1, 2), of_first[:, :, None]).view(second.shape[:3])


def _of_window(
    second: Shaped[Tensor, "A D 4 C"], windows: Windows, of_padding: Shaped[Tensor, "A D 4"], one: int
) -> Shaped[Tensor, "A D _"]:
    """The second layer for these windows: some positions are seen, padding at all others.

    What padding gives is added to the bias: the weight of what is always 1.
    """
    if not windows.unseen:
        return second.flatten(2)
    kernel = second[:, :, windows.positions].flatten(2).clone()
    for position in windows.unseen:
        kernel[:, :, one] += of_padding[:, :, position]
    return kernel


def _of_kernels(
    of_kernels: Sequence[Shaped[Tensor, "A D _"]],
    of_first: Shaped[Tensor, "A C 1 _"],
    first: Shaped[Tensor, "A C 1 _"],
    second: Shaped[Tensor, "A D 4 C"],
    one: int,
) -> Shaped[Tensor, "A D 4 C"]:
    """The gradient of the second layer from that of its kernels; padding's share is added to `of_first`.

    The last of `WINDOWS` see no padding.
    """
    found = of_kernels[-1].view_as(second)
    of_padding = torch.zeros_like(found[:, :, :, 0])
    for windows, of_kernel in zip(WINDOWS[:-1], of_kernels, strict=False):
        found[:, :, windows.positions] += of_kernel.view(*second.shape[:2], len(windows.seen), -1)
        for position in windows.unseen:
            of_padding[:, :, position] += of_kernel[:, :, one]
    padding = first[:, :, 0, PATCH].relu()
    found.addcmul_(of_padding[..., None], padding[:, None, None])
    of_bias = torch.matmul(of_padding.flatten(1)[:, None], second.flatten(1, 2))[:, 0]
    of_first[:, :, 0, PATCH] += _where_positive(of_bias, padding)
    return found
