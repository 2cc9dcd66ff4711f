"""Whether a network computes in bfloat16, and one that searches in it."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from hemomil.detect.settings import Bfloat16


def uses_bfloat16(device: torch.device, asked: Bfloat16) -> bool:
    """Whether to compute in bfloat16: slower by ten times or more where a CPU lacks instructions."""
    if asked != "auto":
        return asked
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def searching_in_bfloat16(net: MaskRCNN, device: torch.device) -> MaskRCNN:
    """The same weights, not copied; pyramid and heads compute in bfloat16.

    What scores and boxes are made of stays in single precision: proposals, RoIAlign, the predictor of boxes.
    """
    shared: dict[int, Any] = {id(values): values for values in chain(net.parameters(), net.buffers())}
    searching = copy.deepcopy(net, shared)
    heads = searching.roi_heads
    parts = (searching.backbone, searching.rpn.head, heads.box_head, heads.mask_head, heads.mask_predictor)
    for part in parts:
        part.forward = partial(_rounded, device.type, part.forward)
    return searching


def _rounded(device: str, forward: Callable[..., Any], inputs: Any) -> Any:
    """What a part of a network makes of its inputs in bfloat16, as numbers in single precision."""
    with torch.autocast(device, torch.bfloat16):
        made = forward(inputs)
    return _single(made)


def _single(made: Any) -> Any:
    if isinstance(made, Tensor):
        return made.float()
    if isinstance(made, dict):
        # a pyramid lies as RoIAlign reads it, which would turn each level over twice
        return {
            name: values.to(torch.float32, memory_format=torch.contiguous_format)
            for name, values in made.items()
        }
    return [_single(values) for values in made]
