"""How far the label can be told from what is no cell's business: bag size, colour, site, background.

A small classifier for each family of facts, on the folds of the study. What it reaches alone, a model may
have learned instead of the cells.

Axes: T training samples, U test samples, D facts, K classes, S samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from hemomil.streams import stream
from hemomil.types import Notice

PERMUTED = "permuted labels"
"""The control: all facts, and labels that have nothing to do with them."""
METRIC, CHANCE = "macro_auroc", 0.5
"""What confounders are judged by, and what guessing reaches in it, whatever the classes and their sizes."""
NEAR = 0.5
"""A confounder is near the model when it reaches this share of the model's gain over chance."""
SMALL = 0.05
"""Less than this above chance is not worth a notice, however certain."""


def confounder_predictions(
    facts: pd.DataFrame, labels: Mapping[str, str], splits: pd.DataFrame, classes: Sequence[str], *, seed: int
) -> pd.DataFrame:
    """Class probabilities from each family of facts alone, out of fold: a table like samples.csv.

    `facts` has a row per sample (its index) and columns (family, fact), NaN where unknown; `labels` is by
    sample; `splits` is splits.csv (sample, patient, fold, run). Samples without facts are left out. `method`
    is `only <family>`, and `permuted labels` at the end: all facts on labels dealt anew among the patients
    (`label` is then the label dealt), a control that must stay at chance.

    Notes
    -----
    Logistic regression on the standardised facts and their squares, classes balanced, missing facts at the
    training median. The squares are for a fact that sets the middle apart from both ends; trees and nearest
    neighbours found no more on real data (docs/log.md). A combination of two facts may still be missed. The
    control deals training and test labels together. Were only the training labels dealt anew, a fact that
    does tell the classes apart would score near 0 or near 1, by the chance direction of its slope, not .5.
    Where nothing is to be learned, folds of few patients score below chance (.37 with 9), confounders and
    control alike: what one fold has more of, the others have less of.
    """
    rows = splits[splits["sample"].isin(facts.index)].reset_index(drop=True)
    truth = rows["sample"].map(dict(labels)).to_numpy(dtype=object)
    families = list(dict.fromkeys(facts.columns.get_level_values(0)))
    if not families:
        return _out_of_fold(facts, rows.head(0), truth[:0], classes, method=PERMUTED)
    tables = [
        _out_of_fold(facts[[family]], rows, truth, classes, method=f"only {family}") for family in families
    ]
    dealt = truth.copy()
    for run in rows["run"].unique():
        at = np.flatnonzero(rows["run"] == run)
        rng = stream(seed, "confounders", f"run-{run}")
        dealt[at] = dealt_labels(truth[at], rows["patient"].iloc[at].tolist(), rng)
    return pd.concat([*tables, _out_of_fold(facts, rows, dealt, classes, method=PERMUTED)], ignore_index=True)


def dealt_labels(labels: np.ndarray, patients: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """The labels dealt anew: every patient gets those of one patient, whoever it is, in random order.

    So labels still come by patient, as the true ones do. They are repeated or cut where two patients have
    different numbers of samples.
    """
    owned = list(pd.Series(range(len(labels))).groupby(list(patients)).indices.values())
    result = labels.copy()
    for rows, other in zip(owned, rng.permutation(len(owned)), strict=True):
        result[rows] = np.resize(rng.permutation(labels[owned[other]]), len(rows))
    return result


def _out_of_fold(
    facts: pd.DataFrame, rows: pd.DataFrame, labels: np.ndarray, classes: Sequence[str], *, method: str
) -> pd.DataFrame:
    """One method's rows of samples.csv; fold by fold, trained on the other folds of the same run."""
    values = facts.loc[rows["sample"]].to_numpy(dtype=np.float64)
    known = {name: k for k, name in enumerate(classes)}
    truth = np.array([known[label] for label in labels], dtype=np.int64)
    found = np.full((len(rows), len(classes)), np.nan)
    for _, part in rows.groupby(["run", "fold"]):
        test = part.index.to_numpy()
        train = np.setdiff1d(np.flatnonzero(rows["run"] == part["run"].iloc[0]), test)
        found[test] = _probabilities(values[train], truth[train], values[test], len(classes))
    table = rows[["sample", "patient"]].assign(
        label=labels, fold=rows["fold"], run=rows["run"], method=method
    )
    table["predicted"] = np.array(classes, dtype=object)[found.argmax(axis=1)]
    for k, name in enumerate(classes):
        table[f"prob_{name}"] = found[:, k]
    return table.assign(novelty_p=np.nan).astype({"fold": "Int64", "run": "Int64"})


def _probabilities(
    values: Float[np.ndarray, "T D"],
    truth: Int[np.ndarray, "T"],
    asked: Float[np.ndarray, "U D"],
    n_classes: int,
) -> Float[np.ndarray, "U K"]:
    """Probabilities of all classes: 0 for one that is not in training, 1 where it is the only one."""
    found = np.zeros((len(asked), n_classes))
    present = np.unique(truth)
    if len(present) == 1:
        found[:, present] = 1.0
        return found
    found[:, present] = classifier().fit(values, truth).predict_proba(asked)
    return found


def classifier() -> Pipeline:
    """The small classifier, not yet fitted."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        FunctionTransformer(_with_squares),
        StandardScaler(),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )


def _with_squares(values: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
    """F = 2 D: each fact, then the square of each."""
    return np.concatenate([values, values**2], axis=1)


# --- the judgement


def confounder_notices(
    metrics: Mapping[str, Mapping[str, Any]], confounders: Mapping[str, Mapping[str, Any]], shown: str
) -> tuple[Notice, ...]:
    """What to say of each confounder beside the method that is shown.

    Both mappings are what `study_metrics` gives of the same samples: by method, then by metric. Kinds:

    `confounder`          it reaches at least half of the model's gain over chance, or it is above chance and
                          its interval meets the model's: what the model learned may be that
    `confounder-visible`  it reaches .55 and its interval lies above chance, but the model is far ahead: at
                          most a part of what it learned is that
    `permuted-labels`     the control is above chance: the numbers of this study are too good

    Half, because a model and a confounder share what they know: one that reaches half of the gain may be the
    larger part of it. Meeting intervals, because with few patients nothing more can be told apart. Nothing is
    said of a number that is not estimable, and nothing of nearness where the model itself is at chance.
    """
    model = metrics.get(shown, {}).get(METRIC)
    notices = []
    for name, found in confounders.items():
        told = found.get(METRIC)
        if not told or told["value"] is None:
            continue
        if name == PERMUTED:
            notices += _control_notice(told)
        elif model and model["value"] is not None and model["value"] > CHANCE and _is_near(told, model):
            notices.append(_near_notice(name, told, shown, model))
        elif told["low"] > CHANCE and told["value"] >= CHANCE + SMALL:
            notices.append(_visible_notice(name, told, shown, model))
    return tuple(notices)


def _is_near(told: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    half_way = CHANCE + NEAR * (model["value"] - CHANCE)
    meets = told["value"] > CHANCE and told["high"] >= model["low"]
    return bool(told["value"] >= half_way or meets)


def _near_notice(name: str, told: Mapping[str, Any], shown: str, model: Mapping[str, Any]) -> Notice:
    fact = name.removeprefix("only ")
    beside = f"{shown!r} reaches {_words(model)}: what it learned may be that"
    text = f"{fact} alone reaches AUROC {_words(told)}; {beside}"
    return Notice(kind="confounder", subject=fact, text=text)


def _visible_notice(
    name: str, told: Mapping[str, Any], shown: str, model: Mapping[str, Any] | None
) -> Notice:
    fact = name.removeprefix("only ")
    beside = f"; {shown!r} reaches {_words(model)}" if model and model["value"] is not None else ""
    text = f"{fact} alone tells something of the label: AUROC {_words(told)}{beside}"
    return Notice(kind="confounder-visible", subject=fact, text=text)


def _control_notice(told: Mapping[str, Any]) -> list[Notice]:
    text = (
        f"labels dealt anew among the patients reach AUROC {_words(told)}, above chance: one study in 40 "
        "does so by luck; if other seeds do it too, the folds leak"
    )
    return [Notice(kind="permuted-labels", subject=PERMUTED, text=text)] if told["low"] > CHANCE else []


def _words(told: Mapping[str, Any]) -> str:
    return f"{told['value']:.2f} [{told['low']:.2f}, {told['high']:.2f}]"
