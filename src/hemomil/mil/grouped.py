"""The paper's encoder in many networks at once: grouped products, ragged, in as few passes as can be.

Each network reads cells of its own with weights of its own. What is said in `RoiEncoder` of windows and
padding holds here; gradients are worked out by hand, which saves half of the passes over memory.

Axes: M networks, A of them (those that read), T cells of all, R rows of a product, H embedding, D outputs,
P positions and C inputs of a layer's window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from hemomil.mil.encoder import FIRST_ORDER, LATER_ORDER, POOL_ORDER, WINDOWS, RoiEncoder
from hemomil.mil.network import MILNetwork
from hemomil.mil.settings import MILSettings

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
    ORDER = tuple(
        sum(len(before.at) * len(before.seen) for before in WINDOWS[:kind]) + place * len(windows.at) + window
        for kind, windows in enumerate(WINDOWS)
        for window in range(len(windows.at))
        for place in range(len(windows.seen))
    )
    """Where `RoiEncoder.patches` has them."""

    def __init__(
        self, bags: Sequence[Shaped[Tensor, "_ 256 14 14"]], kind: torch.dtype, device: torch.device
    ) -> None:
        self.sizes = [len(bag) for bag in bags]
        self.starts = [sum(self.sizes[:bag]) for bag in range(len(bags))]
        self.patches = torch.zeros(sum(self.sizes), len(self.ORDER), self.WIDTH, dtype=kind, device=device)
        self.patches[:, :, PATCH] = 1
        order = torch.tensor(self.ORDER, device=device)
        for start, bag in zip(self.starts, bags, strict=True):
            for at, piece in enumerate(torch.split(bag, PIECE)):
                to = self.patches[start + at * PIECE :][: len(piece)]
                to[:, :, :PATCH] = RoiEncoder.patches(piece.to(device))[:, order].to(kind)

    @classmethod
    def nbytes(cls, n_cells: int, kind: torch.dtype) -> int:
        """Memory that so many cells take."""
        return n_cells * len(cls.ORDER) * cls.WIDTH * kind.itemsize

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
    """A layer of the encoder in all networks: its weights, and a copy of them as grouped products take it.

    The copy may be in half precision, has widths filled up, and one more input that is always 1, whose
    weights are the biases. It also has one more output, which is always 1: the next layer's.
    """

    def __init__(
        self, weights: Float[Tensor, "M D P C"], biases: Float[Tensor, "M D"], kind: torch.dtype
    ) -> None:
        self.weights, self.biases = weights, biases
        n, self.outputs, positions, self.inputs = weights.shape
        width, height = aligned(self.inputs + 1), aligned(self.outputs + 1)
        self.copy = torch.zeros(n, height, positions, width, dtype=kind, device=weights.device)
        self.copy[:, self.outputs, 0, self.inputs] = 1
        self.copy.requires_grad_()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights as they are now."""
        self.copy[:, : self.outputs, :, : self.inputs] = self.weights
        self.copy[:, : self.outputs, 0, self.inputs] = self.biases

    def gradients(self) -> tuple[Float[Tensor, "M D P C"], Float[Tensor, "M D"]]:
        """Of weights and biases, from that of the copy, which is let go; dense, as fused Adam takes them."""
        of_copy, self.copy.grad = self.copy.grad, None
        assert of_copy is not None
        known = of_copy[:, : self.outputs]
        parts = known[..., : self.inputs], known[:, :, 0, self.inputs]
        weights, biases = (part.float().contiguous() for part in parts)
        return weights, biases


class Encoders:
    """The encoders of M networks: their weights, and what they make of cells."""

    def __init__(self, networks: Sequence[MILNetwork], kind: torch.dtype, device: torch.device) -> None:
        each = [[_of_products(layer) for layer in _layers(network)] for network in networks]
        self.layers = []
        for of_layer in zip(*each, strict=True):
            weights, biases = (torch.stack(values).to(device) for values in zip(*of_layer, strict=True))
            self.layers.append(Layer(weights, biases, kind))

    @property
    def weights(self) -> list[Float[Tensor, "M *D"]]:
        """Weights and biases, layer by layer."""
        return [values for layer in self.layers for values in (layer.weights, layer.biases)]

    def gradients(self) -> list[Float[Tensor, "M *D"]]:
        """Of the weights, in the same order; they are let go."""
        return [values for layer in self.layers for values in layer.gradients()]

    def refresh(self) -> None:
        """After a step: let the copies follow the weights."""
        for layer in self.layers:
            layer.refresh()

    @torch.no_grad()
    def unstack(self, networks: Sequence[MILNetwork]) -> None:
        """Give each network its weights."""
        for number, network in enumerate(networks):
            for layer, known in zip(_layers(network), self.layers, strict=True):
                weight, bias = _of_products(layer)
                weight.copy_(known.weights[number])
                bias.copy_(known.biases[number])

    def encode(self, store: CellStore, read: Reading) -> Float[Tensor, "T H"]:
        """Embeddings, as `RoiEncoder` makes them but for the order of sums."""
        n, one = len(read.ends), self.layers[1].inputs
        first, second, third, last = (of_first(layer.copy, n) for layer in self.layers)
        of_padding = _padding(first, second)
        kernels = [_of_window(second, windows.seen, of_padding, one) for windows in WINDOWS]
        z: Tensor = _Encoded.apply(store, read, first.flatten(2), third.flatten(2), last.flatten(2), *kernels)
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
    """Embeddings of the cells of all networks, and the gradient of their weights, in as few passes as can be.

    `first` to `last` are the layers' weights but for those of the second layer, which are `kernels`: one for
    each of `WINDOWS`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        store: CellStore,
        read: Reading,
        first: Shaped[Tensor, "A D C"],
        third: Shaped[Tensor, "A D C"],
        last: Shaped[Tensor, "A D C"],
        *kernels: Shaped[Tensor, "A D _"],
    ) -> Shaped[Tensor, "T D"]:
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
        ctx.ends, ctx.patches, ctx.hidden = read.ends, patches, hidden
        ctx.save_for_backward(flat, later, z, first, third, last, *kernels)
        return z

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        flat, later, z, first, third, last, *kernels = ctx.saved_tensors
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
        for windows, kernel, patches, hidden in zip(WINDOWS, kernels, ctx.patches, ctx.hidden, strict=True):
            n = len(windows.at)
            places = [POOL_ORDER.index(window) for window in range(start, start + n)]
            of_output = torch.stack([outputs[:, place] for place in places], dim=1).flatten(0, 1)
            of_kernels.append(_outer(of_output, hidden, ctx.ends * n))
            of_hidden = _where_positive(_back(of_output, kernel, ctx.ends * n), hidden)
            of_seen = of_hidden.view(len(patches), first.shape[1])
            of_first.append(_outer(of_seen, patches, ctx.ends * (n * len(windows.seen))))
            start += n
        return None, None, sum(of_first[1:], start=of_first[0]), of_third, of_last, *of_kernels


def _product(
    rows: Shaped[Tensor, "R C"], weights: Shaped[Tensor, "A D C"], ends: Int32[Tensor, "A"]
) -> Shaped[Tensor, "R D"]:
    """The rows of each network times its own weights."""
    found: Tensor = functional.grouped_mm(rows, weights.mT, offs=ends)
    return found


def _back(
    rows: Shaped[Tensor, "R D"], weights: Shaped[Tensor, "A D C"], ends: Int32[Tensor, "A"]
) -> Shaped[Tensor, "R C"]:
    """The gradient of what a product was given, from that of what it gave."""
    found: Tensor = functional.grouped_mm(rows, weights, offs=ends)
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
    second: Shaped[Tensor, "A D 4 C"], seen: Sequence[int], of_padding: Shaped[Tensor, "A D 4"], one: int
) -> Shaped[Tensor, "A D _"]:
    """The second layer for windows of which these positions are seen, and padding at all others.

    `one`: the input that is always 1, to whose weight is added what the padding gives.
    """
    if len(seen) == 4:
        return second.flatten(2)
    positions = slice(seen[0], seen[-1] + 1, seen[-1] - seen[0] or 1)
    kernel = second[:, :, positions].flatten(2)
    unseen = [of_padding[:, :, position] for position in range(4) if position not in seen]
    bias = kernel[:, :, one] + sum(unseen[1:], start=unseen[0])
    return torch.cat([kernel[:, :, :one], bias[:, :, None], kernel[:, :, one + 1 :]], dim=2)
