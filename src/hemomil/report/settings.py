"""What the report shows, and how much of it: bounds that keep the page a few megabytes."""

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """How much the page shows. Everything that is left out is counted on the page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str | None = Field(default=None, description="method shown in detail; else `default` or the last")
    samples: int = Field(default=24, ge=1, le=500, description="samples shown with their images")
    images: int = Field(default=3, ge=1, le=50, description="images shown per sample, strangest cells first")
    boxes: int = Field(default=300, ge=1, description="boxes drawn per image, the strangest first")
    mosaic: int = Field(default=120, ge=1, description="cells shown of a sample of single-cell images")
    gallery: int = Field(default=24, ge=1, le=500, description="strangest cells of the whole run")
    gallery_per_sample: int = Field(default=3, ge=1, description="at most so many of them from one sample")
    sample_gallery: int = Field(default=6, ge=0, le=100, description="strangest cells shown of each sample")
    field_width: int = Field(default=700, ge=100, le=4000, description="widest image of a field, in pixels")
    cell_size: int = Field(default=96, ge=24, le=512, description="side of the picture of a cell, in pixels")
    plane: int = Field(default=400, ge=1, le=5000, description="cells in the plane of a sample")
    max_megabytes: float = Field(
        default=25.0, gt=0, description="a larger page is split: an index, and a page for each sample"
    )
