"""How the class that a cell looks like by itself is marked: a colour, a dash pattern and letters.

Axes: N cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito's palette, without its yellow, which is lost on a pale image."""
DASHES = ("none", "7 2", "2 2", "7 2 2 2", "12 3")
EXPLANATION = "The class that the cell looks like by itself; the threshold goes by how probable it is."


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMark:
    """How one class is marked; colour and dash together are unique for 35 classes."""

    name: str
    letters: str
    colour: str
    dash: str
    """SVG's stroke-dasharray."""


def class_marks(classes: Sequence[str]) -> tuple[ClassMark, ...]:
    """A mark for every class."""
    return tuple(
        ClassMark(name=name, letters=letters, colour=COLOURS[i % len(COLOURS)], dash=DASHES[i % len(DASHES)])
        for i, (name, letters) in enumerate(zip(classes, _letters(classes), strict=True))
    )


def _letters(classes: Sequence[str]) -> list[str]:
    """The first letter, or two, that tell the classes apart; else their numbers."""
    plain = [re.sub(r"[\W_]", "", name).upper() for name in classes]
    for length in (1, 2):
        short = [name[:length] for name in plain]
        if all(short) and len(set(short)) == len(short):
            return short
    return [str(i + 1) for i in range(len(classes))]


def with_class(cells: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The cells with `looks_like`, the number of the most probable class (-1: none), and `looks_sure`."""
    columns = [f"prob_{name}" for name in classes]
    known = cells.reindex(columns=columns).to_numpy(dtype=np.float64)
    best = np.where(np.isnan(known), -np.inf, known)
    none = ~np.isfinite(best).any(axis=1)
    number = np.where(none, -1, best.argmax(axis=1))
    return cells.assign(looks_like=number, looks_sure=np.where(none, np.nan, best.max(axis=1)))
