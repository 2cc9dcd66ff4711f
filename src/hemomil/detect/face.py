"""What every detector can do, with a network or without."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from hemomil.detect.settings import DetectSettings
from hemomil.types import Detections


@runtime_checkable
class CellFinder(Protocol):
    """Finds red cells in images: `Detector` and `ThresholdDetector`."""

    settings: DetectSettings
    fingerprint: str
    """Names weights or algorithm: equal for detectors that find the same cells with the same settings."""

    def with_settings(self, settings: DetectSettings) -> "CellFinder":
        """The same detector, applied otherwise."""
        ...

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """The cells of an image of any size, by rising y0, then x0."""
        ...
