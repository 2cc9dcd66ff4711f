"""The parts of a sample as the page shows them, ready for the template."""

from dataclasses import dataclass

from hemomil.report.healthy import HealthyView
from hemomil.report.pictures import Picture
from hemomil.report.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """A cell as a framed picture."""

    cell_id: str
    sample: str
    label: str
    anomaly: float
    uri: str | None
    number: int
    """Of the cell in its sample."""
    steps: str
    """CSS classes that give its colour under each score."""
    percents: str
    """Its quantile under each score, for the threshold."""
    text: str
    why: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxView:
    """A cell as a box on its field, in pixels of the image."""

    x: float
    y: float
    width: float
    height: float
    number: int
    steps: str
    percents: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldView:
    """An image with the boxes of its cells."""

    image: str
    picture: Picture | None
    problem: str
    boxes: tuple[BoxView, ...]
    hidden: int
    """Cells of this image without a box, as too many have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneView:
    """Anomaly against what counted: the drawing, and the cells that an expert looks at first."""

    item: str
    """JSON for Bokeh; empty where no cell has both scores."""
    texts: str
    """JSON: by number, the text of the cells that are shown nowhere else."""
    left_out: int
    counted: tuple[CellView, ...]
    n_counted: int
    ignored: tuple[CellView, ...]
    n_ignored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """One sample as the page shows it."""

    anchor: str
    page: str
    """Its file, where it has one of its own."""
    sample: str
    patient: str
    label: str
    predicted: str
    why: str
    verdict: str
    doubts: str
    """Sentences on how sure this is: runs, novelty, what can be excluded, cells that stand out."""
    deletion: str
    probabilities: tuple[tuple[str, float], ...]
    cells: int
    fields: tuple[FieldView, ...]
    hidden_images: int
    mosaic: tuple[CellView, ...]
    hidden_cells: int
    strange: tuple[CellView, ...]
    plane: PlaneView | None
    healthy: HealthyView | None
