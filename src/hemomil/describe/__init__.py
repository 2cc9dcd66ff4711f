"""What each cell is like, in numbers: shape, crops, RoI maps, vectors brought along."""

from hemomil.describe.crops import crops
from hemomil.describe.shape import SHAPE_GROUPS, SHAPE_NAMES, SHAPE_VERSION, measure

__all__ = ["SHAPE_GROUPS", "SHAPE_NAMES", "SHAPE_VERSION", "crops", "measure"]
