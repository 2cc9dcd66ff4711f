"""Laws of AnomalyMIL: what it learns, what it must not learn, what it refuses, and that it can be kept."""

import json

import numpy as np
import pytest
import torch

from hemomil.errors import FeaturesError, ModelError, SettingsError
from hemomil.mil import METHODS, AnomalyMIL, MILSettings
from mil_cohorts import make_bag, make_cohort, make_roi_cohort

QUICK = MILSettings(epochs=2, members=2)


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(1)


@pytest.fixture(scope="module")
def unseen():
    return make_cohort(2)


def accuracy(model, bags):
    return float(np.mean(model.predict(bags) == [bag.label for bag in bags]))


@pytest.mark.parametrize("method", ["default", "att", "anomaly+att+sic", "mean", "max", "lse", "instance"])
def test_a_plain_difference_is_learned(method, cohort, unseen):
    settings = MILSettings(epochs=12, members=2, learning_rate=5e-3)
    assert accuracy(AnomalyMIL(method, settings).fit(cohort), unseen) > 0.7


def test_quantiles_of_anomaly_tell_sick_from_healthy():
    train, test = (make_cohort(seed, classes=("control", "sickle")) for seed in (1, 2))
    assert accuracy(AnomalyMIL("anomaly-quantiles").fit(train), test) > 0.75


def test_strange_cells_are_the_shifted_ones(cohort, unseen):
    model = AnomalyMIL("default", QUICK).fit(cohort)
    for prediction, bag in zip(model.predict_cells(unseen), unseen, strict=True):
        if bag.label != "control" and len(bag) > 5:
            hallmark = max(1, len(bag) // 3)
            assert prediction.anomaly[:hallmark].mean() > prediction.anomaly[hallmark:].mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_put_away_and_taken_out_predicts_the_same_to_the_last_bit(method, cohort, unseen):
    model = AnomalyMIL(method, QUICK, seed=4).fit(cohort)
    tensors, config = model.to_state()
    again = AnomalyMIL.from_state(tensors, json.loads(json.dumps(config)))
    for first, second in zip(model.predict_cells(unseen), again.predict_cells(unseen), strict=True):
        for name in ("probabilities", "attention", "anomaly", "weight", "contribution", "cell_probabilities"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(model.control_scores_[0], again.control_scores_[0])
    assert model.control_scores_[1] == again.control_scores_[1]


def test_a_bag_is_judged_the_same_in_any_company(cohort, unseen):
    model = AnomalyMIL("default", QUICK).fit(cohort)
    together, alone = model.predict_proba(unseen), [model.predict_proba([bag])[0] for bag in unseen]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("method", ["default", "anomaly+att+sic"])
def test_a_seed_fixes_the_model_and_another_seed_changes_it(method, cohort):
    first, same, other = (
        AnomalyMIL(method, QUICK, seed=seed).fit(cohort).to_state()[0] for seed in (1, 1, 2)
    )
    weights = [name for name in first if name.startswith("networks")]
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in weights if first[name].any())


def test_members_of_the_ensemble_differ(cohort):
    tensors = AnomalyMIL("default", QUICK).fit(cohort).to_state()[0]
    assert not np.array_equal(
        tensors["networks.0.pooling.classifier.weight"], tensors["networks.1.pooling.classifier.weight"]
    )


def test_the_global_random_state_is_left_alone(cohort):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    AnomalyMIL("anomaly+att+sic", QUICK).fit(cohort).predict(cohort)
    assert torch.equal(torch.get_rng_state(), before)


def test_control_scores_come_from_references_without_the_donor(cohort):
    model = AnomalyMIL("default", QUICK).fit(cohort)
    scores, patients = model.control_scores_
    controls = [bag for bag in cohort if bag.label == "control"]
    assert len(scores) == len(patients) == sum(map(len, controls))
    assert set(patients) == {bag.patient for bag in controls}
    seen = np.concatenate([p.anomaly for p in model.predict_cells(controls)])
    assert scores.mean() > seen.mean()


def test_one_control_patient_is_said_to_be_too_few():
    bags = make_cohort(5, n=12)
    patients = ["only" if bag.label == "control" else bag.patient for bag in bags]
    model = AnomalyMIL("anomaly+att", QUICK).fit(bags, patients=patients)
    assert [notice.kind for notice in model.notices_] == ["few-patients"]
    assert np.isfinite(model.control_scores_[0]).all()


def test_one_artefact_does_not_take_the_bag(cohort):
    """A control cell ten standard deviations away, in no direction of any disorder."""
    rng = np.random.default_rng(9)
    healthy = rng.normal(size=(40, 8)).astype(np.float32)
    spoilt = healthy.copy()
    spoilt[0] = 0
    spoilt[0, 5] = 10
    clean, dirty = make_bag("clean", healthy), make_bag("dirty", spoilt)
    default = AnomalyMIL("default", MILSettings(epochs=15, members=2, learning_rate=3e-3)).fit(cohort)
    assert list(default.predict([clean, dirty])) == ["control", "control"]
    assert default.predict_cells([dirty])[0].weight[0] < 0.5
    pooled = AnomalyMIL("anomaly", MILSettings(epochs=10)).fit(cohort)
    assert pooled.predict_cells([dirty])[0].weight[0] < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_weights_never_turn_negative_in_a_convex_mixture(seed, cohort, unseen):
    model = AnomalyMIL("anomaly+att", MILSettings(epochs=10, learning_rate=0.05), seed=seed).fit(cohort)
    for prediction in model.predict_cells(unseen):
        assert (prediction.weight >= 0).all()


def noise_of_two_sizes(seed, n=60):
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n):
        size = 12 if i % 2 else 60
        cells = rng.normal(size=(size, 6)).astype(np.float32)
        bags.append(make_bag(f"s{i}", cells, label="sickle" if i % 2 else "control"))
    return bags


@pytest.mark.parametrize("method", ["default", "att"])
def test_the_number_of_cells_is_not_learned(method):
    """Noise bags that differ in size alone: on new bags they must stay near chance (pitfall 1)."""
    settings = MILSettings(epochs=10, members=1, learning_rate=3e-3)
    found = [
        accuracy(
            AnomalyMIL(method, settings, seed=seed).fit(noise_of_two_sizes(seed)), noise_of_two_sizes(99)
        )
        for seed in range(3)
    ]
    assert abs(np.mean(found) - 0.5) < 0.13


def test_shuffled_labels_learn_nothing(cohort, unseen):
    rng = np.random.default_rng(3)
    found = []
    for seed in range(4):
        labels = list(rng.permutation([bag.label for bag in cohort]))
        model = AnomalyMIL("default", MILSettings(epochs=8, members=1, learning_rate=3e-3), seed=seed).fit(
            cohort, labels
        )
        found.append(accuracy(model, unseen))
    assert abs(np.mean(found) - 1 / 3) < 0.2


def test_progress_counts_every_epoch_of_every_member_and_witness(cohort):
    heard = []
    model = AnomalyMIL("default", QUICK)
    model.fit(cohort, progress=lambda done, total: heard.append((done, total)))
    networks = 2 + len(model.core_.witnesses)
    assert networks == 2 + 5
    assert heard == [(i + 1, 2 * networks) for i in range(2 * networks)]


@pytest.mark.parametrize("method", ["att", "default", "anomaly-quantiles"])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_roi_maps_are_learned_from_in_both_presets(method, preset):
    bags = make_roi_cohort(1)
    model = AnomalyMIL(method, MILSettings.preset(preset, epochs=1, members=1)).fit(bags)
    assert model.predict_proba(bags).shape == (6, 3)
    encoder = model.core_.members[0].encoder
    assert (type(encoder).__name__ == "RoiEncoder") == (preset == "paper" and method != "anomaly-quantiles")


def test_a_large_bag_is_read_in_chunks():
    bags = make_roi_cohort(2)
    model = AnomalyMIL("att", MILSettings.preset("paper", epochs=1)).fit(bags)
    whole = model.predict_proba(bags)
    model.core_.chunk = 2
    np.testing.assert_allclose(model.predict_proba(bags), whole, atol=1e-6)


def test_features_without_spread_among_controls_are_bounded(cohort):
    flat = []
    for bag in cohort:
        extra = np.full((len(bag), 2), 3.0, dtype=np.float32)
        extra[:, 1] += bag.label != "control"
        flat.append(
            make_bag(bag.sample, np.hstack([bag.features, extra]), patient=bag.patient, label=bag.label)
        )
    assert np.isfinite(AnomalyMIL("default", QUICK).fit(flat).predict_proba(flat)).all()


def test_scikit_learn_can_clone_it():
    from sklearn.base import clone

    assert clone(AnomalyMIL("att", QUICK, seed=3)).get_params() == {
        "method": "att", "settings": QUICK, "control": "control", "seed": 3
    }  # fmt: skip


def test_what_cannot_be_learned_from_is_refused_by_name(cohort):
    first = cohort[0]
    broken = first.features.copy()
    broken[1, 2] = np.nan
    cases = [
        (FeaturesError, "s000/0001", [make_bag("s000", broken, label="control"), *cohort[1:]], None),
        (FeaturesError, "no cells", [make_bag("empty", first.features[:0], label="control"), *cohort], None),
        (
            FeaturesError,
            "shape 8; those of sample 'wide' have shape 3",
            [make_bag("wide", first.features[:, :3], label="control"), *cohort],
            None,
        ),
        (FeaturesError, "no bag", [], None),
        (ModelError, "all samples are 'sickle'", cohort, ["sickle"] * len(cohort)),
        (ModelError, "no label", cohort, [None, *[bag.label for bag in cohort[1:]]]),
        (ModelError, "45 bags but 2 labels", cohort, ["control", "sickle"]),
        (SettingsError, "no training sample is 'control'", cohort, ["a", "b", "c"] * 15),
    ]
    for error, words, bags, labels in cases:
        with pytest.raises(error, match=words) as caught:
            AnomalyMIL("att", QUICK).fit(bags, labels)
        assert caught.value.hint


def test_what_cannot_be_judged_is_refused(cohort):
    model = AnomalyMIL("att", QUICK)
    with pytest.raises(ModelError, match="not learned"):
        model.predict(cohort)
    model.fit(cohort)
    with pytest.raises(FeaturesError, match="those the model was trained on have shape 8"):
        model.predict([make_bag("wide", cohort[0].features[:, :3])])
    tensors, config = model.to_state()
    with pytest.raises(ModelError, match="cannot be put together"):
        AnomalyMIL.from_state({k: v for k, v in tensors.items() if "attention" not in k}, config)


def test_unknown_names_are_refused_with_the_known_ones(cohort):
    with pytest.raises(SettingsError, match="no method is called") as caught:
        AnomalyMIL("attention").fit(cohort)
    assert "anomaly+att+sic" in caught.value.hint
    with pytest.raises(SettingsError, match="no preset"):
        MILSettings.preset("papr")
    with pytest.raises(ValueError, match="extra"):
        MILSettings(epoch=3)


def test_no_feature_reaches_beyond_five_standard_deviations(cohort):
    space = AnomalyMIL("mean", QUICK).fit(cohort).core_.space
    far = torch.tensor([[1e6] * 8, [-1e6] * 8, [0.0] * 8])
    found = space(far)
    assert found[0].tolist() == [5.0] * 8
    assert found[1].tolist() == [-5.0] * 8
    assert found[2].abs().max() < 1


def test_maps_become_the_mean_and_the_maximum_of_each_channel():
    bags = make_roi_cohort(1)
    space = AnomalyMIL("mean", QUICK).fit(bags).core_.space
    maps = torch.from_numpy(bags[0].features)
    flat = space.flatten(maps)
    torch.testing.assert_close(flat[:, :256], maps.float().mean(dim=(2, 3)))
    torch.testing.assert_close(flat[:, 256:], maps.float().amax(dim=(2, 3)))
