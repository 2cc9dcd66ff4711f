"""Train the networks of an ensemble on vectors in step with each other: what is small is done once for all.

A step of one network is some 150 calls around little arithmetic. Here every network reads bags of its own by
itself; from pooling to loss, back again, and in Adam's step they are one. Which networks go together changes
no number: weights are those of `Trainer` to the last bit.

Axes: N cells of all packs, B bags of all packs, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hemomil.mil.network import MILNetwork
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import Evidence, WeightedPooling
from hemomil.mil.settings import Parts
from hemomil.mil.train import Trainer, adam, refuse_infinite

AT_ONCE = 16_384
"""Cells of a step of all networks, at most; of more, calls take little of the time, and memory counts."""

Pack = tuple[Trainer, list[int]]
"""A network, and the rows of the bags that it reads in a step."""


def can_go_in_step(parts: Parts) -> bool:
    """Whether networks of this making can be pooled together.

    Nothing that is learned then mixes the weights of cells, or makes class logits of a cell alone.
    """
    if parts.pooling != "weighted":
        return parts.pooling in ("logsumexp", "instance")
    alone = parts.attention and not (parts.distance or parts.uniform)
    return alone and (parts.instance_head or not parts.instance_loss)


class InStep:
    """Networks of one making on their way from random weights to learned ones, a step of each at a time."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        assert len({trainer.parts for trainer in trainers}) == 1, "networks of one making"
        self.trainers, self.settings = trainers, trainers[0].settings
        weights = [weight for trainer in trainers for weight in trainer.network.parameters()]
        self.optimiser = adam(weights, self.settings, trainers[0].device)

    def run(self, progress: Callable[[int], None] = lambda epoch: None) -> list[MILNetwork]:
        """All epochs; `progress` hears the number of each one, once from every network."""
        for epoch in range(self.settings.epochs):
            self.epoch(epoch)
            for _ in self.trainers:
                progress(epoch + 1)
        return [trainer.network.eval() for trainer in self.trainers]

    def epoch(self, epoch: int) -> None:
        """Every network passes over its bags, in an order of its own; who has fewer is done sooner."""
        for rows in zip_longest(*(trainer.packs(epoch) for trainer in self.trainers)):
            known = zip(self.trainers, rows, strict=True)
            for packs in _few_at_a_time([(trainer, own) for trainer, own in known if own]):
                loss = self.loss(packs, epoch)
                refuse_infinite(loss, epoch)
                self.optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()  # weights without a gradient stay as they are

    def loss(self, packs: Sequence[Pack], epoch: int) -> Float[Tensor, ""]:
        """The sum of what `Trainer.loss` is of each network."""
        trainer, _ = packs[0]
        evidence = Evidence.join([each.evidence(rows)[0] for each, rows in packs])
        sizes = [each.bags.sizes[row] for each, rows in packs for row in rows]
        segments = Segments.of_sizes(sizes, trainer.device)
        targets = torch.cat([each.targets(rows) for each, rows in packs])
        counts = torch.tensor([float(len(rows)) for _, rows in packs for _ in rows], device=trainer.device)

        def of_bags() -> Float[Tensor, ""]:
            logits = self._logits(packs, evidence, segments)
            return (functional.cross_entropy(logits, targets, reduction="none") / counts).sum()

        def of_cells() -> Float[Tensor, ""]:
            return (trainer.cell_losses(evidence, segments, targets) / counts).sum()

        return trainer.weighed(of_bags, of_cells, epoch)

    def _logits(self, packs: Sequence[Pack], evidence: Evidence, segments: Segments) -> Float[Tensor, "B K"]:
        """Class logits of all bags: what is learned of pooling is a bias, and each network has its own."""
        first = packs[0][0].network.pooling
        if not isinstance(first, WeightedPooling):
            return first.forward(evidence, segments)
        votes = torch.split(first.votes(evidence, segments), [len(rows) for _, rows in packs])
        poolings = [cast(WeightedPooling, trainer.network.pooling) for trainer, _ in packs]
        return torch.cat([pooling.with_bias(own) for pooling, own in zip(poolings, votes, strict=True)])


def _few_at_a_time(packs: Sequence[Pack]) -> Iterator[list[Pack]]:
    """The packs, as many at a time as have `AT_ONCE` cells together, but at least one."""
    some: list[Pack] = []
    cells = 0
    for trainer, rows in packs:
        own = sum(trainer.bags.sizes[row] for row in rows)
        if some and cells + own > AT_ONCE:
            yield some
            some, cells = [], 0
        some.append((trainer, rows))
        cells += own
    if some:
        yield some
