import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokfast.analysis import median_time, success_interval, summarize
from tests.analysis.runs import COMPREHENDED, CONFUSED, DIVERGED, FAILED, GROKKED, MEMORIZED, RUNNING, table

pytestmark = pytest.mark.filterwarnings("error")

# Weeks of remission of 21 + 21 children with leukaemia: Freireich et al. (1963), Blood 21, 699. Intervals of the
# medians on the log-log scale as SAS and R print them (Kalbfleisch and Prentice, The Statistical Analysis of Failure
# Time Data, use the same data).
ON_6MP = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
ON_PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], []

SAMPLES = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=30)
RUNS = st.lists(
    st.sampled_from([GROKKED, MEMORIZED, CONFUSED, COMPREHENDED, DIVERGED, FAILED]), min_size=1, max_size=12
)


@pytest.mark.parametrize(("arm", "expected"), [(ON_6MP, (23, 13, math.inf)), (ON_PLACEBO, (8, 4, 11))])
def test_medians_of_the_textbook_data(arm, expected):
    crossed, censored = arm
    found = median_time(crossed + censored, [True] * len(crossed) + [False] * len(censored))
    assert (found.median, found.low, found.high) == expected
    assert (found.observed, found.n, found.followed) == (len(crossed), 21, max(crossed + censored))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # Newcombe (1998), Statistics in Medicine 17, 857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(k, n, low, high):
    assert success_interval(k, n) == pytest.approx((low, high), abs=5e-5)
    assert success_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(0, 20))
def test_runs_that_never_cross_are_like_runs_that_cross_after_all_others(crossed, never):
    steps = [*crossed, *[31] * never]
    found = median_time(steps, [True] * len(crossed) + [False] * never)
    half = np.quantile([*crossed, *[math.inf] * never], 0.5, method="inverted_cdf")
    assert found.median == half
    assert found.low <= found.median <= found.high


@given(SAMPLES, st.randoms())
def test_the_order_of_runs_does_not_matter(sample, random):
    shuffled = random.sample(sample, len(sample))
    assert median_time(*zip(*sample)) == median_time(*zip(*shuffled))


@given(SAMPLES, st.sampled_from([0.5, 3, 1024]))
def test_medians_scale_with_time(sample, factor):
    times, observed = zip(*sample)
    one, other = median_time(times, observed), median_time([factor * t for t in times], observed)
    assert (other.median, other.low, other.high) == (factor * one.median, factor * one.low, factor * one.high)


@given(SAMPLES)
def test_following_a_run_for_longer_never_shortens_the_median(sample):
    times, observed = zip(*sample)
    longer = [t if crossed else t + 60 for t, crossed in sample]
    assert median_time(longer, observed).median >= median_time(times, observed).median


def test_intervals_of_the_median_cover_it():
    rng = np.random.default_rng(0)
    repetitions, covered = 400, 0
    for _ in range(repetitions):
        true, limit = 1000 * np.exp(rng.normal(size=25)), 1000 * np.exp(rng.normal(0.5, 0.7, size=25))
        found = median_time(np.minimum(true, limit), true <= limit)
        covered += found.low <= 1000 <= found.high
    low, high = success_interval(covered, repetitions, confidence=0.999)
    assert low <= 0.95 <= high


@pytest.mark.parametrize(
    ("times", "observed", "expected"),
    [
        ([900] * 16, [True] * 16, (900, 900, 900)),  # where Greenwood's formula has nothing to say
        ([900] * 5, [True] * 5, (900, 900, math.inf)),  # too few for an upper limit: 2 · ½⁵ > 5%
        ([900] * 3, [False] * 3, (math.inf, math.inf, math.inf)),
        ([0], [True], (0, 0, math.inf)),
    ],
)
def test_all_at_once_and_none_at_all(times, observed, expected):
    found = median_time(times, observed)
    assert (found.median, found.low, found.high) == expected


def test_medians_in_words():
    assert str(median_time([1200, 1300, 1400, 5000], [True, True, True, False])) == "1,300 [1,200, >5,000]"
    assert str(median_time([5000] * 4, [True, False, False, False])) == ">5,000"
    assert str(median_time([], [])) == "no runs"


def test_cells_count_every_run():
    cell, other = summarize(
        table(GROKKED, MEMORIZED, CONFUSED, DIVERGED, FAILED, RUNNING, COMPREHENDED, lr=[0.1] * 6 + [0.01]), by=["lr"]
    )[::-1]
    assert (cell.cell, other.cell) == ({"lr": 0.1}, {"lr": 0.01})
    assert (cell.n, cell.generalized, cell.diverged, cell.failed, cell.unfinished) == (4, 1, 1, 1, 1)
    assert cell.phases == {"diverged": 1, "confusion": 1, "memorization": 1, "comprehension": 0, "grokking": 1}
    assert cell.probability == 0.25
    assert cell.probability_interval == success_interval(1, 4)
    assert (cell.t_generalize.median, cell.t_generalize.followed) == (math.inf, 10_000)
    assert cell.t_memorize.median == 60
    assert (other.n, other.phase) == (1, "comprehension")


def test_runs_that_did_not_generalise_lengthen_the_median():
    alone = summarize(table(*[(60, t, 9000) for t in (1000, 2000, 3000)]))[0]
    together = summarize(table(*[(60, t, 9000) for t in (1000, 2000, 3000)], MEMORIZED, CONFUSED, DIVERGED))[0]
    assert (alone.t_generalize.median, together.t_generalize.median) == (2000, 3000)


def test_a_run_that_diverged_never_generalises():
    rows = [(60, 1000, 9000)] * 2 + [DIVERGED] * 3
    assert math.isinf(summarize(table(*rows))[0].t_generalize.median)  # censored at step 300 it would be 1,000
    late = summarize(table((60, 1000, 1500, "diverged"), (60, 3000, 3000)))[0]
    assert (late.generalized, late.diverged, late.phases["diverged"]) == (2, 1, 0)


def test_a_cell_without_an_outcome_is_still_a_cell():
    (cell,) = summarize(table(FAILED, RUNNING, RUNNING))
    assert (cell.n, cell.failed, cell.unfinished, cell.phase) == (0, 1, 2, None)
    assert math.isnan(cell.probability)
    assert cell.probability_interval == (0, 1)


def test_a_tie_of_phases_goes_to_the_further_one():
    assert summarize(table(GROKKED, MEMORIZED))[0].phase == "grokking"
    assert summarize(table(MEMORIZED, MEMORIZED, CONFUSED))[0].phase == "memorization"


@given(RUNS, st.randoms())
def test_cells_do_not_depend_on_the_order_of_rows(rows, random):
    lr = [0.1 * (i % 3) for i in range(len(rows))]
    places = random.sample(range(len(rows)), len(rows))
    first = summarize(table(*rows, lr=lr), by=["lr"])
    second = summarize(table(*[rows[i] for i in places], lr=[lr[i] for i in places]), by=["lr"])
    assert str(first) == str(second)  # NaN in words is equal to itself
    assert sum(cell.n + cell.failed for cell in first) == len(rows)


def test_data_frames_and_arrays_are_tables_too():
    columns = table(GROKKED, MEMORIZED, DIVERGED, lr=[1, 2, 1], filter__name=["ema", None, "ema"])
    expected = summarize(columns, by=["filter.name", "lr"])
    frame = pd.DataFrame(columns)
    arrays = columns | {"t_generalize": np.array([2000, np.nan, np.nan]), "lr": np.array([1, 2, 1])}
    assert summarize(frame, by=["filter.name", "lr"]) == summarize(arrays, by=["filter.name", "lr"]) == expected
    assert [cell.cell for cell in expected] == [{"filter.name": "ema", "lr": 1}, {"filter.name": None, "lr": 2}]


def test_cells_are_ordered_by_value():
    columns = table(*[GROKKED] * 5, x=[10, 2, None, "b", "a"])
    assert [cell.cell["x"] for cell in summarize(columns, by=["x"])] == [2, 10, "a", "b", None]


@pytest.mark.parametrize(
    ("change", "by", "error", "message"),
    [
        ({}, ["optimizer.wd"], ValueError, r"must have 'optimizer.wd' \(did you mean 'optimizer.lr'\?\)"),
        ({"steps": [1]}, [], ValueError, "one length.*'steps': 1"),
        ({"phase": ["grok", "grokking"]}, [], ValueError, "'phase' must hold confusion, .*, got 'grok'"),
        ({"steps": [None, 3]}, [], ValueError, "'steps' must say how long"),
        ({"t_generalize": [-1, 3]}, [], ValueError, "'t_generalize' must hold steps of at least 0, got -1"),
        ({"t_generalize": ["soon", 3]}, [], ValueError, "'t_generalize' must hold numbers"),
        ({}, "lr", TypeError, "by must be a sequence of column names, got the string 'lr'"),
    ],
)
def test_bad_tables_are_refused(change, by, error, message):
    with pytest.raises(error, match=message):
        summarize(table(GROKKED, MEMORIZED, optimizer__lr=[1, 2]) | change, by=by)


def test_no_runs_and_no_table_are_refused():
    with pytest.raises(ValueError, match="at least one run, got none"):
        summarize(table())
    with pytest.raises(TypeError, match="mapping of columns or a data frame, got list"):
        summarize([1, 2])


@pytest.mark.parametrize(
    ("times", "observed", "message"),
    [([1, 2], [True], "one length"), ([-1], [True], "at least 0"), ([math.nan], [False], "finite")],
)
def test_bad_times_are_refused(times, observed, message):
    with pytest.raises(ValueError, match=message):
        median_time(times, observed)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="must be"):
        success_interval(k, n)
