"""How often would a healthy donor look this strange? Error rates for anomaly scores. No torch."""

from hemomil.novelty.calibration import (
    Calibration,
    benjamini_hochberg,
    donor_notices,
    donors_needed,
    flag_threshold,
)
from hemomil.novelty.intervals import DonorBootstrap, ensemble_interval, verdicts
from hemomil.novelty.samples import SampleScale
from hemomil.novelty.sets import ConformalSets
from hemomil.novelty.share import HealthyTails, abnormal_share_low
from hemomil.novelty.temperature import apply_temperature, fit_temperature

__all__ = [
    "Calibration",
    "ConformalSets",
    "DonorBootstrap",
    "HealthyTails",
    "SampleScale",
    "abnormal_share_low",
    "apply_temperature",
    "benjamini_hochberg",
    "donor_notices",
    "donors_needed",
    "ensemble_interval",
    "fit_temperature",
    "flag_threshold",
    "verdicts",
]
