"""`grok_times`: when runs memorised and generalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grokfast import checks
from grokfast.analysis.subject import runs_of
from grokfast.analysis.times import MedianTime, followed_times, median_time

if TYPE_CHECKING:
    from grokfast.training.experiment import Criteria


@dataclass(frozen=True, kw_only=True, eq=False)
class GrokTimes:
    """Of n runs, in steps, [n] each: t_memorize and t_generalize, NaN where a run never did; followed, its last step.

    diverged: bool [n]; such a run will never cross, and counts as followed as long as the longest one."""

    t_memorize: np.ndarray
    t_generalize: np.ndarray
    followed: np.ndarray
    diverged: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """t_generalize − t_memorize, [n]."""
        return self.t_generalize - self.t_memorize

    @property
    def ratio(self) -> np.ndarray:
        """t_generalize / t_memorize, [n]; infinite where a run had memorised at step 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.t_generalize / self.t_memorize

    def median(self, name: str = "t_generalize", *, confidence: float = 0.95) -> MedianTime:
        """The Kaplan-Meier median of t_memorize or t_generalize: runs that never crossed are censored."""
        times = getattr(self, checks.choice("name", name, ("t_memorize", "t_generalize")))
        return median_time(*followed_times(times, self.followed, self.diverged), confidence=confidence)


def grok_times(runs: Any, criteria: Criteria | None = None) -> GrokTimes:
    """The first sustained crossings of a threshold by training and test accuracy.

    runs: a RunResult or several; or curves, a mapping with the columns step and {split}_accuracy of one run, several
    such mappings, or those of many in one with a column `run`, as `RunStore.all_curves` gives them.
    criteria: threshold, how many evaluations it is to be kept, and the splits; None: each run's own, of curves
    Criteria().

    Raises TypeError for anything else, ValueError where there is no run, curves lack a column, or columns differ in
    length.
    """
    from grokfast.training.experiment import Criteria

    if criteria is not None and not isinstance(criteria, Criteria):
        raise TypeError(f"criteria must be Criteria or None, got {checks.shown(criteria)}")
    if results := runs_of(runs):
        rows = [
            _crossings(run.curves, criteria) if criteria else (run.t_memorize, run.t_generalize, run.steps)
            for run in results
        ]
        return _grok_times(rows, [run.status == "diverged" for run in results])
    curves = _separate(runs) if isinstance(runs, Mapping) else runs
    if isinstance(curves, str) or not hasattr(curves, "__iter__"):
        raise TypeError(f"runs must be results, or curves with named columns, got {checks.shown(runs)}")
    rows = [_crossings(one, criteria or Criteria()) for one in curves]
    if not rows:
        raise ValueError("runs must have at least one run, got none")
    return _grok_times(rows, [False] * len(rows))


def _grok_times(rows: list[tuple[Any, Any, Any]], diverged: list[bool]) -> GrokTimes:
    t_memorize, t_generalize, followed = np.array(rows, dtype=np.float64).T  # None is NaN
    return GrokTimes(
        t_memorize=t_memorize, t_generalize=t_generalize, followed=followed, diverged=np.array(diverged, dtype=bool)
    )


def _crossings(curves: Any, criteria: Criteria) -> tuple[int | None, int | None, int]:
    from grokfast.training.outcome import Crossing

    if not isinstance(curves, Mapping):
        raise TypeError(f"runs must be results, or curves with named columns, got {checks.shown(curves)}")
    names = ["step", *(f"{split}_accuracy" for split in (criteria.memorize, criteria.generalize))]
    for name in names:
        if name not in curves:
            raise ValueError(f"curves must have {name!r}{checks.nearest(name, curves)}; they have {', '.join(curves)}")
    steps, *accuracies = (np.asarray(curves[name]) for name in names)
    if any(own.shape != steps.shape for own in accuracies) or steps.ndim != 1 or not len(steps):
        raise ValueError(f"curves must be columns of one length, got {[own.shape for own in (steps, *accuracies)]}")
    moments = []
    for own in accuracies:
        crossing = Crossing(criteria.threshold, criteria.sustain)
        for step, value in zip(steps.tolist(), own.tolist()):
            crossing.update(step, value)
        moments.append(crossing.moment)
    return moments[0], moments[1], steps.tolist()[-1]


def _separate(curves: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One mapping of each run."""
    if "run" not in curves:
        return [curves]
    runs = np.asarray(curves["run"])
    return [{name: np.asarray(column)[runs == run] for name, column in curves.items()} for run in np.unique(runs)]
