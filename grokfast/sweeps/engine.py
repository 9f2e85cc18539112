"""`sweep`: many experiments as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grokfast import checks
from grokfast.parts import to_plain
from grokfast.store import NewRun, RunStore
from grokfast.store.places import checked_name
from grokfast.store.run import DONE
from grokfast.sweeps.grid import axes_of, expand, run_hash
from grokfast.sweeps.groups import ENSEMBLE, commons, make_groups
from grokfast.sweeps.in_process import InProcess
from grokfast.sweeps.planned import PlannedSweep, SweepObserver
from grokfast.sweeps.processes import Processes, cores
from grokfast.sweeps.result import SweepResult
from grokfast.sweeps.runner import Group, Runner
from grokfast.training.ensemble import Ensemble, resolve_device
from grokfast.training.entry import keep_attachments
from grokfast.training.experiment import Experiment
from grokfast.training.forks import check_origins
from grokfast.training.result import stored_experiment
from grokfast.training.version import version


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How a sweep's runs are trained: arguments of `sweep`, checked."""

    runner: Runner | None
    ensemble: int | None
    checkpoint_every: float
    keep_weights: bool

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("checkpoint_every", minimum=0)
        fields.boolean("keep_weights")
        fields.integer("ensemble", minimum=1, optional=True)

    def plan(self, store: RunStore, sweep_id: str, experiments: Sequence[Experiment]) -> PlannedSweep:
        """What is left to do of a stored sweep of these experiments."""
        statuses = store.sweeps.statuses(sweep_id)
        runs = dict(zip(statuses, experiments))
        groups = make_groups(
            {run_id: experiment for run_id, experiment in runs.items() if statuses[run_id] not in DONE},
            ensemble=self.ensemble, checkpoint_every=self.checkpoint_every, keep_weights=self.keep_weights,
        )  # fmt: skip
        return PlannedSweep(
            sweep_id=sweep_id,
            root=store.root,
            axes=list(store.sweeps.get(sweep_id).axes),
            runs=runs,
            statuses=statuses,
            groups=groups,
            runner=_runner(groups) if self.runner is None else self.runner,
        )


def sweep(
    experiment: Experiment,
    grid: Mapping[str, Sequence[Any]],
    *,
    zip: bool = False,
    random: int | None = None,
    seeds: int | None = None,
    store: RunStore | str | Path = "runs",
    runner: Runner | None = None,
    observers: Sequence[SweepObserver] = (),
    ensemble: int | None = None,
    checkpoint_every: float = 10.0,
    keep_weights: bool = True,
) -> SweepResult:
    """Train `experiment` once for every cell of `grid`, a mapping of dotted keys to values, and store every run.

    All combinations of the values, with `zip` the first of all, the second of all, ..., with `random` so many of the
    combinations; `seeds` repeats each cell with that many seeds. Runs that an ensemble can hold together train
    together, at most `ensemble` of them (default: 1,024 on a GPU, 1 on a CPU), on `runner`: default all GPUs, or all
    cores with one thread for each run, whose result does not depend on how many there are.

    A run is known by the hash of its configuration, the versions of grokfast and torch, and the kind of device: what
    the store has already is not trained again, what was interrupted or killed goes on from its checkpoint to the same
    bits. A run that fails or diverges does not stop the others.

    Raises TypeError or ValueError naming the key or the cell, before anything is stored or trained; SweepInterrupted (a
    KeyboardInterrupt) on Ctrl-C, SIGTERM and SIGHUP, with everything saved; StoreError where the store fails.
    """
    planned = plan(
        experiment, grid, zip=zip, random=random, seeds=seeds, store=store, runner=runner, ensemble=ensemble,
        checkpoint_every=checkpoint_every, keep_weights=keep_weights,
    )  # fmt: skip
    return planned.train(observers)


def plan(
    experiment: Experiment,
    grid: Mapping[str, Sequence[Any]],
    *,
    zip: bool = False,
    random: int | None = None,
    seeds: int | None = None,
    store: RunStore | str | Path = "runs",
    runner: Runner | None = None,
    ensemble: int | None = None,
    checkpoint_every: float = 10.0,
    keep_weights: bool = True,
) -> PlannedSweep:
    """`sweep` up to the training: everything is checked, then stored. Arguments and errors are those of `sweep`."""
    if not isinstance(experiment, Experiment):
        raise TypeError(f"experiment must be an Experiment, got {experiment!r} ({type(experiment).__name__})")
    checked_name(experiment.name)
    cells = expand(experiment, grid, zip=zip, random=random, seeds=seeds)
    experiments = [_placed(cell.experiment) for cell in cells]
    training = _Training(runner=runner, ensemble=ensemble, checkpoint_every=checkpoint_every, keep_weights=keep_weights)
    axes = {key: [to_plain(value) for value in values] for key, values in axes_of(experiment, grid).items()}
    if seeds is not None:
        axes["seed"] = [experiment.seed + i for i in range(seeds)]
    runs = [
        NewRun(config=e.to_dict(), hash=run_hash(e, version(), e.device), version=version(), device=e.device)
        for e in experiments
    ]
    random, seeds = (None if n is None else int(n) for n in (random, seeds))  # NumPy's cannot be stored
    how = {"axes": axes, "zip": zip, "random": random, "seeds": seeds}
    with opened_store(store) as opened:
        _check_forks(opened, experiments)
        keep_attachments(opened, experiments)
        sweep_id = opened.sweeps.create(experiment.name, experiment.to_dict(), how, runs)
        return training.plan(opened, sweep_id, experiments)


def plan_stored(
    sweep_id: str,
    *,
    store: RunStore | str | Path = "runs",
    runner: Runner | None = None,
    ensemble: int | None = None,
    checkpoint_every: float = 10.0,
    keep_weights: bool = True,
) -> PlannedSweep:
    """What is left to do of a stored sweep. Raises as `sweep`, and StoreError where there is none with this id."""
    training = _Training(runner=runner, ensemble=ensemble, checkpoint_every=checkpoint_every, keep_weights=keep_weights)
    with opened_store(store, create=False) as opened:
        found = {run.run_id: run for run in opened.list(sweep_id=sweep_id)}
        runs = [found[run_id] for run_id in opened.sweeps.statuses(sweep_id)]
        others = {run.version for run in runs if run.status not in DONE} - {version()}
        if others:
            warnings.warn(f"sweep {sweep_id} was begun with {', '.join(others)}, this is {version()}", stacklevel=2)
        experiments = [stored_experiment(run) for run in runs]
        return training.plan(opened, sweep_id, experiments)


def _check_forks(store: RunStore, experiments: Sequence[Experiment]) -> None:
    """Raise where a fork cannot begin, before anything is stored. Of those that train together one is tried."""
    kinds = {common: e for e, common in zip(experiments, commons(experiments)) if e.origin is not None}
    for experiment in kinds.values():
        check_origins([experiment], store, Ensemble([experiment]))


def _runner(groups: Sequence[Group]) -> Runner:
    """One process per core or GPU, and this one alone where a second would have nothing to do."""
    on_gpu = any(group.device == "cuda" for group in groups)
    n = min(torch.cuda.device_count() if on_gpu else cores(), len(groups))
    return Processes(n) if n > 1 else InProcess()


def _placed(experiment: Experiment) -> Experiment:
    """With "auto" decided: another process must not decide otherwise."""
    if experiment.device not in ENSEMBLE and experiment.device != "auto":
        raise ValueError(
            f"device must be 'auto', {' or '.join(map(repr, ENSEMBLE))} in a sweep, got {experiment.device!r}; "
            "CUDA_VISIBLE_DEVICES chooses the GPUs"
        )
    return experiment.override({"device": resolve_device(experiment.device).type})


@contextmanager
def opened_store(store: RunStore | str | Path, create: bool = True) -> Iterator[RunStore]:
    """The store itself, or the one at that path for a while."""
    if isinstance(store, RunStore):
        yield store
        return
    with RunStore(store, create=create) as opened:
        yield opened
