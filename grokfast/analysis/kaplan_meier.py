"""Which share of runs has generalised by which step: Kaplan and Meier's (1958) curve, of groups of runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast.analysis.table import ENDED, columns, step_column
from grokfast.analysis.times import followed_times


@dataclass(frozen=True, kw_only=True)
class Incidence:
    """1 − S(t), S being Kaplan and Meier's estimate that a run has not generalised by step t.

    steps: 0, and where a run crossed or was given up; share: its value from each of these on, with `low` and `high` as
    its pointwise interval (Greenwood's on the log-log scale; NaN where that is undefined).
    censored: the steps at which runs were given up, each once a run.
    """

    steps: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censored: np.ndarray


def incidence(table: Any, *, by: str = "arm", confidence: float = 0.95) -> dict[str, Incidence]:
    """The curve of each value of the column `by`, as they come. The table, and what counts, are those of `summarize`: a
    run that diverged stays among those that have not generalised. Values without an ended run have no curve.

    Raises ValueError for a column that is not there, with the nearest name, and for an empty table.
    """
    found = columns(table, (by, "status", "t_generalize", "steps"))
    status, of = (np.array(found[name], dtype=object) for name in ("status", by))
    crossing, steps = (step_column(name, found[name]) for name in ("t_generalize", "steps"))
    curves = {}
    for name in dict.fromkeys(found[by]):
        rows = np.flatnonzero((of == name) & np.isin(status.astype(str), ENDED))
        if len(rows):
            times = followed_times(crossing[rows], steps[rows], status[rows] == "diverged")
            curves[str(name)] = _curve(*times, confidence)
    return curves


def _curve(t: np.ndarray, crossed: np.ndarray, confidence: float) -> Incidence:
    from scipy.stats import CensoredData, ecdf

    censored = np.sort(t[~crossed])
    if not crossed.any():
        flat = np.zeros(2)
        return Incidence(steps=np.array([0.0, t.max()]), share=flat, low=flat, high=flat, censored=censored)
    survival = ecdf(CensoredData(uncensored=t[crossed], right=t[~crossed])).sf  # at every time, the last one, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # undefined where nobody, or everybody, has crossed
        interval = survival.confidence_interval(confidence, method="log-log")
    return Incidence(
        steps=np.append(0.0, survival.quantiles),
        share=np.append(0.0, 1 - survival.probabilities),
        low=np.append(0.0, 1 - interval.high.probabilities),
        high=np.append(0.0, 1 - interval.low.probabilities),
        censored=censored,
    )
