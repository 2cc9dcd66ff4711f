"""Put numbers into words: verdicts, probabilities, intervals, and what each measure means.

Every wording of the page that depends on a number is made here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

CLEAR, LIKELY = 0.9, 0.7
NOVEL = 0.05
FLAGGED = 0.1

CAVEATS = {
    "train": "The model was trained on these very samples. The page shows what it looks at, "
    "not how well it reads new patients; hemomil study measures that.",
    "predict": "The model reads these samples without knowing their classes. "
    "How well it reads new patients was measured, if at all, where it was trained.",
}

GLOSSARY = {
    "sample": "All images taken of one blood smear. One sample belongs to one patient.",
    "probability": "What the model gives each class; a sample's classes sum to 1. It is not a clinical risk.",
    "clear, likely, undecided": f"Highest probability at least {CLEAR}, at least {LIKELY}, or below that.",
    "anomaly": "How unlike the cells of healthy donors a cell is; larger is stranger. "
    "Needs no name of a disease.",
    "attention": "How much the model looked at a cell. 1× is the average cell of the sample. "
    "It is a hint, not a proof.",
    "contribution": "How much the log-odds of the predicted class change when the cell is taken away. "
    "+ speaks for the class, − against it.",
    "counted and strange": "A cell in the top tenth of the run both by anomaly and by how much it counted. "
    "An expert looks at these first.",
    "strange but ignored": "A cell in the top tenth by anomaly that counted less than half of the cells do: "
    "an artefact, or something the model does not know.",
    "[low, high] (cell)": "Lowest and highest anomaly of the cell when some healthy donors are left out.",
    "abnormal, undecided, normal (cell)": "Is the cell stranger than 99 in 100 cells of a new healthy donor? "
    "Yes; no; or undecided, where the answer changes when some healthy donors are left out.",
    "p (cell)": "How often a healthy donor's cell would look at least as strange. Small means strange.",
    "by itself like (cell)": "The class that the model would give the cell alone, and its probability.",
    "strangest 5 % (sample)": "The anomaly that one cell in twenty of the sample exceeds.",
    "novelty p (sample)": "How often a healthy donor's sample would look at least as strange.",
    "q (cell)": f"p, corrected for the number of cells: of the cells with q ≤ {FLAGGED}, "
    f"about {FLAGGED:.0%} at most are false alarms.",
    "interval [low, high]": "The range of values that these patients are compatible with (95 %). "
    "Wide means: not known well.",
    "spread between runs": "Standard deviation over repeated trainings with other seeds, "
    "apart from the choice of patients.",
    "fold": "A part of the patients kept aside; each sample is judged by a model that never saw its patient.",
}

METRICS = {
    "deletion_gain": "Probability of the predicted class that is lost without the cells said to count, "
    "beyond what is lost without as many random ones; 0: they count no more than any.",
    "balanced_accuracy": "Share read correctly, averaged over classes, so that large classes count no more.",
    "accuracy": "Share of samples read correctly.",
    "f1": "Balance of missed and falsely named samples, averaged over classes; 1 is perfect.",
    "auroc": "Chance that a sample of the class ranks above one of another; 0.5 is guessing, 1 perfect.",
    "auprc": "Precision averaged over all thresholds; guessing gives the share of the class.",
    "ap": "Precision averaged over all thresholds; guessing gives the share of these cells.",
    "ece": "Expected calibration error: how far stated probabilities lie from observed shares; 0 is best.",
    "brier": "Squared error of the probabilities; 0 is best.",
    "log_loss": "Penalty for confident mistakes; 0 is best.",
    "sensitivity": "Share of the samples of a class that were recognised.",
    "recall": "Share of the samples of a class that were recognised.",
    "specificity": "Share of the samples of other classes that were recognised as such.",
    "precision": "Share of the samples given this class that have it.",
}


def explain_metric(name: str) -> str:
    """One line on what a metric means; empty if its name is not known."""
    return next((text for key, text in METRICS.items() if key in name.lower()), "")


def metric_title(name: str) -> str:
    """`macro_f1` as a person would write it."""
    shown = name.replace("_", " ")
    for word in ("auroc", "auprc", "ap", "ece", "f1"):
        shown = " ".join(part.upper() if part.lower() == word else part for part in shown.split())
    return shown


def estimate_text(row: Mapping[str, Any]) -> str:
    """`0.79 [0.68, 0.87]`, or that it is not estimable."""
    if pd.isna(row["value"]):
        return "not estimable"
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def p_text(p: float) -> str:
    """A p-value; empty where there is none."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def verdict(probabilities: Mapping[str, float]) -> str:
    """What the model says of a sample, with its doubt."""
    ranked = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) < 2:
        return "Nothing is predicted for this sample."
    first, top = ranked[0]
    if top >= CLEAR:
        return f"Clearly {first} ({top:.2f})."
    second = f"{ranked[1][0]} ({ranked[1][1]:.2f})"
    if top >= LIKELY:
        return f"Likely {first} ({top:.2f}); possibly {second}."
    return f"Undecided: {first} ({top:.2f}) or {second}."


def flagged_text(q: "pd.Series[float]") -> str:
    """How many cells stand out from healthy ones after correction for their number; empty if not tested."""
    if q.isna().all():
        return ""
    flagged = int((q <= FLAGGED).sum())
    return (
        f"{flagged} of {len(q)} cells stand out from those of healthy donors, "
        f"corrected for the number of cells (q ≤ {FLAGGED})."
    )


def runs_text(agreeing: int, reads: int) -> str:
    """Whether repeated trainings agree; empty where there was one."""
    return f"{agreeing} of {reads} trainings, each with its own seed, read it so." if reads > 1 else ""


def novelty_text(p: float, floor: float = math.nan) -> str:
    """Whether the sample as a whole is unlike healthy ones; empty where that was not tested.

    `floor`: the smallest p that so many healthy donors can give, where that is known.
    """
    if math.isnan(p):
        return ""
    least = "" if math.isnan(floor) else f"; with these healthy donors p cannot be below {floor:.2g}"
    if p <= NOVEL:
        return f"As a whole stranger than healthy samples usually are (p {_with_sign(p)}{least})."
    return f"As a whole within the range of healthy samples (p {_with_sign(p)}{least})."


def cell_text(cell: Mapping[str, Any], classes: Sequence[str]) -> str:
    """All numbers of one cell in one line, for hovering."""
    parts = [str(cell["cell_id"])]
    if pd.notna(cell["anomaly"]):
        parts.append(_anomaly_text(cell))
    if pd.notna(cell["attention_ratio"]):
        parts.append(f"attention {cell['attention_ratio']:.2f}×")
    if pd.notna(cell["contribution"]):
        parts.append(f"contribution {cell['contribution']:+.2f}".replace("-", "−"))
    alone = {name: cell.get(f"prob_{name}") for name in classes}
    known = {name: float(p) for name, p in alone.items() if p is not None and pd.notna(p)}
    if known:
        best = max(known, key=lambda name: known[name])
        parts.append(f"alone it looks like {best} ({known[best]:.2f})")
    if cell["cell_label"]:
        parts.append(f"known as {cell['cell_label']}")
    return " · ".join(parts)


def _anomaly_text(cell: Mapping[str, Any]) -> str:
    """`anomaly 12.3 [10.1, 14.9] (p = 0.02, abnormal)`: its interval and verdict where they are known."""
    low, high = (cell.get(f"anomaly_{end}", math.nan) for end in ("low", "high"))
    span = "" if pd.isna(low) or pd.isna(high) else f" [{low:.1f}, {high:.1f}]"
    p = p_text(cell["anomaly_p"])
    said = [f"p {_with_sign(cell['anomaly_p'])}" if p else "", str(cell.get("verdict", ""))]
    brackets = ", ".join(filter(None, said))
    return f"anomaly {cell['anomaly']:.1f}{span}" + (f" ({brackets})" if brackets else "")


def _with_sign(p: float) -> str:
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"
