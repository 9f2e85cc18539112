"""Kaplan-Meier curves of groups of runs, against SciPy's and by hand."""

import numpy as np
import pytest
from scipy.stats import CensoredData, ecdf

from grokfast.analysis import incidence, median_time
from tests.analysis.runs import DIVERGED, FAILED, RUNNING
from tests.analysis.test_arms import ablation


def test_without_censoring_it_is_the_share_that_has_generalised():
    curve = incidence(ablation(arm=[300, 100, 200, 400]))["arm"]
    assert curve.steps.tolist() == [0, 100, 200, 300, 400]
    assert curve.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.censored.tolist() == []


def test_censored_runs_count_by_hand():
    """Of 4 at risk one crosses at 100, one is given up at 150, of 2 one crosses at 200: 3/4, then 3/4 · 1/2."""
    runs = ablation(arm=[100, (60, None, 150), 200, (60, None, 250)])
    curve = incidence(runs)["arm"]
    assert curve.steps.tolist() == [0, 100, 150, 200, 250]
    assert curve.share == pytest.approx([0, 1 / 4, 1 / 4, 5 / 8, 5 / 8])
    assert curve.censored.tolist() == [150, 250]


def test_curves_and_intervals_are_scipys_and_the_median_is_where_half_have_crossed():
    times = [500, 300, None, 450, 300, None, 700, 350]
    curve = incidence(ablation(arm=times))["arm"]
    sample = CensoredData(uncensored=[t for t in times if t], right=[3000] * 2)
    sf = ecdf(sample).sf
    assert curve.share[1:] == pytest.approx(1 - sf.probabilities)
    interval = sf.confidence_interval(0.95, method="log-log")
    assert curve.low[1:] == pytest.approx(1 - interval.high.probabilities)
    assert curve.high[1:] == pytest.approx(1 - interval.low.probabilities)
    crossed = np.array([t is not None for t in times])
    median = median_time([t or 3000 for t in times], crossed).median
    assert curve.steps[np.argmax(curve.share >= 0.5)] == median


def test_runs_that_diverged_never_cross_and_those_without_outcome_do_not_count():
    found = incidence(ablation(some=[100, DIVERGED, FAILED, RUNNING], none=[FAILED], never=[None, None]))
    assert [*found] == ["some", "never"]
    assert found["some"].share.tolist() == [0, 0.5, 0.5]
    assert found["some"].censored.tolist() == [400]  # the end of the longest run
    assert (found["never"].share.tolist(), found["never"].steps.tolist()) == ([0, 0], [0, 3000])


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="did you mean 'arm'"):
        incidence(ablation(arm=[100]), by="amr")
