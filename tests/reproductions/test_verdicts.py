"""Verdicts on claims: by where the interval lies, never by how few the runs are."""

import math

import numpy as np
import pytest

from grokfast.reproductions import Published, Summary
from grokfast.reproductions.verdicts import (
    control,
    control_times,
    mean_within,
    same_mean,
    same_times,
    share_within,
    sooner,
)

WORDS = {"what": "one", "quantity": "test accuracy"}
PUBLISHED = Published(value=0.9, source="table 1")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.89, 0.9, 0.91], "reproduced"),
        ([0.5, 0.51, 0.52], "refuted"),
        ([0.84, 0.86, 0.85], "undecided"),  # over an end of what is claimed
        ([0.7, 0.9, 1.1], "undecided"),  # scattered: no evidence for it, though the mean is right
        ([0.9], "undecided"),
        ([], "undecided"),
        ([0.9, math.nan, 0.9], "reproduced"),
        ([0.9, 0.9, 0.9], "reproduced"),
    ],
)
def test_a_mean_is_the_published_one_to_within_a_margin(values, verdict):
    found = same_mean(values, PUBLISHED, margin=0.05, **WORDS)
    assert found.verdict == verdict
    assert found.values == tuple(values)


def test_the_interval_is_students():
    found = same_mean([1, 2, 3, 4], Published(value=2.5, source=""), margin=9, **WORDS)
    reach = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (found.estimate, found.low, found.high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach))


def test_a_published_spread_counts():
    x, spread, n = [0.0, 1.0, 2.0, 3.0], 0.0, 1_000_000
    exact = same_mean(x, Published(value=1.5, spread=spread, n=n, source=""), margin=2.1, **WORDS)
    loose = same_mean(x, Published(value=1.5, spread=2.0, n=3, source=""), margin=2.1, **WORDS)
    assert (exact.verdict, loose.verdict) == ("reproduced", "undecided")
    assert exact.p == pytest.approx(1)


def test_bounds_and_differences():
    assert mean_within([0.1, 0.12, 0.11], 0, claim="", **WORDS).verdict == "reproduced"
    assert mean_within([-0.1, -0.12, -0.11], 0, claim="", **WORDS).verdict == "refuted"
    assert mean_within([-0.1, 0.12, 0.01], 0, claim="", **WORDS).verdict == "undecided"
    assert mean_within([0.1, 0.12, 0.11], high=0.01, claim="", **WORDS).verdict == "refuted"


def test_a_share_has_wilsons_interval():
    found = share_within([True] * 8, 0.5, claim="most", **WORDS)
    assert (found.low, found.high) == pytest.approx((0.6756, 1.0), abs=1e-4)
    assert found.verdict == "reproduced"
    assert share_within([True] * 3, 0.5, claim="most", **WORDS).verdict == "undecided"
    assert share_within([False] * 8, 0.5, claim="most", **WORDS).verdict == "refuted"
    assert share_within([], 0.5, claim="most", **WORDS).verdict == "undecided"


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ([9000, 10_000, 11_000, 12_000], "reproduced"),
        ([40_000, 50_000, 60_000, 70_000], "refuted"),
        ([2000, 9000, 12_000, 50_000], "undecided"),  # scattered
        ([9000, 10_000, 11_000, math.inf], "undecided"),
        ([math.inf] * 6, "refuted"),  # none in ten times as long
        ([10_000], "undecided"),
    ],
)
def test_times_are_those_of_the_published_runs(times, verdict):
    published = Published(value=10_500, source="", values=(9500, 10_000, 11_000, 11_500))
    found = same_times(times, [100_000] * len(times), published, **WORDS)
    assert found.verdict == verdict
    assert found.words()["published"] == "10,500"
    assert found.plain()["published"]["values"] == [9500, 10_000, 11_000, 11_500]


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ([900, 1000, 1100], "reproduced"), ([3000, 3100, 2900], "refuted"), ([900, 1900, 4000], "undecided"),
        ([900, 1000, math.inf], "undecided"), ([math.inf] * 5, "undecided"),  # nothing is known of one run's scatter
    ],
)  # fmt: skip
def test_of_one_published_run_the_times_are_within_a_factor(times, verdict):
    found = same_times(times, [5000] * len(times), Published(value=1000, source="", values=(1000,)), **WORDS)
    assert found.verdict == verdict
    assert math.isnan(found.p)


SOON, LATE = [900, 1000, 1100, 1050, 950], [4000, 4200, 4100, 3900, 4300]


@pytest.mark.parametrize(
    ("times", "others", "least", "verdict"),
    [
        (SOON, LATE, 1, "reproduced"),
        (LATE, SOON, 1, "refuted"),
        (SOON, LATE, 3, "reproduced"),
        (SOON, LATE, 9, "refuted"),
        (SOON, [math.inf] * 5, 4, "reproduced"),  # followed for 5,000 steps
        (SOON, [math.inf] * 5, 9, "undecided"),  # they may take longer
        ([math.inf] * 5, LATE, 1, "refuted"),
        ([900, 5000, 4000], [1000, 3000, 4500], 1, "undecided"),
        (SOON[:1], LATE[:1], 1, "undecided"),  # the log-rank test sees nothing in two runs
    ],
)
def test_sooner_than_others(times, others, least, verdict):
    found = sooner(times, [5000] * len(times), others, [5000] * len(others), least=least, **WORDS)
    assert found.verdict == verdict
    assert (found.high == math.inf) == (math.inf in others)
    assert ("∞" in found.words()["here, 95%"]) == (math.inf in others)


def test_a_run_that_did_not_cross_is_never_in_words():
    published = Published(value=100, source="", values=(90, 110))
    found = same_times([math.inf, math.inf], [1000, 1000], published, **WORDS)
    assert found.words()["here, 95%"].startswith("never")


def test_the_time_of_a_control_counts_those_that_did_not_cross():
    found = control_times([1000, 1100, math.inf, math.inf, 1200], [5000] * 5, **WORDS)
    assert (found.estimate, found.verdict, found.high) == (1200, "control", math.inf)
    assert control_times([math.inf] * 3, [5000] * 3, **WORDS).estimate == math.inf


def test_all_claims_together_are_refuted_where_one_is_and_reproduced_where_all_are():
    good = same_mean([0.9, 0.9, 0.91], PUBLISHED, margin=0.05, **WORDS)
    open_ = same_mean([0.9], PUBLISHED, margin=0.05, **WORDS)
    bad = same_mean([0.1, 0.1, 0.11], PUBLISHED, margin=0.05, **WORDS)
    beside = control([0.3, 0.4], **WORDS)
    assert Summary([good, beside]).verdict == "reproduced"
    assert str(Summary([good, open_])) == "undecided: of 2 claims 1 reproduced, 1 undecided"
    assert Summary([good, open_, bad]).verdict == "refuted"


def test_a_finding_is_words_and_json():
    found = same_mean([0.9, 0.9, math.nan], PUBLISHED, margin=0.05, **WORDS)
    assert found.words()["published"] == "0.9000"
    assert found.words()["n"] == "2"
    plain = found.plain()
    assert plain["values"] == [0.9, 0.9, None]
    assert plain["published"]["source"] == "table 1"
    assert plain["p"] is None
