"""Grok times and success probabilities of cells of a sweep. Runs that did not generalise count, always.

Such a run is right-censored at its last step: it says that its time is longer, not that there is none. Medians are
those of Kaplan and Meier (1958), their intervals those of Brookmeyer and Crowley (1982) on the log-log scale.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from grokfast import checks
from grokfast.analysis.table import ENDED, cells, columns, step_column

PHASES = ("confusion", "memorization", "comprehension", "grokking")
HALF = 0.5 + 1e-9  # a survival of one half, after its rounding


@dataclass(frozen=True, kw_only=True)
class MedianTime:
    """A Kaplan-Meier median in steps, and its confidence interval.

    median: the first step by which half of the runs have crossed, infinite if that was not reached; low, high: its
    interval, high infinite where the runs do not bound it; observed: so many of `n` runs crossed; followed: the longest
    that a run was followed, in steps, so that an infinite median means "more than `followed`".
    """

    median: float
    low: float
    high: float
    observed: int
    n: int
    followed: float

    @property
    def reached(self) -> bool:
        """Whether half of the runs have crossed."""
        return math.isfinite(self.median)

    def __str__(self) -> str:
        if self.n == 0:
            return "no runs"
        low, high = (f"{t:,.0f}" if math.isfinite(t) else f">{self.followed:,.0f}" for t in (self.low, self.high))
        return f"{self.median:,.0f} [{low}, {high}]" if self.reached else f">{self.followed:,.0f}"


def median_time(
    times: Sequence[float] | np.ndarray, observed: Sequence[bool] | np.ndarray, *, confidence: float = 0.95
) -> MedianTime:
    """The Kaplan-Meier median of `times` (steps) where `observed` says which are crossings, the others being censored.

    At equal times crossings come before censorings. Without censoring the median is the lower middle value. Where
    everybody has crossed, Greenwood's variance is undefined: the exact binomial limit for 0 of n takes its place.
    Without runs all is NaN.

    Raises ValueError if lengths differ or a time is negative or not finite.
    """
    from scipy.stats import CensoredData, ecdf

    checks.real("confidence", confidence, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    t, crossed = np.asarray(times, dtype=np.float64), np.asarray(observed, dtype=bool)
    if t.ndim != 1 or t.shape != crossed.shape:
        raise ValueError(f"times and observed must be two sequences of one length, got {t.shape} and {crossed.shape}")
    if not (np.isfinite(t) & (t >= 0)).all():
        raise ValueError("times must be finite and at least 0")
    if len(t) == 0:
        return MedianTime(median=math.nan, low=math.nan, high=math.nan, observed=0, n=0, followed=math.nan)
    median = low = high = math.inf
    if crossed.any():
        survival = ecdf(CensoredData(uncensored=t[crossed], right=t[~crossed])).sf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # undefined where nobody, or everybody, has crossed
            interval = survival.confidence_interval(confidence, method="log-log")
        everybody = survival.probabilities < 1e-9
        upper = interval.high.probabilities
        upper[everybody] = 1 - (0.5 - confidence / 2) ** (1 / len(t))  # Clopper and Pearson's, of 0 of n
        median = _first(survival.quantiles, survival.probabilities)
        low = _first(survival.quantiles, np.where(everybody, 0.0, interval.low.probabilities))
        high = _first(survival.quantiles, upper)
    return MedianTime(median=median, low=low, high=high, observed=int(crossed.sum()), n=len(t), followed=float(t.max()))


def log_rank(t: np.ndarray, crossed: np.ndarray, s: np.ndarray, others_crossed: np.ndarray) -> float:
    """The two-sided p-value that runs with times t, of which `crossed` says which are crossings, cross when those with
    s do (Mantel 1966): 1 where all of both crossed at one step, NaN where none did, or there are none."""
    from scipy.stats import CensoredData, logrank

    if not (len(t) and len(s) and (crossed.any() or others_crossed.any())):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no variance
        p = logrank(CensoredData.right_censored(t, ~crossed), CensoredData.right_censored(s, ~others_crossed)).pvalue
    return float(p) if np.isfinite(p) else 1.0


def success_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) score interval for a probability, of which `successes` of `n` were seen; (0, 1) if n is 0.

    Raises ValueError unless 0 ≤ successes ≤ n and 0 < confidence < 1.
    """
    n = checks.integer("n", n, minimum=0)
    successes = checks.integer("successes", successes, minimum=0, maximum=n)
    checks.real("confidence", confidence, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    return _wilson(successes, n, confidence) if n else (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CellSummary:
    """What happened to the runs of one cell: those that share the values `cell`.

    n runs ended, finished or diverged; generalized of them reached the test threshold, a share of `probability` (NaN
    without runs) with Wilson's interval. phases counts each of the n once, by phase, or as "diverged" where it diverged
    without generalising; diverged and collapsed count those that did so at any time. failed and unfinished runs have no
    outcome: they are in no other number.
    """

    cell: dict[str, Any]
    n: int
    generalized: int
    probability: float
    probability_interval: tuple[float, float]
    t_memorize: MedianTime
    t_generalize: MedianTime
    phases: dict[str, int]
    diverged: int
    collapsed: int
    failed: int
    unfinished: int

    @property
    def phase(self) -> str | None:
        """The phase of most runs; of equally frequent ones the last of "diverged", confusion, ..., grokking."""
        return max(reversed(self.phases), key=lambda phase: self.phases[phase]) if self.n else None

    def words(self) -> dict[str, str]:
        """A row of a table."""
        low, high = self.probability_interval
        return {
            "generalised": f"{self.generalized} of {self.n}",
            "share": f"{self.probability:.0%} [{low:.0%}, {high:.0%}]",
            "median step": str(self.t_generalize),
            "phase": self.phase or "",
        }


def summarize(table: Any, *, by: Sequence[str] = (), confidence: float = 0.95) -> list[CellSummary]:
    """The cells of `table` that the columns `by` span, one for each combination that occurs, ordered by value.

    The table has a row per run and the columns run status, phase, t_memorize, t_generalize (steps; NaN or None: never),
    steps and collapsed. A run that never crossed is censored at the last step it took. One that *diverged* before
    crossing will never cross: it counts as a failure, and stays among those that have not crossed until the end of
    the cell's longest run. (Censoring it where it diverged would assume that it would have gone on as the others did,
    and would shorten the median where many diverge.) The estimate is then the Aalen-Johansen cumulative incidence
    wherever the cell's runs had the same number of steps to go.

    Raises ValueError for a column that is not there, with the nearest name, for an empty table, an unknown phase, or a
    time that is no step; TypeError if `table` has no columns.
    """
    if isinstance(by, str):
        raise TypeError(f"by must be a sequence of column names, got the string {by!r}")
    needed = ("status", "phase", "t_memorize", "t_generalize", "steps", "collapsed")
    found = columns(table, (*by, *needed))
    status, phase, collapsed = (np.array(found[name], dtype=object) for name in ("status", "phase", "collapsed"))
    ended = np.isin(status.astype(str), ENDED)
    if unknown := set(phase[ended]) - set(PHASES):
        raise ValueError(f"column 'phase' must hold {', '.join(PHASES)}, got {unknown.pop()!r}")
    steps = step_column("steps", found["steps"])
    if np.isnan(steps[ended]).any():
        raise ValueError("column 'steps' must say how long every ended run was followed, got None")
    crossings = {name: step_column(name, found[name]) for name in ("t_memorize", "t_generalize")}
    return [
        _summary(
            dict(zip(by, cell)),
            rows[ended[rows]],
            status=status,
            phase=phase,
            collapsed=collapsed,
            steps=steps,
            crossings=crossings,
            excluded=status[rows[~ended[rows]]],
            confidence=confidence,
        )
        for cell, rows in (cells([found[name] for name in by]) if by else {(): np.arange(len(status))}).items()
    ]


def _summary(
    cell: dict[str, Any],
    rows: np.ndarray,
    *,
    status: np.ndarray,
    phase: np.ndarray,
    collapsed: np.ndarray,
    steps: np.ndarray,
    crossings: dict[str, np.ndarray],
    excluded: np.ndarray,
    confidence: float,
) -> CellSummary:
    diverged = status[rows] == "diverged"
    generalized = ~np.isnan(crossings["t_generalize"][rows])
    kinds = np.where(diverged & ~generalized, "diverged", phase[rows].astype(str))
    medians = {}
    for name, crossing in crossings.items():
        medians[name] = median_time(*followed_times(crossing[rows], steps[rows], diverged), confidence=confidence)
    successes = int(generalized.sum())
    return CellSummary(
        cell=cell,
        n=len(rows),
        generalized=successes,
        probability=successes / len(rows) if len(rows) else math.nan,
        probability_interval=success_interval(successes, len(rows), confidence=confidence),
        t_memorize=medians["t_memorize"],
        t_generalize=medians["t_generalize"],
        phases={kind: int((kinds == kind).sum()) for kind in ("diverged", *PHASES)},
        diverged=int(diverged.sum()),
        collapsed=int(sum(map(bool, collapsed[rows]))),
        failed=int((excluded == "failed").sum()),
        unfinished=int((excluded != "failed").sum()),
    )


def followed_times(crossing: np.ndarray, steps: np.ndarray, diverged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How long each run of a cell was followed, and whether it crossed then, `crossing` being NaN where it did not.

    One that diverged stays among those that have not crossed until the end of the longest run: see `summarize`."""
    crossed = ~np.isnan(crossing)
    longest = max(steps.max(initial=0.0), np.nanmax(crossing, initial=0.0))
    return np.where(crossed, crossing, np.where(diverged, longest, steps)), crossed


@lru_cache(maxsize=10_000)  # cells of a sweep have few different counts, and SciPy works a p-value out, too
def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


def _first(steps: np.ndarray, survival: np.ndarray) -> float:
    """The first step at which at most one half survives, or infinity."""
    below = survival <= HALF  # NaN, where nobody has crossed yet, is not below
    return float(steps[np.argmax(below)]) if below.any() else math.inf
