"""Say in words why a cell is strange: which of its named numbers are furthest from those of control cells.

Axes: N cells, M control cells, F features.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MAD_TO_SD = 1.4826
"""Median absolute deviation times this is the standard deviation of a normal distribution."""


def strangest_features(
    values: Float[np.ndarray, "N F"],
    control_values: Float[np.ndarray, "M F"],
    names: Sequence[str],
    top: int = 3,
) -> list[list[tuple[str, float]]]:
    """Per cell, the `top` features furthest from the control cells: (name, robust z), furthest first.

    z = (value − median of the controls) / (1.4826 · MAD of the controls); positive: larger than in controls.
    """
    assert values.shape[1] == control_values.shape[1] == len(names), "features and names are not aligned"
    z_NF = robust_z(values, control_values)
    order_NT = np.argsort(-np.abs(z_NF), axis=1, kind="stable")[:, :top]
    return [
        [(names[feature], float(z[feature])) for feature in order]
        for z, order in zip(z_NF, order_NT, strict=True)
    ]


def robust_z(
    values: Float[np.ndarray, "N F"], control_values: Float[np.ndarray, "M F"]
) -> Float[np.ndarray, "N F"]:
    """Distance of each value from the controls' median, in robust standard deviations.

    Where more than half of the controls have one value (MAD 0) the plain standard deviation serves; a feature
    that never varies in controls has no scale, and z = 0.
    """
    controls = control_values.astype(np.float64)
    centre = np.median(controls, axis=0)
    spread = MAD_TO_SD * np.median(np.abs(controls - centre), axis=0)
    scale = np.where(spread > 0, spread, controls.std(axis=0))
    distance = values.astype(np.float64) - centre
    return np.divide(distance, scale, out=np.zeros_like(distance), where=scale > 0)
