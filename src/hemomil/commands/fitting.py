"""One fit as train and study both need it: the model, and a judge of what is strange, made of controls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hemomil.commands.inner_folds import sureness
from hemomil.commands.settings import Settings
from hemomil.errors import SettingsError
from hemomil.explain.deletion import Predict
from hemomil.novelty.combined import Combined
from hemomil.novelty.held_out import GROUPS, donor_groups
from hemomil.novelty.judge import CellFlags, Judge
from hemomil.novelty.scorers import fit_scorer
from hemomil.types import Bag, Prediction

if TYPE_CHECKING:
    from hemomil.mil import AnomalyMIL


def fit(
    bags: Sequence[Bag], method: str, settings: Settings, *, seed: int, n_inner: int = 0
) -> "tuple[AnomalyMIL, Judge]":
    """Fit one method on labelled bags; nothing outside these bags is looked at.

    `n_inner`: folds within these bags that say how sure the probabilities are; 0: nothing is said of it.
    """
    from hemomil.mil import AnomalyMIL

    model = AnomalyMIL(method=method, settings=settings.mil, control=settings.control, seed=seed)
    model.fit(bags, [bag.label for bag in bags], patients=[bag.patient for bag in bags])
    judge = _judge(model, bags, settings.control, seed)
    if n_inner == 0:
        return model, judge
    classes = tuple(map(str, model.classes_))
    temperature, sets = sureness(bags, method, settings, classes, n_folds=n_inner, seed=seed)
    return model, replace(judge, temperature=temperature, sets=sets)


def predict(
    model: "AnomalyMIL", judge: Judge, bags: Sequence[Bag]
) -> tuple[list[Prediction], list[CellFlags]]:
    """What the model says of each bag, with the judge's anomaly in place of its own, and what is strange."""
    predictions = model.predict_cells(bags)
    flags = [
        judge.flags(said.anomaly, model.embedded(bag) if judge.scorers else ())
        for bag, said in zip(bags, predictions, strict=True)
    ]
    told = [
        replace(said, anomaly=of.anomaly, probabilities=judge.scaled(said.probabilities))
        for said, of in zip(predictions, flags, strict=True)
    ]
    return told, flags


def without(model: "AnomalyMIL", judge: Judge) -> Predict:
    """Class probabilities of a bag without some of its cells, at the same temperature as with all."""
    return lambda bag, sets: judge.scaled(model.predict_without(bag, sets))


def _judge(model: "AnomalyMIL", bags: Sequence[Bag], control: str, seed: int) -> Judge:
    """Error rates from the control cells, each scored by what was made without its donor.

    A method with witnesses is judged by scorers in their embeddings, another by its own distance, whose
    reference was made without the donor, but whose network was not.
    """
    controls = [bag for bag in bags if bag.label == control]
    samples = [bag.sample for bag in controls for _ in bag.cell_ids]
    scores, patients = model.control_scores_
    if not model.core_.judges:
        return Judge.fit(scores, patients, samples, seed=seed)
    embedded = [model.embedded(bag) for bag in bags]
    group = np.array([model.donor_groups_.get(bag.patient, -1) for bag in bags])
    scorers = [
        _scorer([of_bag[judge] for of_bag in embedded], bags, group != judge - 1, control, seed)
        for judge in range(len(model.core_.judges))
    ]
    alone = len(scorers) == 1  # of a single control donor there is no witness
    blind = [0 if alone else number + 1 for number in group.tolist()]
    held_out = np.concatenate(
        [
            scorers[number].score_samples(of_bag[number])
            for of_bag, bag, number in zip(embedded, bags, blind, strict=True)
            if bag.label == control
        ]
    )
    model.control_scores_ = (held_out, patients)
    return Judge.fit(held_out, patients, samples, scorers=scorers, networks=range(len(scorers)), seed=seed)


def judge_of_site(model: "AnomalyMIL", judge: Judge, controls: Sequence[Bag], seed: int) -> Judge:
    """The judge made anew of control bags that no network has seen; what is usual among all cells stays."""
    site = _site_judge(model, judge, controls, seed)
    return replace(site, temperature=judge.temperature, sets=judge.sets)


def _site_judge(model: "AnomalyMIL", judge: Judge, controls: Sequence[Bag], seed: int) -> Judge:
    samples = [bag.sample for bag in controls for _ in bag.cell_ids]
    scores, patients = model.control_scores_
    if not judge.scorers:
        return Judge.fit(scores, patients, samples, seed=seed)
    cells = np.concatenate([model.embedded(bag)[0] for bag in controls])
    group, donors = donor_groups(patients, GROUPS, seed=seed), np.asarray(patients)
    first = judge.scorers[0]
    assert isinstance(first, Combined)
    usual = first.relative.background
    groups = range(-1, group.max() + 1 if group.max() > 0 else 0)  # -1: all of them
    scorers = [
        Combined.fit(cells[group != left], donors[group != left].tolist(), usual, seed=seed)
        for left in groups
    ]
    held_out = np.empty(len(cells))
    for left in range(group.max() + 1):
        scorer = scorers[left + 1 if len(scorers) > 1 else 0]
        held_out[group == left] = scorer.score_samples(cells[group == left])
    model.control_scores_ = (held_out, patients)
    return Judge.fit(held_out, patients, samples, scorers=scorers, networks=[0] * len(scorers), seed=seed)


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
