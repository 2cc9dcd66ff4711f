"""Time finding cells: the shipped detector against torchvision's ResNet-50 v2 at 800 pixels, and a watershed.

    OMP_NUM_THREADS=1 python benchmarks/detect.py [--coco FILE] [--resnet50 FILE] [--device cuda]

On the annotated images of a COCO file (of several categories, those called red cells), else on simulated
fields. Rivals run in turns in one process on one thread and see the same images; a ratio is the median over
rounds of (rival / ours), with its range, in CPU time (on a GPU, in wall time). Average precision stands
beside it, over all images of the file. torchvision's network knows no cells: it is timed with random weights
that return its usual 100 boxes an image. Where the device multiplies in bfloat16, ours does so too.
`--resnet50` names a detector that `hemomil detect train` made with `--backbone resnet50`; its precision, at
the scale it was trained for, stands for what such a network can do.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.transforms.v2.functional import to_dtype, to_image

from hemomil.detect import (
    Detector,
    DetectSettings,
    Example,
    ThresholdDetector,
    evaluate_detector,
    read_coco_examples,
)
from hemomil.detect.rounding import uses_bfloat16
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream
from timing import alternate

TIMED = 3
"""Images that are timed."""
OURS = "shipped, small"


def simulated():
    """Fields of 960 x 1280 pixels with cells of usual sizes."""
    for k in range(TIMED):
        rng = stream(0, "benchmark-field", k)
        field = draw_field(rng, random_field_settings(rng, size=(960, 1280), diameter=(50.0, 80.0)))
        yield Example(image=field.image, boxes=field.boxes, masks=field.masks)


def annotated(path):
    red = [example for example in read_coco_examples(path, others=True) if (example.kinds == 1).any()]
    return [example.of_kinds(1) for example in red]


def resnet50_v2(device):
    """torchvision's own network as it comes: shorter side 800 pixels, at most 100 cells an image."""
    torch.manual_seed(0)
    net = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2, box_score_thresh=0.0)
    return net.eval().to(device)


def find_with(net, images, device):
    with torch.inference_mode():
        for image in images:
            net([to_dtype(to_image(image.copy()), torch.float32, scale=True).to(device)])


def gpu_clock():
    torch.cuda.synchronize()
    return time.perf_counter()


def compare(examples, trained, device):
    images = [example.image for example in examples[:TIMED]]
    settings = DetectSettings(threads=1, device=device)
    finders = {
        OURS: Detector.shipped(settings=settings),
        "watershed (no network)": ThresholdDetector(settings=settings),
    }
    if uses_bfloat16(torch.device(device), "auto"):
        rounded = settings.model_copy(update={"bfloat16": True})
        finders[f"{OURS}, in bfloat16"] = Detector.shipped(settings=rounded)
    if trained:
        finders["ResNet-50, our recipe, its own scale"] = Detector.load(trained, settings=settings)
    net = resnet50_v2(device)
    tasks = {
        name: lambda finder=finder: [finder.detect(image) for image in images]
        for name, finder in finders.items()
    }
    tasks["torchvision ResNet-50 v2, 800 pixels"] = lambda: find_with(net, images, device)
    rounds = alternate(tasks, clock=time.process_time if device == "cpu" else gpu_clock)
    cells = sum(len(finders[OURS].detect(image).boxes) for image in images)
    for name in tasks:
        middle = statistics.median(r[name] for r in rounds)
        ratios = [r[name] / r[OURS] for r in rounds]
        print(
            f"{name:37s} {len(images) / middle:6.2f} images/s {cells / middle:7.1f} cells/s  "
            f"{statistics.median(ratios):6.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]",
            flush=True,
        )
    for name, finder in finders.items():
        scores = evaluate_detector(finder, examples)
        told = ", ".join(f"{k} {scores[k]:.3f}" for k in ("box_ap50", "mask_ap50") if k in scores)
        print(f"{name:37s} {told}, {len(examples)} images", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--resnet50", type=Path)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    examples = annotated(asked.coco) if asked.coco else list(simulated())
    sizes = np.median([np.sqrt((e.boxes[:, 2:] - e.boxes[:, :2]).prod(axis=1)).mean() for e in examples])
    print(
        f"{len(examples)} images, the first of {examples[0].image.shape[:2]}, cells of {sizes:.0f} pixels; "
        f"{TIMED} timed, on {asked.device}"
    )
    compare(examples, asked.resnet50, asked.device)
