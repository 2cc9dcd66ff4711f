"""`info`: what is installed, or what a run folder or model is. Never imports torch."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hemomil.commands.run_folder import load_record

PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy", "pandas", "anndata", "zarr")


def info(run: Path | None = None) -> dict[str, Any]:
    """Versions of what matters; with a run folder, what that run was and what it found."""
    if run is None:
        return {
            "hemomil": version("hemomil"),
            "python": platform.python_version(),
            "system": platform.platform(),
            **{name: _version(name) for name in PACKAGES},
        }
    record = load_record(run)
    metrics = run / "metrics.json"
    if metrics.exists():
        record["metrics"] = json.loads(metrics.read_text(encoding="utf-8"))["methods"]
    return record


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
