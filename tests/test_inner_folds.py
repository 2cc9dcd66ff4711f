"""How sure probabilities are: temperature and conformal sets, learned on samples that a model did not see."""

import numpy as np
import pandas as pd
import pytest

from hemomil import commands
from hemomil.commands import fitting
from hemomil.commands.inner_folds import few_patients, inner_folds
from hemomil.commands.model_folder import load_model
from hemomil.novelty import apply_temperature, fit_temperature
from hemomil.novelty.sets import ALPHA
from mil_cohorts import make_bag, make_cohort
from test_protocol import brought, cohort, quick

pytestmark = pytest.mark.usefixtures("no_pages", "unchecked_shapes")


def settings(**flags):
    return commands.resolve_settings(flags={"mil.epochs": 3, "mil.members": 2, "mil.embedding": 4, **flags})


def noisy_labels(seed, n=24):
    """A cohort in which a third of the labels are wrong: a model that has learned them is too sure."""
    rng = np.random.default_rng(seed)
    bags = make_cohort(seed, n)
    names = sorted({bag.label for bag in bags})
    wrong = rng.random(len(bags)) < 1 / 3
    labels = [names[int(rng.integers(len(names)))] if is_wrong else bag.label
              for bag, is_wrong in zip(bags, wrong, strict=True)]  # fmt: skip
    return [make_bag(bag.sample, bag.features, label=label) for bag, label in zip(bags, labels, strict=True)]


def test_a_model_that_learned_wrong_labels_is_told_to_be_less_sure():
    bags = noisy_labels(1)
    chosen = settings(**{"mil.epochs": 60})
    model, jury = fitting.fit(bags, "att", chosen, seed=0, n_inner=4)
    assert jury.temperature > 1.3
    own, (told, _) = model.predict_cells(bags), fitting.predict(model, jury, bags)
    assert [said.predicted for said in told] == [said.predicted for said in own]
    before, after = (np.array([said.probabilities.max() for said in all_of]) for all_of in (own, told))
    assert (after <= before + 1e-12).all()
    without = fitting.without(model, jury)(bags[0], [np.array([0])])
    expected = apply_temperature(model.predict_without(bags[0], [np.array([0])]), jury.temperature)
    np.testing.assert_array_equal(without, expected)


def test_what_is_learned_of_a_sample_comes_from_models_without_its_patient(monkeypatch):
    from hemomil.mil import AnomalyMIL

    seen, asked = [], []
    real_fit, real_predict = AnomalyMIL.fit, AnomalyMIL.predict_proba

    def fit(self, bags, *rest, **more):
        seen.append({bag.patient for bag in bags})
        return real_fit(self, bags, *rest, **more)

    def predict_proba(self, bags):
        asked.append({bag.patient for bag in bags})
        return real_predict(self, bags)

    monkeypatch.setattr(AnomalyMIL, "fit", fit)
    monkeypatch.setattr(AnomalyMIL, "predict_proba", predict_proba)
    bags = make_cohort(2)
    fitting.fit(bags, "mean", settings(), seed=0, n_inner=3)
    assert len(seen) == 4  # the model, then three without a fold
    assert len(asked) == 3
    assert all(not known & of for known, of in zip(seen[1:], asked, strict=True))
    assert set.union(*asked) == {bag.patient for bag in bags}


def test_train_writes_sets_and_predict_repeats_them(tmp_path):
    file = brought(tmp_path, cohort())
    commands.train(file, tmp_path / "model", settings=quick(**{"mil.epochs": 5}), jobs=1)
    commands.predict(file, tmp_path / "out", model=tmp_path / "model", jobs=1)
    first, again = (pd.read_csv(tmp_path / name / "samples.csv") for name in ("model", "out"))
    assert first["conformal_set"].notna().any()
    pd.testing.assert_series_equal(first["conformal_set"], again["conformal_set"])
    jury = load_model(tmp_path / "model" / "model").jury
    assert jury.sets is not None
    names = set(jury.sets.classes)
    assert all(set(told.split("|")) <= names for told in first["conformal_set"].dropna())
    # health is in the sets of those who look like a tenth of the control patients at least
    healthy = first["conformal_set"].fillna("").str.split("|").map(lambda some: jury.sets.classes[0] in some)
    assert (healthy == (first["healthy_like"] > ALPHA)).all()
    assert jury.sets.classes[0] == "control"


def test_a_study_has_sets_only_where_asked(tmp_path):
    file = brought(tmp_path, cohort())
    few = {"mil.epochs": 3}
    commands.study(file, tmp_path / "plain", settings=quick(**few), jobs=1)
    assert "conformal_set" not in pd.read_csv(tmp_path / "plain" / "samples.csv")
    commands.study(file, tmp_path / "sure", settings=quick(inner_folds=2, **few), jobs=1)
    assert "conformal_set" in pd.read_csv(tmp_path / "sure" / "samples.csv")


def test_no_inner_folds_of_a_class_with_one_patient():
    bags = [*make_cohort(3), make_bag("lonely", make_cohort(3)[0].features, label="rare")]
    assert inner_folds(bags, settings()) == 0
    assert few_patients(bags).subject == "rare"
    assert inner_folds(bags[:-1], settings()) > 1
    assert inner_folds(bags[:-1], settings(inner_folds=0)) == 0


def test_no_inner_folds_of_maps_unless_asked():
    rng = np.random.default_rng(0)
    bags = [
        make_bag(f"{k}", rng.normal(size=(2, 3, 4, 4)), label=("control", "ill")[k % 2]) for k in range(6)
    ]
    assert inner_folds(bags, settings()) == 0
    assert inner_folds(bags, settings(inner_folds=3)) == 3


def test_a_temperature_needs_patients():
    told = np.array([[0.9, 0.1]] * 4)
    assert fit_temperature(told, ["a"] * 4, list("wxyz"), classes=("a", "b")) == pytest.approx(1)
