"""AnomalyMIL: learn classes of bags, predict them, and say what each cell counted. Follows scikit-learn.

Axes: S bags, N cells of a bag, M cells of training controls, E networks averaged, K classes, F features.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from hemomil.errors import ModelError, SettingsError
from hemomil.mil.checks import check_bags, check_labels
from hemomil.mil.core import Core
from hemomil.mil.encoder import FeatureSpace
from hemomil.mil.explanation import explain_bag, pool_again
from hemomil.mil.in_step import InStep, can_go_in_step
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import QuantilePooling
from hemomil.mil.quantiles import fit_quantiles
from hemomil.mil.reference import HealthyReference, fit_crossfitted
from hemomil.mil.roi_encoder import settled_weights
from hemomil.mil.settings import MILSettings, parts_of
from hemomil.mil.sharing import is_shared
from hemomil.mil.side_by_side import Training, can_stand, store_for, train_side_by_side
from hemomil.mil.train import VECTOR_CHUNK, Trainer, TrainingBags, fit_healthy
from hemomil.streams import stream, stream_seed
from hemomil.types import Bag, Notice, Prediction, class_order

Progress = Callable[[int, int], None]
"""Hears epochs done and epochs in all."""


Place = tuple[torch.nn.ModuleList, int, int]
"""Where a network belongs, and as which member of an ensemble it is made."""
IN_STEP_BYTES = 2**30
"""Networks are trained in step while their bags, standardised for each of them, take no more."""


@dataclass(frozen=True)
class Lesson:
    """What a model learns from, bag by bag."""

    cells: list[Float[Tensor, "_ ..."]]
    targets: Int64[Tensor, "S"]
    groups: Int64[Tensor, "S"]
    """Which of the groups of control donors; -1 for bags of other classes."""
    donors: list[str]

    @property
    def controls(self) -> list[int]:
        """Rows of the control bags."""
        return torch.nonzero(self.groups >= 0)[:, 0].tolist()


class AnomalyMIL(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Names the class of a bag of cells and says what each cell counted.

    Parameters
    ----------
    method : one of `METHODS`.
    settings : `MILSettings`; `None` is `MILSettings.preset("default")`.
    control : the healthy class.
    seed : fixes every random draw; no global random state is used or changed.

    After `fit`: `classes_` (the control class first), `feature_shape_`, `notices_`, `control_scores_`: the
    anomaly of the training controls' cells, each by a reference made without its donor's group, and their
    patients; and `donor_groups_`: which group each control donor is in.

    Notes
    -----
    Probabilities are not calibrated. With few patients the intervals of any metric are wide: compare methods
    on the same patients.
    """

    def __init__(
        self,
        method: str = "default",
        settings: MILSettings | None = None,
        control: str = "control",
        seed: int = 0,
    ) -> None:
        self.method = method
        self.settings = settings
        self.control = control
        self.seed = seed

    def fit(
        self,
        bags: Sequence[Bag],
        labels: Sequence[str | None] | None = None,
        patients: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> "AnomalyMIL":
        """Learn from labelled bags; `labels` and `patients` default to those of the bags.

        Raises FeaturesError (shape, NaN, empty bag), ModelError (labels), SettingsError (method, control).
        """
        lesson = self._begin(bags, labels, patients, check_bags(bags))
        core = self.core_
        with torch.no_grad():
            flat = [core.space.flatten(bag.to(core.device)) for bag in lesson.cells]
        self._learn_spaces(flat, lesson)
        if core.parts.pooling != "quantiles":
            self._train(lesson, progress or (lambda done, total: None))
        self._fit_reference(core.reference, self._judged_controls(lesson), lesson)
        if core.parts.pooling == "quantiles":
            self._fit_quantiles(lesson)
        core.eval()
        return self

    def _begin(
        self,
        bags: Sequence[Bag],
        labels: Sequence[str | None] | None,
        patients: Sequence[str] | None,
        shape: tuple[int, ...],
    ) -> Lesson:
        """Take note of classes and donors, and make networks that know nothing yet."""
        parts, settings = parts_of(self.method), self._settings
        known = check_labels(bags, labels, self.control)
        donors = [bag.patient for bag in bags] if patients is None else list(patients)
        self.feature_shape_, self.classes_ = shape, np.array(class_order(known, self.control))
        self.notices_: tuple[Notice, ...] = ()
        groups = self._donor_groups(known, donors)
        self.donor_groups_ = {
            donor: group for donor, group in zip(donors, groups.tolist(), strict=True) if group >= 0
        }
        targets = torch.tensor([list(self.classes_).index(label) for label in known])
        witnesses = _n_groups(groups) if parts.witnesses and settings.witnesses else 0
        core = Core(parts, shape, len(self.classes_), settings, witnesses)
        self.core_ = core.to(torch_device(settings))
        return Lesson([_tensor(bag.features) for bag in bags], targets, groups, donors)

    @property
    def _settings(self) -> MILSettings:
        return self.settings if self.settings is not None else MILSettings.preset("default")

    def _donor_groups(self, labels: list[str], patients: list[str]) -> Int64[Tensor, "S"]:
        """Control donors in groups of about equal number; -1 for bags of other classes."""
        is_control = [label == self.control for label in labels]
        donors = sorted({patient for patient, control in zip(patients, is_control, strict=True) if control})
        count = min(self._settings.crossfit_folds, len(donors))
        if count < 2:
            text = "only one control patient: anomaly scores of controls come from a reference that saw them"
            self.notices_ = (*self.notices_, Notice(kind="few-patients", subject=self.control, text=text))
        order = stream(self.seed, "donor-groups").permutation(len(donors))
        group = {donors[donor]: place % count for place, donor in enumerate(order.tolist())}
        rows = [group[p] if control else -1 for p, control in zip(patients, is_control, strict=True)]
        return torch.tensor(rows)

    @torch.no_grad()
    def _learn_spaces(self, flat: list[Tensor], lesson: Lesson) -> None:
        """`flat`: the cells of each bag as vectors."""
        core = self.core_
        everyone = list(range(len(flat)))
        known = [everyone, *(self._without(group, lesson.donors) for group in range(len(core.witnesses)))]
        for space, rows in zip([core.space, *core.witness_spaces], known, strict=True):
            healthy = [flat[row] for row in rows if lesson.groups[row] >= 0]
            cast(FeatureSpace, space).learn(torch.cat(healthy), torch.cat([flat[row] for row in rows]))

    def _without(self, group: int, patients: list[str]) -> list[int]:
        """Rows of the bags of all patients but this group of control donors: their ill samples go as well."""
        return [row for row, patient in enumerate(patients) if self.donor_groups_.get(patient) != group]

    def _train(self, lesson: Lesson, progress: Progress) -> None:
        core, settings, cells = self.core_, self._settings, lesson.cells
        with torch.no_grad():  # RoI maps stay in half precision until a step needs them
            flat = cells if core.reads_maps else [core.space.flatten(bag.to(core.device)) for bag in cells]
        bags = TrainingBags(flat, lesson.targets, lesson.groups)
        everyone = self._standardised(bags, core.space)

        places = [(core.networks, member, member) for member in range(len(core.networks))]
        places += [(core.witnesses, group, core.judging) for group in range(len(core.witnesses))]
        done, total = count(1), len(places) * settings.epochs

        def told(_: int) -> None:
            progress(next(done), total)

        for some in self._in_step(places, bags):
            trainers = [
                self._trainer(
                    self._known_to_witness(bags, place, lesson) if home is core.witnesses else everyone,
                    member,
                )
                for home, place, member in some
            ]
            trained = InStep(trainers).run(told) if len(trainers) > 1 else [trainers[0].run(told)]
            for (home, place, _), network in zip(some, trained, strict=True):
                home[place] = network

    def _in_step(self, places: Sequence[Place], bags: TrainingBags) -> list[list[Place]]:
        """Which networks are trained together."""
        parts = [self.core_.parts.of_member(member) for _, _, member in places]
        able = not self.core_.reads_maps and not is_shared() and all(map(can_go_in_step, parts))
        if not able or len(places) * bags.nbytes > IN_STEP_BYTES:
            return [[place] for place in places]
        pairs = list(zip(places, parts, strict=True))
        return [[place for place, own in pairs if own == kind] for kind in dict.fromkeys(parts)]

    def _known_to_witness(self, bags: TrainingBags, group: int, lesson: Lesson) -> TrainingBags:
        """The bags of all patients but this group of control donors, as their own space has them."""
        others = bags.at(torch.tensor(self._without(group, lesson.donors)))
        return self._standardised(others, cast(FeatureSpace, self.core_.witness_spaces[group]))

    @torch.no_grad()
    def _standardised(self, bags: TrainingBags, space: FeatureSpace) -> TrainingBags:
        """Flat vectors standardised, once for all epochs; RoI maps as they are."""
        if self.core_.reads_maps:
            return bags
        return replace(bags, cells=[space.standardise(vectors) for vectors in bags.cells])

    def _trainer(self, bags: TrainingBags, member: int) -> Trainer:
        """Of a network such as this member of the ensemble, on these bags."""
        return Trainer(
            bags,
            self.core_.parts.of_member(member),
            self.feature_shape_,
            len(self.classes_),
            self._settings,
            seed=self._member_seed(member),
            device=self.core_.device,
        )

    def _member_seed(self, member: int) -> int:
        return stream_seed(self.seed, "member", member)

    @torch.no_grad()
    def _judged_controls(self, lesson: Lesson) -> Float[Tensor, "M H"]:
        """The vectors by which the cells of all controls are judged."""
        self.core_.eval()
        return torch.cat([self.core_.judged(lesson.cells[row]) for row in lesson.controls])

    @torch.no_grad()
    def _fit_reference(
        self, reference: HealthyReference, judged: Float[Tensor, "M H"], lesson: Lesson
    ) -> None:
        settings, rows = self._settings, lesson.controls
        sizes = torch.tensor([len(lesson.cells[row]) for row in rows])
        group_M = torch.repeat_interleave(lesson.groups[rows], sizes).to(judged.device)
        seed = stream_seed(self.seed, "reference")
        fit_healthy(reference, judged, group_M, settings, seed)
        if int(group_M.max()) > 0:
            scores = fit_crossfitted(judged, group_M, settings, seed).distance(judged, group_M)
        else:
            scores = reference.distance(judged)
        donors = [lesson.donors[row] for row in rows for _ in range(len(lesson.cells[row]))]
        self.control_scores_ = (scores.double().cpu().numpy(), tuple(donors))

    @torch.no_grad()
    def _fit_quantiles(self, lesson: Lesson) -> None:
        """Control bags enter with their cross-fitted distances: as strange as a new donor's would look."""
        sizes = [len(bag) for bag in lesson.cells]
        is_control = (lesson.groups >= 0).tolist()
        controls = [size for size, control in zip(sizes, is_control, strict=True) if control]
        crossfitted = iter(torch.split(torch.from_numpy(self.control_scores_[0]), controls))
        reference, judged = self.core_.reference, self.core_.judged
        distances = [
            next(crossfitted) if control else reference.distance(judged(bag)).cpu().double()
            for bag, control in zip(lesson.cells, is_control, strict=True)
        ]
        pooling = self.core_.members[0].pooling
        assert isinstance(pooling, QuantilePooling)
        fit_quantiles(pooling.cpu(), torch.cat(distances), Segments.of_sizes(sizes), lesson.targets)
        pooling.to(self.core_.device)

    def recalibrated(self, bags: Sequence[Bag], patients: Sequence[str] | None = None) -> "AnomalyMIL":
        """A copy whose anomaly and `control_scores_` rest on these control bags, of another laboratory say.

        What was learned stays: class probabilities, weights and contributions are the same to the last bit,
        also where they rest on distances. Raises FeaturesError for bags of another shape.
        """
        self._check(bags)
        model = copy.deepcopy(self)
        model.notices_ = ()
        donors = [bag.patient for bag in bags] if patients is None else list(patients)
        groups = model._donor_groups([self.control] * len(bags), donors)
        lesson = Lesson([_tensor(bag.features) for bag in bags], torch.zeros_like(groups), groups, donors)
        reference = model.core_.add_site_reference()
        model._fit_reference(reference, model._judged_controls(lesson), lesson)
        return model

    @torch.no_grad()
    def standardised(self, bag: Bag) -> Float[np.ndarray, "N F"]:
        """The cells in standard deviations of the training controls' cells, unclipped; maps as in `space`."""
        self._check([bag])
        space, parts = self.core_.space, torch.split(_tensor(bag.features), self.core_.chunk)
        vectors = [(space.flatten(part.to(self.core_.device)) - space.mean) / space.scale for part in parts]
        return torch.cat(vectors).cpu().numpy()

    def predict_proba(self, bags: Sequence[Bag]) -> Float[np.ndarray, "S K"]:
        """Class probabilities of each bag, in the order of `classes_`."""
        return np.stack([prediction.probabilities for prediction in self.predict_cells(bags)])

    def predict(self, bags: Sequence[Bag]) -> np.ndarray:
        """The most probable class of each bag."""
        chosen = self.predict_proba(bags).argmax(axis=1)
        return self.classes_[chosen]  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict_cells(self, bags: Sequence[Bag]) -> list[Prediction]:
        """Class probabilities of each bag, and attention, anomaly, weight and contribution of each cell.

        A bag is judged by itself: to the last bit, its numbers do not depend on the bags judged with it.
        """
        self._check(bags)
        with settled_weights():
            return [self._judge(bag) for bag in bags]

    @torch.no_grad()
    def embedded(self, bag: Bag) -> list[Float[np.ndarray, "N H"]]:
        """Where the cells lie for each network that judges them: one made with all control donors first, then
        one without each of `donor_groups_` in turn. Empty for a method without such networks.
        """
        self._check([bag])
        return [vectors.cpu().numpy() for vectors in self.core_.embedded(_tensor(bag.features))]

    @torch.no_grad()
    def judged(self, bag: Bag) -> Float[np.ndarray, "N H"]:
        """The vectors of the cells whose distance to the healthy reference is the model's own anomaly."""
        self._check([bag])
        vectors: np.ndarray = self.core_.judged(_tensor(bag.features)).cpu().numpy()
        return vectors

    @torch.no_grad()
    def predict_without(self, bag: Bag, sets: Sequence[Int[np.ndarray, "_"]]) -> Float[np.ndarray, "S K"]:
        """Class probabilities of the bag without each of these sets of its cells (rows), as `predict_proba`.

        The cells are read once for all sets. Raises ModelError where a set leaves no cell.
        """
        self._check([bag])
        evidence, _ = self.core_.read(_tensor(bag.features))
        at_once = max(1, VECTOR_CHUNK // len(bag))
        found = [np.empty((0, len(self.classes_)))]
        for start in range(0, len(sets), at_once):
            kept = [_others(bag, cells).to(self.core_.device) for cells in sets[start : start + at_once]]
            found.append(pool_again(self.core_.members, evidence, kept).cpu().numpy())
        return np.concatenate(found)

    def _check(self, bags: Sequence[Bag]) -> None:
        if not hasattr(self, "core_"):
            raise ModelError(
                "this model has not learned anything yet", hint="call fit, or load a trained model"
            )
        check_bags(bags, self.feature_shape_)

    def _judge(self, bag: Bag) -> Prediction:
        evidence, distances = self.core_.read(_tensor(bag.features))
        explained = explain_bag(self.core_.members, evidence)
        return Prediction(
            sample=bag.sample,
            classes=tuple(map(str, self.classes_)),
            cell_ids=bag.cell_ids,
            anomaly=distances.double().cpu().numpy(),
            **{name: value.cpu().numpy() for name, value in explained.items()},
        )

    def to_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was learned as arrays, the rest as JSON; `from_state` predicts the same to the last bit."""
        tensors = {name: value.cpu().contiguous().numpy() for name, value in self.core_.state_dict().items()}
        scores, patients = self.control_scores_
        config = {
            "method": self.method,
            "settings": self._settings.model_dump(),
            "control": self.control,
            "seed": self.seed,
            "classes": list(map(str, self.classes_)),
            "feature_shape": list(self.feature_shape_),
            "control_patients": list(patients),
        }
        return {**tensors, "control_scores": scores}, config

    @classmethod
    def from_state(cls, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> "AnomalyMIL":
        """The model that `to_state` described. Raises ModelError if the two don't belong together."""
        tensors = dict(tensors)
        try:
            model = cls(
                config["method"], MILSettings(**config["settings"]), config["control"], config["seed"]
            )
            model.classes_ = np.array(config["classes"])
            model.feature_shape_ = tuple(config["feature_shape"])
            model.control_scores_ = (tensors.pop("control_scores"), tuple(config["control_patients"]))
            model.notices_ = ()
            witnesses = {name.split(".")[1] for name in tensors if name.startswith("witnesses.")}
            core = Core(
                parts_of(model.method),
                model.feature_shape_,
                len(model.classes_),
                model._settings,
                len(witnesses),
            )
            if any(name.startswith("site_reference.") for name in tensors):
                core.add_site_reference()
            core.load_state_dict({name: _tensor(value) for name, value in tensors.items()}, strict=True)
        except (KeyError, ValueError, RuntimeError) as problem:
            raise ModelError(
                f"the saved model cannot be put together: {problem}", hint="train it again with this version"
            ) from problem
        model.core_ = core.to(torch_device(model._settings)).eval()
        return model


def fit_side_by_side(
    models: Sequence[AnomalyMIL], bags: Sequence[Sequence[Bag]], progress: Progress | None = None
) -> None:
    """Fit each model to bags of its own, as `fit` does but for the order of sums; on a GPU far faster.

    Networks of Table 1's methods that read RoI maps are trained all at once, as many as memory allows; the
    maps of a bag that several models learn from are moved to the device once. Any other model is fitted by
    itself. Raises as `fit` does.
    """
    shape = check_bags(_distinct(bags))
    together: dict[tuple[MILSettings, int], list[_Fit]] = {}
    for model, own in zip(models, bags, strict=True):
        if can_stand(parts_of(model.method), shape, model._settings):
            lesson = model._begin(own, None, None, shape)
            fit = _Fit(model, own, lesson)
            together.setdefault((model._settings, len(model.classes_)), []).append(fit)
        else:
            model.fit(own, progress=progress)
    for fits in together.values():
        _fit_together(fits, progress)


class _Fit(NamedTuple):
    model: AnomalyMIL
    bags: Sequence[Bag]
    lesson: Lesson


def _fit_together(fits: Sequence[_Fit], progress: Progress | None) -> None:
    """Models of the same settings and equally many classes."""
    first = fits[0].model
    settings, device = first._settings, first.core_.device
    known = _distinct([fit.bags for fit in fits])
    number = {id(bag): place for place, bag in enumerate(known)}
    cells = [_tensor(bag.features) for bag in known]
    store = store_for(cells, settings, device)
    if store is None:
        for fit in fits:
            fit.model.fit(fit.bags, progress=progress)
        return
    with torch.no_grad():
        flat = [first.core_.space.flatten(bag.to(device)) for bag in cells]
    rows = [[number[id(bag)] for bag in fit.bags] for fit in fits]
    trainings = [
        Training(
            np.array(own),
            lesson.targets.numpy(),
            lesson.groups.numpy(),
            model.core_.parts,
            model._member_seed(0),
        )
        for (model, _, lesson), own in zip(fits, rows, strict=True)
    ]
    n_classes, told = len(first.classes_), progress or (lambda done, total: None)
    trained = train_side_by_side(store, trainings, first.feature_shape_, n_classes, settings, told)
    for (model, _, lesson), own, found in zip(fits, rows, trained, strict=True):
        core = model.core_
        core.networks[0] = found.network
        model._learn_spaces([flat[row] for row in own], lesson)
        model._fit_reference(core.reference, found.controls, lesson)
        core.eval()


def _distinct(bags: Sequence[Sequence[Bag]]) -> list[Bag]:
    """Each bag once."""
    return list({id(bag): bag for own in bags for bag in own}.values())


def _n_groups(groups: Int64[Tensor, "S"]) -> int:
    """Groups of control donors; 0 where there is one only, which cannot be left out."""
    last = int(groups.max())
    return last + 1 if last > 0 else 0


def _others(bag: Bag, cells: Int[np.ndarray, "_"]) -> Int64[Tensor, "_"]:
    """The rows of a bag that are not among these."""
    stays = np.ones(len(bag), dtype=bool)
    stays[cells] = False
    if not stays.any():
        raise ModelError(
            f"sample {bag.sample!r} has no other cells than the {len(bag)} to be taken out",
            hint="leave at least one cell: without cells there is nothing to judge",
        )
    return torch.from_numpy(np.flatnonzero(stays))


def _tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, without a copy where memory may be shared."""
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def torch_device(settings: MILSettings) -> torch.device:
    """Where to compute. Raises SettingsError for a device that is not there."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and (n_gpus == 0 or (torch.device(name).index or 0) >= n_gpus):
        raise SettingsError(f"no device {name!r} here", hint="set mil.device to cpu or auto")
    return torch.device(name)
