"""`branch`: one run goes on in many ways from the same state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from grokfast import checks
from grokfast.store import RunStore, StoreError
from grokfast.sweeps.engine import opened_store, plan
from grokfast.sweeps.planned import PlannedSweep, SweepObserver
from grokfast.sweeps.result import SweepResult
from grokfast.training.ensemble import Ensemble
from grokfast.training.experiment import Experiment
from grokfast.training.forks import Fork
from grokfast.training.result import RunResult, snapshots_of, stored_experiment
from grokfast.training.run import stored_state


def branch(
    run: RunResult | str,
    at: int | Sequence[int],
    changes: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    observers: Sequence[SweepObserver] = (),
    **options: Any,
) -> SweepResult:
    """Fork a stored run after `at` steps into an arm for every cell of `grid`, all with `changes`: a sweep whose runs
    begin with the run's weights, the state of its optimizer and filter, and its evaluations so far.

    `at` may be several steps, each of which then has its arms. The run must have a full snapshot there
    (schedule.full_snapshots), or its checkpoint, which becomes one. Neither changes nor grid need be given: the arm
    that changes nothing equals the run to the bit, as far as those do not depend on the number of threads (arms have
    one each on a CPU, as all runs of sweeps).

    What is changed counts from the fork on: rates, decay, the strengths of filters, batches, schedules of the run's
    steps, criteria. Weights go on as they are, whatever the seed, which decides only about what comes. The optimizer's
    state goes on where another one keeps the same tensors (Adam, AdamW), a transform's where there is one of its kind
    with a state of the same shapes; any other begins anew, and counts its steps from the fork, bias corrections and
    windows included. A model with other parameters is refused.

    The other options are those of `sweep`; `store` is that of the run, if a RunResult is given. Arms are known by the
    run and the step, too: the same call does nothing twice. The run cannot be removed while an arm has yet to end.

    Raises as `sweep` does, and StoreError, which names the steps that there are, where the run has no full snapshot.
    """
    return plan_branch(run, at, changes, grid, **options).train(observers)


def plan_branch(
    run: RunResult | str,
    at: int | Sequence[int],
    changes: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    store: RunStore | str | Path | None = None,
    **options: Any,
) -> PlannedSweep:
    """`branch` up to the training: everything is checked, then stored, but for a checkpoint that becomes a snapshot."""
    if not isinstance(run, (RunResult, str)):
        raise TypeError(f"run must be a RunResult or the id of a run, got {checks.shown(run)}")
    if isinstance(run, str):
        run_id, root = run, "runs" if store is None else store
    elif run.run_id is not None and run.directory is not None:
        run_id, root = run.run_id, run.directory.parent if store is None else store
    else:
        raise ValueError("run must be stored: give `train` a store, and schedule.snapshots")
    if not isinstance(at, (Integral, Iterable)) or isinstance(at, str):
        raise TypeError(f"at must be an integer or a sequence of integers, got {checks.shown(at)}")
    steps = [checks.integer("at", step, minimum=0) for step in (at if isinstance(at, Iterable) else [at])]
    if not steps:
        raise ValueError("at must be at least one step, got none")
    with opened_store(root, create=False) as opened:
        for step in steps:
            _have(opened, run_id, step)
        base = forked(opened, run_id, steps[0]).override(changes or {})
        axes = dict(grid or {})
        if len(steps) > 1 or not (axes or options.get("seeds")):
            axes = {"origin": [f"{run_id}@{step}" for step in steps], **axes}
        return plan(base, axes, store=opened, **options)


def forked(store: RunStore, run_id: str, step: int) -> Experiment:
    """The experiment of a fork that changes nothing."""
    return stored_experiment(store.get(run_id)).override({"origin": f"{run_id}@{step}"})


def _have(store: RunStore, run_id: str, step: int) -> None:
    """See to it that the run has a full snapshot of the step: its checkpoint becomes one."""
    there = {own for own, is_full in snapshots_of(store, run_id).items() if is_full}
    if step in there:
        return
    stored, state = store.get(run_id), stored_state(store, run_id)
    last = stored.result["steps"] if stored.result else None
    if state is not None and not isinstance(state, Fork) and state.diverged_at < 0 and last in (None, state.steps):
        if state.steps == step:
            ensemble = Ensemble([stored_experiment(stored).override({"device": "cpu"})])
            weights = ensemble.weights(0, state.tensors["parameters"][None])
            store.snapshots.save(run_id, step, weights, state.meta, state.tensors)
            return
        there.add(state.steps)
    said = f"it can be forked after {', '.join(map(str, sorted(there)))}" if there else "it has none"
    keeps = "schedule.snapshots and schedule.full_snapshots keep them"
    raise StoreError(f"run {run_id} has no full snapshot of step {step}: {said} ({keeps})")
