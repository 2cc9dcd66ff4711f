"""Pooling packed bags: the same as one at a time, in any order of cells, and exact about a missing cell."""

import numpy as np
import pytest
import torch

from hemomil.errors import ModelError
from hemomil.mil import METHODS, AnomalyMIL, MILSettings
from hemomil.mil.explanation import log_odds
from hemomil.mil.pack import Segments
from hemomil.mil.pooling import Evidence, LogSumExpPooling, MaxPooling, mean_without_each
from hemomil.types import Bag
from mil_cohorts import make_cohort, without_cell, without_cells

QUICK = {"epochs": 2, "members": 2}
VARIANTS = [(method, {}) for method in METHODS] + [
    ("anomaly+att+sic", {"mixing": "free", "distance_weights": "softmax"}),
    ("anomaly+att", {"mixing": "free", "distance_weights": "raw"}),
    ("anomaly", {"distance_weights": "raw"}),
]


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(1, n=24)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: "-".join([v[0], *v[1].values()]))
def model(request, cohort):
    method, changes = request.param
    return AnomalyMIL(method, MILSettings(**QUICK, **changes), seed=3).fit(cohort)


def shuffled(bag, seed=0):
    order = np.random.default_rng(seed).permutation(len(bag))
    ids = tuple(bag.cell_ids[i] for i in order)
    changed = Bag(
        sample=bag.sample, patient=bag.patient, label=bag.label, features=bag.features[order], cell_ids=ids
    )
    return changed, order


def test_the_order_of_cells_does_not_matter(model, cohort):
    for bag in cohort[:3]:
        changed, order = shuffled(bag)
        first, second = model.predict_cells([bag])[0], model.predict_cells([changed])[0]
        np.testing.assert_allclose(second.probabilities, first.probabilities, atol=1e-5)
        for name in ("attention", "anomaly", "weight", "contribution", "cell_probabilities"):
            np.testing.assert_allclose(
                getattr(second, name), getattr(first, name)[order], atol=2e-5, rtol=1e-4, err_msg=name
            )


def test_contribution_is_what_really_deleting_the_cell_takes_away(model, cohort):
    for bag in cohort[:3]:
        whole = model.predict_cells([bag])[0]
        k = int(np.argmax(whole.probabilities))

        def odds(bag, k=k):
            p = model.predict_proba([bag])[0]
            return np.log(p[k]) - np.log(np.delete(p, k).sum())

        for n in range(len(bag)):
            lost = odds(bag) - odds(without_cell(bag, n))
            assert whole.contribution[n] == pytest.approx(lost, abs=2e-4, rel=1e-4)


def test_a_bag_without_cells_is_judged_as_if_they_had_never_been_there(model, cohort, monkeypatch):
    rng = np.random.default_rng(0)
    for bag in (bag for bag in cohort[:6] if len(bag) > 2):
        sizes = [0, 1, 1, 2, len(bag) - 1]
        sets = [rng.choice(len(bag), size=size, replace=False) for size in sizes]
        expected = model.predict_proba([without_cells(bag, cells) for cells in sets])
        found = model.predict_without(bag, sets)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
        monkeypatch.setattr("hemomil.mil.model.VECTOR_CHUNK", 2 * len(bag))  # two sets at a time
        np.testing.assert_allclose(model.predict_without(bag, sets), found, atol=1e-7)
        assert model.predict_without(bag, []).shape == (0, 3)


def test_a_bag_cannot_be_judged_without_all_its_cells(model, cohort):
    with pytest.raises(ModelError, match="no other cells"):
        model.predict_without(cohort[0], [np.arange(len(cohort[0]))])


def test_packed_bags_are_judged_like_one_bag_at_a_time(model, cohort):
    core, bags = model.core_, cohort[:4]
    packed = torch.cat([torch.from_numpy(bag.features) for bag in bags])
    segments = Segments.of_sizes([len(bag) for bag in bags])
    with torch.no_grad():
        evidence, _ = core.read(packed)
        for member, read in zip(core.members, evidence, strict=True):
            together = member.pooling(read, segments)
            without = member.pooling.without_each(read, segments)
            weights = member.pooling.weights(read, segments)
            start = 0
            for b, bag in enumerate(bags):
                own = core.read(torch.from_numpy(bag.features))[0][core.members.index(member)]
                alone, stop = Segments.of_sizes([len(bag)]), start + len(bag)
                close = {"atol": 1e-4, "rtol": 1e-4}
                torch.testing.assert_close(together[b], member.pooling(own, alone)[0], **close)
                torch.testing.assert_close(weights[start:stop], member.pooling.weights(own, alone), **close)
                if len(bag) > 1:
                    expected = member.pooling.without_each(own, alone)
                    torch.testing.assert_close(without[start:stop], expected, **close)
                start = stop


def test_a_bag_of_one_cell_is_judged(model, cohort):
    one = cohort[0]
    only = Bag(sample="one", patient="p", label=None, features=one.features[:1], cell_ids=("one/0",))
    prediction = model.predict_cells([only])[0]
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert prediction.contribution.tolist() == [0.0]


def test_shares_of_weight_and_probabilities_sum_to_one(model, cohort):
    prediction = model.predict_cells(cohort[:1])[0]
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert prediction.cell_probabilities.sum(axis=1) == pytest.approx(1)
    if not np.isnan(prediction.attention).any():
        assert prediction.attention.sum() == pytest.approx(1)
    if model.settings.mixing == "convex" and model.settings.distance_weights == "share":
        assert prediction.weight.sum() == pytest.approx(1)


def test_attention_is_nan_only_where_the_method_has_none(model, cohort):
    attention = model.predict_cells(cohort[:1])[0].attention
    assert np.isnan(attention).all() == (
        model.method in ("anomaly", "mean", "max", "lse", "instance", "anomaly-quantiles")
    )


def test_a_cell_with_all_the_weight_is_taken_out_exactly():
    scores, bags = torch.tensor([60.0, 0.0, 1.0, 5.0]), Segments.of_sizes([3, 1])
    values = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    rest = mean_without_each(scores, values, bags)
    share = torch.softmax(torch.tensor([0.0, 1.0]), dim=0)
    assert rest[0, 0] == pytest.approx(float(share @ torch.tensor([2.0, 4.0])))
    assert rest[1, 0] == pytest.approx(1.0)
    assert torch.isfinite(rest).all()

    pooling = LogSumExpPooling(1, 2, normalised=False)
    evidence_values = torch.tensor([[90.0, -90.0], [0.0, 1.0], [2.0, 3.0]])
    evidence = Evidence(evidence_values, torch.zeros(3, 0))
    without = pooling.without_each(evidence, Segments.of_sizes([3]))
    expected = torch.logsumexp(evidence_values[1:], dim=0)
    torch.testing.assert_close(without[0], expected)


def test_log_odds_survive_certainty():
    logits = torch.tensor([[[200.0, 0.0, 0.0]]], dtype=torch.float64)
    assert float(log_odds(logits, 0)[0]) == pytest.approx(200 - np.log(2))


def test_segments_agree_with_a_loop():
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 1, 5]
    values = torch.randn(9, 2, generator=generator)
    bags, parts = Segments.of_sizes(sizes), torch.split(values, sizes)
    torch.testing.assert_close(bags.sum(values), torch.stack([p.sum(0) for p in parts]))
    torch.testing.assert_close(bags.mean(values), torch.stack([p.mean(0) for p in parts]))
    torch.testing.assert_close(bags.max(values), torch.stack([p.amax(0) for p in parts]))
    torch.testing.assert_close(bags.logsumexp(values), torch.stack([p.logsumexp(0) for p in parts]))
    torch.testing.assert_close(bags.softmax(values), torch.cat([p.softmax(0) for p in parts]))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_cell_alone_is_a_bag_of_one_and_learns_the_same(normalised):
    pooling = LogSumExpPooling(4, 3, normalised=normalised)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    evidence = Evidence(pooling.values(z), torch.zeros(6, 0))
    alone, pooled = pooling.alone(evidence), pooling(evidence, Segments.singletons(6))
    torch.testing.assert_close(alone, pooled, rtol=0, atol=0)
    gradients = [torch.autograd.grad(of.square().sum(), z, retain_graph=True)[0] for of in (alone, pooled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_shares_hold_where_scores_are_infinite():
    infinite = torch.tensor([[-torch.inf, 1.0], [-torch.inf, 1.0], [-torch.inf, 3.0], [2.0, 4.0]])
    two = Segments.of_sizes([2, 2])
    expected = torch.tensor([[0, 0.5], [0, 0.5], [0, 1 / (1 + np.e)], [1, 1 / (1 + 1 / np.e)]])
    torch.testing.assert_close(two.softmax(infinite), expected)
    sums = two.logsumexp(infinite)
    assert sums[0, 0] == -torch.inf
    assert sums[1, 0] == 2
    assert torch.isnan(two.softmax(torch.full((4, 1), torch.inf))).all()


def test_cells_that_tie_for_the_maximum_share_its_weight_and_none_is_missed():
    pooling, bags = MaxPooling(2, 2), Segments.of_sizes([3])
    tied = Evidence(torch.tensor([[3.0, 0.0], [3.0, 5.0], [1.0, 2.0]]), torch.zeros(3, 0))
    with torch.no_grad():
        assert pooling.weights(tied, bags)[:, 0].tolist() == [0.25, 0.75, 0.0]
        without = pooling.without_each(tied, bags)
        expected = pooling.classifier(torch.tensor([[3.0, 5.0], [3.0, 2.0], [3.0, 5.0]]))
    torch.testing.assert_close(without, expected)
