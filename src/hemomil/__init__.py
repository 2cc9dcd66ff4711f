"""hemomil finds the few cells that explain a diagnosis.

The front door: the model for those who bring features, the values it takes and gives, and the commands as
functions (`hemomil.commands.study(...)`). Names are imported when they are first asked for, since torch is
slow to import and most commands do not need it.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hemomil.errors import HemomilError
from hemomil.types import Bag, Cohort, Estimate, Prediction, Sample

if TYPE_CHECKING:
    from hemomil import commands
    from hemomil.cohort import read_features, read_manifest
    from hemomil.detect import Detector
    from hemomil.mil import AnomalyMIL, MILSettings

__version__ = version("hemomil")
__all__ = [
    "AnomalyMIL",
    "Bag",
    "Cohort",
    "Detector",
    "Estimate",
    "HemomilError",
    "MILSettings",
    "Prediction",
    "Sample",
    "commands",
    "read_features",
    "read_manifest",
]

_HOME = {
    "AnomalyMIL": "mil",
    "MILSettings": "mil",
    "Detector": "detect",
    "read_features": "cohort",
    "read_manifest": "cohort",
}


def __getattr__(name: str) -> Any:
    if name == "commands":
        return import_module("hemomil.commands")
    if name in _HOME:
        return getattr(import_module(f"hemomil.{_HOME[name]}"), name)
    raise AttributeError(f"hemomil has no {name!r}")
