"""Who is in a simulated cohort: sites with their stain and camera, patients with their disorder's cells.

A site has its stain, camera and magnification; a patient shifts stain, cell size and its spread; a sample
shifts stain a little; an image has its focus and light. Nothing depends on how many other patients there are.
"""

from dataclasses import dataclass

import numpy as np

from hemomil.simulate.settings import (
    CELL_CLASSES,
    RGB,
    Camera,
    CellClass,
    Disorder,
    FieldSettings,
    Light,
    Optics,
    SimulateSettings,
    Stain,
)
from hemomil.streams import stream, stream_seed

HALLMARKS: dict[Disorder, dict[CellClass, float]] = {
    "control": {},
    "scd": {"sickle": 0.6, "ovalocyte": 0.25, "target": 0.15},
    "thal": {"target": 0.3, "teardrop": 0.2, "microcyte": 0.25, "hypochromic": 0.25},
    "xero": {"xerocyte": 0.4, "stomatocyte": 0.35, "echinocyte": 0.25},
    "hs": {"spherocyte": 1.0},
}
"""The cells by which a disorder is known, and their shares among its hallmark cells."""

_SITE_STAINS: tuple[RGB, ...] = (
    (0.14, 0.60, 0.40),
    (0.22, 0.48, 0.26),
    (0.34, 0.95, 0.48),
    (0.30, 0.52, 0.44),
)
_SITE_LIGHTS: tuple[RGB, ...] = (
    (0.93, 0.90, 0.91),
    (0.88, 0.88, 0.93),
    (0.93, 0.93, 0.88),
    (0.80, 0.84, 0.83),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A laboratory: how its smears look when nobody is ill."""

    name: str
    stain: Stain
    background: RGB
    camera: Camera
    defocus: float
    halo: float
    magnification: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A person whose blood is drawn."""

    patient: str
    label: Disorder
    number: int
    """Within the class; with the class it names the patient's random streams."""
    site: Site
    prevalence: float
    mix: dict[CellClass, float]
    """Probability of each cell class."""
    diameter: float
    anisocytosis: float
    stain: Stain


def draw_site(settings: SimulateSettings, number: int) -> Site:
    """The stain, light and camera of a site."""
    rng = stream(settings.seed, f"site-{number}")
    kind = number % len(_SITE_STAINS)
    camera = Camera(
        gain=_jittered(rng, (0.98, 0.98, 0.98), 0.01),
        gamma=float(rng.uniform(1.2, 2.0)),
        electrons=float(rng.uniform(4000, 20000)),
        read_noise=float(rng.uniform(0.001, 0.005)),
    )
    return Site(
        name=f"site-{number + 1}",
        stain=Stain(hemoglobin=_jittered(rng, _SITE_STAINS[kind], 0.08)),
        background=_jittered(rng, _SITE_LIGHTS[kind], 0.01),
        camera=camera,
        defocus=float(rng.uniform(0.7, 1.2)),
        halo=float(rng.uniform(0.05, 0.3)),
        magnification=float(rng.uniform(0.92, 1.08)),
    )


def draw_patient(settings: SimulateSettings, label: Disorder, number: int) -> Patient:
    """A patient's own blood and stain; the pseudonym says nothing of the disorder."""
    rng = stream(settings.seed, label, f"patient-{number}", "blood")
    # sites take turns within a class: few patients at random sites would tie stain to disorder by chance
    turn = stream_seed(settings.seed, label, "first site") + number
    site = draw_site(settings, turn % settings.sites)
    prevalence = _prevalence(rng, settings.prevalence.get(label, 0.0), settings.spread)
    size = 0.95 if label == "thal" else 1.0
    return Patient(
        patient=f"p{stream_seed(settings.seed, label, f'patient-{number}', 'pseudonym') % 16**8:08x}",
        label=label,
        number=number,
        site=site,
        prevalence=prevalence,
        mix=_mix(label, prevalence, _prevalence(rng, settings.background, settings.spread)),
        diameter=settings.diameter * site.magnification * size * float(np.exp(rng.normal(0, 0.03))),
        anisocytosis=float(rng.uniform(0.03, 0.06)) + (0.03 if label == "thal" else 0.0),
        stain=_shifted(rng, site.stain, 0.05),
    )


def draw_image_settings(
    settings: SimulateSettings, patient: Patient, sample: int, image: int
) -> FieldSettings:
    """What one image of a patient's sample is drawn with."""
    names = (patient.label, f"patient-{patient.number}", f"sample-{sample}")
    stain = _shifted(stream(settings.seed, *names, "stain"), patient.stain, 0.03)
    rng = stream(settings.seed, *names, f"image-{image}", "light")
    site = patient.site
    optics = Optics(defocus=site.defocus * float(rng.uniform(0.8, 1.5)), halo=site.halo, halo_width=3.0)
    light = Light(
        background=_jittered(rng, site.background, 0.01),
        tilt=float(rng.uniform(0, 0.12)),
        vignette=float(rng.uniform(0, 0.12)),
        angle=float(rng.uniform(0, 2 * np.pi)),
    )
    return FieldSettings(
        size=settings.size,
        diameter=patient.diameter,
        cells=int(rng.integers(settings.cells[0], settings.cells[1] + 1)),
        mix=patient.mix,
        mildness=settings.mildness,
        anisocytosis=patient.anisocytosis,
        touching=settings.touching,
        overlap=settings.overlap,
        platelets=settings.platelets,
        white_cells=settings.white_cells,
        artefacts=settings.artefacts,
        dirt=0.02,
        stain=stain,
        optics=optics,
        light=light,
        camera=site.camera,
    )


def _prevalence(rng: np.random.Generator, mean: float, spread: float) -> float:
    if mean in (0.0, 1.0):
        return mean
    return float(rng.beta(mean * spread, (1 - mean) * spread))


def _mix(label: Disorder, prevalence: float, background: float) -> dict[CellClass, float]:
    """Hallmark cells at `prevalence`; of the rest, `background` are abnormal cells of any class."""
    strange = (1 - prevalence) * background / (len(CELL_CLASSES) - 1)
    mix = dict.fromkeys(CELL_CLASSES, strange)
    mix["discocyte"] = (1 - prevalence) * (1 - background)
    for name, share in HALLMARKS[label].items():
        mix[name] += prevalence * share
    return mix


def _shifted(rng: np.random.Generator, stain: Stain, spread: float) -> Stain:
    concentration = stain.concentration * float(np.exp(rng.normal(0, spread)))
    return stain.model_copy(
        update={"hemoglobin": _jittered(rng, stain.hemoglobin, spread), "concentration": concentration}
    )


def _jittered(rng: np.random.Generator, colour: RGB, spread: float) -> RGB:
    red, green, blue = (float(c * np.exp(rng.normal(0, spread))) for c in colour)
    return red, green, blue
