"""What a simulated field and a simulated cohort are made from: frozen settings with units."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RGB = tuple[float, float, float]

CellClass = Literal[
    "discocyte",
    "ovalocyte",
    "sickle",
    "target",
    "teardrop",
    "microcyte",
    "macrocyte",
    "hypochromic",
    "spherocyte",
    "stomatocyte",
    "echinocyte",
    "xerocyte",
    "schistocyte",
]
CELL_CLASSES: tuple[CellClass, ...] = get_args(CellClass)
"""Every class of red cell that can be drawn; the ordinary one first."""


class Settings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stain(Settings):
    """Absorbance per colour channel (natural logarithm) of what the light passes through."""

    hemoglobin: RGB = Field(
        default=(0.16, 0.62, 0.42), description="red cell, at the thickest place of a discocyte"
    )
    nucleus: RGB = Field(
        default=(1.1, 1.9, 0.55), description="chromatin of white cells and parasites, at most"
    )
    cytoplasm: RGB = Field(default=(0.22, 0.42, 0.10), description="cytoplasm of white cells, and platelets")
    plasma: RGB = Field(default=(0.02, 0.03, 0.02), description="dried plasma in the background")
    concentration: float = Field(default=1.0, gt=0, description="multiplies every absorbance")


class Optics(Settings):
    """How the microscope blurs: a Gaussian of defocus and a ring beside edges."""

    defocus: float = Field(default=1.0, ge=0, description="standard deviation of the blur, pixels")
    halo: float = Field(
        default=0.15, ge=-1, le=1, description="strength of the ring: > 0 bright outside, < 0 dark"
    )
    halo_width: float = Field(default=3.0, gt=0, description="reach of the ring, pixels")
    chromatic_shift: float = Field(default=0.0, ge=0, description="red against blue, pixels")


class Light(Settings):
    """The empty field as the camera shows it."""

    background: RGB = Field(
        default=(0.93, 0.90, 0.91), description="colour where nothing lies, 0 to 1 as displayed"
    )
    tilt: float = Field(default=0.05, ge=0, le=0.9, description="brightness lost from one side to the other")
    vignette: float = Field(
        default=0.05, ge=0, le=0.9, description="brightness lost from the centre to a corner"
    )
    angle: float = Field(default=0.0, description="direction of the tilt, radians")
    stop: Literal["none", "round", "bars"] = Field(
        default="none", description="black round field stop or bars"
    )


class Camera(Settings):
    """Sensor, colour and file."""

    gain: RGB = Field(default=(1.0, 1.0, 1.0), description="white balance error: multiplies the channels")
    gamma: float = Field(default=1.6, gt=0, description="display = light ** (1 / gamma)")
    electrons: float = Field(default=8000.0, gt=0, description="electrons at full white: sets the shot noise")
    read_noise: float = Field(default=0.004, ge=0, description="standard deviation, of full white")
    jpeg_quality: int | None = Field(default=None, ge=5, le=100, description="none: no JPEG artefacts")
    scale_bar: bool = Field(default=False, description="a scale bar is burnt into a corner")


class FieldSettings(Settings):
    """One microscope field."""

    size: tuple[int, int] = Field(default=(480, 640), description="height and width, pixels")
    diameter: float = Field(default=62.0, gt=4, description="healthy discocyte, pixels")
    cells: int = Field(default=28, ge=0, description="red cells wanted; fewer where there is no room")
    mix: dict[CellClass, float] = Field(
        default={"discocyte": 1.0}, description="share of each cell class; sums to any number"
    )
    mildness: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how far a deformed cell may fall back towards an ordinary one, at most",
    )
    anisocytosis: float = Field(
        default=0.05, ge=0, le=0.5, description="coefficient of variation of the diameter"
    )
    touching: float = Field(
        default=0.2, ge=0, le=1, description="share of cells that are laid against another"
    )
    overlap: float = Field(
        default=0.1, ge=0, le=0.6, description="how far those reach over it, of the distance, at most"
    )
    pressed: float = Field(
        default=0.3, ge=0, le=1, description="share of overlaps that flatten both sides instead"
    )
    overlay: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="how much the thinner of two cells that lie over each other adds to the thicker",
    )
    irregularity: float = Field(
        default=0.02, ge=0, le=0.2, description="roughness of outlines, of the radius"
    )
    pallor: float = Field(default=1.0, ge=0, le=1.7, description="multiplies the central pallor")
    edge: float = Field(
        default=0.4, gt=0.05, le=1, description="exponent of the rim: 0.5 in suspension, less when dried"
    )
    texture: float = Field(
        default=0.03, ge=0, le=0.5, description="mottling of hemoglobin, of its absorbance"
    )
    inclusions: float = Field(
        default=0.0, ge=0, le=1, description="share of red cells with a parasite-like body"
    )
    platelets: float = Field(default=1.0, ge=0, description="expected number")
    white_cells: float = Field(default=0.05, ge=0, description="expected number")
    artefacts: float = Field(
        default=0.3, ge=0, description="expected number: dust, debris, stain precipitate"
    )
    dirt: float = Field(default=0.0, ge=0, le=1, description="fine unevenness of the background")
    stain: Stain = Field(default=Stain(), description="colours")
    optics: Optics = Field(default=Optics(), description="blur")
    light: Light = Field(default=Light(), description="illumination")
    camera: Camera = Field(default=Camera(), description="sensor and file")

    @model_validator(mode="after")
    def _some_cells(self) -> "FieldSettings":
        if min(self.mix.values(), default=0) < 0 or not sum(self.mix.values()) > 0:
            raise ValueError(f"mix is {self.mix}: give at least one share above 0 and none below")
        return self


Disorder = Literal["control", "scd", "thal", "xero", "hs"]
"""Healthy donors, sickle cell disease, thalassemia, xerocytosis, hereditary spherocytosis."""


class SimulateSettings(Settings):
    """A cohort of patients with blood smears."""

    seed: int = Field(default=0, description="of every random stream")
    patients: dict[Disorder, int] = Field(
        default={"control": 12, "scd": 6, "thal": 3, "xero": 4, "hs": 6}, description="patients per class"
    )
    samples: dict[Disorder, Annotated[int, Field(ge=1)]] = Field(
        default=dict.fromkeys(get_args(Disorder), 2),
        description="blood samples per patient, by class; a number alone is for every class",
    )
    images: int = Field(default=4, ge=1, description="images per sample")
    cells: tuple[int, int] = Field(default=(12, 45), description="red cells per image, fewest and most")
    prevalence: dict[Disorder, float] = Field(
        default={"control": 0.0, "scd": 0.2, "thal": 0.35, "xero": 0.25, "hs": 0.3},
        description="share of hallmark cells, mean over the patients of a class",
    )
    spread: float = Field(
        default=20.0,
        gt=0,
        description="of patients about that mean: Beta(mean * spread, (1 - mean) * spread)",
    )
    background: float = Field(
        default=0.04,
        ge=0,
        le=0.5,
        description="share of abnormal cells of any class in everyone, healthy donors too",
    )
    mildness: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="how far a deformed cell may fall back towards an ordinary one, at most",
    )
    size: tuple[int, int] = Field(default=(480, 640), description="height and width of an image, pixels")
    diameter: float = Field(
        default=56.0, ge=12, description="healthy discocyte, pixels, at a site of middle magnification"
    )
    sites: int = Field(default=3, ge=1, description="laboratories, each with its stain and camera")
    touching: float = Field(
        default=0.25, ge=0, le=1, description="share of cells that are laid against another"
    )
    overlap: float = Field(
        default=0.12, ge=0, le=0.6, description="how far those may reach over it, of the distance"
    )
    artefacts: float = Field(default=0.4, ge=0, description="expected number of artefacts per image")
    platelets: float = Field(default=1.5, ge=0, description="expected number of platelets per image")
    white_cells: float = Field(default=0.05, ge=0, description="expected number of white cells per image")
    jpeg_quality: int | None = Field(default=92, ge=30, le=100, description="of the image files; none: PNG")

    @field_validator("samples", mode="before")
    @classmethod
    def _of_every_class(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else dict.fromkeys(get_args(Disorder), value)

    @model_validator(mode="after")
    def _possible(self) -> "SimulateSettings":
        low, high = self.cells
        if not 1 <= low <= high:
            raise ValueError(f"cells is {low} to {high}: give the fewest, at least 1, before the most")
        if min(self.patients.values(), default=0) < 0 or sum(self.patients.values()) < 1:
            raise ValueError(f"patients is {self.patients}: give at least one patient")
        if not set(self.patients) <= set(self.samples):
            raise ValueError(f"samples is {self.samples}: give a number for each class of patients")
        if not all(0 <= share <= 1 for share in self.prevalence.values()):
            raise ValueError(f"prevalence is {self.prevalence}: a share lies between 0 and 1")
        return self

    @classmethod
    def demo(cls, *, seed: int = 0) -> "SimulateSettings":
        """A cohort that is drawn in seconds and studied in minutes."""
        patients: dict[Disorder, int] = {"control": 9, "scd": 4, "thal": 3, "xero": 3, "hs": 4}
        return cls(seed=seed, patients=patients, samples=2, images=2)
