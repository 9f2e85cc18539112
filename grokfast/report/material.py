"""What the sections of a run's page look at: the run at its end, or at a step, and what it was on the way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from grokfast import checks, parts
from grokfast.plots.data.rows import some
from grokfast.report.page import Figure
from grokfast.store import RunStore, StoredRun
from grokfast.store.run import DONE
from grokfast.tasks.data import Data
from grokfast.training.result import RunResult, snapshots_of, stored_result, stored_snapshot

STAGES = 10  # snapshots that are looked at, evenly among those that there are
ROWS = 1500  # of a curve's data in the page


@dataclass(frozen=True, eq=False)
class Material:
    """run: at its end, or `RunResult.at` a step. stages: the run after some steps with weights, ascending, the last of
    them `run` itself where it has weights. n_snapshots: how many there are up to it."""

    stored: StoredRun
    run: RunResult
    stages: Sequence[RunResult]
    n_snapshots: int

    @cached_property
    def data(self) -> Data:
        return self.run.experiment.task.build(seed=self.run.experiment.seed)

    def some_stages(self, most: int) -> list[RunResult]:
        """At most so many of the stages, evenly among them, the last one always."""
        if most < 2:
            return [*self.stages[-1:]]
        return [self.stages[i] for i in some(len(self.stages), most)]

    @property
    def steps(self) -> np.ndarray:
        """[stages], int64."""
        return np.array([stage.steps for stage in self.stages])

    @property
    def moments(self) -> tuple[int | None, int | None]:
        """When it memorised and generalised."""
        return self.run.t_memorize, self.run.t_generalize

    def columns(self, kind: str) -> list[str]:
        """The columns of the run's curves that are of probes of this kind."""
        found: list[str] = []
        for probe in self.run.experiment.probes:
            if parts.name_of(probe) == kind and self.run.weights:
                found += probe.columns_of(self.data, [*self.run.weights])
        return [name for name in found if name in self.run.curves]

    def thinned(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The step and these columns of the run's curves, at most ROWS evaluations: the first, the last, and as many
        early as late ones on a logarithmic axis."""
        curves = self.run.curves
        n = len(curves["step"])
        rows = np.arange(n)
        if n > ROWS:
            late = np.geomspace(1, n, ROWS // 2).round().astype(np.int64) - 1
            rows = np.unique([*late, *some(n, ROWS - ROWS // 2)])
        return {name: curves[name][rows] for name in ("step", *names)}

    @property
    def is_thinned(self) -> str:
        """What is to be said where curves are thinned."""
        n = len(self.run.curves["step"])
        return f" The data have {ROWS:,} of its {n:,} evaluations at most." if n > ROWS else ""


@dataclass(frozen=True)
class Chapter:
    """A section of a run's page. parts: by the name of what it shows, functions that make figures of the material, or
    raise ValueError or TypeError where it is not for such a run. needs_weights: whether they look at weights."""

    id: str
    title: str
    intro: str
    parts: Mapping[str, Callable[[Material], Sequence[Figure]]]
    needs_weights: bool = True


def gather(store: RunStore, run_id: str, at: int | None = None) -> Material:
    """The run of a store after the step `at`, None: at its end.

    Raises UnknownRunError where there is none, ValueError where it has not ended, and StoreError, which names those
    that there are, where there is no snapshot of that step.
    """
    stored = store.get(run_id)
    there = snapshots_of(store, run_id)
    if at is None:
        if stored.status not in DONE:
            hint = f": it has snapshots of {', '.join(map(str, there))}" if there else ""
            raise ValueError(f"run {run_id} has not ended (status {stored.status}){hint}")
        run = stored_result(store, run_id)
    else:
        run = stored_snapshot(store, run_id, checks.integer("at", at, minimum=0))
    before = [step for step in there if step < run.steps]
    stages = [stored_snapshot(store, run_id, before[i]) for i in some(len(before), STAGES - 1)] if before else []
    return Material(stored, run, [*stages, *([run] if run.weights else [])], len(before))
