"""p-values of strange cells and samples: the error rates that they promise, and the laws they obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hemomil.novelty import Calibration, SampleScale, benjamini_hochberg
from hemomil.novelty.samples import strangest_means


def donors(n_donors, per_donor=25, donor_sd=1.0, per_sample=None, seed=0):
    """Scores, patients and samples of healthy donors that differ from one another."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), per_donor)
    scores = donor_sd * rng.normal(size=n_donors)[donor] + rng.normal(size=len(donor))
    within = np.tile(np.arange(per_donor), n_donors) // (per_sample or per_donor)
    samples = tuple(f"d{d}-s{w}" for d, w in zip(donor, within, strict=True))
    return scores, tuple(f"d{d}" for d in donor), samples


def by_hand(score, scores, patients):
    """The formula read aloud: each donor votes with its share of cells that score as high."""
    names = sorted(set(patients))
    votes = [np.mean([s >= score for s, p in zip(scores, patients, strict=True) if p == n]) for n in names]
    return (1 + sum(votes)) / (len(names) + 1)


def test_a_p_value_is_the_donors_vote():
    scores, patients, samples = donors(7)
    scores, patients, samples = scores[:-11].round(1), patients[:-11], samples[:-11]  # unequal donors, ties
    new = np.array([-9.0, -0.3, 0.0, 0.8, 1.5, 9.0, *scores[:20]])
    found = Calibration.fit(scores, patients, samples).cell_p(new)
    assert found == pytest.approx([by_hand(score, scores, patients) for score in new])
    assert found[0] == 1
    assert found[5] == pytest.approx(1 / 8)


def strangest(scores):
    """Mean of the strangest twentieth and of the strangest half, at least one cell."""
    order = np.sort(scores)[::-1]
    return np.array([order[: max(1, -(-len(order) // parts))].mean() for parts in (20, 2)])


def test_a_sample_is_judged_by_the_donors_samples():
    """Its strangest twentieth and half, whichever is farther from those of healthy samples."""
    scores, patients, samples = donors(6, per_donor=24, per_sample=8)
    calibration = Calibration.fit(scores, patients, samples)
    of_samples = {s: strangest(scores[np.array(samples) == s]) for s in samples}
    known = np.stack(list(of_samples.values()))  # every donor has three samples
    statistics = ((known - known.mean(axis=0)) / known.std(axis=0)).max(axis=1)
    owners = [s.split("-")[0] for s in of_samples]
    for shift in (-0.5, 0.0, 0.5, 1.0):
        new = np.random.default_rng(1).normal(size=47) + shift
        own = ((strangest(new) - known.mean(axis=0)) / known.std(axis=0)).max()
        expected = by_hand(own, statistics.tolist(), owners)
        assert calibration.sample_p(new) == pytest.approx(expected)


def test_a_few_strange_cells_and_many_a_little_strange_both_make_a_sample_strange():
    calibration = Calibration.fit(*donors(60, per_donor=100, donor_sd=0.3))
    usual = np.random.default_rng(1).normal(size=100)
    few, many = usual.copy(), usual + 1.2
    few[:5] += 4
    assert calibration.sample_p(usual) > 0.2
    assert calibration.sample_p(few) == calibration.sample_p(many) == pytest.approx(calibration.floor)


def test_every_donor_counts_the_same_in_what_is_usual():
    scores, patients, samples = donors(2, per_donor=40, per_sample=10)
    once = SampleScale.fit(
        scores[30:], patients[30:], samples[30:]
    )  # one sample of the first, four of the other
    own = [strangest(part) for part in np.split(scores[30:], 5)]
    weights = [1, 0.25, 0.25, 0.25, 0.25]
    mean = np.average(own, axis=0, weights=weights)
    assert once.mean == pytest.approx(mean)
    assert once.sd == pytest.approx(np.sqrt(np.average((own - mean) ** 2, axis=0, weights=weights)))


def test_a_scale_of_other_donors_is_used_as_it_is():
    others, own = donors(20, per_donor=30, seed=1), donors(9, per_donor=30)
    scale = SampleScale.fit(*others)
    calibration = Calibration.fit(*own, scale)
    assert calibration.scale is scale
    found = [scale.of(part) for part in np.split(own[0], 9)]
    assert calibration.sample_scores == pytest.approx(np.sort(found))


def test_a_single_sample_tells_no_spread():
    scale = SampleScale.fit(np.arange(20.0), ("d",) * 20, ("s",) * 20)
    assert scale.mean.tolist() == [19, 14.5]
    assert scale.of(np.arange(20.0) + 1) == 1


@pytest.mark.parametrize("donor_sd", [0.0, 0.5, 2.0])
def test_healthy_donors_are_flagged_no_more_often_than_promised(donor_sd):
    """Cell and sample alike, whatever the donors' differences; one cell of each new donor is looked at."""
    trials, p = 400, []
    for trial in range(trials):
        scores, patients, samples = donors(25, per_donor=12, donor_sd=donor_sd, seed=trial)
        calibration = Calibration.fit(scores[12:], patients[12:], samples[12:])
        new = scores[:12]
        p.append([calibration.cell_p(new)[0], calibration.sample_p(new)])
    for level in (0.05, 0.1, 0.2, 0.5):
        flagged = (np.array(p) <= level).sum(axis=0)
        assert (flagged <= binom.ppf(0.999, trials, level)).all(), (level, flagged / trials)
        # samples are ranked among 24 others: the promise is used up, but for one rank
        assert flagged[1] >= binom.ppf(0.001, trials, level - 1 / 25), (level, flagged / trials)


def test_pooling_the_cells_of_all_donors_would_flag_too_many():
    """The control of the test above: with few donors that differ, cells are no substitute for donors."""
    level, trials, ours, pooled = 0.02, 400, 0, 0
    for trial in range(trials):
        scores, patients, samples = donors(6, per_donor=40, donor_sd=2.0, seed=trial)
        new, old = scores[0], scores[40:]
        ours += Calibration.fit(old, patients[40:], samples[40:]).cell_p(np.array([new]))[0] <= level
        pooled += (1 + (old >= new).sum()) / (1 + len(old)) <= level
    assert ours <= binom.ppf(0.999, trials, level)
    assert pooled > binom.ppf(0.999, trials, level)


def test_several_samples_of_a_donor_do_not_make_new_samples_look_strange():
    trials, level, flagged = 300, 0.2, 0
    for trial in range(trials):
        scores, patients, samples = donors(15, per_donor=40, per_sample=5, donor_sd=0.2, seed=trial)
        calibration = Calibration.fit(scores[40:], patients[40:], samples[40:])
        flagged += calibration.sample_p(scores[:5]) <= level
    assert flagged <= binom.ppf(0.999, trials, level)


def test_strange_samples_are_found():
    scores, patients, samples = donors(60, donor_sd=0.5)
    calibration = Calibration.fit(scores, patients, samples)
    new = np.random.default_rng(1).normal(size=30)
    new[:5] += 6
    assert calibration.sample_p(new) == pytest.approx(calibration.floor)
    assert (calibration.cell_p(new)[:5] < 0.05).all()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_higher_score_is_never_less_strange(new):
    calibration = Calibration.fit(*donors(9))
    p = calibration.cell_p(np.sort(np.array(new)))
    assert (np.diff(p) <= 0).all()
    assert (p >= calibration.floor).all()
    assert (p <= 1).all()


def test_the_order_of_control_cells_does_not_matter():
    scores, patients, samples = donors(9, per_sample=5)
    order = np.random.default_rng(2).permutation(len(scores))
    first = Calibration.fit(scores, patients, samples)
    again = Calibration.fit(
        scores[order], tuple(patients[i] for i in order), tuple(samples[i] for i in order)
    )
    new = np.linspace(-3, 3, 50)
    assert (first.cell_p(new) == again.cell_p(new)).all()
    assert first.sample_p(new) == again.sample_p(new)


def test_copies_of_a_donors_cells_lend_no_certainty():
    scores, patients, samples = donors(9)
    once = Calibration.fit(scores, patients, samples)
    twice = Calibration.fit(np.tile(scores, 2), patients * 2, samples * 2)
    new = np.linspace(-3, 3, 50)
    assert twice.cell_p(new) == pytest.approx(once.cell_p(new))


def test_a_calibration_is_rebuilt_from_its_state_and_names_no_donor():
    calibration = Calibration.fit(*donors(9, per_sample=5))
    state = calibration.to_state()
    again = Calibration.from_state(state)
    new = np.linspace(-3, 3, 50)
    assert (again.cell_p(new) == calibration.cell_p(new)).all()
    assert again.sample_p(new) == calibration.sample_p(new)
    assert again.n_donors == 9
    assert all(array.dtype in (np.float64, np.int64) for array in state.values())


def test_float32_scores_meet_themselves():
    scores, patients, samples = donors(3)
    calibration = Calibration.fit(scores.astype(np.float32), patients, samples)
    assert calibration.cell_p(scores.astype(np.float32).max(keepdims=True))[0] > calibration.floor


@pytest.mark.parametrize(("n_donors", "warned"), [(1, True), (18, True), (19, False)])
def test_too_few_donors_to_be_significant_are_announced(n_donors, warned):
    calibration = Calibration.fit(*donors(n_donors))
    assert bool(calibration.notices) == warned
    assert calibration.cell_p(np.array([99.0]))[0] == pytest.approx(1 / (n_donors + 1))
    for notice in calibration.notices:
        assert f"{n_donors} control donors" in notice.text
        assert "needs 19 donors" in notice.text


def test_without_donors_nothing_is_strange():
    calibration = Calibration.fit(np.zeros(0), (), ())
    assert calibration.cell_p(np.array([5.0])).tolist() == [1.0]
    assert calibration.sample_p(np.array([5.0])) == 1.0
    assert calibration.notices


def test_a_sample_without_cells_is_not_strange():
    assert Calibration.fit(*donors(30)).sample_p(np.zeros(0)) == 1.0


def test_a_missing_score_is_refused():
    with pytest.raises(AssertionError, match="no anomaly score"):
        Calibration.fit(*donors(5)).cell_p(np.array([np.nan]))


def test_the_strangest_cells_are_rounded_up():
    assert strangest_means(np.arange(20.0)).tolist() == [19, 14.5]
    assert strangest_means(np.arange(21.0)).tolist() == [19.5, 15]
    assert strangest_means(np.array([4.0])).tolist() == [4, 4]


def test_q_values_flag_what_the_step_up_procedure_flags():
    """Benjamini and Hochberg's own words: flag the k smallest, for the last k with p(k) ≤ k q / m."""
    p = np.random.default_rng(0).random(40) ** 3
    q = benjamini_hochberg(p)
    for level in (0.01, 0.05, 0.1, 0.3):
        passed = np.flatnonzero(np.sort(p) <= level * np.arange(1, 41) / 40)
        assert (q <= level).sum() == (passed.max() + 1 if len(passed) else 0)
    assert (q >= p).all()
    assert len(benjamini_hochberg(np.zeros(0))) == 0
