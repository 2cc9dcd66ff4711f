"""A trained model on disk: model.safetensors and model.json, and a detector of the user's beside them.

It holds all that a prediction needs: weights, healthy reference, calibration, and how cells were found
and described. No pickle; the training data are not needed.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hemomil.commands.settings import Settings
from hemomil.errors import FeaturesError, ModelError
from hemomil.files import write_json, written_whole
from hemomil.novelty.jury import Jury

if TYPE_CHECKING:
    from hemomil.mil import AnomalyMIL

FORMAT = 3
DETECTOR_FILE = "detector.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What `train` leaves and `predict` reads."""

    model: "AnomalyMIL"
    jury: Jury
    settings: Settings
    fingerprint: Mapping[str, Any]
    """What the features are: kinds, names, versions, detector."""


def save_model(folder: Path, trained: TrainedModel) -> None:
    """Write the model; a detector that is a file of the user's is copied along."""
    tensors, config = trained.model.to_state()
    novelty = {f"novelty.{name}": array for name, array in trained.jury.to_state().items()}
    settings = trained.settings
    if Path(settings.detector).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(settings.detector, folder / DETECTOR_FILE)
        settings = settings.model_copy(update={"detector": DETECTOR_FILE})
    with written_whole(folder / "model.safetensors") as part:
        save_file({n: np.asarray(a, order="C") for n, a in {**tensors, **novelty}.items()}, part)
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "model": config,
            "settings": settings.model_dump(mode="json"),
            "input_fingerprint": dict(trained.fingerprint),
        },
    )


def load_model(folder: Path) -> TrainedModel:
    """Read what save_model wrote; ModelError says what is missing or damaged."""
    from hemomil.mil import AnomalyMIL

    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no usable model in {folder}: {error}", hint="give a folder made by `hemomil train`"
        ) from None
    if record.get("format") != FORMAT:
        raise ModelError(
            f"{folder} has model format {record.get('format')!r}, this version reads {FORMAT}",
            hint="train again, or install the version that wrote it",
        )
    settings = Settings.model_validate(record["settings"])
    if settings.detector == DETECTOR_FILE:
        settings = settings.model_copy(update={"detector": str(folder / DETECTOR_FILE)})
    own = {name: array for name, array in tensors.items() if not name.startswith("novelty.")}
    novelty = {n.removeprefix("novelty."): a for n, a in tensors.items() if n.startswith("novelty.")}
    return TrainedModel(
        model=AnomalyMIL.from_state(own, record["model"]),
        jury=_jury(novelty, folder),
        settings=settings,
        fingerprint=record["input_fingerprint"],
    )


def _jury(state: Mapping[str, np.ndarray], folder: Path) -> Jury:
    try:
        return Jury.from_state(state)
    except KeyError as missing:
        raise ModelError(
            f"{folder / 'model.safetensors'} lacks {missing}", hint="train again with this version"
        ) from None


def refuse_other_features(trained: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise FeaturesError where cells are described otherwise than the model was trained on."""
    differing = [key for key in sorted({*trained, *given}) if trained.get(key) != given.get(key)]
    if differing:
        key = differing[0]
        raise FeaturesError(
            f"these features are not those of the model: {key} is {_short(given.get(key))}, "
            f"the model has {_short(trained.get(key))}",
            hint="describe the cells as in training (same features, same detector, same columns)",
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "…"
