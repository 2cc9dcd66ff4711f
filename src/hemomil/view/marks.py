"""What the expert said of cells: held by row, written at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute

from hemomil.view.data import Cells

Said = Mapping[str, str]
"""Fields of one mark: mark, label, note, time."""

KINDS = ("class", "artefact", "unsure", "none")
"""What can be said of a cell; `none` takes an earlier mark back."""
LONGEST_LABEL, LONGEST_NOTE = 200, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkBook:
    """The marks that hold, by row of the cells, and how another is written to the file."""

    path: Path
    held: dict[int, Said]
    append: Callable[[str, str, str, str], Said]
    """Takes cell_id, mark, label, note; returns what it wrote."""

    def say(self, cells: Cells, row: int, mark: str, label: str, note: str) -> Said:
        """Write a mark, then hold it. Raises HemomilError or OSError, and holds nothing then."""
        said = self.append(cells.ids[row].as_py(), mark, label, note)
        if said["mark"] == "none":
            self.held.pop(row, None)
        else:
            self.held[row] = said
        return said

    def of_sample(self, cells: Cells, sample: int) -> dict[int, Said]:
        """Marks of one sample, by place in it."""
        rows = cells.of_sample(sample)
        return {row - rows.start: said for row, said in self.held.items() if rows.start <= row < rows.stop}

    def counts(self, cells: Cells) -> list[int]:
        """How many cells of each sample are marked."""
        samples = np.searchsorted(cells.starts, list(self.held), side="right") - 1
        counts: list[int] = np.bincount(samples.astype(int), minlength=len(cells.starts) - 1).tolist()
        return counts


def by_row(cells: Cells, marks: Mapping[str, Said]) -> dict[int, Said]:
    """Marks by row instead of cell id; those of cells that are not shown are left out."""
    names = list(marks)
    rows = pyarrow.compute.index_in(pyarrow.array(names, pyarrow.string()), value_set=cells.ids)
    return {row: marks[name] for name, row in zip(names, rows.to_pylist(), strict=True) if row is not None}
