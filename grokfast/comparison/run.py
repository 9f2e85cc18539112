"""`compare`: the search, the finals and the costs of one task, from the store or trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grokfast.comparison.accelerator import Accelerator
from grokfast.comparison.arms import BASE
from grokfast.comparison.contest import Contest, contest
from grokfast.comparison.costs import Cost, step_costs
from grokfast.comparison.result import TaskResult, task_result
from grokfast.sweeps import PlannedSweep, SweepObserver, SweepResult
from grokfast.training import Experiment


def compare(
    experiment: Experiment,
    arms: Sequence[str | Accelerator] | None = None,
    *,
    budget: int = 24,
    tuning: int = 3,
    seeds: int = 8,
    search_seed: int = 0,
    observers: Sequence[SweepObserver] = (),
    **options: Any,
) -> TaskResult:
    """Tune each of `arms` on the experiment's task with `budget` runs, `tuning` seeds of each point, plain AdamW too;
    train the best point of each with `seeds` fresh seeds; measure what a step costs; and say how the arms differ.

    The other options are those of `sweep`. Both stages are sweeps of the store: the same call does nothing twice, and
    goes on where an interrupted one stopped. Raises as `contest` and `sweep`.
    """
    found = contest(experiment, arms, budget=budget, tuning=tuning, seeds=seeds, search_seed=search_seed)
    return held(found, lambda planned: planned.train(observers), **options)


def held(
    contest: Contest,
    train: Callable[[PlannedSweep], SweepResult],
    *,
    costs: Mapping[str, Cost] | None = None,
    **options: Any,
) -> TaskResult:
    """A contest, whose sweeps `train` trains. costs: by arm, if they were measured before. Other options as `sweep`."""
    search = train(contest.search(**options))
    searched = contest.searched(search)
    chosen = contest.chosen(contest.cells(searched))
    finals = train(contest.finals(chosen, **options))
    if costs is None or not {*contest.entries} <= {*costs}:
        costs = measured(contest, chosen)
    seconds = sum(float(np.nansum(sweep.table()["seconds"])) for sweep in (search, finals))
    return task_result(
        contest, searched, contest.table(chosen, finals), costs=costs, search=search.sweep_id, finals=finals.sweep_id,
        seconds=seconds,
    )  # fmt: skip


def measured(contest: Contest, chosen: Mapping[str, int] | None = None) -> dict[str, Cost]:
    """What a step of each arm costs here, at its chosen point; by default untuned."""
    points = {name: entry.cells[(chosen or {}).get(name, 0)] for name, entry in contest.entries.items()}
    return step_costs(points, BASE)
