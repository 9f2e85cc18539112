"""The tests: each takes what came out, and returns a `Finding` with its verdict.

A claim allows an interval of values. It is reproduced where the 95% interval of what came out lies inside, refuted
where it lies outside, and undecided where it reaches over an end: more seeds decide. So to have few runs, or runs that
scatter, is never evidence for a claim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from grokfast.reproductions.findings import Finding, Published, Verdict

CONFIDENCE, RESAMPLES = 0.95, 10_000


def same_mean(values: Sequence[float], published: Published, *, margin: float, **words: Any) -> Finding:
    """Whether the mean is the published one to within `margin`.

    Student's t interval of the mean; of the difference of both means, after Welch, where the spread of the published
    one is known. words: the others of `Finding`.
    """
    from scipy import stats

    x = _there(values)
    mean, low, high = _interval(x)
    claim, p = f"it within {margin:g}", math.nan
    lowest, highest = low - published.value, high - published.value
    test = "t interval"
    if len(x) > 1 and published.spread is not None and published.n is not None:
        variances = x.var(ddof=1) / len(x), published.spread**2 / published.n
        freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, (len(x), published.n)))
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * sum(variances) ** 0.5
        lowest, highest = mean - published.value - reach, mean - published.value + reach
        p = float(
            stats.ttest_ind_from_stats(
                mean, x.std(ddof=1), len(x), published.value, published.spread, published.n, equal_var=False
            ).pvalue
        )
        test = "Welch's t"
    return Finding(
        claim=claim, published=published, values=tuple(values), estimate=mean, low=low, high=high, test=test, p=p,
        verdict=_verdict(lowest, highest, -margin, margin), **words,
    )  # fmt: skip


def mean_within(
    values: Sequence[float],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    claim: str,
    published: Published | None = None,
    **words: Any,
) -> Finding:
    """Whether the mean lies between two bounds. Student's t interval; of a seed's differences it is a paired test."""
    mean, lowest, highest = _interval(_there(values))
    return Finding(
        claim=claim, published=published, values=tuple(values), estimate=mean, low=lowest, high=highest,
        test="t interval", verdict=_verdict(lowest, highest, low, high), **words,
    )  # fmt: skip


def same_times(
    times: Sequence[float],
    followed: Sequence[float],
    published: Published,
    *,
    factor: float = 2.0,
    significance: float = 0.05,
    **words: Any,
) -> Finding:
    """Whether runs cross when the published ones do: the median to within `factor`, in one distribution.

    times: steps, infinite where a run did not cross in the `followed` steps. published.values: likewise, of runs that
    were followed as long as the longest of them. Refuted where the log-rank test (Mantel 1966) tells both apart at
    `significance`; else reproduced where the quotient of the geometric means, after Welch on logarithms, is surely
    within `factor`; where a run did not cross that interval is not known. One published run says nothing of how they
    scatter: there is no log-rank test then, and the interval is that of ours alone, after Student.
    """
    from scipy import stats

    from grokfast.analysis import median_time
    from grokfast.analysis.times import log_rank

    ours, theirs = np.array(times, dtype=np.float64), np.array(published.values, dtype=np.float64)
    crossed, others = np.isfinite(ours), np.isfinite(theirs)
    t = np.where(crossed, ours, followed)
    s = np.where(others, theirs, theirs[others].max(initial=0))
    p = log_rank(t, crossed, s, others) if len(s) > 1 else math.nan
    median, low, high = median_time(t, crossed), math.nan, math.nan
    if crossed.all() and others.all() and len(t) > 1:
        if len(s) > 1:
            found = stats.ttest_ind(np.log(t), np.log(s), equal_var=False).confidence_interval(CONFIDENCE)
            low, high = math.exp(found.low), math.exp(found.high)
        else:
            low, high = map(math.exp, _interval(np.log(t / s))[1:])
    verdict = "refuted" if p < significance else _verdict(low, high, 1 / factor, factor)
    interval = "" if math.isnan(low) else f"quotient {low:.2f} to {high:.2f}"
    test = "; ".join(filter(None, ("log-rank" if len(s) > 1 else "", interval)))
    return Finding(
        claim=f"the same times, quotient {1 / factor:g} to {factor:g}", published=published, values=tuple(times),
        estimate=median.median, low=median.low, high=median.high, test=test, p=p, unit="steps",
        verdict=verdict, **words,
    )  # fmt: skip


def sooner(
    times: Sequence[float],
    followed: Sequence[float],
    others: Sequence[float],
    others_followed: Sequence[float],
    *,
    least: float = 1.0,
    significance: float = 0.05,
    published: Published | None = None,
    **words: Any,
) -> Finding:
    """Whether runs cross at least `least` times sooner than others of here: the quotient of the medians, the others' to
    theirs, and its bootstrap interval over runs; reproduced only where the log-rank test tells both apart, too.

    times, others: steps, infinite where a run did not cross in the steps that it was followed. One of the others that
    did not counts as if it had crossed at its last step: the quotient is then at least what is said, and high infinite.
    """
    from grokfast.analysis.times import log_rank
    from grokfast.seeds import generator

    ours, theirs = np.array(times, dtype=np.float64), np.array(others, dtype=np.float64)
    crossed, others_crossed = np.isfinite(ours), np.isfinite(theirs)
    theirs = np.where(others_crossed, theirs, others_followed)
    p = log_rank(np.where(crossed, ours, followed), crossed, theirs, others_crossed)
    draws = generator(0, "bootstrap")

    def medians(t: np.ndarray) -> np.ndarray:
        rows = torch.randint(len(t), (RESAMPLES, len(t)), generator=draws).numpy()
        return np.asarray(np.quantile(t[rows], 0.5, axis=1, method="inverted_cdf"))

    quotients = medians(theirs) / medians(ours)
    low = float(np.quantile(quotients, (1 - CONFIDENCE) / 2))
    high = float(np.quantile(quotients, (1 + CONFIDENCE) / 2)) if others_crossed.all() else math.inf
    middle = np.quantile(theirs, 0.5, method="inverted_cdf")
    verdict = _verdict(low, high, least, math.inf)
    return Finding(
        claim=f"at least {least:g} times sooner" if least > 1 else "sooner", published=published,
        values=tuple((middle / ours).tolist()),
        estimate=float(middle / np.quantile(ours, 0.5, method="inverted_cdf")), low=low, high=high,
        test="bootstrap of medians, log-rank", p=p, unit="number",
        verdict="undecided" if verdict == "reproduced" and not p < significance else verdict, **words,
    )  # fmt: skip


def share_within(
    hits: Sequence[bool],
    low: float = 0.0,
    high: float = 1.0,
    *,
    claim: str,
    published: Published | None = None,
    **words: Any,
) -> Finding:
    """Whether the probability of a hit lies between two bounds. Wilson's interval."""
    from grokfast.analysis import success_interval

    lowest, highest = success_interval(sum(map(bool, hits)), len(hits), confidence=CONFIDENCE)
    return Finding(
        claim=claim, published=published, values=tuple(map(float, hits)),
        estimate=sum(map(bool, hits)) / len(hits) if hits else math.nan, low=lowest, high=highest, test="Wilson",
        verdict=_verdict(lowest, highest, low, high) if hits else "undecided", **words,
    )  # fmt: skip


def control(values: Sequence[float], **words: Any) -> Finding:
    """What is measured beside a claim, without one of its own."""
    mean, low, high = _interval(_there(values))
    return Finding(
        claim="", published=None, values=tuple(values), estimate=mean, low=low, high=high, test="", verdict="control",
        **words,
    )  # fmt: skip


def control_times(times: Sequence[float], followed: Sequence[float], **words: Any) -> Finding:
    """When runs cross, without a claim: the median of Kaplan and Meier, as those that did not cross count, too."""
    from grokfast.analysis import median_time

    t = np.array(times, dtype=np.float64)
    median = median_time(np.where(np.isfinite(t), t, followed), np.isfinite(t))
    return Finding(
        claim="", published=None, values=tuple(times), estimate=median.median, low=median.low, high=median.high,
        test="", unit="steps", verdict="control", **words,
    )  # fmt: skip


def _there(values: Sequence[float]) -> np.ndarray:
    x = np.array(values, dtype=np.float64)
    return x[np.isfinite(x)]


def _interval(x: np.ndarray) -> tuple[float, float, float]:
    """The mean and its Student's t interval; NaN of fewer than two values."""
    from scipy import stats

    if len(x) < 2:
        return (float(x.mean()) if len(x) else math.nan), math.nan, math.nan
    mean, error = float(x.mean()), float(stats.sem(x))
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(x) - 1, loc=mean, scale=error)
    return mean, float(low), float(high)


def _verdict(low: float, high: float, least: float, most: float) -> Verdict:
    """Of an interval, and what is allowed."""
    if math.isnan(low):
        return "undecided"
    if least <= low and high <= most:
        return "reproduced"
    return "refuted" if high < least or low > most else "undecided"
