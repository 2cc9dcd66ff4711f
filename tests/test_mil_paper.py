"""preset=paper against a slow, literal implementation of its equations: one bag, one cell at a time."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.mixture import GaussianMixture
from torch.nn import functional

from hemomil.mil import MILSettings
from hemomil.mil.roi_encoder import RoiEncoder
from hemomil.mil.settings import PARTS
from hemomil.mil.train import Trainer, TrainingBags
from mil_cohorts import make_bag, make_roi_cohort

TABLE_1 = ("att", "att+sic", "anomaly", "anomaly+att", "anomaly+att+sic")


def literal_embedding(weights, cell):
    """Sec. 2, Instance encoder: conv 2x2/2 pad 2, conv, max-pool, conv, linear; ReLU between. One cell."""
    x = cell[None]
    x = functional.relu(
        functional.conv2d(x, weights["encoder.0.weight"], weights["encoder.0.bias"], stride=2, padding=2)
    )
    x = functional.relu(
        functional.conv2d(x, weights["encoder.2.weight"], weights["encoder.2.bias"], stride=2)
    )
    x = functional.max_pool2d(x, 2, stride=2)
    x = functional.relu(
        functional.conv2d(x, weights["encoder.5.weight"], weights["encoder.5.bias"], stride=2)
    )
    return functional.relu(weights["encoder.8.weight"] @ x.reshape(650) + weights["encoder.8.bias"])


def literal_loss(method, weights, mixture, cells, label, epoch):
    """Eq. 1-5 and the loss, for one bag, with a loop over its cells."""
    z = [literal_embedding(weights, cell) for cell in cells]
    shares = []
    if "att" in method:
        scores = []
        for z_n in z:
            hidden = torch.tanh(weights["attention.0.weight"] @ z_n + weights["attention.0.bias"])
            scores.append((weights["attention.2.weight"] @ hidden + weights["attention.2.bias"])[0])
        total = sum(torch.exp(score) for score in scores)
        shares.append([torch.exp(score) / total for score in scores])
    if "anomaly" in method:
        precision = np.linalg.inv(mixture.covariances_[0])
        far = [mahalanobis(z_n.detach().double().numpy(), mixture.means_[0], precision) for z_n in z]
        total = sum(np.exp(d - max(far)) for d in far)
        shares.append([float(np.exp(d - max(far)) / total) for d in far])
    mixing = weights["pooling.convolution.weight"][0] if len(shares) == 2 else torch.ones(1)
    z_bag = torch.zeros(500)
    for n, z_n in enumerate(z):
        z_bag = z_bag + sum(w * share[n] for w, share in zip(mixing, shares, strict=True)) * z_n
    logits = weights["pooling.classifier.weight"] @ z_bag + weights["pooling.classifier.bias"]
    loss = -functional.log_softmax(logits, dim=0)[label]
    if method.endswith("sic"):
        beta = 0.95**epoch
        noisy = []
        for z_n in z:
            hidden = weights["instance.0.weight"] @ z_n + weights["instance.0.bias"]
            own = weights["instance.1.weight"] @ hidden + weights["instance.1.bias"]
            noisy.append(-functional.log_softmax(own, dim=0)[label])
        loss = (1 - beta) * loss + beta * sum(noisy) / len(noisy)
    return loss, logits


@pytest.fixture(scope="module")
def bags():
    return make_roi_cohort(3)


def make_trainer(method, bags):
    targets = torch.tensor([("control", "sickle", "target").index(bag.label) for bag in bags])
    training = TrainingBags(
        [torch.from_numpy(bag.features) for bag in bags], targets, torch.where(targets == 0, targets, -1)
    )
    settings = MILSettings.preset("paper", learning_rate=1e-3)
    return Trainer(training, PARTS[method], (256, 14, 14), 3, settings, seed=5, device=torch.device("cpu"))


@pytest.mark.parametrize("method", TABLE_1)
def test_the_paper_preset_reproduces_the_literal_equations(method, bags):
    trainer = make_trainer(method, bags)
    weights = {name: w.detach().clone().requires_grad_() for name, w in trainer.network.named_parameters()}
    mixture = None
    if "anomaly" in method:
        trainer.refit()
        controls = [cell for bag in bags if bag.label == "control" for cell in bag.features]
        z = [literal_embedding(weights, torch.from_numpy(cell).float()).detach().numpy() for cell in controls]
        mixture = GaussianMixture(1, covariance_type="full", random_state=0).fit(
            np.array(z, dtype=np.float64)
        )
        assert trainer.reference.mean.numpy() == pytest.approx(mixture.means_[0], abs=1e-6)

    optimiser = torch.optim.Adam(list(weights.values()), lr=1e-3, weight_decay=1e-5)
    for row, epoch in ((1, 3), (4, 4)):
        label = int(trainer.bags.targets[row])
        cells = torch.from_numpy(bags[row].features).float()
        expected, logits = literal_loss(method, weights, mixture, cells, label, epoch)
        loss = trainer.loss([row], epoch)
        evidence, segments = trainer.evidence([row])
        found = trainer.network.pooling(evidence, segments)[0]
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        for optimise, value in ((optimiser, expected), (trainer.optimiser, loss)):
            optimise.zero_grad()
            value.backward()
        for name, parameter in trainer.network.named_parameters():
            torch.testing.assert_close(
                parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
        # Adam's step is the sign of tiny gradients: it is compared where rounding cannot turn them
        for group in (optimiser, trainer.optimiser):
            group.step()
        for name, parameter in trainer.network.named_parameters():
            clear = weights[name].grad.abs() > 1e-6
            torch.testing.assert_close(parameter[clear], weights[name][clear], atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            for name, parameter in trainer.network.named_parameters():
                parameter.copy_(weights[name])


def test_the_encoder_has_the_paper_s_shapes():
    encoder, sizes = RoiEncoder(), []
    x = torch.zeros(1, 256, 14, 14)
    for layer in encoder:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert [s for s in sizes if len(s) == 3] == [
        (301, 9, 9), (301, 9, 9), (500, 4, 4), (500, 4, 4), (500, 2, 2), (650, 1, 1), (650, 1, 1)
    ]  # fmt: skip
    assert sizes[-1] == (500,)


def test_the_paper_preset_has_the_printed_settings():
    paper = MILSettings.preset("paper")
    assert (paper.epochs, paper.learning_rate, paper.weight_decay) == (100, 5e-5, 1e-5)
    assert (paper.refit_every, paper.em_iterations, paper.components, paper.instance_decay) == (
        5,
        100,
        1,
        0.95,
    )
    assert (paper.batch_bags, paper.embedding, paper.attention_hidden, paper.mixing) == (1, 500, 128, "free")


def test_half_precision_maps_are_learned_and_judged_in_single_precision(bags):
    trainer = make_trainer("att", bags)
    evidence, _ = trainer.evidence([0])
    assert evidence.values.dtype == torch.float32
    one = make_bag("one", bags[0].features[:1])
    assert one.features.dtype == np.float16
