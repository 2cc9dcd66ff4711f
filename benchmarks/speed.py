"""Rewrite the tables of docs/speed.md from benchmarks/results: `python benchmarks/speed.py`."""

import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "speed.md"
BEGIN, END = "<!-- made by benchmarks/speed.py -->\n", "<!-- end -->"
PARTS = {"mil": "Learning and judging", "store": "The store", "scale": "Scale", "jury": "Is a cell strange?"}
HEAD = (
    "| measured | value | range | target | | plain, ours (ms) | error | |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def table(name):
    """What one benchmark found, below the machine it ran on."""
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    on = found["machine"]
    peaks = [f"{on[f'{kind}_gflops']:g} in {kind}" for kind in ("fp32", "bf16") if on.get(f"{kind}_gflops")]
    bf16 = "with" if on["bf16"] else "without"
    told = (
        f"{on['date']}, commit {on['commit']}: {on['cpu']}, {on['cores']} cores, {bf16} bf16 instructions, "
        f"torch {on['torch']}; measured matrix peak of one thread (GFLOP/s): {', '.join(peaks)}."
    )
    return f"### {PARTS[name]}\n\n{told}\n\n{HEAD}" + "".join(map(line, found["rows"]))


def line(row):
    """One row of the table."""
    target, verdict = goal(row)
    shown = (
        row["name"],
        number(row["value"], row["unit"]),
        f"{row['low']:.3g} to {row['high']:.3g}" if "low" in row else "",
        target,
        verdict,
        f"{row['plain_ms']:.3g}, {row['ours_ms']:.3g}" if "plain_ms" in row else "",
        f"{row['error']:.0e}" if "error" in row else "",
        row.get("note", ""),
    )
    return f"| {' | '.join(shown)} |\n"


def goal(row):
    """The target, and whether it was met."""
    if "at_least" in row:
        met, told = row["value"] >= row["at_least"], f"≥ {row['at_least']:g}"
    elif "at_most" in row:
        met, told = row["value"] <= row["at_most"], f"≤ {row['at_most']:g}"
    else:
        return "", ""
    return told, "met" if met else "**missed**"


def number(value, unit):
    return f"{value:.3g} ×" if unit == "x" else f"{value:.3g} {unit}"


if __name__ == "__main__":
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    there = [name for name in PARTS if (HERE / "results" / f"{name}.json").exists()]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(map(table, there)) + "\n" + END + after)
