"""Train a detector: AdamW with warm-up and cosine decay on random crops; repeatable and resumable.

Every step draws from streams of its own name, so a run taken up from a checkpoint goes on as if it had
never been broken off.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from hemomil.detect.augment import Crop, random_crop
from hemomil.detect.checkpoint import read_checkpoint, write_checkpoint
from hemomil.detect.detector import Detector, pick_device
from hemomil.detect.evaluate import evaluate_detector
from hemomil.detect.examples import CLASSES, Example
from hemomil.detect.net import build, norms
from hemomil.detect.rounding import uses_bfloat16
from hemomil.detect.settings import DetectSettings, TrainSettings
from hemomil.errors import SettingsError
from hemomil.streams import stream, stream_seed

Progress = Callable[[int, dict[str, float]], None]
"""Called with the steps done, and the losses of the last (now and then the scores on held-out examples)."""


def train_detector(
    examples: Iterable[Example],
    settings: TrainSettings,
    *,
    held_out: Sequence[Example] = (),
    start: Detector | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Detector:
    """Learn to find the cells of these examples.

    `start` gives the first weights (random if not given) and the kinds that are told apart. With
    `checkpoint`, the state is written there every `settings.every` steps and taken up if it is there.
    Examples without masks teach boxes only. With `settings.average`, the result is the mean, so weighted, of
    the first weights and those learned (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): a detector that
    learns from few images forgets other cameras, and the mean hardly does.

    Raises SettingsError if there is no example with cells, `start` is of another backbone, or there is no
    `start` to average with.
    """
    if settings.average and start is None:
        raise SettingsError("there are no first weights to average with", hint="give --from, or no --average")
    classes = start.classes if start else CLASSES
    groups = _groups(example.of_kinds(len(classes)) for example in examples)
    net = _first_net(settings, start).to(pick_device(settings.device), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    done = read_checkpoint(checkpoint, net, optimizer) if checkpoint else 0
    for step in range(done, settings.steps):
        numbers = _step(net, optimizer, groups, settings, step)
        if (step + 1) % settings.every == 0 or step + 1 == settings.steps:
            if checkpoint:
                write_checkpoint(checkpoint, net, optimizer, step + 1)
            numbers |= _score(net, settings, classes, held_out)
        if progress:
            progress(step + 1, numbers)
    if start is not None:
        _average(net, start.net, settings.average)
    return _detector(net, settings, classes)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Rises over the warm-up, then falls to zero as half a cosine."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _average(net: MaskRCNN, first: MaskRCNN, share: float) -> None:
    """Move every weight by this share of the way back to where it began."""
    began = first.state_dict()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.lerp_(began[name].to(value), share)


def _groups(examples: Iterable[Example]) -> tuple[list[Example], ...]:
    """Examples with masks and without, apart: a step learns from one kind."""
    known = [example for example in examples if len(example.boxes)]
    if not known:
        raise SettingsError(
            "there is nothing to learn from: no example has a cell", hint="give images with cells"
        )
    masked = [example for example in known if example.masks is not None]
    boxed = [example for example in known if example.masks is None]
    return tuple(group for group in (masked, boxed) if group)


def check_start(start: Detector, settings: TrainSettings) -> None:
    """Raise SettingsError if training with these settings cannot start from this detector."""
    if start.backbone != settings.backbone or start.nominal != settings.nominal:
        raise SettingsError(
            f"the first weights are of a {start.backbone} detector for cells of {start.nominal:g} pixels, "
            f"the settings want {settings.backbone} and {settings.nominal:g}",
            hint=f"set the backbone to {start.backbone}, or start without weights",
        )


def _first_net(settings: TrainSettings, start: Detector | None) -> MaskRCNN:
    if start is None:
        return build(settings.backbone, len(CLASSES), stream_seed(settings.seed, "detector-weights"))
    check_start(start, settings)
    return copy.deepcopy(start.net).requires_grad_(True)


def _step(
    net: MaskRCNN,
    optimizer: torch.optim.Optimizer,
    groups: tuple[list[Example], ...],
    settings: TrainSettings,
    step: int,
) -> dict[str, float]:
    """One optimiser step; the losses by torchvision's names, and their sum."""
    net.train()
    for norm in norms(net):
        norm.train(step < settings.freeze_norm * settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(settings.seed, "detector-step", step))
        crops = _crops(groups, settings, step)
        losses = _losses(net, crops, settings)
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
    optimizer.step()
    return {"loss": float(total.detach()), **{name: float(value.detach()) for name, value in losses.items()}}


def _crops(groups: tuple[list[Example], ...], settings: TrainSettings, step: int) -> list[Crop]:
    """Random crops of random examples, all with masks or all without."""
    rng = stream(settings.seed, "detector-crops", step)
    sizes = np.array([len(group) for group in groups])
    group = groups[int(rng.choice(len(groups), p=sizes / sizes.sum()))]
    return [
        random_crop(group[int(row)], settings, rng) for row in rng.integers(len(group), size=settings.batch)
    ]


def _losses(net: MaskRCNN, crops: list[Crop], settings: TrainSettings) -> dict[str, Tensor]:
    device = pick_device(settings.device)
    images = [crop.image.to(device) for crop in crops]
    targets = [{name: value.to(device) for name, value in crop.target.items()} for crop in crops]
    with (
        _masks_taught(net, all("masks" in target for target in targets)),
        torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device, settings.bfloat16)),
    ):
        losses: dict[str, Tensor] = net(images, targets)
    return losses


@contextmanager
def _masks_taught(net: MaskRCNN, known: bool) -> Iterator[None]:
    """Without known masks the mask head is taken off for the step, as torchvision's RoIHeads allows."""
    pool = net.roi_heads.mask_roi_pool
    net.roi_heads.mask_roi_pool = pool if known else None
    try:
        yield
    finally:
        net.roi_heads.mask_roi_pool = pool


def _score(
    net: MaskRCNN, settings: TrainSettings, classes: tuple[str, ...], held_out: Sequence[Example]
) -> dict[str, float]:
    return evaluate_detector(_detector(copy.deepcopy(net), settings, classes), held_out) if held_out else {}


def _detector(net: MaskRCNN, settings: TrainSettings, classes: tuple[str, ...]) -> Detector:
    return Detector(
        net,
        backbone=settings.backbone,
        nominal=settings.nominal,
        classes=classes,
        settings=DetectSettings(device=settings.device),
    )
