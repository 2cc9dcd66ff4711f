"""What a number is worth: metrics with patient-level intervals. No torch."""

from hemomil.stats.classification import classification_metrics, resampled_metrics
from hemomil.stats.draws import (
    MIN_PATIENTS,
    Resampled,
    estimate,
    estimate_dict,
    over_runs,
    patient_draws,
)
from hemomil.stats.instances import SCORES, instance_metrics
from hemomil.stats.ranking import rank_draws
from hemomil.stats.study import paired_difference, study_metrics

__all__ = [
    "MIN_PATIENTS",
    "SCORES",
    "Resampled",
    "classification_metrics",
    "estimate",
    "estimate_dict",
    "instance_metrics",
    "over_runs",
    "paired_difference",
    "patient_draws",
    "rank_draws",
    "resampled_metrics",
    "study_metrics",
]
