"""From a bag of cells to a diagnosis, with the weight of every cell."""

from hemomil.mil.model import AnomalyMIL
from hemomil.mil.settings import METHODS, PRESETS, MILSettings

__all__ = ["METHODS", "PRESETS", "AnomalyMIL", "MILSettings"]
