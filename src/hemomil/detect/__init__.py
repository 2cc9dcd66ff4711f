"""Red cells in images: boxes, masks, and their maps in the feature pyramid (torchvision's Mask R-CNN)."""

from hemomil.detect.detector import Detector
from hemomil.detect.examples import Example, read_coco_examples
from hemomil.detect.settings import DetectSettings, TrainSettings

__all__ = ["DetectSettings", "Detector", "Example", "TrainSettings", "read_coco_examples"]
