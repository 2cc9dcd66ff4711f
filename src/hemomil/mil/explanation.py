"""What each cell of one bag counted: weight, attention, and the log-odds that the bag would lose without it.

Axes: N cells, S bags made of them, E networks averaged, K classes.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hemomil.mil.network import MILNetwork
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import Evidence, WeightedPooling


def explain_bag(
    members: Sequence[MILNetwork], evidence: Sequence[Evidence]
) -> dict[str, Float[Tensor, "..."]]:
    """Probabilities of the bag; weight, attention, contribution and probabilities of each of its cells."""
    n, device = len(evidence[0].values), evidence[0].values.device
    bag = Segments.of_sizes([n], device)
    pairs = list(zip(members, evidence, strict=True))
    bag_E1K = torch.stack([member.pooling(read, bag) for member, read in pairs]).double()
    probabilities = bag_E1K.softmax(dim=2).mean(dim=0)[0]
    predicted = int(probabilities.argmax())
    weights = _mean(member.pooling.weights(read, bag)[:, predicted].double() for member, read in pairs)
    cells_NK = _mean(member.cell_logits(read).double().softmax(dim=1) for member, read in pairs)
    return {
        "probabilities": probabilities,
        "weight": weights,
        "attention": _attention(pairs, bag),
        "contribution": _contribution(pairs, bag, bag_E1K, predicted),
        "cell_probabilities": cells_NK,
    }


def pool_again(
    members: Sequence[MILNetwork], evidence: Sequence[Evidence], kept: Sequence[Int64[Tensor, "_"]]
) -> Float[Tensor, "S K"]:
    """Class probabilities of the bags that hold these cells of one bag, pooled as one pack."""
    bags = Segments.of_sizes([len(cells) for cells in kept], evidence[0].values.device)
    rows = torch.cat(list(kept))
    pairs = zip(members, evidence, strict=True)
    logits_ESK = torch.stack([member.pooling(read.at(rows), bags) for member, read in pairs]).double()
    return logits_ESK.softmax(dim=2).mean(dim=0)


def _attention(pairs: Sequence[tuple[MILNetwork, Evidence]], bag: Segments) -> Float[Tensor, "N"]:
    """Shares of the learned attention, averaged over the networks that have one; NaN where none has."""
    shares = [
        member.pooling.shares(read, bag)[:, 0].double()
        for member, read in pairs
        if member.attention is not None and isinstance(member.pooling, WeightedPooling)
    ]
    if not shares:
        return torch.full((len(bag.bag),), torch.nan, dtype=torch.float64, device=bag.bag.device)
    return _mean(shares)


def _contribution(
    pairs: Sequence[tuple[MILNetwork, Evidence]],
    bag: Segments,
    bag_E1K: Float[Tensor, "E 1 K"],
    predicted: int,
) -> Float[Tensor, "N"]:
    """Log-odds of the predicted class with each cell minus without it; 0 in a bag of one."""
    n = len(pairs[0][1].values)
    if n == 1:
        return bag_E1K.new_zeros(1)
    without = (member.pooling.without_each(read, bag).double() for member, read in pairs)
    return log_odds(iter(bag_E1K), predicted) - log_odds(without, predicted)


def log_odds(logits: Iterable[Float[Tensor, "N K"]], k: int) -> Float[Tensor, "N"]:
    """log p_k - log(1 - p_k) of the networks' mean probability, exact where p_k is 0 or 1 to all digits.

    One network's logits are held at a time: a bag may have a million cells.
    """
    ours = rest = torch.tensor(-torch.inf)
    for of_network in logits:
        logs = of_network.log_softmax(dim=1)
        others = torch.cat([logs[:, :k], logs[:, k + 1 :]], dim=1).logsumexp(dim=1)
        ours, rest = torch.logaddexp(ours.to(logs), logs[:, k]), torch.logaddexp(rest.to(logs), others)
    return ours - rest


def _mean(values: Iterable[Float[Tensor, "N ..."]]) -> Float[Tensor, "N ..."]:
    """Mean over the networks, summed one by one."""
    total, count = torch.zeros(()), 0
    for value in values:
        total, count = total.to(value) + value, count + 1
    return total / count
