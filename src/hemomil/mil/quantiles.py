"""The simplest reader of anomaly: quantiles of a bag's distances, and scikit-learn's logistic regression.

Axes: N cells of all bags, S bags, K classes, Q quantiles.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hemomil.mil.pack import Segments
from hemomil.mil.pooling import QuantilePooling


def fit_quantiles(
    pooling: QuantilePooling, distances: Float[Tensor, "N"], bags: Segments, targets: Int64[Tensor, "S"]
) -> None:
    """Learn the linear layer of `pooling`; the regression's standardisation is folded into its weights."""
    quantiles = pooling.quantiles(distances.double(), bags).numpy()
    mean, scale = quantiles.mean(axis=0), quantiles.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    regression = LogisticRegression(max_iter=1000).fit((quantiles - mean) / scale, targets.numpy())
    weight, bias = _per_class(regression.coef_, regression.intercept_)
    weight = weight / scale
    with torch.no_grad():
        pooling.classifier.weight.copy_(torch.from_numpy(weight))
        pooling.classifier.bias.copy_(torch.from_numpy(bias - weight @ mean))


def _per_class(
    weight: Float[np.ndarray, "_ Q"], bias: Float[np.ndarray, "_"]
) -> tuple[Float[np.ndarray, "K Q"], Float[np.ndarray, "K"]]:
    """Of two classes scikit-learn keeps only the second one's weights; the first one's are zero."""
    if len(bias) > 1:
        return weight, bias
    return np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
