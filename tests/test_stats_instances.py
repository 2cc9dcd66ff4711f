"""Numbers of explained cells: against scikit-learn, and the laws that they obey."""

import itertools
import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hemomil.stats import SCORES, instance_metrics
from hemomil.stats.instances import top_shares


def cells_of(methods=("default",), runs=1, n_samples=30, per_sample=20, seed=0):
    """A study's cells.parquet: two samples a patient, every third sample healthy, 1 cell in 5 abnormal."""
    rng = np.random.default_rng(seed)
    parts = []
    sample = np.repeat(np.arange(n_samples), per_sample)
    sick = sample % 3 != 0
    abnormal = (rng.random(len(sample)) < 0.2) & sick
    for method in methods:
        for run in range(runs):
            part = pd.DataFrame({"sample": [f"s{s:04d}" for s in sample], "method": method, "run": run})
            part["patient"] = [f"p{s // 2:04d}" for s in sample]
            part["label"] = np.where(sick, "sickle", "control")
            part["cell_label"] = np.where(abnormal, "sickle", "control")
            for shift, name in enumerate(("anomaly", "attention", "contribution", "weight", "prob_sickle")):
                part[name] = rng.normal(size=len(part)) + 0.5 * shift * abnormal
            part["prob_control"] = 1 - part["prob_sickle"]
            parts.append(part.astype({"patient": object}))
    return pd.concat(parts, ignore_index=True)


def test_cells_of_diseased_samples_are_ranked_as_scikit_learn_says():
    cells = cells_of()
    found = instance_metrics(cells, control="control")["default"]
    sick = cells[cells["label"] != "control"]
    abnormal = sick["cell_label"] != "control"
    for name in SCORES:
        score = sick["prob_sickle"] if name.endswith("_probability") else sick[name]
        assert found[name]["auroc"]["value"] == pytest.approx(roc_auc_score(abnormal, score))
        assert found[name]["ap"]["value"] == pytest.approx(average_precision_score(abnormal, score))
        assert found[name]["auroc"]["low"] < found[name]["auroc"]["value"] < found[name]["auroc"]["high"]


def test_the_mean_within_samples_is_scikit_learns_sample_by_sample():
    cells = cells_of(per_sample=6)  # some samples have one kind only
    cells["anomaly"] = cells["anomaly"].round()  # ties
    areas = [
        roc_auc_score(rows["cell_label"] != "control", rows["anomaly"])
        for _, rows in cells[cells["label"] != "control"].groupby("sample")
        if rows["cell_label"].nunique() == 2
    ]
    assert 5 < len(areas) < 20
    found = instance_metrics(cells, control="control")["default"]["anomaly"]["auroc_within"]
    assert found["value"] == pytest.approx(np.mean(areas))
    assert found["low"] < found["value"] < found["high"]


def test_precision_at_k_is_that_of_the_first_k_cells_of_each_sample():
    cells = cells_of(per_sample=8)
    cells = cells.drop(cells.index[(cells["sample"] == "s0001") & (cells.groupby("sample").cumcount() > 2)])
    shares = [
        (rows.nlargest(5, "anomaly")["cell_label"] != "control").mean()  # one sample has three
        for _, rows in cells[cells["label"] != "control"].groupby("sample")
    ]
    found = instance_metrics(cells, control="control", k=5)["default"]["anomaly"]["precision_at_k"]
    assert found["value"] == pytest.approx(np.mean(shares))
    assert found["low"] < found["value"] < found["high"]


def test_tied_cells_share_the_last_places_as_the_mean_over_their_orders():
    abnormal = np.array([True, False, True, False, False, True, True])
    scores = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 5.0, 5.0])
    samples = np.array([0, 0, 0, 0, 0, 1, 1])
    orders = [1 + sum(abnormal[1:4][list(pair)]) for pair in itertools.combinations(range(3), 2)]
    assert top_shares(abnormal, scores, samples, 3) == pytest.approx([np.mean(orders) / 3, 1])


def test_the_class_probability_is_that_of_the_label_of_the_sample():
    cells = cells_of().assign(prob_target=0.1)
    target = cells["sample"] > "s0015"
    cells.loc[target & (cells["label"] != "control"), "label"] = "target"
    cells["prob_target"] = cells["prob_sickle"] ** 3
    sick = cells[cells["label"] != "control"]
    own = np.where(sick["label"] == "target", sick["prob_target"], sick["prob_sickle"])
    found = instance_metrics(cells, control="control")["default"]["class_probability"]["auroc"]["value"]
    assert found == pytest.approx(roc_auc_score(sick["cell_label"] != "control", own))


def test_a_label_that_was_not_learned_has_no_class_probability():
    cells = cells_of()
    cells.loc[cells["sample"] == "s0001", "label"] = "target"
    found = instance_metrics(cells, control="control")["default"]
    assert found["class_probability"]["auroc"]["value"] is None
    assert found["abnormal_probability"]["auroc"]["value"] is not None


def test_a_level_of_its_own_in_each_sample_spoils_the_pooled_ranking_only():
    cells = cells_of()
    before = instance_metrics(cells, control="control")["default"]["contribution"]
    level = cells["sample"].str[1:].astype(int) * 100.0
    after = instance_metrics(cells.assign(contribution=cells["contribution"] + level), control="control")
    after = after["default"]["contribution"]
    assert after["auroc_within"] == before["auroc_within"]
    assert after["precision_at_k"] == before["precision_at_k"]
    assert after["auroc"]["value"] < before["auroc"]["value"]


def test_healthy_samples_and_unknown_cells_do_not_count():
    cells = cells_of()
    changed = cells.copy()
    healthy = changed["label"] == "control"
    changed.loc[healthy, "anomaly"] = 1e6
    stranger = changed[~healthy].head(7).assign(cell_label=None, anomaly=-1e6)
    more = pd.concat([changed, stranger])
    assert instance_metrics(more, control="control") == instance_metrics(cells, control="control")


def test_the_order_of_cells_does_not_matter():
    cells = cells_of(runs=2)
    shuffled = cells.sample(frac=1, random_state=1)
    first, again = (instance_metrics(rows, control="control")["default"] for rows in (cells, shuffled))
    for name in SCORES:
        for metric, number in first[name].items():
            assert again[name][metric] == pytest.approx(number), (name, metric)


def test_copies_of_a_patients_samples_do_not_narrow_the_interval():
    cells = cells_of()
    copies = pd.concat([cells, cells.assign(sample=cells["sample"] + "-copy")])
    once, twice = (instance_metrics(rows, control="control")["default"] for rows in (cells, copies))
    for metric, number in once["anomaly"].items():
        assert twice["anomaly"][metric] == pytest.approx(number)


def test_a_score_that_the_method_does_not_have_is_null():
    cells = cells_of(methods=("mean", "att"), runs=2)
    cells.loc[cells["method"] == "mean", "attention"] = np.nan
    found = instance_metrics(cells, control="control")
    assert found["mean"]["attention"]["auroc"]["value"] is None
    assert found["mean"]["anomaly"]["auroc"]["value"] is not None
    assert found["att"]["attention"]["auroc"]["value"] is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_four_diseased_patients_support_no_number():
    found = instance_metrics(cells_of(n_samples=8), control="control")["default"]
    assert {number["value"] for score in found.values() for number in score.values()} == {None}


def test_without_known_cells_there_is_nothing_to_say():
    assert instance_metrics(cells_of().assign(cell_label=None), control="control") == {}


def test_runs_are_averaged_and_their_spread_is_told_apart():
    cells = cells_of(runs=3)
    found = instance_metrics(cells, control="control")["default"]["contribution"]["auroc"]
    values = [
        instance_metrics(cells[cells["run"] == run], control="control")["default"]["contribution"]["auroc"]
        for run in range(3)
    ]
    values = [number["value"] for number in values]
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["sd_runs"] == pytest.approx(np.std(values, ddof=1))


def test_a_study_of_many_cells_is_scored_in_seconds():
    cells = cells_of(methods=("a", "b"), n_samples=765, per_sample=30)
    start = time.process_time()
    instance_metrics(cells, control="control")
    assert time.process_time() - start < 10
