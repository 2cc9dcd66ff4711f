"""What each cell of one bag counted: weight, attention, and the log-odds that the bag would lose without it.

Axes: N cells, S bags made of them, E networks averaged, K classes.
"""

from collections.abc import Sequence

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
    weights = torch.stack([member.pooling.weights(read, bag)[:, predicted] for member, read in pairs])
    cells_ENK = torch.stack([member.cell_logits(read) for member, read in pairs]).double()
    return {
        "probabilities": probabilities,
        "weight": weights.mean(dim=0).double(),
        "attention": _attention(pairs, bag),
        "contribution": _contribution(pairs, bag, bag_E1K, predicted),
        "cell_probabilities": cells_ENK.softmax(dim=2).mean(dim=0),
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
    return torch.stack(shares).mean(dim=0)


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
    without_ENK = torch.stack([member.pooling.without_each(read, bag) for member, read in pairs]).double()
    return log_odds(bag_E1K, predicted) - log_odds(without_ENK, predicted)


def log_odds(logits: Float[Tensor, "E N K"], k: int) -> Float[Tensor, "N"]:
    """log p_k - log(1 - p_k) of the networks' mean probability, exact where p_k is 0 or 1 to all digits."""
    logs = logits.log_softmax(dim=2)
    others = torch.cat([logs[:, :, :k], logs[:, :, k + 1 :]], dim=2).logsumexp(dim=2)
    return logs[:, :, k].logsumexp(dim=0) - others.logsumexp(dim=0)
