"""Problems found in a table or a folder, collected so that a person sees all of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hemomil.errors import HemomilError

SHOWN = 20
"""Lines shown of one kind of problem; the rows of the rest are still listed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is, and what to do about it."""

    row: int | None
    """Row in the table, the header being row 1; None where no row is to blame."""
    subject: str
    text: str
    remedy: str

    def __str__(self) -> str:
        where = f"row {self.row}: " if self.row is not None else ""
        return f"{where}{self.subject} {self.text}"


def refuse_if_any(problems: Sequence[Problem], error: type[HemomilError], subject: object) -> None:
    """Raise one error that lists every problem, with its row and remedy."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        message = f"{subject} has {count}\n{listing(problems)}"
        raise error(message, hint="nothing was left out or changed; put these right and run it again")


def listing(problems: Iterable[Problem]) -> str:
    """The problems in lines, those with one remedy together, the remedy once below them."""
    by_remedy: dict[str, list[Problem]] = {}
    for problem in problems:
        by_remedy.setdefault(problem.remedy, []).append(problem)
    return "\n".join(line for group in by_remedy.items() for line in _group_lines(*group))


def _group_lines(remedy: str, problems: list[Problem]) -> list[str]:
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    rest = problems[SHOWN:]
    if rest:
        rows = row_ranges([p.row for p in rest if p.row is not None])
        lines.append(f"  ... and {len(rest)} more like these" + (f" ({rows})" if rows else ""))
    return [*lines, f"    -> {remedy}"] if remedy else lines


def row_ranges(rows: Iterable[int]) -> str:
    """Rows as a person writes them: `rows 2-4, 9`."""
    spans: list[list[int]] = []
    for row in sorted(set(rows)):
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    more = f" and {len(texts) - SHOWN} more places" if len(texts) > SHOWN else ""
    word = "row" if len(spans) == 1 and spans[0][0] == spans[0][1] else "rows"
    return f"{word} {', '.join(texts[:SHOWN])}{more}" if texts else ""
