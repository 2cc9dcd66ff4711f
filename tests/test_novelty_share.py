"""At least how many cells are abnormal: the bound holds over donors, and says something where it can.

Also what a threshold for flags promises, and how many donors a promise needs.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hemomil.novelty import (
    Calibration,
    HealthyTails,
    abnormal_share_low,
    donors_needed,
    flag_threshold,
)


def donors(n_donors, per_donor=60, donor_sd=0.6, samples=1, seed=0):
    """Scores, patients and samples of healthy donors that differ from one another."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), per_donor)
    scores = donor_sd * rng.normal(size=n_donors)[donor] + rng.normal(size=len(donor))
    within = np.tile(np.arange(per_donor), n_donors) % samples
    names = tuple(f"d{d}-s{w}" for d, w in zip(donor, within, strict=True))
    return scores, tuple(f"d{d}" for d in donor), names


def after_the_first(drawn, per_donor=60):
    scores, patients, samples = drawn
    return scores[per_donor:], patients[per_donor:], samples[per_donor:]


@pytest.mark.parametrize("donor_sd", [0.0, 0.6, 1.5])
def test_no_more_is_claimed_than_is_there(donor_sd):
    """One new donor per trial, of whom so many of 60 cells are abnormal, some hardly and some clearly."""
    trials, level, wrong = 150, 0.1, dict.fromkeys([0, 1, 6, 30], 0)
    for trial in range(trials):
        drawn = donors(25, donor_sd=donor_sd, seed=trial)
        tails = HealthyTails.fit(*after_the_first(drawn), seed=trial)
        for abnormal in wrong:
            new = drawn[0][:60].copy()
            new[:abnormal] += np.linspace(0.5, 8, abnormal)
            wrong[abnormal] += abnormal_share_low(new, tails, level) > abnormal / 60
    assert max(wrong.values()) <= binom.ppf(0.999, trials, level), wrong


def test_counting_cells_as_if_they_were_donors_would_claim_too_much():
    """The control of the test above: a bound from pooled healthy cells fails where donors differ."""
    trials, level, wrong = 150, 0.05, 0
    for trial in range(trials):
        scores = donors(25, donor_sd=1.5, seed=trial)[0]
        threshold = np.quantile(scores[60:], 0.9)
        wrong += (scores[:60] > threshold).mean() - binom.ppf(1 - level, 60, 0.1) / 60 > 0
    assert wrong > binom.ppf(0.999, trials, level)


@pytest.mark.parametrize(("abnormal", "at_least"), [(10, 0.02), (50, 0.2), (150, 0.6)])
def test_clearly_abnormal_cells_are_claimed(abnormal, at_least):
    tails = HealthyTails.fit(*donors(40, per_donor=200))
    new = np.random.default_rng(1).normal(size=200)
    new[:abnormal] = 20
    assert at_least <= abnormal_share_low(new, tails) <= abnormal / 200


def test_more_donors_allow_a_bolder_claim():
    new = np.append(np.random.default_rng(1).normal(size=150), np.full(50, 20.0))
    few, many = (
        np.mean([abnormal_share_low(new, HealthyTails.fit(*donors(n, 200, seed=seed))) for seed in range(12)])
        for n in (19, 80)
    )
    assert few < many


def test_the_quantile_is_the_rank_of_the_donors():
    """One sample per donor, no smaller than the new one: by hand, from each donor's own surprise."""
    scores, patients, samples = donors(29, per_donor=10)
    tails = HealthyTails.fit(scores, patients, samples)
    by_donor = scores.reshape(29, 10)

    def threshold(of):
        return np.sort(of)[::-1][int(0.03 * len(of) + 1e-9)]

    above = [(by_donor[d] > threshold(np.delete(by_donor, d, axis=0).ravel())).mean() for d in range(29)]
    for level, rank in ((0.05, 1), (0.1, 3), (0.2, 6)):  # of 30, the new one included
        assert tails.most(10, level)[0] == pytest.approx(np.sort(above)[-rank])
    new = np.append(np.full(9, 50.0), -50.0)
    assert abnormal_share_low(new, tails, 0.1) == pytest.approx(0.9 - tails.most(10, 0.1)[0])
    assert tails.thresholds[0] == threshold(scores)


@pytest.mark.parametrize(("n_donors", "said"), [(0, True), (1, True), (18, True), (19, False)])
def test_with_too_few_donors_nothing_is_claimed_and_it_says_why(n_donors, said):
    tails = HealthyTails.fit(*donors(n_donors))
    assert (abnormal_share_low(np.full(60, 50.0), tails) == 0) == said
    assert bool(tails.notices()) == said
    for notice in tails.notices():
        assert f"{n_donors} control donors" in notice.text
        assert "95 % confidence" in notice.text
        assert "needs 19 donors" in notice.text


@pytest.mark.parametrize("n", [0, 1, 9])
def test_of_too_few_cells_nothing_is_claimed(n):
    assert abnormal_share_low(np.full(n, 50.0), HealthyTails.fit(*donors(30))) == 0


@given(st.lists(st.floats(-4, 8), min_size=10, max_size=80), st.integers(0, 79))
@settings(max_examples=40, deadline=None)
def test_a_stranger_cell_never_lowers_the_claim(new, which):
    tails = HealthyTails.fit(*donors(25))
    before = np.array(new)
    after = before.copy()
    after[which % len(new)] += 3
    assert 0 <= abnormal_share_low(before, tails) <= abnormal_share_low(after, tails) <= 1


def test_samples_and_copies_of_a_donor_do_not_pass_for_more_donors():
    scores, patients, samples = donors(10, samples=3)
    tails = HealthyTails.fit(np.tile(scores, 3), patients * 3, samples * 3)
    assert tails.n_donors == 10
    assert abnormal_share_low(np.full(60, 50.0), tails) == 0
    assert tails.shares.sum(axis=1) == pytest.approx(10)


def test_tails_are_rebuilt_from_their_state_and_name_no_donor():
    tails = HealthyTails.fit(*donors(25, samples=2))
    state = tails.to_state()
    again = HealthyTails.from_state(state)
    new = np.append(np.random.default_rng(1).normal(size=40), np.full(20, 9.0))
    assert abnormal_share_low(new, again) == abnormal_share_low(new, tails) > 0
    assert all(array.dtype in (np.float64, np.int64) for array in state.values())


def test_a_cell_without_score_is_refused():
    tails = HealthyTails.fit(*donors(25))
    with pytest.raises(AssertionError, match="no anomaly score"):
        abnormal_share_low(np.array([np.nan] * 20), tails)
    with pytest.raises(AssertionError, match="no anomaly score"):
        HealthyTails.fit(np.array([np.nan]), ("d",), ("s",))
    with pytest.raises(AssertionError, match="not aligned"):
        HealthyTails.fit(np.zeros(2), ("d",), ("s",))


@pytest.mark.parametrize(
    ("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.03, 33), (1 / 49, 48), (1.0, 0)]
)
def test_donors_needed_are_those_that_reach_the_level(alpha, needed):
    assert donors_needed(alpha) == needed
    assert Calibration.fit(*donors(needed, per_donor=2)).floor <= alpha + 1e-12
    assert needed == 0 or 1 / needed > alpha


def test_a_share_of_the_donors_cells_lies_above_the_flag_threshold():
    scores, patients, samples = donors(12, per_donor=50)
    keep = np.arange(len(scores)) >= 45  # the first donor has five cells, each worth ten
    scores, patients, samples = (np.array(part)[keep] for part in (scores, patients, samples))
    calibration = Calibration.fit(scores, tuple(patients), tuple(samples))
    for rate in (0.01, 0.05, 0.3):
        threshold = flag_threshold(calibration, rate)
        above = [np.mean(scores[patients == name] > threshold) for name in np.unique(patients)]
        at_or_above = [np.mean(scores[patients == name] >= threshold) for name in np.unique(patients)]
        counted = (np.array([np.mean(above), np.mean(at_or_above)]) * 555 + 1) / 556
        assert counted[0] <= rate + 1e-9 < counted[1]


def test_a_rare_flag_needs_enough_cells():
    calibration = Calibration.fit(*donors(3, per_donor=33))
    assert flag_threshold(calibration, 0.01) == calibration.cell_scores[-1]
    assert flag_threshold(Calibration.fit(*donors(2, per_donor=49)), 0.01) == np.inf


def test_new_donors_are_flagged_at_the_rate_on_average():
    rate, shares = 0.05, []
    for trial in range(400):
        drawn = donors(20, seed=trial)
        threshold = flag_threshold(Calibration.fit(*after_the_first(drawn)), rate)
        shares.append((drawn[0][:60] > threshold).mean())
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - rate) < 3 * error < 0.02


def test_without_donors_nothing_is_flagged():
    assert flag_threshold(Calibration.fit(np.zeros(0), (), ()), 0.01) == np.inf
