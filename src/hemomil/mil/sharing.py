"""The cells of a pack, shared out among the processes that `torchrun` started for one training.

Each process encodes its own cells and hears the embeddings of all; what comes after is cheap, and every
process does the whole of it. So a pack of any number of bags, down to one, is shared out evenly, and the
numbers are those of a single process but for the order in which gradients of the encoder are summed.

Axes: N cells of a pack, H embedding.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


def own_rows(n: int) -> slice:
    """Which of n cells this process encodes: all of them where it is alone."""
    if not is_shared():
        return slice(0, n)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return slice(rank * n // size, (rank + 1) * n // size)


def gathered(own: Float[Tensor, "_ H"], n: int) -> Float[Tensor, "N H"]:
    """The embeddings of all n cells, from those of this process; gradients flow back to the latter."""
    whole: Tensor = _Gathered.apply(own, n) if is_shared() else own
    return whole


def sum_gradients(encoder: nn.Module) -> None:
    """Add up what the processes' own cells say of the encoder's weights."""
    if not is_shared():
        return
    for weight in encoder.parameters():
        assert weight.grad is not None, "also no cells give a gradient: zeros"
        distributed.all_reduce(weight.grad)


def is_shared() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _Gathered(torch.autograd.Function):
    """Everyone's rows; back come the gradients of one's own, which every process has worked out alike."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int) -> Tensor:
        ctx.rows = own_rows(n)
        whole = own.new_zeros(n, *own.shape[1:])
        whole[ctx.rows] = own
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows], None
