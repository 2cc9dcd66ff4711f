"""How often would a healthy donor look this strange? Error rates for anomaly scores. No torch."""

from hemomil.novelty.calibration import Calibration, benjamini_hochberg, donor_notices, top_decile_mean

__all__ = ["Calibration", "benjamini_hochberg", "donor_notices", "top_decile_mean"]
