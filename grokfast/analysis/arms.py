"""What the arms of an ablation change: each against the base, with the same seeds, censored runs as what they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grokfast import checks
from grokfast.analysis.table import ENDED, columns, step_column
from grokfast.analysis.times import HALF, CellSummary, followed_times, log_rank, summarize
from grokfast.seeds import generator

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The quotient of two Kaplan-Meier medians, an arm's and the base's, and its bootstrap interval over seeds.

    Infinite where the arm's median was not reached, 0 where the base's was not, NaN where neither was; `bound` is then
    what the quotient is above, or below. n seeds that both have are drawn with replacement, a seed's two runs together;
    of `pairs` of them both runs generalised. low and high are NaN of less than two seeds.
    """

    value: float
    low: float
    high: float
    bound: float
    n: int
    pairs: int

    @property
    def inverse(self) -> Ratio:
        """The base's median to the arm's: how many times sooner."""
        value, low, high, bound = (_inverse(x) for x in (self.value, self.high, self.low, self.bound))
        return Ratio(value=value, low=low, high=high, bound=bound, n=self.n, pairs=self.pairs)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "unknown"
        said = f"{self.value:.2f}"
        if not 0 < self.value < math.inf:
            said = f"{'<' if self.value == 0 else '>'}{self.bound:.2f}"
        if math.isnan(self.low) or self.low == math.inf or self.high == 0:
            return said
        low, high = ("0" if t == 0 else f"{t:.2f}" if math.isfinite(t) else "∞" for t in (self.low, self.high))
        return f"{said} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """What happened to an arm's runs, and how that differs from the base; of the base itself the rest is None.

    ratio: of its median t_generalize to the base's. p: of the log-rank test (Mantel 1966) that its runs generalise at
    the base's times; p_holm: that after Holm's (1979) correction for all arms; both NaN where no run of the two
    generalised. accuracy: median over ended runs of the final value of the column asked for, NaN without.
    """

    arm: str
    runs: CellSummary
    ratio: Ratio | None
    p: float | None
    p_holm: float | None
    accuracy: float

    def words(self) -> dict[str, str]:
        """A row of a table: empty where there is nothing to say."""
        low, high = self.runs.probability_interval
        return {
            "generalised": f"{self.runs.generalized} of {self.runs.n} [{low:.0%}, {high:.0%}]",
            "median step": str(self.runs.t_generalize),
            "× base": "" if self.ratio is None else str(self.ratio),
            "p": "" if self.p_holm is None or math.isnan(self.p_holm) else f"{self.p_holm:.2g}",
            "accuracy": "" if math.isnan(self.accuracy) else f"{self.accuracy:.1%}",
        }


def compare_arms(
    table: Any,
    *,
    by: str = "arm",
    base: str = "base",
    accuracy: str = "test_accuracy",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[ArmSummary]:
    """The arms of `table`, the base first, then as they come: `summarize` of each, and each against the base.

    The table is that of `summarize` with the columns `by`, seed and `accuracy`; runs of one seed are pairs. The
    bootstrap draws the same seeds in every call.

    Raises ValueError where no row of the column `by` is `base`, or an arm has a seed twice; and as `summarize` does.
    """
    resamples = checks.integer("resamples", resamples, minimum=1)
    found = columns(table, (by, "seed", accuracy, "status", "t_generalize", "steps"))
    names = list(dict.fromkeys(found[by]))
    if base not in names:
        raise ValueError(f"base must be in the column {by!r}, which has {', '.join(map(repr, names))}, got {base!r}")
    names = [base, *(name for name in names if name != base)]
    summaries = {cell.cell[by]: cell for cell in summarize(table, by=[by], confidence=confidence)}
    ended, final = np.isin(found["status"], ENDED), step_column(accuracy, found[accuracy])
    of = np.array(found[by], dtype=object)
    times = {name: _times(found, np.flatnonzero((of == name) & ended), name) for name in names}
    tests = {name: log_rank(*_all(times[name]), *_all(times[base])) for name in names if name != base}
    corrected = dict(zip(tests, holm(list(tests.values()))))
    return [
        ArmSummary(
            arm=name,
            runs=summaries[name],
            ratio=None if name == base else _ratio(times[name], times[base], confidence, resamples),
            p=tests.get(name),
            p_holm=corrected.get(name),
            accuracy=_median(final[(of == name) & ended]),
        )
        for name in names
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of p-values: max over smaller ones of (how many are not smaller) · p, at most
    1. NaN, a test that could not be made, stays and does not count."""
    values = np.array(p, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(values))
    order = made[values[made].argsort(kind="stable")]
    values[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return [float(value) for value in values]


_Times = dict[Any, tuple[float, bool]]  # by seed: steps, and whether the run generalised then


def _times(found: dict[str, list[Any]], rows: np.ndarray, arm: str) -> _Times:
    seeds = [found["seed"][row] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"column 'seed' must have different values within an arm, {arm!r} has one twice")
    diverged = np.array([found["status"][row] == "diverged" for row in rows], dtype=bool)
    crossing, steps = (step_column(name, found[name])[rows] for name in ("t_generalize", "steps"))
    t, observed = followed_times(crossing, steps, diverged)
    return dict(zip(seeds, zip(t.tolist(), observed.tolist())))


def _arrays(times: _Times, seeds: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([times[seed][0] for seed in seeds]), np.array([times[seed][1] for seed in seeds], dtype=bool)


def _all(times: _Times) -> tuple[np.ndarray, np.ndarray]:
    return _arrays(times, [*times])


def _ratio(one: _Times, other: _Times, confidence: float, resamples: int) -> Ratio:
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return Ratio(value=math.nan, low=math.nan, high=math.nan, bound=math.nan, n=0, pairs=0)
    (t, crossed), (s, others) = _arrays(one, seeds), _arrays(other, seeds)
    median, base = float(_medians(t, crossed)), float(_medians(s, others))
    low = high = math.nan
    if len(seeds) > 1:
        size = resamples, len(seeds)
        rows = torch.randint(len(seeds), size, generator=generator(0, "bootstrap")).numpy()
        drawn = _quotient(_medians(t[rows], crossed[rows]), _medians(s[rows], others[rows]))
        tail = (1 - confidence) / 2
        low = float(np.quantile(np.nan_to_num(drawn, nan=0.0, posinf=math.inf), tail, method="inverted_cdf"))
        high = float(np.quantile(np.nan_to_num(drawn, nan=math.inf, posinf=math.inf), 1 - tail, method="inverted_cdf"))
    bound = (median if math.isfinite(median) else t.max()) / max(base if math.isfinite(base) else s.max(), 1.0)
    return Ratio(
        value=float(_quotient(median, base)), low=low, high=high, bound=float(bound),
        n=len(seeds), pairs=int((crossed & others).sum()),
    )  # fmt: skip


def _inverse(x: float) -> float:
    return 1 / x if x else math.inf


def _quotient(one: Any, other: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):  # ∞/∞ and 0/0 are NaN: nothing is known
        return np.divide(one, other)


def _medians(t: np.ndarray, crossed: np.ndarray) -> np.ndarray:
    """The Kaplan-Meier median of each row of [..., n], as `median_time`'s: many small samples at once."""
    n = t.shape[-1]
    order = np.lexsort((~crossed, t), axis=-1)
    t, crossed = np.take_along_axis(t, order, -1), np.take_along_axis(crossed, order, -1)
    survival = np.cumprod(1 - crossed / np.arange(n, 0, -1), axis=-1)
    below = survival <= HALF
    first = np.take_along_axis(t, below.argmax(-1)[..., None], -1)[..., 0]
    return np.where(below.any(-1), first, math.inf)


def _median(values: np.ndarray) -> float:
    return float(np.median(values[~np.isnan(values)])) if not np.isnan(values).all() else math.nan
