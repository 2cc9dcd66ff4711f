"""Rewrite the tables of docs/speed.md from benchmarks/results: `python benchmarks/speed.py`."""

import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "speed.md"
BEGIN, END = "<!-- made by benchmarks/speed.py -->\n", "<!-- end -->"
PARTS = {
    "table1": "The whole of Table 1 on one GPU",
    "mil": "Learning and judging",
    "mil-bf16": "Learning and judging, on a processor that multiplies in bf16",
    "mil-amd": "Learning and judging, where the plain way is fast",
    "store": "The store",
    "scale": "Scale",
    "jury": "Is a cell strange?",
    "intervals": "Intervals",
}
HEAD = (
    "| measured | value | range | target | | plain, ours (ms) | error | |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def table(name):
    """What one benchmark found, below the machine it ran on."""
    found = json.loads((HERE / "results" / f"{name}.json").read_text())
    return f"### {PARTS[name]}\n\n{where(found['machine'])}\n\n{HEAD}" + "".join(map(line, found["rows"]))


def where(on):
    """What it was measured on, and when."""
    told = f"{on['date']}, commit {on['commit']}: {on['cpu']}, {on['cores']} cores, torch {on['torch']}"
    if "gpu" in on:
        return f"{told}; {on['gpu']}."
    peaks = [f"{on[f'{kind}_gflops']:g} in {kind}" for kind in ("fp32", "bf16") if on.get(f"{kind}_gflops")]
    bf16 = "with" if on["bf16"] else "without"
    return (
        f"{told}, {bf16} bf16 instructions; measured matrix peak of one thread (GFLOP/s): {', '.join(peaks)}."
    )


def line(row):
    """One row of the table."""
    target, verdict = goal(row)
    shown = (
        row["name"],
        number(row["value"], row.get("unit", "")),
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
    return f"{value:.3g} {'×' if unit == 'x' else unit}".rstrip()


if __name__ == "__main__":
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    there = [name for name in PARTS if (HERE / "results" / f"{name}.json").exists()]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(map(table, there)) + "\n" + END + after)
