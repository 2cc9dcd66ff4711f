"""Every setting of a run in one frozen value: preset, then file, then --set, then flags."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import joblib
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hemomil.describe import DescribeSettings, Kind
from hemomil.detect import DetectSettings
from hemomil.errors import SettingsError
from hemomil.files import write_text
from hemomil.mil import METHODS, MILSettings

THRESHOLD = "threshold"
"""The detector without a network."""
EACH = "each"
"""Leave out every disease in turn."""
PRESET_FEATURES = {"default": ("shape",), "paper": ("roi",)}


class StudySettings(BaseModel):
    """Cross-validation: folds x runs x methods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(
        ("att", "anomaly+att+sic", "default"), description="Methods to compare, by name."
    )
    folds: int = Field(3, ge=2, description="Folds of the cross-validation.")
    runs: int = Field(5, ge=1, description="Repeats with other folds and other random streams.")
    group: str = Field("patient", description="Column whose values a split never separates.")
    leave_out: tuple[str, ...] = Field(
        (), description="Classes never trained on and scored as unseen; `each`: every disease in turn."
    )
    site_out: bool = Field(False, description="Every site is a fold, tested by models of the other sites.")
    evaluate_on: str = Field(
        "", description="COLUMN=VALUE: metrics only over these samples; training uses all."
    )
    side_by_side: bool | None = Field(
        None,
        description="Train the networks of all jobs at once, in one process, where their method allows it: "
        "Table 1's on RoI maps, as the paper trains them. Left open: on a GPU.",
    )
    bootstrap: int = Field(1000, ge=100, description="Patient-level bootstrap draws for the intervals.")


class Settings(BaseModel):
    """Everything that decides the numbers of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["default", "paper"] = Field("default", description="Where the other defaults come from.")
    control: str = Field("control", description="Name of the healthy class.")
    seed: int = Field(0, ge=0, description="Seed from which every random stream gets its name.")
    method: str = Field("default", description="Method that `train` fits.")
    features: tuple[Kind, ...] = Field(("shape",), description="What describes a cell; several are joined.")
    features_key: str = Field("", description="obsm key of brought features; empty: X.")
    country: str = Field(
        "", description="ISO 3166 code, three letters: whose electricity the CO2 of a run is reckoned with."
    )
    exclude: tuple[str, ...] = Field((), description="COLUMN=VALUE: samples set aside.")
    inner_folds: int | None = Field(
        None,
        ge=0,
        description="Folds within the training samples that say how sure probabilities are (temperature, "
        "conformal sets); 0: not. Left open: 5 in `train`, unless cells are maps, and 0 in `study`.",
    )
    skip_unreadable: bool = Field(False, description="Leave out images that cannot be read, and say so.")
    detector: str = Field(
        "small", description="small, resnet50, threshold (no network), or a file of `detect train`."
    )
    detect: DetectSettings = DetectSettings()
    describe: DescribeSettings = DescribeSettings()
    mil: MILSettings = MILSettings.preset("default")
    study: StudySettings = StudySettings()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is kept of a cell: what is asked for, and what the method reads."""
        return tuple(dict.fromkeys((*self.describe.kinds, *self.features)))


def resolve_settings(
    *, config: Path | None = None, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from preset, TOML file, `key=value` assignments and flags; the later wins.

    `flags` maps dotted keys to values; None means that the flag was not given.
    Raises SettingsError for an unknown key, a value out of bounds or an unreadable file.
    """
    given: dict[str, Any] = _read_toml(config) if config else {}
    for assignment in assignments:
        key, value = _parse_assignment(assignment)
        _put(given, key, value)
    for key, value in (flags or {}).items():
        if value is not None:
            _put(given, key, value)
    return _validated(given)


def _validated(given: dict[str, Any]) -> Settings:
    preset = given.get("preset", "default")
    if preset not in PRESET_FEATURES:
        raise SettingsError(f"preset {preset!r} is unknown", hint=f"use one of {', '.join(PRESET_FEATURES)}")
    base: dict[str, Any] = {
        "features": PRESET_FEATURES[preset],
        "mil": MILSettings.preset(preset).model_dump(),
    }
    try:
        settings = Settings.model_validate(_merged(base, given))
    except ValidationError as error:
        raise explained(error) from None
    for method in (settings.method, *settings.study.methods):
        check_method(method)
    _check_features(settings.features)
    _check_network(settings)
    return settings


def _check_features(features: Sequence[str]) -> None:
    if not features or "crop" in features:
        raise SettingsError(
            f"features {', '.join(features) or 'none'}: a crop is a picture, not a vector",
            hint="use shape, roi or embedding; crops are kept with --set describe.kinds=['shape','crop']",
        )


def _check_network(settings: Settings) -> None:
    if settings.detector == THRESHOLD and "roi" in settings.kinds:
        raise SettingsError(
            f"RoI maps need a network, and --detector {THRESHOLD} has none",
            hint="use --features shape, or another detector",
        )


def check_method(name: str) -> None:
    """Raise SettingsError, with the nearest name, for a method that does not exist."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(
            f"method {name!r} is unknown", hint=f"{meant}the methods are {', '.join(METHODS)}"
        )


def write_settings(path: Path, settings: Settings) -> None:
    """Write every setting, resolved, as TOML."""
    write_text(path, tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))


def jobs_or_cores(jobs: int | None) -> int:
    """How many processes to use: what was asked for, else one for every core."""
    return jobs or joblib.cpu_count()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as settings: {error}", hint="it must be TOML") from None


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {text!r} is not key=value", hint="for example --set mil.epochs=5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise SettingsError(
                f"{dotted}: {name} is a value, not a group", hint="see settings.toml of any run"
            )
    tree[last] = value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if nested else value
    return result


def explained(error: ValidationError) -> SettingsError:
    """What pydantic found, one line a setting."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key} is not a setting{_nearest(problem['loc'])}")
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return SettingsError(
        "settings that cannot be obeyed:\n  " + "\n  ".join(lines),
        hint="settings.toml of any run lists every key",
    )


def _nearest(location: tuple[str | int, ...]) -> str:
    names: Any = Settings().model_dump()
    for part in location[:-1]:
        names = names.get(part, {}) if isinstance(names, dict) else {}
    near = difflib.get_close_matches(str(location[-1]), list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
