"""How good the diagnoses of samples are, each number with the interval that its patients allow.

scikit-learn computes every value. The bootstrap repeats the same metrics on weights, all draws at once.

Axes: S samples, K classes, P patients, B bootstrap draws.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score, roc_auc_score

from hemomil.stats.draws import MIN_PATIENTS, Resampled, estimate, patient_draws
from hemomil.stats.ranking import rank_draws
from hemomil.stats.reliability import calibration_metrics
from hemomil.stats.scored import Scored, indices
from hemomil.types import Estimate

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_auprc")


def classification_metrics(
    truth: Sequence[str],
    probabilities: Float[np.ndarray, "S K"],
    classes: Sequence[str],
    patients: Sequence[str],
    *,
    control: str,
    seed: int,
    n_boot: int = 1000,
) -> dict[str, Estimate]:
    """Accuracy, balanced accuracy, macro F1, AUROC and AUPRC, the last two per class, and calibration.

    Keys: `OVERALL`, `auroc_<class>`, `auprc_<class>`, `brier` and `ece` (see `calibration_metrics`), and
    where no patient has two labels each of `OVERALL` with `_patient` (probabilities averaged over the
    patient's samples). Raises SettingsError for a label that is not among `classes`.

    Notes
    -----
    Intervals are 95 % percentile intervals over patients drawn with replacement; at a value of 0 or 1 they
    have no width, and with few patients (under 20, say) they are somewhat too narrow. In simulated cohorts
    (`benchmarks/coverage.py`) they covered the truth in 91 to 98 % with two classes and 20 to 134 patients.
    A macro number is as good as its smallest class: with 3 patients of 71 in one class, each with one sample,
    those of macro AUPRC covered it in 77 % (with four samples each, 90 %).
    AUROC and AUPRC are one class against the rest. With two classes the macro number is that of the class
    which is not `control`. The macro numbers average every class present in `truth`, small ones included, so
    that they mean what published ones mean. The numbers of a single class are not estimable (value None)
    when fewer than 5 patients have it, or fewer than 5 have anything else; with under 5 patients, none is.
    A draw without a class is averaged over the classes it has, and left out of that class's own interval.
    """
    names = sorted(set(patients))
    scored = Scored(
        truth=indices(truth, classes),
        called=np.argmax(probabilities, axis=1),
        probabilities=probabilities,
        patients=indices(patients, names),
    )
    draws = patient_draws(len(names), n_boot, seed=seed)
    found = resampled_metrics(scored, classes, control=control, draws=draws)
    return {name: estimate(metric) for name, metric in found.items()}


def resampled_metrics(
    scored: Scored, classes: Sequence[str], *, control: str, draws: Int[np.ndarray, "B P"]
) -> dict[str, Resampled]:
    """Every metric of `classification_metrics` on the samples and on each draw of their patients."""
    whole = sample_metrics(scored, classes, control, draws) | calibration_metrics(scored, draws)
    by_patient = one_row_a_patient(scored)
    if by_patient is None:
        return whole
    means = sample_metrics(by_patient, classes, control, draws)
    return whole | {f"{name}_patient": means[name] for name in OVERALL}


def one_row_a_patient(scored: Scored) -> Scored | None:
    """Probabilities averaged over each patient's samples; None where a patient has two labels."""
    patients, first, row = np.unique(scored.patients, return_index=True, return_inverse=True)
    if (scored.truth != scored.truth[first][row]).any():
        return None
    means = np.zeros((len(patients), scored.probabilities.shape[1]))
    np.add.at(means, row, scored.probabilities)
    means /= np.bincount(row)[:, None]
    return Scored(
        truth=scored.truth[first], called=np.argmax(means, axis=1), probabilities=means, patients=patients
    )


def sample_metrics(
    scored: Scored, classes: Sequence[str], control: str, draws: Int[np.ndarray, "B P"]
) -> dict[str, Resampled]:
    """`OVERALL` and the AUROC and AUPRC of each class, taking a row for a sample."""
    per_class = [_class_metrics(scored, index, draws) for index in range(len(classes))]
    metrics = _label_metrics(scored, draws)
    for position, name in enumerate(("auroc", "auprc")):
        curves = [pair[position] for pair in per_class]
        metrics[f"macro_{name}"] = _macro(scored, curves, classes, control)
        metrics |= {
            f"{name}_{label}": _unless_few(curve, scored, scored.truth == index)
            for index, (label, curve) in enumerate(zip(classes, curves, strict=True))
        }
    return metrics


# --- the class that was called: accuracy, recall, F1


def _label_metrics(scored: Scored, draws: Int[np.ndarray, "B P"]) -> dict[str, Resampled]:
    n = scored.patients_where(np.ones(len(scored.truth), dtype=bool))
    values = _label_values(scored) if n >= MIN_PATIENTS else (np.nan,) * 3
    drawn = label_draws(confusion_draws(scored, draws))
    return {
        name: Resampled(value=value, draws=draw, n=n)
        for name, value, draw in zip(OVERALL[:3], values, drawn, strict=True)
    }


def _label_values(scored: Scored) -> tuple[float, float, float]:
    macro = {"labels": np.unique(scored.truth), "average": "macro", "zero_division": 0}
    return (
        float(accuracy_score(scored.truth, scored.called)),
        float(recall_score(scored.truth, scored.called, **macro)),
        float(f1_score(scored.truth, scored.called, **macro)),
    )


def confusion_draws(scored: Scored, draws: Int[np.ndarray, "B P"]) -> Float[np.ndarray, "B K K"]:
    """Confusion matrix (truth, called) of each draw: sums of the patients' own matrices."""
    n_classes = scored.probabilities.shape[1]
    per_patient = np.zeros((draws.shape[1], n_classes, n_classes))
    np.add.at(per_patient, (scored.patients, scored.truth, scored.called), 1)
    return np.tensordot(draws.astype(np.float64), per_patient, axes=1)


def label_draws(confusion: Float[np.ndarray, "B K K"]) -> tuple[Float[np.ndarray, "B"], ...]:
    """Accuracy, balanced accuracy and macro F1 of each draw."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support, called = confusion.sum(axis=2), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        accuracy = hits.sum(axis=1) / support.sum(axis=1)
        recall, f1 = hits / support, 2 * hits / (support + called)
    return accuracy, mean_where(recall, support > 0), mean_where(f1, support > 0)


def mean_where(values: Float[np.ndarray, "B K"], rows: Bool[np.ndarray, "B K"]) -> Float[np.ndarray, "B"]:
    """Mean over the entries of each row that count; NaN where none does."""
    with np.errstate(invalid="ignore"):
        total: np.ndarray = np.where(rows, values, 0.0).sum(axis=1) / rows.sum(axis=1)
    return total


# --- the probabilities: one class against the rest


def _class_metrics(scored: Scored, index: int, draws: Int[np.ndarray, "B P"]) -> tuple[Resampled, Resampled]:
    """AUROC and AUPRC of one class against the rest, NaN where one of the two is missing."""
    truth, score = scored.truth == index, scored.probabilities[:, index]
    n = scored.patients_where(np.ones(len(truth), dtype=bool))
    if truth.all() or not truth.any():
        nothing = Resampled(value=np.nan, draws=np.full(len(draws), np.nan), n=n)
        return nothing, nothing
    auroc, precision = rank_draws(truth, score, scored.patients, draws)
    return (
        Resampled(value=float(roc_auc_score(truth, score)), draws=auroc, n=n),
        Resampled(value=float(average_precision_score(truth, score)), draws=precision, n=n),
    )


def _unless_few(metric: Resampled, scored: Scored, rows: Bool[np.ndarray, "S"]) -> Resampled:
    """The metric, not estimable where the class or the rest has fewer than 5 patients.

    `n` becomes the smaller of the two: what the number rests on.
    """
    n = min(scored.patients_where(rows), scored.patients_where(~rows))
    return Resampled(value=metric.value if n >= MIN_PATIENTS else np.nan, draws=metric.draws, n=n)


def _macro(scored: Scored, curves: Sequence[Resampled], classes: Sequence[str], control: str) -> Resampled:
    if len(classes) == 2:
        disorder = 0 if classes[1] == control else 1
        few = _unless_few(curves[disorder], scored, scored.truth == disorder)
        return Resampled(value=few.value, draws=few.draws, n=curves[disorder].n)
    n = curves[0].n
    values = np.array([curve.value for curve in curves])
    draws = np.stack([curve.draws for curve in curves], axis=1)
    known = np.isfinite(values)
    value = float(values[known].mean()) if known.any() and n >= MIN_PATIENTS else np.nan
    return Resampled(value=value, draws=mean_where(draws, np.isfinite(draws)), n=n)
