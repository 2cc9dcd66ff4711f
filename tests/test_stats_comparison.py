"""Methods against a reference: against scipy, scikit-learn and brute force, and how often they cry wolf."""

import runpy
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from hemomil.errors import SettingsError
from hemomil.stats import OVERALL, compare_methods, holm, paired_difference, patient_swaps
from hemomil.stats.comparison import swapped_differences
from hemomil.stats.scored import scored_runs

CLASSES = ("control", "sickle", "target")
SIGNAL = {"att": 0.2, "mean": 0.25, "default": 1.5}


def study(methods=("att", "mean", "default"), runs=2, n_patients=24, per_patient=2, classes=CLASSES, seed=0):
    """A study's samples.csv; every method and run has its own probabilities."""
    patient = np.repeat(np.arange(n_patients), per_patient)
    truth = patient % len(classes)
    parts = []
    for method in methods:
        for run in range(runs):
            rng = np.random.default_rng([seed, run, *method.encode()])
            probabilities = rng.dirichlet(np.ones(len(classes)), len(patient))
            probabilities[np.arange(len(truth)), truth] += SIGNAL[method]
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            part = pd.DataFrame({"patient": [f"p{p:03d}" for p in patient], "method": method, "run": run})
            part["sample"] = [f"s{row:03d}" for row in range(len(part))]
            part["label"] = [classes[k] for k in truth]
            part["predicted"] = [classes[k] for k in probabilities.argmax(axis=1)]
            part[[f"prob_{name}" for name in classes]] = probabilities
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def compared(samples, reference="att", classes=CLASSES, **rest):
    options = {"control": "control", "seed": 3, "n_boot": 100, "n_permutations": 200} | rest
    found = compare_methods(samples, classes, reference=reference, **options)
    return {(row.method, row.metric): row for row in found}


def test_every_other_method_is_compared_on_every_metric_as_paired_difference_does():
    samples = study()
    found = compared(samples)
    metrics = [*OVERALL, *(f"{name}_patient" for name in OVERALL)]
    assert list(found) == [(method, metric) for method in ("mean", "default") for metric in metrics]
    for (method, metric), row in list(found.items())[::3]:
        pair = paired_difference(
            samples, method, "att", metric, CLASSES, control="control", seed=3, n_boot=100
        )
        assert (row.value, row.low, row.high, row.n) == (pair.value, pair.low, pair.high, pair.n)
    assert pd.DataFrame(list(found.values()))["p_adjusted"].notna().all()


def test_with_few_patients_the_p_of_accuracy_is_scipys_exact_one():
    samples = study(n_patients=9, runs=1, per_patient=3)
    right = samples.assign(right=samples["predicted"] == samples["label"])
    own = right.pivot_table("right", "patient", "method")
    found = compared(samples, n_permutations=512)
    for method in ("mean", "default"):
        exact = permutation_test(
            (own[method], own["att"]),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        assert found[method, "accuracy"].p == pytest.approx(exact.pvalue)


def exchanged(samples, who):
    """The slow way: exchange the rows of these patients; scores are ranks within a method and run."""
    samples = samples.copy()
    for name in CLASSES:
        samples[f"prob_{name}"] = samples.groupby(["method", "run"])[f"prob_{name}"].rank()
    moved = samples["patient"].isin(who)
    samples.loc[moved, "method"] = samples.loc[moved, "method"].map({"att": "mean", "mean": "att"})
    return samples


def scikit_learns(rows):
    positive = [rows["label"] == name for name in CLASSES]
    scores = [rows[f"prob_{name}"] for name in CLASSES]
    return {
        "accuracy": (rows["label"] == rows["predicted"]).mean(),
        "balanced_accuracy": balanced_accuracy_score(rows["label"], rows["predicted"]),
        "macro_f1": f1_score(rows["label"], rows["predicted"], average="macro", zero_division=0),
        "macro_auroc": np.mean([roc_auc_score(*pair) for pair in zip(positive, scores, strict=True)]),
        "macro_auprc": np.mean(
            [average_precision_score(*pair) for pair in zip(positive, scores, strict=True)]
        ),
    }


def by_patient(samples):
    """A row per method, run and patient: the mean of its samples, and the class that this calls."""
    columns = [f"prob_{name}" for name in CLASSES]
    means = samples.groupby(["method", "run", "patient", "label"], as_index=False)[columns].mean()
    return means.assign(predicted=[CLASSES[k] for k in means[columns].to_numpy().argmax(axis=1)])


@pytest.mark.parametrize(("level", "suffix"), [(lambda rows: rows, ""), (by_patient, "_patient")])
def test_swaps_are_scikit_learns_numbers_on_exchanged_rows(level, suffix):
    samples = study(methods=("att", "mean"), n_patients=6)
    patients, swaps = sorted(set(samples["patient"])), patient_swaps(6, 64, seed=0)
    assert len(set(map(tuple, swaps))) == 64
    runs = [scored_runs(samples[samples["method"] == m], CLASSES, patients) for m in ("mean", "att")]
    found = swapped_differences(*runs, swaps, CLASSES, "control")
    for row in range(0, 64, 9):
        rows = exchanged(
            level(samples), [name for name, moved in zip(patients, swaps[row], strict=True) if moved]
        )
        numbers = {key: scikit_learns(part) for key, part in rows.groupby(["method", "run"])}
        for metric in OVERALL:
            apart = [numbers["mean", run][metric] - numbers["att", run][metric] for run in range(2)]
            assert found[metric + suffix][row] == pytest.approx(np.mean(apart)), metric


def test_a_method_that_is_clearly_better_has_the_smallest_p_there_is():
    row = compared(study(runs=1, n_patients=40))["default", "accuracy"]
    assert row.low > 0
    assert row.p == pytest.approx(1 / 201)
    assert row.p_adjusted == pytest.approx(2 / 201)


def test_a_method_does_not_differ_from_its_copy():
    samples = study(methods=("att",))
    found = compared(pd.concat([samples, samples.assign(method="copy")]))
    assert {(row.value, row.low, row.high, row.p, row.p_adjusted) for row in found.values()} == {
        (0, 0, 0, 1, 1)
    }


def test_the_scale_of_the_scores_changes_no_p():
    two = ("control", "sickle")
    samples = study(methods=("att", "mean"), classes=two)
    sharp = samples.copy()
    odds = (samples["prob_sickle"] / samples["prob_control"]) ** 5
    sharp["prob_sickle"], sharp["prob_control"] = odds / (1 + odds), 1 / (1 + odds)
    sharp = pd.concat([samples[samples["method"] == "att"], sharp[sharp["method"] == "mean"]])
    before, after = (compared(rows, classes=two) for rows in (samples, sharp))
    for name in OVERALL:
        assert after["mean", name].p == before["mean", name].p


def test_p_depends_on_neither_the_order_of_rows_nor_which_method_is_the_reference():
    samples = study(methods=("att", "mean"))
    one, other = compared(samples), compared(samples.sample(frac=1, random_state=0))
    turned = compared(samples, reference="mean")
    for (_, metric), row in one.items():
        assert other["mean", metric].p == row.p
        assert turned["att", metric].p == row.p
        assert turned["att", metric].value == pytest.approx(-row.value)


# --- many methods


@given(p=st.lists(st.floats(0.001, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_holm_is_bonferroni_closed_over_all_subsets(p):
    """The definition: a hypothesis falls when every set of hypotheses that holds it falls."""
    expected = [
        max(
            min(1, size * min(p[j] for j in chosen))
            for size in range(1, len(p) + 1)
            for chosen in combinations(range(len(p)), size)
            if i in chosen
        )
        for i in range(len(p))
    ]
    assert holm(np.array(p)) == pytest.approx(expected)


def test_p_is_adjusted_over_the_methods_of_each_metric():
    found = compared(study())
    for metric in OVERALL:
        family = [found[method, metric] for method in ("mean", "default")]
        assert [row.p_adjusted for row in family] == pytest.approx(holm(np.array([row.p for row in family])))
    alone = compared(study(methods=("att", "mean")))
    assert all(row.p_adjusted == row.p for row in alone.values())


# --- what cannot be compared


def test_four_patients_support_no_difference():
    found = compared(study(n_patients=4))
    assert {(row.value, row.low, row.p, row.p_adjusted) for row in found.values()} == {
        (None, None, None, None)
    }


def test_methods_that_did_not_finish_cannot_be_compared():
    samples = study()
    unfinished = samples[(samples["method"] != "mean") | (samples["run"] == 0)]
    with pytest.raises(SettingsError, match="'mean' and 'att' cannot be paired: of 48 and 96"):
        compared(unfinished)


def test_a_reference_that_was_not_run_is_named():
    with pytest.raises(SettingsError, match="no method 'max'") as problem:
        compared(study(), reference="max")
    assert "att, mean, default" in problem.value.hint


def test_a_reference_alone_is_compared_with_nothing():
    assert compared(study(methods=("att",))) == {}


# --- how often intervals and p-values are right, by the simulations of benchmarks/coverage.py


@pytest.fixture(scope="module")
def simulated():
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "coverage.py"))


@pytest.mark.slow
def test_intervals_cover_the_truth_at_the_sizes_of_real_cohorts(simulated):
    paper = simulated["covered"](simulated["PAPER"], 4, 1000)
    two = simulated["covered"]((67, 67), 2, 1000)
    for share in (paper["accuracy"], two["accuracy"], two["AUROC"], two["AUPRC"], two["brier"]):
        assert 0.90 <= share <= 0.98


@pytest.mark.slow
def test_permuted_labels_have_an_auroc_interval_around_a_half(simulated):
    share = simulated["covered"]((67, 67), 2, 1000, simulated["permuted"], {"AUROC": 0.5})["AUROC"]
    assert 0.92 <= share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("null", ["alike", "another scale", "other errors"])
def test_equal_methods_are_rarely_called_different(simulated, null):
    for p, _ in simulated["false_claims"]((15, 15), 3, 1000, null).values():
        assert p <= 0.08
