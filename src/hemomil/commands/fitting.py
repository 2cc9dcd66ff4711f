"""One fit as train and study both need it: the model, and a jury on what is strange, made of controls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hemomil.commands.inner_folds import sureness
from hemomil.commands.settings import Settings
from hemomil.errors import SettingsError
from hemomil.explain.deletion import Predict
from hemomil.novelty.combined import Combined
from hemomil.novelty.held_out import GROUPS, donor_groups
from hemomil.novelty.intervals import DonorBootstrap
from hemomil.novelty.jury import CellFlags, Heard, Jury
from hemomil.novelty.samples import SampleScale
from hemomil.novelty.scorers import Scorer, fit_scorer
from hemomil.types import Bag, Prediction

if TYPE_CHECKING:
    from hemomil.mil import AnomalyMIL

HEARD_CELLS = 65_536
"""Cells whose places in six embeddings are held at a time."""


def fit(
    bags: Sequence[Bag], method: str, settings: Settings, *, seed: int, n_inner: int = 0
) -> "tuple[AnomalyMIL, Jury]":
    """Fit one method on labelled bags; nothing outside these bags is looked at."""
    model = blank_model(method, settings, seed).fit(bags)
    return model, jury_for(model, bags, settings, n_inner=n_inner)


def blank_model(method: str, settings: Settings, seed: int) -> "AnomalyMIL":
    """A model that knows nothing yet."""
    from hemomil.mil import AnomalyMIL

    return AnomalyMIL(method=method, settings=settings.mil, control=settings.control, seed=seed)


def jury_for(model: "AnomalyMIL", bags: Sequence[Bag], settings: Settings, *, n_inner: int = 0) -> Jury:
    """The jury beside a model that was fitted to these bags.

    `n_inner`: folds within these bags that say how sure the probabilities are; 0: nothing is said of it.
    """
    jury = _jury(model, bags, settings.control, model.seed)
    if n_inner == 0:
        return jury
    classes = tuple(map(str, model.classes_))
    temperature, sets = sureness(bags, model.method, settings, classes, n_folds=n_inner, seed=model.seed)
    return replace(jury, temperature=temperature, sets=sets)


def predict(model: "AnomalyMIL", jury: Jury, bags: Sequence[Bag]) -> tuple[list[Prediction], list[CellFlags]]:
    """What the model says of each bag, with the jury's anomaly in place of its own, and what is strange."""
    predictions = model.predict_cells(bags)
    flags = [_flags(model, jury, bag, said) for bag, said in zip(bags, predictions, strict=True)]
    told = [
        replace(said, anomaly=of.anomaly, probabilities=jury.scaled(said.probabilities))
        for said, of in zip(predictions, flags, strict=True)
    ]
    return told, flags


def _flags(model: "AnomalyMIL", jury: Jury, bag: Bag, said: Prediction) -> CellFlags:
    """The jury's verdict; it hears the cells of a large bag a chunk at a time."""
    heard = []
    for start in range(0, len(bag), HEARD_CELLS):
        rows = slice(start, start + HEARD_CELLS)
        part = replace(bag, features=bag.features[rows], cell_ids=bag.cell_ids[rows])
        heard.append(jury.hear(said.anomaly[rows], _places(model, jury, part)))
    return jury.verdict(Heard.join(heard))


def _places(model: "AnomalyMIL", jury: Jury, bag: Bag) -> Sequence[np.ndarray]:
    """Where the cells lie for those that judge them, or for the model's own distance."""
    if jury.chief is not None:
        return model.embedded(bag)
    return [model.judged(bag)] if jury.bootstrap is not None else ()


def without(model: "AnomalyMIL", jury: Jury) -> Predict:
    """Class probabilities of a bag without some of its cells, at the same temperature as with all."""
    return lambda bag, sets: jury.scaled(model.predict_without(bag, sets))


def _jury(model: "AnomalyMIL", bags: Sequence[Bag], control: str, seed: int) -> Jury:
    """Judges, and error rates from the control cells, each scored by the judge that does not know its donor.

    A method with witnesses is judged by scorers in their embeddings, another by its own distance, whose
    reference was made without the donor, but whose network was not. Of a single control donor there is no
    witness, and the network that knows them is the judge.
    """
    healthy = [bag for bag in bags if bag.label == control]
    samples = [bag.sample for bag in healthy for _ in bag.cell_ids]
    if not model.core_.judges:
        return _own_jury(model, healthy, samples, seed)
    embedded = [model.embedded(bag) for bag in bags]
    group = np.array([model.donor_groups_.get(bag.patient, -1) for bag in bags])
    everyone = np.ones(len(bags), dtype=bool)
    chief = _scorer([of_bag[0] for of_bag in embedded], bags, everyone, control, seed)
    networks = tuple(range(1, len(embedded[0])))
    scorers = [
        _scorer([of_bag[network] for of_bag in embedded], bags, group != network - 1, control, seed)
        for network in networks
    ]
    if not scorers:
        networks, scorers, group = (0,), [chief], np.zeros_like(group)
    controls = [row for row, bag in enumerate(bags) if bag.label == control]
    trial = _Trial(
        scores=np.concatenate(
            [scorers[group[row]].score_samples(embedded[row][networks[group[row]]]) for row in controls]
        ),
        judges=np.repeat(group[controls], [len(bag) for bag in healthy]),
        cells=[np.concatenate([embedded[row][network] for row in controls]) for network in networks],
        samples=samples,
    )
    return _seated(model, _Bench(chief, scorers, networks), trial, seed)


class _Bench(NamedTuple):
    """Who judges: the chief, who knows all control donors, then those without a group of them each."""

    chief: Scorer
    scorers: Sequence[Scorer]
    networks: Sequence[int]
    """In whose embedding each of the scorers judges."""


class _Trial(NamedTuple):
    """The control cells, each judged by who does not know its donor."""

    scores: np.ndarray
    judges: np.ndarray
    """Number of the scorer that judged."""
    cells: Sequence[np.ndarray]
    """All of them, as each scorer sees them."""
    samples: Sequence[str]


def _seated(model: "AnomalyMIL", bench: _Bench, trial: _Trial, seed: int) -> Jury:
    """The jury of these judges, its error rates those of the trial, whose scores are kept as the model's."""
    _, patients = model.control_scores_
    model.control_scores_ = (trial.scores, patients)
    return Jury.fit(
        trial.scores,
        patients,
        trial.samples,
        trial.judges,
        chief=bench.chief,
        scorers=bench.scorers,
        networks=bench.networks,
        scales=_scales(bench.scorers, trial, patients),
        seed=seed,
    )


def _scales(scorers: Sequence[Scorer], trial: _Trial, patients: Sequence[str]) -> list[SampleScale]:
    """What each judge finds usual in samples of the control donors whom it knows: alone, it knows all."""
    donors, bags = np.asarray(patients), np.asarray(trial.samples)
    scales = []
    for number, (scorer, seen) in enumerate(zip(scorers, trial.cells, strict=True)):
        known = trial.judges != number if len(scorers) > 1 else trial.judges == number
        scores = scorer.score_samples(seen[known])
        scales.append(SampleScale.fit(scores, donors[known].tolist(), bags[known].tolist()))
    return scales


def _own_jury(model: "AnomalyMIL", controls: Sequence[Bag], samples: Sequence[str], seed: int) -> Jury:
    """The model's own distance is the only judge; how sure it is says a bootstrap of its donors."""
    scores, patients = model.control_scores_
    bootstrap = None
    if len(set(patients)) > 1:
        cells = np.concatenate([model.judged(bag) for bag in controls])
        bootstrap = DonorBootstrap.fit(cells, patients, seed=seed)
    own = np.zeros(len(scores), dtype=np.int64)
    return Jury.fit(scores, patients, samples, own, bootstrap=bootstrap, seed=seed)


def jury_of_site(model: "AnomalyMIL", jury: Jury, controls: Sequence[Bag], seed: int) -> Jury:
    """The jury made anew of control bags that no network has seen; what is usual among all cells stays."""
    site = _site_jury(model, jury, controls, seed)
    return replace(site, temperature=jury.temperature, sets=jury.sets)


def _site_jury(model: "AnomalyMIL", jury: Jury, controls: Sequence[Bag], seed: int) -> Jury:
    samples = [bag.sample for bag in controls for _ in bag.cell_ids]
    _, patients = model.control_scores_
    if jury.chief is None:
        return _own_jury(model, controls, samples, seed)
    embedded = [model.embedded(bag) for bag in controls]
    group, donors = donor_groups(patients, GROUPS, seed=seed), np.asarray(patients)

    def fitted(old: Scorer, network: int, known: np.ndarray) -> tuple[Combined, np.ndarray]:
        assert isinstance(old, Combined)
        cells = np.concatenate([of_bag[network] for of_bag in embedded])
        usual = old.relative.background
        return Combined.fit(cells[known], donors[known].tolist(), usual, seed=seed), cells

    chief, _ = fitted(jury.chief, 0, np.ones(len(group), dtype=bool))
    held_out, scorers, networks, seen = np.empty(len(group)), [], [], []
    for left in range(group.max() + 1):
        number = left % len(jury.scorers)
        known = group != left if group.max() > 0 else group == left
        scorer, cells = fitted(jury.scorers[number], jury.networks[number], known)
        scorers.append(scorer)
        networks.append(jury.networks[number])
        seen.append(cells)
        held_out[group == left] = scorer.score_samples(cells[group == left])
    return _seated(model, _Bench(chief, scorers, networks), _Trial(held_out, group, seen, samples), seed)


def _scorer(
    cells: Sequence[np.ndarray], bags: Sequence[Bag], seen: np.ndarray, control: str, seed: int
) -> Combined:
    """Learn from the cells of these bags what is healthy, beside what is usual among all."""
    known = [(own, bag) for own, bag, see in zip(cells, bags, seen.tolist(), strict=True) if see]
    healthy = [(own, bag) for own, bag in known if bag.label == control]
    scorer = fit_scorer(
        "combined",
        np.concatenate([own for own, _ in healthy]),
        [bag.patient for _, bag in healthy for _ in bag.cell_ids],
        np.concatenate([own for own, _ in known]),
        seed=seed,
    )
    assert isinstance(scorer, Combined)
    return scorer


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
