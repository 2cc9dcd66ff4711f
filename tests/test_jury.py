"""Strange cells are judged by networks and scorers made without a group of donors, who are the yardstick."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import IsolationForest

from hemomil import commands
from hemomil.commands import fitting
from hemomil.commands.fitting import fit, predict
from hemomil.commands.model_folder import TrainedModel, load_model, save_model
from hemomil.commands.recalibration import refitted
from hemomil.commands.tables import blank_rows, cell_rows, sample_rows
from hemomil.errors import ModelError
from hemomil.mil import AnomalyMIL
from hemomil.novelty.combined import Combined
from hemomil.novelty.densities import Gaussian
from hemomil.novelty.forest import Forest
from hemomil.novelty.held_out import GROUPS, donor_groups
from hemomil.novelty.intervals import DonorBootstrap
from hemomil.novelty.jury import FLAGGED
from hemomil.novelty.samples import strangest_means
from hemomil.novelty.scorers import fit_scorer, to_state
from hemomil.types import Sample
from mil_cohorts import make_bag, make_cohort, make_roi_cohort

SEED, FEATURES, CELLS = 3, 6, 80
DONORS = 10


def quick(**flags):
    few = {"seed": SEED, "mil.epochs": 20, "mil.members": 2, "mil.crossfit_folds": 2}
    return commands.resolve_settings(flags={**few, **flags})


def healthy(name, rng, *, patient=None, cells=CELLS, shift=0.0):
    """Cells of a donor who differs a little from others."""
    own = rng.normal(size=(cells, FEATURES)) + 0.2 * rng.normal(size=FEATURES) + shift
    return make_bag(name, own.astype(np.float32), patient=patient, label="control")


def ill(name, rng, sign, **of):
    """A third of the cells are shifted."""
    bag = healthy(name, rng, cells=30, **of)
    bag.features[:10, sign] += 4
    return replace(bag, label=f"ill{sign}")


def cohort():
    """Control donors, one with two samples and one who fell ill later, and other patients; in no order."""
    rng = np.random.default_rng(0)
    bags = [healthy(f"c{k}", rng) for k in range(DONORS)]
    bags.append(healthy("c0-again", rng, patient="p-c0", cells=25))
    bags.append(ill("c1-ill", rng, 1, patient="p-c1"))
    bags += [ill(f"i{k}", rng, 1 + k % 2) for k in range(6)]
    return [bags[row] for row in rng.permutation(len(bags))]


@pytest.fixture(scope="module")
def bags():
    return cohort()


@pytest.fixture(scope="module")
def trained(bags):
    model, jury = fit(bags, "default", quick(), seed=SEED)
    return TrainedModel(model=model, jury=jury, settings=quick(), fingerprint={"names": []})


@pytest.fixture(scope="module")
def site():
    """Controls of another laboratory: one donor more than the model has judges, one with two samples."""
    rng = np.random.default_rng(1)
    bags = [healthy(f"s{k}", rng, cells=20, shift=2.0) for k in range(4)]
    return [*bags, healthy("s0-again", rng, patient="p-s0", cells=15, shift=2.0)]


@pytest.fixture(scope="module")
def moved(trained, site):
    return refitted(trained, site)


def without(bags, model, group):
    """The bags of all but this group of control donors, whatever their label."""
    return [bag for bag in bags if model.donor_groups_.get(bag.patient) != group]


def assert_same_arrays(first, second):
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def weights(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


def scorer_by_hand(places, bags):
    """A scorer of what these bags show, `places` being where their cells lie."""
    controls = [(place, bag) for place, bag in zip(places, bags, strict=True) if bag.label == "control"]
    return fit_scorer(
        "combined",
        np.concatenate([place for place, _ in controls]),
        [bag.patient for _, bag in controls for _ in bag.cell_ids],
        np.concatenate(places),
        seed=SEED,
    )


# What a witness has seen


def test_a_witness_is_the_network_of_a_training_without_its_donors(trained, bags):
    model = trained.model
    assert sorted(set(model.donor_groups_.values())) == [0, 1]
    assert set(model.donor_groups_) == {bag.patient for bag in bags if bag.label == "control"}
    for group in (0, 1):
        kept = without(bags, model, group)
        alone = AnomalyMIL("default", quick(**{"mil.witnesses": False}).mil, seed=SEED).fit(kept)
        space, network = model.core_.judges[1 + group]
        assert_same_arrays(weights(alone.core_.networks[1]), weights(network))
        assert_same_arrays(weights(alone.core_.space), weights(space))


def test_a_scorer_has_seen_what_its_network_has_seen(trained, bags):
    model, jury = trained.model, trained.jury
    assert jury.networks == (1, 2)
    for group in (0, 1):
        kept = without(bags, model, group)
        expected = scorer_by_hand([model.embedded(bag)[1 + group] for bag in kept], kept)
        assert_same_arrays(to_state(expected), to_state(jury.scorers[group]))


@pytest.mark.parametrize("donors", [1, DONORS])
def test_the_background_of_every_judge_has_the_ill(bags, donors):
    """Else health would be compared with health, and disease go unseen."""
    known = [f"p-c{k}" for k in range(donors)]
    some = [bag for bag in bags if bag.label != "control" or bag.patient in known]
    model, jury = fit(some, "default", quick(), seed=SEED)
    assert len(jury.scorers) == min(donors, 2)
    for scorer, network in zip(jury.scorers, jury.networks, strict=True):
        kept = without(some, model, network - 1) if network else some
        everyone = Gaussian.fit(np.concatenate([model.embedded(bag)[network] for bag in kept]))
        np.testing.assert_array_equal(scorer.relative.background.mean, everyone.mean)
        assert (scorer.relative.background.mean != scorer.relative.healthy.mean).any()


def test_nothing_of_a_donor_reaches_what_their_cells_are_scored_by(trained, bags):
    """Not their cells, not those of the illness they had later, not through mean and SD of features."""
    strange = [replace(bag, features=3 * bag.features + 2) if bag.patient == "p-c1" else bag for bag in bags]
    model, jury = fit(strange, "default", quick(), seed=SEED)
    own = trained.model.donor_groups_["p-c1"]
    assert model.donor_groups_ == trained.model.donor_groups_
    for before, after in zip(trained.model.core_.judges[1 + own], model.core_.judges[1 + own], strict=True):
        assert_same_arrays(weights(before), weights(after))
    assert_same_arrays(to_state(trained.jury.scorers[own]), to_state(jury.scorers[own]))
    scores, patients = (np.asarray(part) for part in trained.model.control_scores_)
    again = model.control_scores_[0]
    group = np.array([model.donor_groups_[patient] for patient in patients])
    others = (group == own) & (patients != "p-c1")
    np.testing.assert_array_equal(again[others], scores[others])
    assert np.median(again[patients == "p-c1"]) > scores[patients == "p-c1"].max()
    # the others are judged by what has seen the donor
    assert (again[group != own] != scores[group != own]).mean() > 0.9


def test_scores_of_control_donors_are_in_the_order_of_their_bags(trained, bags):
    model, jury = trained.model, trained.jury
    scores, patients = model.control_scores_
    start = 0
    for bag in [bag for bag in bags if bag.label == "control"]:
        group = model.donor_groups_[bag.patient]
        expected = jury.scorers[group].score_samples(model.embedded(bag)[1 + group])
        rows = slice(start, start + len(bag))
        np.testing.assert_array_equal(scores[rows], expected)
        assert set(patients[rows]) == {bag.patient}
        start += len(bag)
    assert start == len(scores) == len(patients)
    group = np.array([model.donor_groups_[patient] for patient in patients])
    for number, calibration in enumerate(jury.calibrations):
        np.testing.assert_array_equal(calibration.cell_scores, np.sort(scores[group == number]))
        assert calibration.n_donors == len(set(np.asarray(patients)[group == number]))
    assert jury.n_donors == DONORS
    assert sum(len(calibration.sample_scores) for calibration in jury.calibrations) == DONORS + 1


# What is said of a cell


def test_a_strange_cell_is_abnormal_and_healthy_ones_are_normal(trained):
    bag = healthy("new", np.random.default_rng(5))
    bag.features[-1] = 8
    (said,), (flags,) = predict(trained.model, trained.jury, [bag])
    assert flags.verdict[-1] == "abnormal"
    assert said.anomaly.argmax() == len(bag) - 1
    assert flags.p[-1] == trained.jury.floor == 1 / (DONORS + 1)
    assert (flags.verdict[:-1] == "normal").mean() > 0.9
    assert "abnormal" not in flags.verdict[:-1]


def test_cells_of_a_disease_are_found_among_those_of_the_ill(trained):
    bag = ill("new", np.random.default_rng(6), 1)
    (said,), (flags,) = predict(trained.model, trained.jury, [bag])
    assert said.anomaly[:10].min() > np.median(said.anomaly[10:])
    assert (flags.verdict[:10] != "normal").mean() > 0.5 > (flags.verdict[10:] != "normal").mean()


def by_hand(kept, bag):
    """Scores of each judge."""
    places = kept.model.embedded(bag)
    scorers, networks = kept.jury.scorers, kept.jury.networks
    told = [s.score_samples(places[network]) for s, network in zip(scorers, networks, strict=True)]
    return np.stack(told, axis=1)


def test_the_interval_holds_all_judges_and_the_verdict_is_its_place(trained):
    rng = np.random.default_rng(7)
    bag = make_bag("new", (3 * rng.normal(size=(200, FEATURES))).astype(np.float32))
    (said,), (flags,) = predict(trained.model, trained.jury, [bag])
    scores, (low, high) = by_hand(trained, bag), flags.interval
    np.testing.assert_array_equal(flags.scores, scores)
    chief = trained.jury.chief.score_samples(trained.model.embedded(bag)[0])
    np.testing.assert_array_equal(said.anomaly, chief)
    np.testing.assert_array_equal(low, np.minimum(scores.min(axis=1), chief))
    np.testing.assert_array_equal(high, np.maximum(scores.max(axis=1), chief))
    assert (low < high).mean() > 0.9
    np.testing.assert_array_equal(flags.verdict == "abnormal", scores.min(axis=1) > trained.jury.threshold)
    np.testing.assert_array_equal(flags.verdict == "normal", scores.max(axis=1) <= trained.jury.threshold)
    assert set(flags.verdict) == {"abnormal", "normal", "undecided"}


def test_every_donor_votes_once_on_a_cell_through_the_judge_that_lacks_them(trained, bags):
    bag = ill("new", np.random.default_rng(10), 1)
    _, (flags,) = predict(trained.model, trained.jury, [bag])
    scores, patients = (np.asarray(part) for part in trained.model.control_scores_)
    groups = trained.model.donor_groups_
    votes = [
        (scores[patients == donor][:, None] >= flags.scores[:, group]).mean(axis=0)
        for donor, group in groups.items()
    ]
    np.testing.assert_allclose(flags.p, (1 + np.sum(votes, axis=0)) / (DONORS + 1), rtol=1e-12)


def test_about_as_many_cells_of_new_healthy_donors_are_flagged_as_is_said(trained):
    """7 of 825 control cells lie above the threshold: the rate of new donors is .009, give or take .004."""
    rng = np.random.default_rng(8)
    new = [healthy(f"n{k}", rng, cells=200) for k in range(30)]
    _, flags = predict(trained.model, trained.jury, new)
    rate = np.mean([(of.scores > trained.jury.threshold).mean() for of in flags])  # of a judge, on average
    assert FLAGGED / 4 < rate < 2.5 * FLAGGED
    assert np.mean([(of.verdict == "abnormal").mean() for of in flags]) < rate


def test_a_bag_is_judged_alike_alone_and_in_company(trained, bags):
    single = make_bag("single", np.full((1, FEATURES), 0.5, dtype=np.float32))
    for bag in (bags[3], single):
        (alone,), (flags,) = predict(trained.model, trained.jury, [bag])
        company, others = predict(trained.model, trained.jury, [bags[0], bag, bags[1]])
        np.testing.assert_array_equal(alone.anomaly, company[1].anomaly)
        assert np.isfinite(alone.anomaly).all()
        for field in fields(flags):
            np.testing.assert_array_equal(getattr(flags, field.name), getattr(others[1], field.name))


def test_a_model_put_away_and_taken_out_judges_the_same(trained, moved, bags, tmp_path):
    for name, kept in (("home", trained), ("moved", moved)):
        save_model(tmp_path / name, kept)
        again = load_model(tmp_path / name)
        assert again.jury.networks == kept.jury.networks
        assert again.jury.threshold == kept.jury.threshold
        assert_same_arrays(kept.jury.to_state(), again.jury.to_state())
        for first, second in zip(
            predict(kept.model, kept.jury, bags)[1],
            predict(again.model, again.jury, bags)[1],
            strict=True,
        ):
            for field in fields(first):
                np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def test_a_model_of_an_older_format_is_refused(trained, tmp_path):
    save_model(tmp_path, trained)
    record = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(record.replace('"format": 3', '"format": 2'))
    with pytest.raises(ModelError, match="has model format 2, this version reads 3"):
        load_model(tmp_path)


# The tables


def test_tables_say_what_was_judged(trained, bags):
    told = {"method": "default", "run": None, "fold": None}
    some = bags[:4]
    said, flags = predict(trained.model, trained.jury, some)
    samples = sample_rows(some, said, flags, trained.jury, **told)
    assert (samples["novelty_floor"] == 1 / (DONORS + 1)).all()
    assert (samples["novelty_p"] >= samples["novelty_floor"]).all()
    assert (samples["abnormal_low"] == 0).all()  # 10 donors certify nothing
    lost = blank_rows([Sample(sample="lost", patient="p", label=None, images=())], said[0].classes, **told)
    assert lost[["novelty_p", "novelty_floor", "abnormal_low"]].isna().all(axis=None)
    assert list(lost) == [name for name in samples if name not in ("conformal_set", "healthy_like")]
    ids = [cell for bag in some for cell in bag.cell_ids]
    owner = [bag.patient for bag in some for _ in bag.cell_ids]
    obs = pd.DataFrame({"patient": owner, "image": ""}, index=ids)
    cells = cell_rows(some, said, flags, obs.iloc[::-1], **told)
    assert cells["cell_id"].tolist() == ids
    assert cells["patient"].tolist() == owner
    np.testing.assert_array_equal(cells["anomaly_low"], np.concatenate([of.interval[0] for of in flags]))
    np.testing.assert_array_equal(cells["anomaly_high"], np.concatenate([of.interval[1] for of in flags]))
    assert cells["verdict"].tolist() == [verdict for of in flags for verdict in of.verdict]
    np.testing.assert_array_equal(cells["anomaly_p"], np.concatenate([of.p for of in flags]))
    np.testing.assert_array_equal(cells["anomaly"], np.concatenate([one.anomaly for one in said]))


# Another laboratory


def test_the_jury_of_a_site_keeps_the_background_and_scores_donors_without_their_own(trained, moved, site):
    """With more judges than the model has witnesses, so that each network serves two."""
    jury, places = moved.jury, [trained.model.embedded(bag) for bag in site]
    donors = np.array([bag.patient for bag in site for _ in bag.cell_ids])
    group = donor_groups(donors.tolist(), GROUPS, seed=SEED)
    assert jury.networks == (1, 2, 1, 2)  # four donors, each left out in turn
    scores, patients = moved.model.control_scores_
    assert list(patients) == donors.tolist()
    for left, (scorer, network) in enumerate(zip(jury.scorers, jury.networks, strict=True)):
        cells = np.concatenate([of_bag[network] for of_bag in places])
        usual = trained.jury.scorers[network - 1].relative.background
        own = group == left
        assert len(set(donors[own])) == 1
        expected = Combined.fit(cells[~own], donors[~own].tolist(), usual, seed=SEED)
        assert_same_arrays(to_state(expected), to_state(scorer))
        np.testing.assert_array_equal(scores[own], expected.score_samples(cells[own]))
    assert jury.n_donors == 4
    assert sum(len(calibration.sample_scores) for calibration in jury.calibrations) == len(site)


def test_judges_of_a_site_look_in_the_networks_of_their_background(moved, site):
    (said,), (flags,) = predict(moved.model, moved.jury, site[:1])
    np.testing.assert_array_equal(flags.scores, by_hand(moved, site[0]))
    chief = moved.jury.chief.score_samples(moved.model.embedded(site[0])[0])
    np.testing.assert_array_equal(said.anomaly, chief)


def test_a_site_that_looks_strange_at_home_looks_usual_once_it_is_known(trained, moved):
    rng = np.random.default_rng(9)
    new = [healthy(f"n{k}", rng, shift=2.0) for k in range(8)]
    at_home, at_site = (predict(one.model, one.jury, new)[1] for one in (trained, moved))
    assert np.mean([flags.p.mean() for flags in at_home]) < 0.3
    assert 0.35 < np.mean([flags.p.mean() for flags in at_site]) < 0.65


def assert_scales_are_of_known_donors(model, jury, controls, lacks):
    """`lacks`: of each donor, the judge who does not know them."""
    for judge, (calibration, scorer) in enumerate(zip(jury.calibrations, jury.scorers, strict=True)):
        known = [bag for bag in controls if lacks[bag.patient] != judge]
        told = [scorer.score_samples(model.embedded(bag)[jury.networks[judge]]) for bag in known]
        means, donors = np.stack([strangest_means(scores) for scores in told]), [bag.patient for bag in known]
        mean = np.average(means, axis=0, weights=[1 / donors.count(donor) for donor in donors])
        np.testing.assert_allclose(calibration.scale.mean, mean)
        assert (calibration.scale.sd > 0).all()


def test_cells_heard_a_few_at_a_time_are_judged_as_all_together(trained, monkeypatch):
    new = ill("new", np.random.default_rng(8), 1)  # no score ties with one that is known
    (_, (whole,)) = predict(trained.model, trained.jury, [new])
    monkeypatch.setattr(fitting, "HEARD_CELLS", 7)
    (said,), (parts,) = predict(trained.model, trained.jury, [new])
    for name in ("anomaly", "scores", "p", "q", "interval"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(parts.verdict, whole.verdict)
    np.testing.assert_array_equal(said.anomaly, parts.anomaly)


def test_a_judge_learns_what_a_usual_sample_is_from_donors_whom_it_knows(trained, moved, bags, site):
    controls = [bag for bag in bags if bag.label == "control"]
    assert_scales_are_of_known_donors(trained.model, trained.jury, controls, trained.model.donor_groups_)
    donors = [bag.patient for bag in site]
    lacks = dict(zip(donors, donor_groups(donors, GROUPS, seed=SEED).tolist(), strict=True))
    assert_scales_are_of_known_donors(moved.model, moved.jury, site, lacks)


# Where there are no witnesses


@pytest.mark.parametrize(
    ("method", "flags"), [("att", {}), ("anomaly-quantiles", {}), ("default", {"mil.witnesses": False})]
)
def test_without_witnesses_the_anomaly_is_the_distance_of_the_model(method, flags, bags):
    model, jury = fit(bags, method, quick(**flags), seed=SEED)
    assert jury.scorers == jury.networks == ()
    assert model.embedded(bags[0]) == []
    (said,), (told,) = predict(model, jury, bags[:1])
    np.testing.assert_array_equal(said.anomaly, model.predict_cells(bags[:1])[0].anomaly)
    low, high = told.interval
    assert (low < said.anomaly).all()
    assert (said.anomaly < high).all()
    np.testing.assert_array_equal(told.verdict == "abnormal", low > jury.threshold)
    np.testing.assert_array_equal(told.verdict == "normal", high <= jury.threshold)


@pytest.mark.parametrize("method", ["att", "anomaly-quantiles"])
def test_the_interval_of_a_distance_is_a_bootstrap_of_the_control_donors(method, bags):
    model, jury = fit(bags, method, quick(), seed=SEED)
    (said,), (told,) = predict(model, jury, bags[-1:])
    controls = [bag for bag in bags if bag.label == "control"]
    cells = np.concatenate([model.judged(bag) for bag in controls])
    donors = [bag.patient for bag in controls for _ in bag.cell_ids]
    bootstrap = DonorBootstrap.fit(cells, donors, seed=SEED)
    place = model.judged(bags[-1])
    np.testing.assert_allclose(
        model.core_.reference.distance(torch.from_numpy(place)), said.anomaly, rtol=1e-5
    )
    np.testing.assert_array_equal(told.interval, bootstrap.around(said.anomaly, place))


def test_the_interval_of_a_distance_is_saved(bags):
    model, jury = fit(bags, "att", quick(), seed=SEED)
    again = type(jury).from_state(jury.to_state())
    (_, (told,)), (_, (kept,)) = (predict(model, one, bags[-1:]) for one in (jury, again))
    np.testing.assert_array_equal(told.interval, kept.interval)
    np.testing.assert_array_equal(told.verdict, kept.verdict)


def test_a_single_donor_gives_no_interval_of_a_distance(bags):
    some = [bag for bag in bags if bag.label != "control" or bag.patient == "p-c0"]
    model, jury = fit(some, "att", quick(), seed=SEED)
    _, (flags,) = predict(model, jury, some[:1])
    assert jury.bootstrap is None
    assert np.isnan(flags.interval).all()
    assert "undecided" not in flags.verdict


def test_a_single_control_donor_cannot_be_left_out(bags):
    some = [bag for bag in bags if bag.label != "control" or bag.patient == "p-c0"]
    model, jury = fit(some, "default", quick(), seed=SEED)
    assert [notice.kind for notice in model.notices_] == ["few-patients"]
    assert jury.networks == (0,)
    (said,), (flags,) = predict(model, jury, some[:1])
    assert np.isfinite(said.anomaly).all()
    assert np.isnan(flags.interval[0]).all()
    assert "undecided" not in flags.verdict
    assert jury.floor == 0.5


def test_a_single_network_is_its_own_judge():
    model, jury = fit(make_cohort(0, 12), "default", quick(**{"mil.members": 1}), seed=SEED)
    assert model.core_.judges[0][1] is model.core_.members[0]
    assert jury.networks == (1, 2)


def test_maps_are_judged_in_what_the_convolutions_make_of_them():
    bags = make_roi_cohort(0)
    flags = {"mil.epochs": 1, "mil.roi": "convolutions", "features": ("roi",)}
    model, jury = fit(bags, "default", quick(**flags), seed=SEED)
    assert model.core_.reads_maps
    assert [place.shape for place in model.embedded(bags[0])] == [(len(bags[0]), 64)] * 3
    said, _ = predict(model, jury, bags)
    assert all(np.isfinite(one.anomaly).all() for one in said)


# Few cells


def test_donors_of_a_cell_or_two_do_not_stop_a_training(bags):
    rng = np.random.default_rng(4)
    sizes = {"a": 1, "b": 2, "c": 3}
    controls = [healthy(name, rng, cells=n) for name, n in sizes.items()]
    others = [bag for bag in bags if bag.label == "ill1"]
    model, jury = fit([*controls, *others], "default", quick(**{"mil.crossfit_folds": 3}), seed=SEED)
    assert np.isfinite(model.control_scores_[0]).all()
    assert jury.networks == (1, 2, 3)


def test_a_forest_of_one_cell_finds_all_alike_as_scikit_learn_does():
    cells = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    forest = Forest.fit(cells[:1], ["a"], seed=0)
    expected = -IsolationForest(random_state=0).fit(cells[:1]).score_samples(cells)
    np.testing.assert_array_equal(forest.score_samples(cells), expected)
