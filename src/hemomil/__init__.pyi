from . import commands as commands
from .cohort import read_features as read_features
from .cohort import read_manifest as read_manifest
from .detect import Detector as Detector
from .errors import HemomilError as HemomilError
from .mil import AnomalyMIL as AnomalyMIL
from .mil import MILSettings as MILSettings
from .types import Bag as Bag
from .types import Cohort as Cohort
from .types import Estimate as Estimate
from .types import Prediction as Prediction
from .types import Sample as Sample

__version__: str
