from .model import AnomalyMIL as AnomalyMIL
from .model import fit_side_by_side as fit_side_by_side
from .settings import METHODS as METHODS
from .settings import PRESETS as PRESETS
from .settings import MILSettings as MILSettings
