"""What each cell is like, in numbers: shape, crops, RoI maps, vectors brought along."""

from hemomil.describe.crops import crops
from hemomil.describe.reading import feature_names, fingerprint, read_bags, read_obs
from hemomil.describe.settings import DescribeSettings, Kind
from hemomil.describe.shape import SHAPE_GROUPS, SHAPE_NAMES, SHAPE_VERSION, measure
from hemomil.describe.store import StoreWriter

__all__ = [
    "SHAPE_GROUPS",
    "SHAPE_NAMES",
    "SHAPE_VERSION",
    "DescribeSettings",
    "Kind",
    "StoreWriter",
    "crops",
    "feature_names",
    "fingerprint",
    "measure",
    "read_bags",
    "read_obs",
]
