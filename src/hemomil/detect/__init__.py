"""Red cells in images: boxes, masks, and their maps in the feature pyramid (torchvision's Mask R-CNN)."""

from hemomil.detect.detector import Detector
from hemomil.detect.evaluate import evaluate_detector
from hemomil.detect.examples import Example, read_coco_examples
from hemomil.detect.settings import DetectSettings, TrainSettings
from hemomil.detect.train import train_detector

__all__ = [
    "DetectSettings",
    "Detector",
    "Example",
    "TrainSettings",
    "evaluate_detector",
    "read_coco_examples",
    "train_detector",
]
