"""How much seeds and data splits change what happens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast.analysis.table import ENDED, cells, columns, names, step_column
from grokfast.analysis.times import HALF, followed_times

FACTORS = ("seed", "task.split_seed")


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The spread over one factor, the others held fixed, within a cell of a sweep.

    factor: a column, or several with + between them: over all at once. groups: of runs that differ in the factor alone,
    two at least; runs: in them all. generalized: so many of these generalised.
    time_ratio: how many times later the third quartile of t_generalize is than the first (of Kaplan and Meier: runs
    that did not generalise are censored), the median over groups; 1 is no spread, infinite where a quarter of the runs
    or more did not generalise. accuracy_std: the standard deviation of the final accuracy within groups, pooled (NaN
    without one); accuracy_range: its smallest and largest value.
    """

    cell: dict[str, Any]
    factor: str
    groups: int
    runs: int
    generalized: int
    time_ratio: float
    accuracy_std: float
    accuracy_range: tuple[float, float]

    def __str__(self) -> str:
        if not self.groups:
            return f"{self.factor}: no runs that differ in it alone"
        said = f"{self.generalized} of {self.runs} generalised, quartiles of t_generalize × {self.time_ratio:.3g}"
        low, high = self.accuracy_range
        return f"{self.factor}: {said}; accuracy ± {self.accuracy_std:.2g}, {low:.3g} to {high:.3g}"


def stability(
    table: Any, *, over: Sequence[str] | None = None, by: Sequence[str] = (), accuracy: str = "test_accuracy"
) -> list[Stability]:  # fmt: skip
    """The spread of grok times and final accuracy over each factor, and over all of them, in each cell of a sweep.

    table: see `summarize`, with the columns `by`, `over` and `accuracy`; by span the cells, and all other columns that
    were varied must be among `over`. over: None is seed and task.split_seed, as far as the table has them: with both,
    seed changes the initialisation alone. Runs that failed or have not ended are left out.

    Raises as `summarize` does; TypeError where over or by is a string, ValueError where over has no column.
    """
    for name, value in (("over", over), ("by", by)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of column names, got the string {value!r}")
    factors = [name for name in FACTORS if name in names(table)] if over is None else [*over]
    if not factors:
        raise ValueError(f"over must name a column, such as {' or '.join(map(repr, FACTORS))}, got none")
    found = columns(table, (*by, *factors, accuracy, "status", "t_generalize", "steps"))
    ended = np.isin(np.array(found["status"], dtype=str), ENDED)
    diverged = np.array([status == "diverged" for status in found["status"]])
    crossing, steps, final = (step_column(name, found[name]) for name in ("t_generalize", "steps", accuracy))
    summaries = []
    for cell, rows in cells([found[name] for name in by]).items() if by else [((), np.arange(len(ended)))]:
        for factor in dict.fromkeys([*factors, "+".join(factors)]):
            fixed = [found[name] for name in factors if name not in factor.split("+")]
            grouped = cells([[own[i] for i in rows] for own in fixed]).values() if fixed else [np.arange(len(rows))]
            groups = [own for own in (rows[group][ended[rows[group]]] for group in grouped) if len(own) > 1]
            ratios = [_quartile_ratio(*followed_times(crossing[g], steps[g], diverged[g])) for g in groups]
            summaries.append(_stability(dict(zip(by, cell)), factor, groups, ratios, crossing, final))
    return summaries


def _stability(
    cell: dict[str, Any],
    factor: str,
    groups: list[np.ndarray],
    ratios: list[float],
    crossing: np.ndarray,
    final: np.ndarray,
) -> Stability:
    measured = [own for own in (final[g][~np.isnan(final[g])] for g in groups) if len(own) > 1]
    squares, freedom = (sum(f(own) for own in measured) for f in (lambda a: len(a) * a.var(), lambda a: len(a) - 1))
    values = np.concatenate(measured) if measured else np.array([math.nan])
    return Stability(
        cell=cell, factor=factor, groups=len(groups), runs=sum(map(len, groups)),
        generalized=sum(int((~np.isnan(crossing[g])).sum()) for g in groups),
        time_ratio=float(np.median(ratios)) if ratios else math.nan,
        accuracy_std=math.sqrt(squares / freedom) if measured else math.nan,
        accuracy_range=(float(values.min()), float(values.max())),
    )  # fmt: skip


def _quartile_ratio(t: np.ndarray, crossed: np.ndarray) -> float:
    """Of the Kaplan-Meier estimate; infinite where the third quartile was not reached."""
    order = np.lexsort((~crossed, t))
    t, crossed = t[order], crossed[order]
    survival = np.cumprod(1 - crossed / np.arange(len(t), 0, -1)) - (HALF - 0.5)
    first, third = (t[np.argmax(survival <= left)] if (survival <= left).any() else math.inf for left in (0.75, 0.25))
    return math.inf if third == math.inf else float(third / max(first, 1.0))
