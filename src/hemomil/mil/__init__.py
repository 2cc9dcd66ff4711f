"""From a bag of cells to a diagnosis, with the weight of every cell."""

from hemomil.mil.model import AnomalyMIL, fit_side_by_side
from hemomil.mil.settings import METHODS, PRESETS, MILSettings

__all__ = ["METHODS", "PRESETS", "AnomalyMIL", "MILSettings", "fit_side_by_side"]
