"""Networks trained side by side are those that are trained one by one."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hemomil.errors import FeaturesError
from hemomil.mil import AnomalyMIL, MILSettings, fit_side_by_side, side_by_side
from hemomil.mil.grouped import CellStore, Encoders, Reading
from hemomil.mil.network import blank_network, initialise
from hemomil.mil.settings import METHODS, PARTS
from hemomil.mil.side_by_side import SideBySide, Training, at_once, can_stand
from hemomil.mil.train import Trainer, TrainingBags
from mil_cohorts import ROI, make_cohort, make_roi_cohort

PAPER = MILSettings.preset("paper", epochs=2)
TABLE = ("att", "att+sic", "anomaly", "anomaly+att", "anomaly+att+sic")
CPU = torch.device("cpu")
FREE = "attention.2.bias"
"""Added to all scores of a softmax: no loss depends on it, only rounding moves it."""


def maps(n_bags=9):
    return [torch.from_numpy(bag.features) for bag in make_roi_cohort(4, n_bags)]


def pairs(methods, settings, cells, device=CPU):
    """For each method a training and a trainer of the same; every third of them knows a bag less."""
    for number, method in enumerate(methods):
        own = np.delete(np.arange(len(cells)), [number] if number % 3 == 1 else [])
        targets = own % 3
        groups = np.where(targets == 0, own // 3, -1)
        bags = TrainingBags([cells[bag] for bag in own], torch.from_numpy(targets), torch.from_numpy(groups))
        alone = Trainer(bags, PARTS[method], ROI, 3, settings, seed=number, device=device)
        yield Training(own, targets, groups, PARTS[method], number), alone


def apart(network, other):
    """Largest distance between the weights of two networks, layer by layer, relative to their length."""
    own, others = network.state_dict(), other.state_dict()
    return max(float((own[name] - others[name]).norm() / others[name].norm()) for name in own if name != FREE)


def trained_both_ways(methods, settings, cells, device=CPU):
    together, alone = zip(*pairs(methods, settings, cells, device), strict=True)
    store = CellStore(cells, torch.bfloat16 if settings.bfloat16 else torch.float32, device)
    networks = SideBySide(store, together, ROI, 3, settings).run()
    return zip(methods, networks, [trainer.run() for trainer in alone], strict=True)


@pytest.mark.parametrize("packed", [1, 2])
def test_every_method_learns_side_by_side_what_it_learns_alone(packed):
    settings = PAPER.model_copy(update={"batch_bags": packed})
    for method, network, alone in trained_both_ways((*TABLE, "mean", "placebo"), settings, maps()):
        assert apart(network, alone) < 1e-4, method


@pytest.mark.parametrize(
    "changes",
    [
        {"distance_weights": "raw"},
        {"distance_weights": "share", "mixing": "convex", "instance_hidden": 0},
        {"refit_every": 1, "learning_rate": 2e-4, "covariance": "shrunk"},
    ],
)
def test_other_ways_to_weigh_cells_are_learned_alike(changes):
    settings = PAPER.model_copy(update=changes)
    for method, network, alone in trained_both_ways(("anomaly+att+sic", "placebo", "att"), settings, maps()):
        assert apart(network, alone) < 1e-3, method


def test_in_bfloat16_weights_stay_near_those_in_single_precision():
    half, methods = PAPER.model_copy(update={"bfloat16": True}), ("att", "anomaly+att+sic")
    exact = [alone for _, _, alone in trained_both_ways(methods, PAPER, maps(6))]
    for (method, network, _), alone in zip(trained_both_ways(methods, half, maps(6)), exact, strict=True):
        assert 1e-6 < apart(network, alone) < 2e-2, method


def test_grouped_encoders_are_the_encoders_and_so_are_their_gradients():
    cells = maps(4)
    networks = [blank_network(PARTS["att"], ROI, 2, PAPER) for _ in range(2)]
    for seed, network in enumerate(networks):
        initialise(network, torch.Generator().manual_seed(seed))
    n, total = len(cells[0]), sum(map(len, cells))
    grouped = Encoders(networks, torch.float32, CPU)
    read = Reading(torch.arange(total), torch.tensor([n, total], dtype=torch.int32))
    z = grouped.encode(CellStore(cells, torch.float32, CPU), read)
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    z.backward(upstream)
    for layer in grouped.layers:
        layer.weights.copy_(layer.gradient())
    gradients = deepcopy(networks)
    grouped.unstack(gradients)
    for network, gradient, own, rows in zip(
        networks, gradients, (cells[:1], cells[1:]), (slice(0, n), slice(n, total)), strict=True
    ):
        plain = torch.cat(own).float()
        for layer in network.encoder:
            plain = layer(plain)
        torch.testing.assert_close(z[rows], plain, rtol=1e-4, atol=1e-6)
        plain.backward(upstream[rows])
        for weight, found in zip(network.encoder.parameters(), gradient.encoder.parameters(), strict=True):
            torch.testing.assert_close(found.detach(), weight.grad, rtol=1e-3, atol=1e-5)


def test_what_fills_a_layer_up_is_put_back_after_a_step():
    network = blank_network(PARTS["att"], ROI, 2, PAPER)
    initialise(network, torch.Generator().manual_seed(0))
    layer = Encoders([network], torch.bfloat16, CPU).layers[1]
    weights, biases = (part.clone() for part in layer.of(layer.weights))
    before = layer.weights.clone()
    layer.weights += 1
    for own, value in zip(layer.of(layer.weights), (weights, biases), strict=True):
        own.copy_(value)
    layer.refresh()
    assert torch.equal(layer.weights, before)
    assert torch.equal(layer.read.detach(), before.bfloat16())


def models_of(methods, settings):
    return [AnomalyMIL(method, settings, seed=seed) for seed, method in enumerate(methods)]


def fitted_both_ways(methods, settings, bags):
    """Each method on bags of its own: the last one knows one class less, the others a bag less each."""
    own = [bags[:number] + bags[number + 1 :] for number in range(len(methods) - 1)]
    own.append([bag for bag in bags if bag.label != "target"])
    together = models_of(methods, settings)
    fit_side_by_side(together, own)
    alone = [model.fit(known) for model, known in zip(models_of(methods, settings), own, strict=True)]
    return zip(together, alone, strict=True)


def assert_alike(found, expected, bags):
    assert found.classes_.tolist() == expected.classes_.tolist()
    assert found.donor_groups_ == expected.donor_groups_
    assert found.control_scores_[1] == expected.control_scores_[1]
    np.testing.assert_allclose(found.control_scores_[0], expected.control_scores_[0], rtol=1e-2)
    np.testing.assert_array_equal(found.standardised(bags[0]), expected.standardised(bags[0]))
    for one, other in zip(found.predict_cells(bags), expected.predict_cells(bags), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4)
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(one.anomaly, other.anomaly, rtol=1e-2)


def test_models_are_fitted_side_by_side_as_one_by_one():
    bags = make_roi_cohort(5, 12)
    for found, expected in fitted_both_ways(("att", "anomaly+att+sic", "anomaly", "att+sic"), PAPER, bags):
        assert_alike(found, expected, bags)


def test_few_at_once_learn_the_same(monkeypatch):
    bags = make_roi_cohort(5, 9)
    whole = models_of(TABLE, PAPER)
    fit_side_by_side(whole, [bags] * len(whole))
    sizes = []

    def two(store, trainings, *what):
        sizes.append(len(trainings))
        return 2

    monkeypatch.setattr(side_by_side, "at_once", two)
    heard = []
    few = models_of(TABLE, PAPER)
    fit_side_by_side(few, [bags] * len(few), lambda done, total: heard.append((done, total)))
    assert sizes == [5]
    assert heard == [(done, 6) for done in range(1, 7)], "two epochs of two, two and one"
    for found, expected in zip(few, whole, strict=True):
        assert_alike(found, expected, bags)


def test_as_many_are_trained_at_once_as_memory_allows(monkeypatch):
    cells = maps()
    trainings, _ = zip(*pairs(TABLE, PAPER, cells), strict=True)
    store = CellStore(cells, torch.float32, CPU)
    assert at_once(store, trainings, ROI, 3, PAPER) == 5
    for free, expected in ((5e8, 1), (8e8, 2), (1e10, 5), (0, 1)):
        monkeypatch.setattr(side_by_side, "_free", lambda device, free=free: free)
        assert at_once(store, trainings, ROI, 3, PAPER) == expected


def test_maps_that_do_not_fit_on_the_device_are_learned_from_one_model_at_a_time(monkeypatch):
    monkeypatch.setattr(side_by_side, "_free", lambda device: 1e6)
    monkeypatch.setattr(SideBySide, "run", None)
    bags = make_roi_cohort(5, 6)
    model = AnomalyMIL("att", PAPER)
    fit_side_by_side([model], [bags])
    expected = AnomalyMIL("att", PAPER).fit(bags).predict_proba(bags)
    np.testing.assert_array_equal(model.predict_proba(bags), expected)


def test_models_of_other_making_are_fitted_by_themselves():
    bags = make_cohort(0, 9)
    methods = ("default", "lse", "anomaly-quantiles")
    settings = MILSettings.preset("default", epochs=2, members=2)
    models = models_of(methods, settings)
    fit_side_by_side(models, [bags] * 3)
    for found, expected in zip(models, models_of(methods, settings), strict=True):
        np.testing.assert_array_equal(found.predict_proba(bags), expected.fit(bags).predict_proba(bags))


def test_only_the_paper_s_networks_stand_side_by_side():
    able = {method for method in METHODS if can_stand(PARTS[method], ROI, PAPER)}
    assert able == {*TABLE, "mean", "placebo"}
    parts = PARTS["anomaly+att"]
    assert not can_stand(parts, (8,), PAPER)
    for changes in (
        {"roi": "averages"},
        {"dropout": 0.5},
        {"reference_updates": "streamed"},
        {"crossfit_training": True},
    ):
        assert not can_stand(parts, ROI, PAPER.model_copy(update=changes)), changes
    assert can_stand(
        replace(parts, distance=False), ROI, PAPER.model_copy(update={"crossfit_training": True})
    )


def test_a_loss_that_becomes_infinite_is_an_error():
    bags = make_roi_cohort(5, 6)
    settings = PAPER.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(FeaturesError, match=r"infinite in epoch [12]"):
        fit_side_by_side(models_of(("att", "att+sic"), settings), [bags, bags])


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_networks_learn_what_they_learn_on_a_processor(half):
    gpu = torch.device("cuda")
    settings = PAPER.model_copy(update={"bfloat16": half, "device": "cuda"})
    exact = [alone for _, _, alone in trained_both_ways(TABLE, PAPER, maps())]
    for (method, network, _), alone in zip(
        trained_both_ways(TABLE, settings, maps(), gpu), exact, strict=True
    ):
        assert apart(network.cpu(), alone) < (2e-2 if half else 1e-3), method
