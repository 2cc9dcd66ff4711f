"""What is kept of every cell."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["shape", "crop", "roi", "embedding"]
"""Named numbers; a small picture; 256x14x14 maps of the detector; vectors brought along."""


class DescribeSettings(BaseModel):
    """Settings of the describe step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(
        default=("shape",), min_length=1, description="What to compute and store of each cell."
    )
    crop_size: int = Field(default=64, ge=8, le=512, description="Side of a stored crop, in pixels.")
    crop_context: float = Field(
        default=1.0,
        ge=0.5,
        le=4.0,
        description="Side of a crop in sides of its box: above 1 shows surroundings.",
    )
    crop_align: bool = Field(
        default=False, description="Turn each crop until the cell's long axis lies level."
    )
