"""The verbs: each command as a Python function of the same name; rooms meet here.

    from hemomil import commands
    commands.study(Path("manifest.csv"), Path("run"), settings=commands.resolve_settings())

A function is imported when it is first asked for, so that nothing here costs the import of torch. No module
may have the name of a function: it would take the function's place.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "check": "cohorts",
    "demo": "tour",
    "detect": "detection",
    "detect_evaluate": "evaluation",
    "detect_train": "detection",
    "explain": "explaining",
    "export_anndata": "export",
    "export_csv": "export",
    "export_geojson": "export",
    "export_labels": "export",
    "export_onnx": "export",
    "info": "about",
    "init": "cohorts",
    "predict": "training",
    "recalibrate": "recalibration",
    "report": "page",
    "resolve_settings": "settings",
    "simulate": "cohorts",
    "simulation": "cohorts",
    "study": "cross_validation",
    "train": "training",
    "view": "viewing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"hemomil.commands has no {name!r}")
    return getattr(import_module(f"hemomil.commands.{_HOME[name]}"), name)
