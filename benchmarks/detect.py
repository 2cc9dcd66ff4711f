"""Time finding cells: the shipped detector against torchvision's ResNet-50 v2 at 800 pixels, and a watershed.

Run `OMP_NUM_THREADS=1 python benchmarks/detect.py [COCO.json]`: on the annotated images of a file (of several
categories, those called red cells), else on simulated fields. Rivals run in turns in one process on one
thread and see the same images; a ratio is the median over rounds of (rival / ours) in CPU time, with its
range. Average precision stands beside where it can be had: torchvision's network has no weights here, so it
is timed with random ones that return its usual 100 boxes an image.
"""

import statistics
import sys
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
from hemomil.simulate import draw_field, random_field_settings
from hemomil.streams import stream

ROUNDS = 5
IMAGES = 3


def simulated():
    """Fields of 960 x 1280 pixels with cells of usual sizes."""
    for k in range(IMAGES):
        rng = stream(0, "benchmark-field", k)
        field = draw_field(rng, random_field_settings(rng, size=(960, 1280), diameter=(50.0, 80.0)))
        yield Example(image=field.image, boxes=field.boxes, masks=field.masks)


def annotated(path):
    red = [e for e in read_coco_examples(Path(path), others=True) if (e.kinds == 1).any()][: 4 * IMAGES]
    return [example.of_kinds(1) for example in red]


def resnet50_v2():
    """torchvision's own network as it comes: shorter side 800 pixels, at most 100 cells an image."""
    torch.manual_seed(0)
    net = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2, box_score_thresh=0.0)
    return net.eval()


def find_with(net, images):
    with torch.inference_mode():
        for image in images:
            net([to_dtype(to_image(image), torch.float32, scale=True)])


def cpu_seconds(task):
    start = time.process_time()
    task()
    return time.process_time() - start


def compare(examples):
    images = [example.image for example in examples[:IMAGES]]
    settings = DetectSettings(threads=1, device="cpu")
    ours, watershed, net = (
        Detector.shipped(settings=settings),
        ThresholdDetector(settings=settings),
        resnet50_v2(),
    )
    tasks = {
        "shipped, small": lambda: [ours.detect(image) for image in images],
        "watershed (no network)": lambda: [watershed.detect(image) for image in images],
        "torchvision ResNet-50 v2, 800 px": lambda: find_with(net, images),
    }
    rounds = [{name: cpu_seconds(task) for name, task in tasks.items()} for _ in range(ROUNDS + 1)][1:]
    precision = {"shipped, small": ours, "watershed (no network)": watershed}
    cells = sum(len(ours.detect(image).boxes) for image in images)
    for name in tasks:
        seconds = statistics.median(r[name] for r in rounds)
        ratios = [r[name] / r["shipped, small"] for r in rounds]
        scores = evaluate_detector(precision[name], examples) if name in precision else {}
        told = ", ".join(f"{k} {scores[k]:.3f}" for k in ("box_ap50", "mask_ap50") if k in scores)
        print(
            f"{name:34s} {len(images) / seconds:6.2f} images/s {cells / seconds:7.1f} cells/s  "
            f"{statistics.median(ratios):6.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]  {told}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    examples = annotated(sys.argv[1]) if len(sys.argv) > 1 else list(simulated())
    sizes = np.median([np.sqrt((e.boxes[:, 2:] - e.boxes[:, :2]).prod(axis=1)).mean() for e in examples])
    shape = examples[0].image.shape[:2]
    print(f"{len(examples)} images of {shape}, cells of {sizes:.0f} pixels; timed: {IMAGES}")
    compare(examples)
