"""Count a cohort: patients, samples, images and cells of each class."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from hemomil.types import Cells, Cohort, Sample

NO_LABEL = "(no label)"


def summary(cohort: Cohort, cells: Cells | None = None) -> pd.DataFrame:
    """Distinct patients, samples and images of each class, and of all; with cells, their number too.

    The control class first, then by name, then samples without a label, then `all`. A patient or
    an image with samples of several classes counts in each, and once in `all`. `fewest` and `most`
    are the cells of the smallest and the largest sample.
    """
    per_sample = Counter(cells.samples) if cells is not None else None
    names = [*cohort.classes, *([NO_LABEL] if any(s.label is None for s in cohort.samples) else [])]
    parts = {name: [s for s in cohort.samples if (s.label or NO_LABEL) == name] for name in names}
    parts["all"] = list(cohort.samples)
    counts = [_counts(samples, per_sample) for samples in parts.values()]
    return pd.DataFrame(counts, index=pd.Index(list(parts), name="label"))


def _counts(samples: Sequence[Sample], per_sample: Counter[str] | None) -> dict[str, int]:
    counts = {
        "patients": len({s.patient for s in samples}),
        "samples": len(samples),
        "images": len({row.path for s in samples for row in s.images}),
    }
    if per_sample is None:
        return counts
    cells = [per_sample[s.sample] for s in samples]
    return {**counts, "cells": sum(cells), "fewest": min(cells, default=0), "most": max(cells, default=0)}
