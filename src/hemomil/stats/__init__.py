"""What a number is worth: metrics with patient-level intervals. No torch."""

from hemomil.stats.classification import OVERALL, classification_metrics, resampled_metrics
from hemomil.stats.comparison import Difference, compare_methods, holm, patient_swaps
from hemomil.stats.confounders import confounder_notices, confounder_predictions
from hemomil.stats.curves import Band, precision_recall_band, roc_band
from hemomil.stats.deletion import deletion_bands, deletion_metrics
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
from hemomil.stats.reliability import Reliability, calibration_metrics, reliability_diagram
from hemomil.stats.scored import Scored
from hemomil.stats.study import paired_difference, study_metrics
from hemomil.stats.unseen import unseen_metrics

__all__ = [
    "MIN_PATIENTS",
    "OVERALL",
    "SCORES",
    "Band",
    "Difference",
    "Reliability",
    "Resampled",
    "Scored",
    "calibration_metrics",
    "classification_metrics",
    "compare_methods",
    "confounder_notices",
    "confounder_predictions",
    "deletion_bands",
    "deletion_metrics",
    "estimate",
    "estimate_dict",
    "holm",
    "instance_metrics",
    "over_runs",
    "paired_difference",
    "patient_draws",
    "patient_swaps",
    "precision_recall_band",
    "rank_draws",
    "reliability_diagram",
    "resampled_metrics",
    "roc_band",
    "study_metrics",
    "unseen_metrics",
]
