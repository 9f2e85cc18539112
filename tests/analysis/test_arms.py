"""Arms against the base: made-up tables, SciPy's tests, and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import CensoredData, logrank

from grokfast.analysis import compare_arms, median_time, summarize
from grokfast.analysis.arms import _medians, holm
from tests.analysis.runs import CONFUSED, DIVERGED, FAILED, RUNNING, table

pytestmark = pytest.mark.filterwarnings("error")

LIMIT = 3000


def ablation(**arms):
    """Of each arm the steps at which its runs generalised, None: not in LIMIT steps; or whole rows."""
    rows, names, seeds = [], [], []
    for name, times in arms.items():
        for seed, t in enumerate(times):
            rows.append(t if isinstance(t, tuple) else (60, t, LIMIT if t is None else t + 300))
            names.append(name)
            seeds.append(seed)
    return table(*rows, arm=names, seed=seeds, test_accuracy=[0.01 * i for i in range(len(rows))])


BASE = [900, 960, 1000, 940, 980, 930, 1010, 950]


def test_each_arm_has_its_summary_and_the_base_comes_first():
    runs = ablation(slow=[2 * t for t in BASE], base=BASE, never=[None] * 8)
    found = compare_arms(runs)
    assert [arm.arm for arm in found] == ["base", "slow", "never"]
    cells = {cell.cell["arm"]: cell for cell in summarize(runs, by=["arm"])}
    assert all(arm.runs == cells[arm.arm] for arm in found)
    assert (found[0].ratio, found[0].p, found[0].p_holm) == (None, None, None)
    assert [arm.accuracy for arm in found] == pytest.approx([0.115, 0.035, 0.195])


def test_paired_seeds_of_one_factor_have_that_ratio_exactly():
    """Every resample has the same quotient, as a seed's two runs are drawn together."""
    ratio = compare_arms(ablation(base=BASE, slow=[1.5 * t for t in BASE]))[1].ratio
    assert (ratio.value, ratio.low, ratio.high, ratio.n, ratio.pairs) == (1.5, 1.5, 1.5, 8, 8)
    assert str(ratio) == "1.50 [1.50, 1.50]"


def test_p_values_are_scipys_log_rank_test_and_holms_correction():
    arms = {"base": BASE, "some": [1100, None, 990, 1400, None, 930, 1200, 1010], "same": [*BASE[1:], 905]}
    found = compare_arms(ablation(**arms, never=[None] * 8))
    samples = {
        name: CensoredData(uncensored=[t for t in times if t], right=[LIMIT for t in times if not t])
        for name, times in {**arms, "never": [None] * 8}.items()
    }
    p = [logrank(samples[name], samples["base"]).pvalue for name in ("some", "same", "never")]
    assert [arm.p for arm in found[1:]] == pytest.approx(p)
    assert p[2] < p[0] < p[1]
    assert [arm.p_holm for arm in found[1:]] == pytest.approx([2 * p[0], p[1], 3 * p[2]])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # R: p.adjust(c(.01, .04, .03, .005), "holm")
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, math.nan, 0.04], [0.04, math.nan, 0.04]),
        ([], []),
    ],
)
def test_holms_correction(p, expected):
    assert holm(p) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=15))
def test_medians_of_many_samples_are_kaplan_and_meiers(sample):
    t, crossed = (np.array(column) for column in zip(*sample))
    found = _medians(np.stack([t, t[::-1]]).astype(float), np.stack([crossed, crossed[::-1]]))
    assert found.tolist() == [median_time(t, crossed).median] * 2


def test_medians_that_were_not_reached_bound_the_ratio():
    found = compare_arms(ablation(base=BASE, never=[None] * 8, half=[None] * 4 + BASE[4:]))
    never, half = found[1].ratio, found[2].ratio
    assert (never.value, never.pairs, never.low, never.high) == (math.inf, 0, math.inf, math.inf)
    assert str(never) == f">{LIMIT / 950:.2f}"
    assert half.pairs == 4
    assert half.high == math.inf
    backwards = compare_arms(ablation(base=[None] * 8, fast=BASE, never=[None] * 8))
    assert (backwards[1].ratio.value, str(backwards[1].ratio)) == (0, f"<{950 / LIMIT:.2f}")
    assert backwards[1].p_holm < 0.01
    assert (str(backwards[2].ratio), math.isnan(backwards[2].p)) == ("unknown", True)
    assert backwards[1].p == backwards[1].p_holm  # the only test that could be made


def test_one_seed_has_no_interval():
    ratio = compare_arms(ablation(base=[1000], slow=[2000]))[1].ratio
    assert (ratio.value, math.isnan(ratio.low), math.isnan(ratio.high), str(ratio)) == (2.0, True, True, "2.00")


def test_runs_at_one_step_do_not_differ():
    (_, same) = compare_arms(ablation(base=[500, 500], same=[500, 500]))
    assert (same.p, same.p_holm, same.ratio.value) == (1.0, 1.0, 1.0)


def test_failed_and_unfinished_runs_are_in_no_number_and_diverged_ones_never_cross():
    found = compare_arms(
        ablation(base=BASE, some=[FAILED, RUNNING, *BASE[2:]], none=[FAILED] * 8, gone=[DIVERGED] * 7 + [CONFUSED])
    )
    some, none, gone = found[1:]
    assert (some.runs.n, some.ratio.n, some.ratio.value) == (6, 6, 1.0)  # of the six seeds that both have
    assert (none.runs.n, none.ratio.n, str(none.ratio), math.isnan(none.p)) == (0, 0, "unknown", True)
    assert math.isnan(none.accuracy)
    assert (gone.ratio.value, gone.ratio.bound) == (math.inf, 10_000 / 950)
    assert gone.p < 0.001


def test_intervals_of_the_ratio_cover_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        common = np.exp(0.3 * rng.normal(size=12))
        base, slow = (1000 * factor * common * np.exp(0.1 * rng.normal(size=12)) for factor in (1, 1.5))
        ratio = compare_arms(ablation(base=base, slow=slow), resamples=500)[1].ratio
        covered += ratio.low <= 1.5 <= ratio.high
    assert 0.88 <= covered / 200 <= 1.0  # binomial 99.9% about 0.95


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (ablation(base=BASE), {"base": "bas"}, "base must be in the column 'arm', which has 'base', got 'bas'"),
        (ablation(base=BASE), {"by": "arms"}, "did you mean 'arm'"),
        (ablation(base=BASE), {"accuracy": "test_acuracy"}, "did you mean 'test_accuracy'"),
        (ablation(base=BASE) | {"seed": [0] * 8}, {}, "'base' has one twice"),
        (ablation(base=BASE), {"resamples": 0}, "resamples must be at least 1"),
        (ablation(base=BASE), {"confidence": 1.0}, "confidence must be in"),
    ],
)
def test_what_cannot_be_compared_is_said(runs, options, message):
    with pytest.raises(ValueError, match=message):
        compare_arms(runs, **options)


def test_the_inverse_of_a_ratio_is_that_of_the_other_to_the_one():
    runs = ablation(base=BASE, slow=[1.5 * t for t in BASE], some=[*[None] * 4, 400, 500, 600, 700], never=[None] * 8)
    for name in ("slow", "some", "never"):
        forth = next(one.ratio for one in compare_arms(runs) if one.arm == name)
        back = next(one.ratio for one in compare_arms(runs, base=name) if one.arm == "base")
        assert str(forth.inverse) == str(back)
        assert str(forth.inverse.inverse) == str(forth)
        assert (forth.inverse.value, forth.inverse.bound) == pytest.approx((back.value, back.bound))
    nothing = compare_arms(ablation(base=[None], never=[None]))[1].ratio
    assert str(nothing.inverse) == "unknown"
