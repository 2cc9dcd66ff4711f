"""Layers of a network as matrix products, by the faster of the two libraries that torch brings.

In single precision torch multiplies with MKL, which on processors of other makers leaves half of a register
for 512 bits empty. oneDNN asks what a processor can do: on an AMD EPYC with AVX-512 its products take .45 of
the time (docs/speed.md). Intel's registers MKL fills, and torch's own choice stays.

Axes: N rows, C numbers of a row, D outputs.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def linear(
    rows: Float[Tensor, "N C"],
    weight: Float[Tensor, "D C"],
    bias: Float[Tensor, "D"] | None = None,
    *,
    positive: bool = False,
) -> Float[Tensor, "N D"]:
    """`rows @ weight.T + bias`, as `torch.nn.functional.linear` but for rounding.

    `positive`: what is negative is set to 0.
    """
    if _by_onednn(rows):
        product: Tensor = _Product.apply(rows, weight, bias, positive)
        return product
    values = functional.linear(rows, weight, bias)
    return values.relu_() if positive else values


class Layer(nn.Linear):
    """A linear layer that multiplies so."""

    @classmethod
    def standing_for(cls, layer: nn.Linear) -> "Layer":
        """Another one with the same weights, drawn from nowhere."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, rows: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """`linear` with its weights."""
        return linear(rows, self.weight, self.bias)


def _by_onednn(rows: Tensor) -> bool:
    """Whether products with these rows are oneDNN's, which refuses no rows at all.

    torch's own switch counts (`torch.backends.mkldnn.enabled`).
    """
    return (
        rows.dtype == torch.float32
        and rows.numel() > 0
        and rows.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether the processor has registers that MKL does not fill: what it is decides, not a clock."""
    able = torch.cpu.get_capabilities()
    return bool("AMD" in able.get("cpu_name", "") and able.get("avx512_f") and has_onednn())


def has_onednn() -> bool:
    """Whether torch was built with the product that its compiler calls for a layer."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    """A layer by oneDNN, whose operation has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, positive: bool) -> Tensor:
        values = multiplied_by_onednn(rows, weight, bias, "relu" if positive else "none")
        ctx.save_for_backward(rows, weight, values if positive else None)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, values = ctx.saved_tensors
        of_rows, of_weight, of_bias, _ = ctx.needs_input_grad
        if values is not None:
            upstream = torch.ops.aten.threshold_backward(upstream, values, 0)
        return (
            multiplied_by_onednn(upstream, weight.T) if of_rows else None,
            multiplied_by_onednn(upstream.T, rows.T) if of_weight else None,
            upstream.sum(dim=0) if of_bias else None,
            None,
        )


def multiplied_by_onednn(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none"
) -> Tensor:
    """`rows @ weight.T + bias` by oneDNN, in single precision; with "relu" what is negative is set to 0.

    Weights with gaps between rows are copied: its reference code would take a hundred times as long.
    """
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, then, [], "")
    return product
