"""Weights of a detector on disk: one safetensors file, half precision, that says what it is in its header."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hemomil.errors import ModelError
from hemomil.files import written_whole

FORMAT = "hemomil-detector-1"
FILE_NAME = "detector.safetensors"
HINT = "give a detector that `hemomil detect train` wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the header of a weights file says."""

    backbone: Literal["small", "resnet50"]
    nominal: float
    """Cell diameter in pixels that the weights were trained at."""
    classes: tuple[str, ...]


def shipped_path(backbone: str) -> Path:
    """Where the package keeps its weights. Raises ModelError where there are none."""
    path = Path(str(resources.files("hemomil.detect"))) / "weights" / f"{backbone}.safetensors"
    if not path.is_file():
        raise ModelError(
            f"no weights are shipped for the backbone {backbone!r}",
            hint="use the small backbone, or train this one: `hemomil detect train --backbone "
            + backbone
            + "`",
        )
    return path


def round_to_half(net: nn.Module) -> None:
    """Round every weight to what half precision can hold."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def fingerprint(net: nn.Module) -> str:
    """The first 16 hex digits of the SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(net).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def write(path: Path, net: nn.Module, about: About) -> None:
    """Write the file named, or `detector.safetensors` in the folder named."""
    header = {
        "format": FORMAT,
        "backbone": about.backbone,
        "nominal": repr(about.nominal),
        "classes": json.dumps(about.classes),
    }
    with written_whole(path if path.suffix == ".safetensors" else path / FILE_NAME) as part:
        part.write_bytes(save(_tensors(net), metadata=header))


def read(path: Path) -> tuple[About, dict[str, Tensor]]:
    """Header and tensors. Raises ModelError for anything but a detector."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read as detector weights: {error}", hint=HINT) from error
    return _about(file, header), tensors


def fill(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors into the network. Raises ModelError if they do not fit."""
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit its own architecture: {error}", hint=HINT) from error


def _about(file: Path, header: Mapping[str, str]) -> About:
    if header.get("format") != FORMAT or header.get("backbone") not in ("small", "resnet50"):
        found = header.get("format", "no format")
        raise ModelError(f"{file} is not a detector of this version ({found}, not {FORMAT})", hint=HINT)
    return About(
        backbone=cast(Literal["small", "resnet50"], header["backbone"]),
        nominal=float(header["nominal"]),
        classes=tuple(json.loads(header["classes"])),
    )


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics; floats in half precision."""
    state = net.state_dict()
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }
