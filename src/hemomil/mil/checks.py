"""What must hold of bags and labels before computing; a failure names the sample and the remedy."""

from collections.abc import Sequence

import numpy as np

from hemomil.errors import FeaturesError, ModelError, SettingsError
from hemomil.types import Bag

HALF_SIGN, HALF_INFINITY = np.array([-0.0, np.inf], np.float16).view(np.uint16)


def check_bags(bags: Sequence[Bag], feature_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of a cell's features. Raises FeaturesError where bags are empty, unlike or not finite."""
    if not bags:
        raise FeaturesError("there is no bag", hint="give at least one sample with cells")
    expected = bags[0].features.shape[1:] if feature_shape is None else feature_shape
    whose = (
        f"those of sample {bags[0].sample!r}" if feature_shape is None else "those the model was trained on"
    )
    for bag in bags:
        _check_bag(bag, expected, whose)
    return expected


def _check_bag(bag: Bag, expected: tuple[int, ...], whose: str) -> None:
    if len(bag) == 0:
        raise FeaturesError(
            f"sample {bag.sample!r} has no cells",
            hint="leave it out: without cells there is nothing to judge",
        )
    if bag.features.shape[1:] != expected:
        raise FeaturesError(
            f"cells of sample {bag.sample!r} have features of shape {_shape(bag.features.shape[1:])}; "
            f"{whose} have shape {_shape(expected)}",
            hint="describe all samples with the same --features as the model's",
        )
    if not _all_finite(bag.features):
        finite = np.isfinite(bag.features).reshape(len(bag), -1).all(axis=1)
        cell = bag.cell_ids[int(np.argmin(finite))]
        raise FeaturesError(
            f"sample {bag.sample!r}: {int((~finite).sum())} cells have features not finite, first {cell!r}",
            hint="leave these cells out, or give the missing features a value",
        )


def _all_finite(features: np.ndarray) -> bool:
    """Whether there is no NaN or infinity; half precision is read as bits, as numpy converts each number."""
    if features.dtype == np.float16 and features.size:
        return bool((features.view(np.uint16) & ~HALF_SIGN).max() < HALF_INFINITY)
    return bool(np.isfinite(features).all())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def check_labels(
    bags: Sequence[Bag], labels: Sequence[str | None] | None, control: str, *, needs_control: bool = True
) -> list[str]:
    """Labels of all bags, from `labels` or else the bags. Raises ModelError if one cannot learn from them."""
    given = [bag.label for bag in bags] if labels is None else list(labels)
    if len(given) != len(bags):
        raise ModelError(f"{len(bags)} bags but {len(given)} labels", hint="give one label for each bag")
    missing = [bag.sample for bag, label in zip(bags, given, strict=True) if not label]
    if missing:
        raise ModelError(
            f"{len(missing)} samples have no label, first {missing[0]!r}",
            hint="fill in the label column, or leave these samples out of training",
        )
    known = [str(label) for label in given]
    classes = sorted(set(known))
    if len(classes) < 2:
        raise ModelError(
            f"all samples are {classes[0]!r}", hint="training needs samples of two or more classes"
        )
    if needs_control and control not in classes:
        raise SettingsError(
            f"no training sample is {control!r}; there are {', '.join(map(repr, classes))}",
            hint="name the healthy class with --control",
        )
    return known
