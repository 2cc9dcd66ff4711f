"""Fields as different as laboratories make them: for training a detector that works on any camera."""

import numpy as np

from hemomil.simulate.settings import (
    CELL_CLASSES,
    RGB,
    Camera,
    CellClass,
    FieldSettings,
    Light,
    Optics,
    Stain,
)

# absorbance of a red cell, as stains and cameras give it
_RED_CELLS: tuple[RGB, ...] = (
    (0.10, 0.50, 0.34),  # pink, eosin
    (0.16, 0.36, 0.28),  # pale lilac
    (0.45, 1.90, 0.70),  # strong purple
    (1.20, 1.10, 0.80),  # grey-blue, old Giemsa
    (0.45, 0.45, 0.34),  # grey
    (0.30, 0.48, 0.25),  # mauve on green light
    (0.06, 0.22, 0.75),  # unstained: hemoglobin's own orange
    (0.08, 0.55, 0.70),  # salmon
    (0.70, 0.80, 0.45),  # brown-violet
)
_HOW_COMMON = np.array([4, 4, 2, 3, 2, 2, 1, 1, 1]) / 20
_BACKGROUNDS: tuple[RGB, ...] = (
    (0.95, 0.95, 0.95),
    (0.99, 0.91, 0.80),
    (0.83, 0.91, 0.85),
    (0.60, 0.68, 0.62),
    (0.78, 0.79, 0.84),
    (0.84, 0.82, 0.90),
    (0.92, 0.86, 0.88),
    (0.90, 0.90, 0.80),
    (0.50, 0.48, 0.50),
)


def random_field_settings(
    rng: np.random.Generator,
    size: tuple[int, int] = (512, 512),
    *,
    diameter: tuple[float, float] = (20.0, 120.0),
) -> FieldSettings:
    """Settings of one field from a wide family of stains, cameras, cell sizes, crowding and faults.

    `size` is height and width in pixels; `diameter` the range of the healthy cell in pixels (log-uniform).
    """
    across = float(np.exp(rng.uniform(*np.log(diameter))))
    return FieldSettings(
        size=size,
        diameter=across,
        cells=_number_of_cells(rng, size, across),
        mix=_mix(rng),
        mildness=0.5,
        anisocytosis=float(rng.uniform(0.02, 0.14)),
        touching=float(rng.uniform(0, 0.9)),
        overlap=float(rng.choice([0.0, rng.uniform(0, 0.25), rng.uniform(0.2, 0.55)], p=[0.25, 0.4, 0.35])),
        pressed=float(rng.choice([0.0, 0.3, 0.7, 1.0], p=[0.4, 0.3, 0.2, 0.1])),
        overlay=float(rng.choice([1.0, rng.uniform(0.1, 1.0)])),
        irregularity=float(rng.uniform(0.005, 0.05)),
        pallor=float(rng.choice([0.0, rng.uniform(0.2, 0.8), rng.uniform(0.8, 1.3)], p=[0.15, 0.35, 0.5])),
        edge=float(rng.uniform(0.12, 0.5)),
        texture=float(rng.uniform(0, 0.12)),
        inclusions=float(rng.choice([0.0, 0.04, 0.25], p=[0.45, 0.35, 0.2])),
        platelets=float(rng.choice([0.0, 1.0, 3.0, 8.0])),
        white_cells=float(rng.choice([0.0, 0.4, 1.5])),
        artefacts=float(rng.choice([0.0, 0.5, 2.0])),
        dirt=float(rng.choice([0.0, rng.uniform(0, 0.3)])),
        stain=_stain(rng),
        optics=_optics(rng, across),
        light=_light(rng),
        camera=_camera(rng),
    )


def _number_of_cells(rng: np.random.Generator, size: tuple[int, int], diameter: float) -> int:
    """Sparse to crowded: 3 to 75 % of the field covered, at most 300 cells."""
    covered = float(
        rng.choice([rng.uniform(0.03, 0.2), rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.75)], p=[0.2, 0.5, 0.3])
    )
    return int(np.clip(round(covered * size[0] * size[1] / (np.pi / 4 * diameter**2)), 1, 300))


def _mix(rng: np.random.Generator) -> dict[CellClass, float]:
    """Mostly ordinary cells, or any share of any few classes."""
    ordinary = float(rng.choice([0.95, 0.7, 0.2]))
    chosen = 1 + rng.choice(len(CELL_CLASSES) - 1, size=int(rng.integers(1, 6)), replace=False)
    shares = rng.dirichlet(np.ones(len(chosen))) * (1 - ordinary)
    return {
        "discocyte": ordinary,
        **{CELL_CLASSES[i]: float(share) for i, share in zip(chosen, shares, strict=True)},
    }


def _rgb(values: np.ndarray) -> RGB:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _stain(rng: np.random.Generator) -> Stain:
    if rng.random() < 0.75:
        base = np.asarray(_RED_CELLS[int(rng.choice(len(_RED_CELLS), p=_HOW_COMMON))]) * np.exp(
            rng.normal(0, 0.2, 3)
        )
    else:
        base = rng.dirichlet((2.0, 4.0, 2.5)) * rng.uniform(0.5, 3.0)
    return Stain(
        hemoglobin=_rgb(base),
        nucleus=_rgb(np.array([1.2, 1.9, 0.6]) * np.exp(rng.normal(0, 0.3, 3))),
        cytoplasm=_rgb(np.array([0.22, 0.4, 0.12]) * np.exp(rng.normal(0, 0.4, 3))),
        plasma=_rgb(rng.uniform(0, 0.06, 3)),
        concentration=float(np.exp(rng.normal(0, 0.4))),
    )


def _optics(rng: np.random.Generator, diameter: float) -> Optics:
    """Defocus up to a twelfth of a cell; the halo bright, dark or missing."""
    return Optics(
        defocus=float(rng.choice([rng.uniform(0.4, 1.2), rng.uniform(0.4, max(diameter / 12, 1.0))])),
        halo=float(rng.choice([0.0, rng.uniform(0.05, 0.5), rng.uniform(-0.4, -0.05)], p=[0.3, 0.5, 0.2])),
        halo_width=float(rng.uniform(0.03, 0.12) * diameter + 1),
        chromatic_shift=float(rng.choice([0.0, 1.0, 2.0], p=[0.7, 0.2, 0.1])),
    )


def _light(rng: np.random.Generator) -> Light:
    if rng.random() < 0.75:
        colour = np.asarray(_BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]) + rng.normal(0, 0.03, 3)
    else:
        colour = rng.uniform(0.45, 1.0) * rng.uniform(0.8, 1.0, 3)
    return Light(
        background=_rgb(np.clip(colour, 0.2, 1.0)),
        tilt=float(rng.uniform(0, 0.4) * rng.random()),
        vignette=float(rng.uniform(0, 0.6) * rng.random()),
        angle=float(rng.uniform(0, 2 * np.pi)),
        stop="none" if (roll := rng.random()) < 0.9 else "round" if roll < 0.96 else "bars",
    )


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        gain=_rgb(rng.uniform(0.93, 1.0, 3)),
        gamma=float(rng.uniform(1.0, 2.2)),
        electrons=float(np.exp(rng.uniform(np.log(300), np.log(30000)))),
        read_noise=float(rng.uniform(0, 0.012)),
        jpeg_quality=None if rng.random() < 0.4 else int(rng.integers(35, 96)),
        scale_bar=bool(rng.random() < 0.15),
    )
