"""Numbers of diagnoses: against second implementations, and the laws that their intervals obey."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)
from torchmetrics.functional import classification as second

from hemomil.errors import SettingsError
from hemomil.stats import (
    classification_metrics,
    paired_difference,
    patient_draws,
    rank_draws,
    study_metrics,
)

CLASSES = ("control", "sickle", "spherocyte", "target")


def cohort(n_patients=40, per_patient=4, classes=CLASSES, seed=0, signal=0.25):
    """Labels, probabilities and patients: one label a patient, probabilities a little right."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), per_patient)
    truth = patient % len(classes)
    probabilities = rng.dirichlet(np.ones(len(classes)), len(patient))
    probabilities[np.arange(len(truth)), truth] += signal
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return [classes[t] for t in truth], probabilities, [f"p{p:03d}" for p in patient]


def metrics_of(truth, probabilities, patients, classes=CLASSES, **rest):
    return classification_metrics(
        truth, probabilities, classes, patients, **{"control": "control", "seed": 7, "n_boot": 200} | rest
    )


def table(methods=("att", "default"), runs=2, **rest):
    """A study's samples.csv; every method and run its own probabilities."""
    parts = []
    for number, (method, run) in enumerate((m, r) for m in methods for r in range(runs)):
        truth, probabilities, patients = cohort(
            seed=number, signal=0.5 if method == "default" else 0.2, **rest
        )
        part = pd.DataFrame({"patient": patients, "label": truth, "method": method, "run": run, "fold": 0})
        part["sample"] = [f"s{row:03d}" for row in range(len(part))]
        part["predicted"] = [CLASSES[k] for k in probabilities.argmax(axis=1)]
        part[[f"prob_{name}" for name in CLASSES]] = probabilities
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def pair_counts(truth, scores, weights):
    """AUROC by counting every pair of a positive and a negative row; ties count half."""
    won = total = 0.0
    for t, s, w in zip(truth, scores, weights, strict=True):
        for u, r, v in zip(truth, scores, weights, strict=True):
            if t and not u:
                won += w * v * ((s > r) + 0.5 * (s == r))
                total += w * v
    return won / total


# --- values


def test_sample_metrics_agree_with_torchmetrics():
    truth, probabilities, patients = cohort()
    found = metrics_of(truth, probabilities, patients)
    preds, target = torch.tensor(probabilities), torch.tensor([CLASSES.index(t) for t in truth])
    k = len(CLASSES)
    expected = {
        "accuracy": second.multiclass_accuracy(preds, target, k, average="micro"),
        "balanced_accuracy": second.multiclass_accuracy(preds, target, k, average="macro"),
        "macro_f1": second.multiclass_f1_score(preds, target, k, average="macro"),
        "macro_auroc": second.multiclass_auroc(preds, target, k, average="macro"),
        "macro_auprc": second.multiclass_average_precision(preds, target, k, average="macro"),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(float(value), abs=1e-6), name
    per_class = second.multiclass_average_precision(preds, target, k, average=None)
    for name, value in zip(CLASSES, per_class, strict=True):
        assert found[f"auprc_{name}"].value == pytest.approx(float(value), abs=1e-6)


def test_the_auroc_of_a_class_is_the_share_of_pairs_in_order():
    truth, probabilities, patients = cohort()
    probabilities = probabilities.round(1)  # ties
    found = metrics_of(truth, probabilities, patients)
    for index, name in enumerate(CLASSES):
        positive = np.array(truth) == name
        expected = pair_counts(positive, probabilities[:, index], np.ones(len(truth)))
        assert found[f"auroc_{name}"].value == pytest.approx(expected)


@pytest.mark.parametrize("classes", [("control", "infected"), ("infected", "control")])
def test_with_two_classes_the_macro_number_is_that_of_the_disorder(classes):
    truth, probabilities, patients = cohort(classes=classes)
    found = metrics_of(truth, probabilities, patients, classes)
    infected, score = np.array(truth) == "infected", probabilities[:, classes.index("infected")]
    assert found["macro_auroc"].value == pytest.approx(roc_auc_score(infected, score))
    assert found["macro_auprc"].value == pytest.approx(average_precision_score(infected, score))
    assert found["macro_auroc"].low == found["auroc_infected"].low


def test_patients_are_called_by_the_mean_of_their_samples():
    truth, probabilities, patients = cohort(signal=0.1)
    rows = pd.DataFrame(probabilities).assign(patient=patients, truth=truth).groupby("patient")
    means = rows[list(range(len(CLASSES)))].mean().to_numpy()
    labels = rows["truth"].first().tolist()
    called = [CLASSES[k] for k in means.argmax(axis=1)]
    found = metrics_of(truth, probabilities, patients)
    assert found["accuracy_patient"].value == pytest.approx(accuracy_score(labels, called))
    assert found["macro_f1_patient"].value == pytest.approx(f1_score(labels, called, average="macro"))
    assert found["accuracy_patient"].value > found["accuracy"].value


def test_a_patient_with_two_labels_has_no_patient_number():
    truth, probabilities, patients = cohort()
    truth[0] = "target"
    assert not [name for name in metrics_of(truth, probabilities, patients) if name.endswith("_patient")]


# --- draws


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_draw_is_scikit_learns_number_on_those_weights(data):
    n = data.draw(st.integers(4, 12))
    truth = np.array([True, False, *data.draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))])
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=float)
    patients = np.arange(n) // 2
    draws = patient_draws(int(patients.max()) + 1, 8, seed=data.draw(st.integers(0, 99)))
    auroc, precision = rank_draws(truth, scores, patients, draws)
    for row, weights in enumerate(draws[:, patients].astype(float)):
        if not weights[truth].any() or not weights[~truth].any():
            assert np.isnan(auroc[row])
            assert np.isnan(precision[row])
            continue
        kept = weights > 0
        assert auroc[row] == pytest.approx(pair_counts(truth, scores, weights))
        assert auroc[row] == pytest.approx(
            roc_auc_score(truth[kept], scores[kept], sample_weight=weights[kept])
        )
        assert precision[row] == pytest.approx(
            average_precision_score(truth[kept], scores[kept], sample_weight=weights[kept])
        )


def test_the_interval_is_that_of_metrics_on_redrawn_samples():
    """The slow way: copy the rows of each drawn patient and call scikit-learn again."""
    truth, probabilities, patients = cohort(n_patients=15)
    n_boot, names = 60, sorted(set(patients))
    found = metrics_of(truth, probabilities, patients, n_boot=n_boot)
    rows_of = [np.flatnonzero(np.array(patients) == name) for name in names]
    codes = np.array([CLASSES.index(t) for t in truth])
    slow = []
    for counts in patient_draws(len(names), n_boot, seed=7):
        rows = np.concatenate([np.tile(own, count) for own, count in zip(rows_of, counts, strict=True)])
        present = np.unique(codes[rows])
        macro = {"labels": present, "average": "macro", "zero_division": 0}
        called = probabilities[rows].argmax(axis=1)
        one_class = [(codes[rows] == k, probabilities[rows, k]) for k in present]
        slow.append(
            [
                accuracy_score(codes[rows], called),
                np.mean([(called[codes[rows] == k] == k).mean() for k in present]),
                f1_score(codes[rows], called, **macro),
                np.mean([roc_auc_score(*pair) for pair in one_class]),
                np.mean([average_precision_score(*pair) for pair in one_class]),
            ]
        )
    low, high = np.percentile(np.array(slow), [2.5, 97.5], axis=0)
    names_of = ["accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_auprc"]
    assert [found[name].low for name in names_of] == pytest.approx(low.tolist())
    assert [found[name].high for name in names_of] == pytest.approx(high.tolist())
    called = probabilities.argmax(axis=1)
    assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(codes, called))


def coverage(n_cohorts, n_patients, n_boot):
    """How often the intervals of accuracy and AUROC contain the truth that cohorts are drawn from."""
    hits = np.zeros(2)
    separation, donor_sd = 1.0, 0.7
    area = norm.cdf(separation / np.sqrt(2 * (1 + donor_sd**2)))
    accuracy = norm.cdf(separation / 2 / np.sqrt(1 + donor_sd**2))
    for number in range(n_cohorts):
        rng = np.random.default_rng(number)
        patient = np.repeat(np.arange(n_patients), 4)
        sick = patient % 2 == 1
        score = separation * sick + donor_sd * rng.normal(size=n_patients)[patient]
        score = score + rng.normal(size=len(patient))
        positive = norm.cdf(score - separation / 2)
        found = metrics_of(
            np.where(sick, "infected", "control").tolist(),
            np.stack([1 - positive, positive], axis=1),
            [f"p{p:03d}" for p in patient],
            ("control", "infected"),
            seed=number,
            n_boot=n_boot,
        )
        for index, (name, true) in enumerate([("accuracy", accuracy), ("macro_auroc", area)]):
            hits[index] += found[name].low <= true <= found[name].high
    return hits / n_cohorts


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = coverage(n_cohorts=200, n_patients=50, n_boot=200)
    assert (covered >= 0.90).all(), covered
    assert (covered <= 0.985).all(), covered


@pytest.mark.slow
@pytest.mark.parametrize("n_patients", [30, 70, 150])
def test_intervals_cover_the_truth_in_many_cohorts(n_patients):
    covered = coverage(n_cohorts=2000, n_patients=n_patients, n_boot=1000)
    assert (covered >= 0.90).all(), covered
    assert (covered <= 0.98).all(), covered


def test_copies_of_a_patients_samples_do_not_narrow_the_interval():
    truth, probabilities, patients = cohort()
    once = metrics_of(truth, probabilities, patients)
    thrice = metrics_of(truth * 3, np.tile(probabilities, (3, 1)), patients * 3)
    for name, estimate in once.items():
        for end in ("value", "low", "high", "n"):
            assert getattr(thrice[name], end) == pytest.approx(getattr(estimate, end)), name


def test_the_order_of_samples_does_not_matter():
    samples = table()
    shuffled = samples.sample(frac=1, random_state=3)
    first, again = (study_metrics(rows, CLASSES, control="control", seed=1) for rows in (samples, shuffled))
    assert {m: first[m] for m in sorted(first)} == {m: again[m] for m in sorted(again)}


def test_more_patients_narrow_the_interval():
    few, many = (metrics_of(*cohort(n_patients=n)) for n in (20, 320))
    assert few["accuracy"].high - few["accuracy"].low > 2 * (many["accuracy"].high - many["accuracy"].low)


def test_labels_that_mean_nothing_have_an_auroc_interval_around_a_half():
    truth, probabilities, patients = cohort(signal=0.0)
    found = metrics_of(truth, probabilities, patients)["macro_auroc"]
    assert found.low < 0.5 < found.high


# --- what cannot be known


@pytest.mark.parametrize(("n_rare", "known"), [(4, False), (5, True)])
def test_a_class_of_fewer_than_five_patients_is_not_estimable(n_rare, known):
    truth, probabilities, patients = cohort(n_patients=40)
    rare = [name for name, label in zip(patients, truth, strict=True) if label == "target"]
    kept = set(patients) - set(rare) | set(sorted(set(rare))[:n_rare])
    rows = [row for row, name in enumerate(patients) if name in kept]
    found = metrics_of([truth[r] for r in rows], probabilities[rows], [patients[r] for r in rows])
    for name in ("auroc_target", "auprc_target"):
        assert (found[name].value is not None) == known
        assert (found[name].low is not None) == known
        assert found[name].n == n_rare
    # the macro number keeps its meaning: every class present
    parts = [
        roc_auc_score([truth[r] == c for r in rows], probabilities[rows, k]) for k, c in enumerate(CLASSES)
    ]
    assert found["macro_auroc"].value == pytest.approx(np.mean(parts))
    assert found["macro_auroc"].n == len(kept)


@pytest.mark.parametrize(("n_control", "known"), [(4, False), (5, True)])
def test_five_patients_of_something_else_are_needed_as_well(n_control, known):
    truth, probabilities, patients = cohort(n_patients=40, classes=CLASSES[:2])
    healthy = sorted({p for p, label in zip(patients, truth, strict=True) if label == "control"})
    rows = [row for row, name in enumerate(patients) if name not in healthy[n_control:]]
    found = metrics_of(
        [truth[r] for r in rows], probabilities[rows], [patients[r] for r in rows], CLASSES[:2]
    )
    for name in ("auroc_sickle", "macro_auroc", "macro_auprc"):
        assert (found[name].value is not None) == known, name
    assert found["auroc_sickle"].n == n_control


def test_a_class_without_the_rest_is_not_estimable():
    truth, probabilities, patients = cohort(n_patients=12, classes=CLASSES[:2])
    found = metrics_of(["control"] * len(truth), probabilities, patients, CLASSES[:2])
    assert found["macro_auroc"].value is None
    assert found["auroc_control"].value is None
    assert found["accuracy"].value is not None


def test_four_patients_support_no_number():
    truth, probabilities, patients = cohort(n_patients=4, per_patient=50)
    assert {estimate.value for estimate in metrics_of(truth, probabilities, patients).values()} == {None}


def test_a_label_that_the_model_does_not_know_is_named():
    truth, probabilities, patients = cohort()
    with pytest.raises(SettingsError, match=r"'burr'.*'control'") as problem:
        metrics_of(["burr", *truth[1:]], probabilities, patients)
    assert "--exclude" in problem.value.hint


# --- runs and methods


def test_runs_are_averaged_and_their_spread_is_told_apart():
    samples = table(runs=3)
    found = study_metrics(samples, CLASSES, control="control", seed=1, n_boot=200)
    runs = [
        study_metrics(samples[samples["run"] == run], CLASSES, control="control", seed=1, n_boot=200)
        for run in range(3)
    ]
    for method in ("att", "default"):
        values = [run[method]["accuracy"]["value"] for run in runs]
        assert found[method]["accuracy"]["value"] == pytest.approx(np.mean(values))
        assert found[method]["accuracy"]["sd_runs"] == pytest.approx(np.std(values, ddof=1))
        assert runs[0][method]["accuracy"]["sd_runs"] is None


def test_repeating_a_run_changes_no_interval():
    once = table(runs=1)
    again = pd.concat([once.assign(run=run) for run in range(4)])
    for method, metrics in study_metrics(again, CLASSES, control="control", seed=1).items():
        for name, number in study_metrics(once, CLASSES, control="control", seed=1)[method].items():
            assert metrics[name]["sd_runs"] == pytest.approx(0, abs=1e-12)
            assert metrics[name]["low"] == pytest.approx(number["low"]), name
            assert metrics[name]["high"] == pytest.approx(number["high"]), name


def test_one_run_of_a_study_has_the_numbers_of_classification_metrics():
    samples = table(methods=("att",), runs=1)
    probabilities = samples[[f"prob_{name}" for name in CLASSES]].to_numpy()
    alone = metrics_of(samples["label"].tolist(), probabilities, samples["patient"].tolist())
    found = study_metrics(samples, CLASSES, control="control", seed=7, n_boot=200)["att"]
    assert found.keys() == alone.keys()
    for name, estimate in alone.items():
        assert replace(estimate, unit="patients") == estimate
        assert (found[name]["value"], found[name]["low"]) == (estimate.value, estimate.low)


def test_metrics_are_json_with_every_promised_key():
    found = study_metrics(table(), CLASSES, control="control", seed=1, n_boot=50)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for metrics in found.values():
        for number in metrics.values():
            assert set(number) == {"value", "low", "high", "n", "unit", "sd_runs"}


def test_a_method_does_not_differ_from_itself():
    samples = table()
    found = paired_difference(samples, "att", "att", "macro_f1", CLASSES, control="control", seed=1)
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, 40)


def test_a_paired_difference_is_the_difference_and_changes_sign_with_its_order():
    samples = table()
    both = study_metrics(samples, CLASSES, control="control", seed=1)
    one, other = (
        paired_difference(samples, *pair, "accuracy", CLASSES, control="control", seed=1)
        for pair in (("default", "att"), ("att", "default"))
    )
    assert one.value == pytest.approx(both["default"]["accuracy"]["value"] - both["att"]["accuracy"]["value"])
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.low > 0


def test_pairing_sees_what_two_intervals_hide():
    """Two methods right and wrong on the same patients, but for one call: their intervals overlap wholly."""
    samples = table(methods=("att",), runs=1, n_patients=40)
    better = samples.assign(method="better")
    wrong = better["predicted"] != better["label"]
    rows = better.index[wrong][::10]
    better.loc[rows, "predicted"] = better.loc[rows, "label"]
    both = pd.concat([samples, better])
    apart = study_metrics(both, CLASSES, control="control", seed=1)
    difference = paired_difference(both, "better", "att", "accuracy", CLASSES, control="control", seed=1)
    assert apart["better"]["accuracy"]["low"] < apart["att"]["accuracy"]["high"]
    assert difference.low > 0


def test_methods_that_scored_other_samples_cannot_be_paired():
    samples = table()
    samples = samples[(samples["method"] != "att") | (samples["sample"] != "s003")]
    with pytest.raises(SettingsError, match="'default' and 'att' cannot be paired: of 320 and 318"):
        paired_difference(samples, "default", "att", "accuracy", CLASSES, control="control", seed=1)


def test_an_absent_method_cannot_be_paired():
    with pytest.raises(SettingsError, match="of 320 and 0"):
        paired_difference(table(), "att", "max", "accuracy", CLASSES, control="control", seed=1)
