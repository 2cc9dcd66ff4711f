"""How unlike healthy cells is this cell? Scorers by name, behind one interface; larger is stranger.

Axes: M healthy cells, B background cells, N cells to be scored, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from hemomil.errors import FeaturesError, ModelError, SettingsError
from hemomil.novelty.combined import Combined, Surprise
from hemomil.novelty.densities import Gaussian, Mixture, RelativeGaussian
from hemomil.novelty.forest import Forest
from hemomil.novelty.held_out import GROUPS, scores_without_donor
from hemomil.novelty.neighbours import DonorNeighbours, Neighbours

Scorer = Gaussian | RelativeGaussian | Mixture | Neighbours | DonorNeighbours | Forest | Combined
"""What was learned of healthy cells: a frozen dataclass of arrays, or of such dataclasses.

`score_samples(cells)` says how strange each cell is, in the scorer's own unit. LARGER IS STRANGER.
"""

Fit = Callable[[np.ndarray, Sequence[str], np.ndarray | None, int], Scorer]
"""Healthy cells, the donor of each, unlabelled cells of all training samples, seed."""

SCORERS: dict[str, tuple[type[Any], Fit]] = {
    "gaussian": (Gaussian, lambda cells, donors, background, seed: Gaussian.fit(cells, "plain")),
    "shrunk": (Gaussian, lambda cells, donors, background, seed: Gaussian.fit(cells)),
    "halved": (Gaussian, lambda cells, donors, background, seed: Gaussian.fit(cells, "halved")),
    "l2": (Gaussian, lambda cells, donors, background, seed: Gaussian.fit(cells, unit_length=True)),
    "relative": (
        RelativeGaussian,
        lambda cells, donors, background, seed: RelativeGaussian.fit(cells, _given(background)),
    ),
    "mixture": (Mixture, lambda cells, donors, background, seed: Mixture.fit(cells, seed=seed)),
    "bayesian": (
        Mixture,
        lambda cells, donors, background, seed: Mixture.fit(cells, bayesian=True, seed=seed),
    ),
    "knn": (Neighbours, lambda cells, donors, background, seed: Neighbours.fit(cells, donors, seed=seed)),
    "donor-knn": (
        DonorNeighbours,
        lambda cells, donors, background, seed: DonorNeighbours.fit(cells, donors, seed=seed),
    ),
    "forest": (Forest, lambda cells, donors, background, seed: Forest.fit(cells, donors, seed=seed)),
    "combined": (
        Combined,
        lambda cells, donors, background, seed: Combined.fit(cells, donors, _given(background), seed=seed),
    ),
}
"""`gaussian` is the paper's distance: maximum likelihood, 1e-6 on the diagonal."""

PARTS = {*(kind for kind, _ in SCORERS.values()), Surprise}
"""What scorers are made of that is no array itself."""


def fit_scorer(
    name: str,
    cells: Float[np.ndarray, "M F"],
    donors: Sequence[str],
    background: Float[np.ndarray, "B F"] | None = None,
    *,
    seed: int = 0,
) -> Scorer:
    """Learn what is healthy from control cells and the donor of each.

    `background`: unlabelled cells of all training samples, which `relative` and `combined` need.

    Raises SettingsError for an unknown name or a missing background, FeaturesError for unusable cells.
    """
    _check_name(name)
    assert len(cells) == len(donors), "cells and donors are not aligned"
    _check_cells(cells)
    return SCORERS[name][1](cells, donors, background, seed)


def held_out_scores(
    name: str,
    cells: Float[np.ndarray, "M F"],
    donors: Sequence[str],
    background: Float[np.ndarray, "B F"] | None = None,
    *,
    groups: int = GROUPS,
    seed: int = 0,
) -> Float64[np.ndarray, "M"]:
    """Scores of the control cells, each by a scorer that did not see its donor: what `Calibration` asks for.

    Donors are dealt into `groups`; with a single donor there is no other way than to score what was seen.
    The background stays whole: cells of a donor who is in it may look a little stranger than a new donor's.
    """

    def fit(some: np.ndarray, owners: Sequence[str]) -> Scorer:
        return fit_scorer(name, some, owners, background, seed=seed)

    return scores_without_donor(fit, cells, donors, groups=groups, seed=seed)


def to_state(scorer: Scorer) -> dict[str, np.ndarray]:
    """Arrays that `from_state` rebuilds the scorer from."""
    return _arrays(scorer)


def from_state(name: str, state: Mapping[str, np.ndarray]) -> Scorer:
    """The scorer of this name that `to_state` wrote. Raises SettingsError (name), ModelError (arrays)."""
    _check_name(name)
    try:
        return _rebuilt(SCORERS[name][0], state)  # type: ignore[no-any-return]
    except KeyError as missing:
        raise ModelError(
            f"the saved scorer {name!r} has no {missing}", hint="train the model again with this version"
        ) from None


def _arrays(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """`name` is that of a field; those of its own fields follow after a dot."""
    if not is_dataclass(value):
        return {name: value}
    start = f"{name}." if name else ""
    state: dict[str, np.ndarray] = {}
    for field in fields(value):
        state |= _arrays(getattr(value, field.name), start + field.name)
    return state


def _rebuilt(kind: Any, state: Mapping[str, np.ndarray], name: str = "") -> Any:
    if kind not in PARTS:
        return state[name]
    start = f"{name}." if name else ""
    return kind(**{field.name: _rebuilt(field.type, state, start + field.name) for field in fields(kind)})


def _given(background: np.ndarray | None) -> np.ndarray:
    if background is None:
        raise SettingsError(
            "this scorer compares with the cells of all training samples, and has none",
            hint="give background cells, or use another scorer",
        )
    _check_cells(background)
    return background


def _check_name(name: str) -> None:
    if name not in SCORERS:
        raise SettingsError(f"no scorer is called {name!r}", hint=f"choose among {', '.join(SCORERS)}")


def _check_cells(cells: np.ndarray) -> None:
    if len(cells) < 2:
        raise FeaturesError(
            f"{len(cells)} control cells say nothing of what is usual", hint="bring at least two"
        )
    if not np.isfinite(cells).all():
        rows = np.flatnonzero(~np.isfinite(cells).all(axis=1))
        raise FeaturesError(
            f"{len(rows)} cells have features that are no numbers (the first is row {rows[0]})",
            hint="leave them out, or describe them again",
        )
