"""Red cells in images: boxes, masks, and their maps in the feature pyramid (torchvision's Mask R-CNN)."""

from hemomil.detect.complete import complete_example
from hemomil.detect.detector import Detector
from hemomil.detect.evaluate import evaluate_detector
from hemomil.detect.examples import CLASSES, Example, read_coco_examples
from hemomil.detect.face import CellFinder
from hemomil.detect.focus import edge_width
from hemomil.detect.settings import DetectSettings, TrainSettings
from hemomil.detect.threshold import ThresholdDetector
from hemomil.detect.train import check_start, train_detector

__all__ = [
    "CLASSES",
    "CellFinder",
    "DetectSettings",
    "Detector",
    "Example",
    "ThresholdDetector",
    "TrainSettings",
    "check_start",
    "complete_example",
    "edge_width",
    "evaluate_detector",
    "read_coco_examples",
    "train_detector",
]
