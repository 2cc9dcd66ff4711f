"""Networks trained in step with each other learn, to the last bit, what each learns by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hemomil.errors import FeaturesError
from hemomil.mil import METHODS, AnomalyMIL, MILSettings, in_step, model
from hemomil.mil.in_step import InStep, can_go_in_step
from hemomil.mil.settings import PARTS
from hemomil.mil.train import Trainer, TrainingBags
from mil_cohorts import make_cohort, make_roi_cohort

MAKINGS = {
    "lse, cells told": PARTS["default"],
    "attention": PARTS["default"].in_turn_with,
    "attention, cells told by their own classifier": PARTS["att+sic"],
    "instance": PARTS["instance"],
}
SETTINGS = MILSettings(epochs=3, embedding=12, attention_hidden=8, batch_bags=4)


def trainers(parts, settings=SETTINGS):
    """Four networks; each knows two bags less than the one before, and so has fewer or shorter packs."""
    bags = make_cohort(6, 15)
    cells = [torch.from_numpy(bag.features) for bag in bags]
    targets = torch.arange(15) % 3
    known = TrainingBags(cells, targets, torch.where(targets == 0, torch.arange(15) // 3, -1))
    return [
        Trainer(
            known.at(torch.arange(2 * k, 15)), parts, (8,), 3, settings, seed=k, device=torch.device("cpu")
        )
        for k in range(4)
    ]


def weights(networks):
    return [torch.cat([weight.detach().flatten() for weight in network.parameters()]) for network in networks]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("parts", MAKINGS.values(), ids=MAKINGS)
@pytest.mark.parametrize("at_once", [1, 60, 10_000])
def test_in_step_networks_learn_what_each_learns_alone(parts, at_once, monkeypatch):
    monkeypatch.setattr(in_step, "AT_ONCE", at_once)
    alone = [trainer.run() for trainer in trainers(parts)]
    heard = []
    together = InStep(trainers(parts)).run(heard.append)
    assert heard == [epoch for epoch in (1, 2, 3) for _ in together]
    assert_same(weights(together), weights(alone))
    assert not any(network.training for network in together)
    before = weights(trainer.network for trainer in trainers(parts))
    assert not any(torch.equal(now, then) for now, then in zip(weights(together), before, strict=True))


def test_networks_of_two_makings_do_not_go_together():
    one, other = (trainers(MAKINGS[name])[0] for name in ("attention", "instance"))
    with pytest.raises(AssertionError, match="one making"):
        InStep([one, other])


def test_those_whose_weights_are_mixed_by_what_is_learned_train_alone():
    able = {method for method in METHODS if can_go_in_step(PARTS[method])}
    assert able == {"att", "att+sic", "lse", "instance", "default"}
    told = replace(PARTS["att"], instance_loss=True)
    assert not can_go_in_step(told), "a cell alone is judged with the bias of its network"


def test_a_loss_that_becomes_infinite_in_one_network_is_an_error():
    bold = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(FeaturesError, match=r"the loss became (nan|inf) in epoch [123]"):
        InStep(trainers(MAKINGS["attention"], bold)).run()


def test_an_ensemble_is_the_same_in_step_and_one_by_one(monkeypatch):
    bags = make_cohort(3, 24)
    settings = MILSettings(epochs=3, embedding=16, members=3)
    sizes = []

    def seen(networks):
        sizes.append(len(networks))
        return InStep(networks)

    monkeypatch.setattr(model, "InStep", seen)
    together = AnomalyMIL("default", settings).fit(bags)
    assert sizes == [2, 1 + 5], "two of log-sum-exp; one of attention and its witnesses"
    monkeypatch.setattr(model, "IN_STEP_BYTES", 0)
    alone = AnomalyMIL("default", settings).fit(bags)
    assert len(sizes) == 2, "memory for none: one by one"
    found, expected = (fitted.to_state()[0] for fitted in (together, alone))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_networks_that_read_maps_train_one_by_one(monkeypatch):
    monkeypatch.setattr(model, "InStep", None)
    AnomalyMIL("default", MILSettings.preset("paper", epochs=1, members=3)).fit(make_roi_cohort(5, 6))
