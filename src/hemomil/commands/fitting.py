"""One fit as train and study both need it: the model, and p-values calibrated on its control donors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hemomil.commands.settings import Settings
from hemomil.errors import SettingsError
from hemomil.novelty import Calibration
from hemomil.types import Bag

if TYPE_CHECKING:
    from hemomil.mil import AnomalyMIL


def fit(
    bags: Sequence[Bag], method: str, settings: Settings, *, seed: int
) -> "tuple[AnomalyMIL, Calibration]":
    """Fit one method on labelled bags; nothing outside these bags is looked at."""
    from hemomil.mil import AnomalyMIL

    model = AnomalyMIL(method=method, settings=settings.mil, control=settings.control, seed=seed)
    model.fit(bags, [bag.label for bag in bags], patients=[bag.patient for bag in bags])
    scores, patients = model.control_scores_
    samples = [bag.sample for bag in bags if bag.label == settings.control for _ in bag.cell_ids]
    return model, Calibration.fit(scores, patients, samples)


def refuse_unlearnable(classes: Sequence[str], control: str) -> None:
    """Raise SettingsError where the classes leave nothing to learn."""
    if control not in classes:
        raise SettingsError(
            f"no sample has the control class {control!r}; the labels are {', '.join(classes)}",
            hint="name the healthy class with --control",
        )
    if len(classes) < 2:
        raise SettingsError(
            "every sample to learn from has the same label", hint="a diagnosis needs at least two classes"
        )
