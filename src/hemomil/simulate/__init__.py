"""Simulated blood smears with known truth, drawn from a physical model."""

from hemomil.simulate.cohort import simulate
from hemomil.simulate.field import Field, draw_field
from hemomil.simulate.settings import (
    CELL_CLASSES,
    Camera,
    FieldSettings,
    Light,
    Optics,
    SimulateSettings,
    Stain,
)
from hemomil.simulate.variation import random_field_settings

__all__ = [
    "CELL_CLASSES",
    "Camera",
    "Field",
    "FieldSettings",
    "Light",
    "Optics",
    "SimulateSettings",
    "Stain",
    "draw_field",
    "random_field_settings",
    "simulate",
]
