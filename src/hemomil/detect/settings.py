"""Every setting of finding cells and of learning to find them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Backbone = Literal["small", "resnet50"]
Bfloat16 = bool | Literal["auto"]
"""Whether to compute in bfloat16; `auto`: where the device has instructions for it."""


class DetectSettings(BaseModel):
    """How a detector is applied to an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_threshold: float = Field(default=0.5, ge=0, le=1, description="Least score of a cell that is kept.")
    nms_iou: float = Field(
        default=0.5, gt=0, le=1, description="Of two boxes whose IoU is above this, the better stays."
    )
    nms_iom: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="Of two boxes that share more than this of the smaller, the better stays.",
    )
    diameter: float | None = Field(
        default=None,
        gt=2,
        description="Usual cell diameter in pixels of the image; estimated from each image if not given.",
    )
    tile: int = Field(
        default=1024,
        ge=128,
        le=4096,
        description="Largest side of a tile, in pixels at the detector's scale.",
    )
    overlap: int = Field(default=128, ge=32, description="Least overlap of neighbouring tiles, same pixels.")
    batch: int = Field(default=2, ge=1, description="Tiles that go through the network together.")
    max_cells: int = Field(
        default=20_000, ge=1, description="Most cells of one image; the best by score stay."
    )
    border: Literal["leave out", "keep"] = Field(
        default="leave out", description="What becomes of cells that the border of their image cuts."
    )
    bfloat16: Bfloat16 = Field(
        default=False,
        description="Search in bfloat16: up to twice as fast where a processor has instructions for it, boxes"
        " and scores a little less exact; auto: only there. RoI maps stay in single precision.",
    )
    device: str = Field(default="auto", description="auto (CUDA if there is one), cpu, cuda, cuda:1, mps.")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads while detecting; PyTorch's own choice if not given."
    )


class TrainSettings(BaseModel):
    """How a detector learns. The defaults are those of the shipped weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Backbone = Field(default="small", description="small (ResNet-18 cut after layer3) or resnet50.")
    nominal: float = Field(
        default=40.0, ge=16, le=256, description="Diameter, in pixels, at which the network sees a cell."
    )
    steps: int = Field(default=2000, ge=1, description="Optimiser steps.")
    batch: int = Field(default=4, ge=1, description="Crops per step.")
    crop: int = Field(
        default=192, ge=64, description="Side of a training crop, in pixels at the detector's scale."
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Peak learning rate of AdamW; warm-up, then cosine to zero."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps over which the rate rises."
    )
    freeze_norm: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Share of the steps after which batch-norm statistics stand still.",
    )
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the first weights in the result: what they knew of other cameras is kept.",
    )
    clip: float = Field(default=5.0, gt=0, description="Largest norm of the gradient.")
    zoom: tuple[float, float] = Field(
        default=(0.6, 1.6), description="Range of the random scale around the nominal one."
    )
    bfloat16: Bfloat16 = Field(
        default="auto",
        description="Forward pass in bfloat16 (autocast). auto: where the processor has instructions for it.",
    )
    every: int = Field(
        default=250, ge=1, description="Steps between measurements on held-out examples and checkpoints."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights, crops and augmentation.")
    device: str = Field(default="auto", description="auto (CUDA if there is one), cpu, cuda, cuda:1, mps.")
