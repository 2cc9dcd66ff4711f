"""How often the intervals cover the truth, and how often the test of two equal methods cries wolf.

Run `OMP_NUM_THREADS=1 python benchmarks/coverage.py [--quick]` (minutes; `--quick`: a tenth of the cohorts).
Cohorts are drawn from a known law: a patient shifts the scores of all their samples (the donor effect), a
sample adds its own noise. Classes keep their number of patients, as in the paper (13/3/9/13/33).
"""

import sys

import numpy as np

from hemomil.stats import Scored, calibration_metrics, patient_draws, patient_swaps, rank_draws
from hemomil.stats.classification import confusion_draws, label_draws
from hemomil.stats.comparison import ranked, stacked

PAPER = (33, 13, 3, 9, 13)
"""Patients per class: control, sickle cell disease, thalassemia, xerocytosis, spherocytosis."""
DRAWS = 400


def cohort(rng, patients, samples, signal=1.2, donor=0.7, noise=1.0):
    """Scored samples of a cohort with so many patients per class; a true logit is `signal` above the rest."""
    truth = np.repeat(np.repeat(np.arange(len(patients)), patients), samples)
    patient = np.repeat(np.arange(sum(patients)), samples)
    shift = donor * rng.normal(size=(sum(patients), len(patients)))[patient]
    logits = shift + noise * rng.normal(size=(len(truth), len(patients)))
    logits[np.arange(len(truth)), truth] += signal
    odds = np.exp(logits)
    return scored(truth, odds / odds.sum(axis=1, keepdims=True), patient)


def scored(truth, probabilities, patient):
    called = probabilities.argmax(axis=1)
    return Scored(truth=truth, called=called, probabilities=probabilities, patients=patient)


def drawn(of, draws):
    """Each metric on each draw; with two classes, the areas are those of the second."""
    n_classes = of.probabilities.shape[1]
    accuracy, balanced, f1 = label_draws(confusion_draws(of, draws))
    shown = range(n_classes) if n_classes > 2 else [1]
    areas = [rank_draws(of.truth == k, of.probabilities[:, k], of.patients, draws) for k in shown]
    auroc, auprc = np.nanmean(areas, axis=0)
    return {"accuracy": accuracy, "balanced": balanced, "F1": f1, "AUROC": auroc, "AUPRC": auprc}


def values(of):
    """Each metric on the samples as they are."""
    everyone = np.ones((1, of.patients.max() + 1), dtype=np.int64)
    found = {name: float(value[0]) for name, value in drawn(of, everyone).items()}
    return found | {name: metric.value for name, metric in calibration_metrics(of, everyone).items()}


def covered(patients, samples, cohorts, law=cohort, truth=None):
    """Per metric: the share of cohorts whose 95 % interval contains the truth."""
    truth = values(law(np.random.default_rng(0), tuple(200 * n for n in patients), samples)) | (truth or {})
    hits = dict.fromkeys(truth, 0)
    for number in range(cohorts):
        of = law(np.random.default_rng([number, 1]), patients, samples)
        draws = patient_draws(sum(patients), DRAWS, seed=number)
        calibration = {name: metric.draws for name, metric in calibration_metrics(of, draws).items()}
        for name, values_drawn in (drawn(of, draws) | calibration).items():
            low, high = np.nanpercentile(values_drawn, [2.5, 97.5])
            hits[name] += low <= truth[name] <= high
    return {name: count / cohorts for name, count in hits.items()}


def permuted(rng, patients, samples):
    """A cohort whose patients have exchanged their labels: nothing is left to learn."""
    of = cohort(rng, patients, samples)
    label = rng.permutation(np.repeat(np.arange(len(patients)), patients))
    return scored(label[of.patients], of.probabilities, of.patients)


NULLS = {
    "alike": ({}, {}),
    "another scale": ({}, {"scale": 4.0}),
    "other errors": ({"donor": 0.2, "noise": 0.75}, {"donor": 0.75, "noise": 0.2}),
}
"""Two methods equally good: of one law; one overconfident; one wrong by patient, the other by sample."""


def rivals(rng, patients, samples, null):
    """Two equally good methods on one cohort, which find the same patients and samples hard."""
    sick = np.repeat(np.repeat([0, 1], patients), samples)
    patient = np.repeat(np.arange(sum(patients)), samples)
    common = 1.2 * (sick - 0.5) + 0.5 * rng.normal(size=sum(patients))[patient]
    common = common + 0.4 * rng.normal(size=len(sick))

    def method(donor=0.5, noise=0.6, scale=1.0):
        own = donor * rng.normal(size=sum(patients))[patient] + noise * rng.normal(size=len(sick))
        positive = 1 / (1 + np.exp(-scale * (common + own)))
        return scored(sick, np.stack([1 - positive, positive], axis=1), patient)

    return [method(**changed) for changed in NULLS[null]]


def false_claims(patients, samples, cohorts, null, change=ranked):
    """Per metric: how often p is at most .05, and how often the interval of the difference excludes 0."""
    claims = {}
    for number in range(cohorts):
        first, second = rivals(np.random.default_rng([number, 2]), patients, samples, null)
        n = sum(patients)
        draws, swaps = patient_draws(n, DRAWS, seed=number), patient_swaps(n, DRAWS, seed=number)
        moved = np.concatenate([np.hstack([~swaps, swaps]), np.hstack([swaps, ~swaps])]).astype(np.int64)
        swapped = drawn(stacked(change(first), change(second), n), moved)
        redrawn = drawn(first, draws), drawn(second, draws)
        for name, both in swapped.items():
            apart = np.subtract(*np.split(both, 2))  # the first swap is nobody's: what was observed
            low, high = np.nanpercentile(redrawn[0][name] - redrawn[1][name], [2.5, 97.5])
            wrong = np.mean(np.abs(apart) >= abs(apart[0]) - 1e-9) <= 0.05, low > 0 or high < 0
            claims.setdefault(name, []).append(wrong)
    return {name: np.mean(wrong, axis=0) for name, wrong in claims.items()}


def coverage_table(cohorts):
    print(f"coverage of nominal 95 % intervals, {cohorts} cohorts each (standard error {se(cohorts):.1f})")
    settings = [((n // 2, n // 2), samples) for n in (20, 30, 70, 134) for samples in (1, 4)]
    for patients, samples in [*settings, (PAPER, 1), (PAPER, 4)]:
        row = covered(patients, samples, cohorts)
        print(f"{'/'.join(map(str, patients)):>14} x {samples}  " + shares(row), flush=True)
    row = covered((67, 67), 2, cohorts, permuted, {"AUROC": 0.5})
    print(
        f"permuted labels, 67/67 x 2: AUROC interval contains 0.5 in {100 * row['AUROC']:.1f} %", flush=True
    )


def false_claims_table(cohorts):
    print(
        f"equal methods called different at 5 %: by the swap test | by the interval; {cohorts} cohorts each"
    )
    for n in (30, 70):
        for null in NULLS:
            row = false_claims((n // 2, n // 2), 3, cohorts, null)
            text = "  ".join(f"{name} {100 * p:4.1f} | {100 * i:4.1f}" for name, (p, i) in row.items())
            print(f"{n:3d} patients, {null:14s} {text}", flush=True)


def se(cohorts):
    return 100 * np.sqrt(0.05 * 0.95 / cohorts)


def shares(row):
    return "  ".join(f"{name} {100 * share:5.1f}" for name, share in row.items())


if __name__ == "__main__":
    size = 100 if "--quick" in sys.argv else 1000
    coverage_table(size)
    false_claims_table(size)
