"""`train`, `resume`, `go_on`: experiments in, results out; what is worth keeping goes to the store on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, overload

from grokfast import backend, checks
from grokfast.models import Module
from grokfast.parts import Part
from grokfast.store import RunStore, StoredRun
from grokfast.store.run import DONE
from grokfast.training.ensemble import Ensemble, resolve_device
from grokfast.training.experiment import Experiment, check_together
from grokfast.training.forks import check_origins, fitted
from grokfast.training.interrupt import stop_requests
from grokfast.training.loop import Loop
from grokfast.training.memory import keep_freed_memory
from grokfast.training.observer import Observer
from grokfast.training.result import RunResult, stored_experiment
from grokfast.training.run import Run, stored_state
from grokfast.training.surroundings import undisturbed
from grokfast.training.version import version
from grokfast.training.waves import first_wave


@overload
def train(
    experiments: Experiment,
    *,
    store: RunStore | None = ...,
    observers: Sequence[Observer] = ...,
    checkpoint_every: float = ...,
    max_together: int | None = ...,
    task: Any = ...,
    model: Any = ...,
) -> RunResult: ...
@overload
def train(
    experiments: Sequence[Experiment],
    *,
    store: RunStore | None = ...,
    observers: Sequence[Observer] = ...,
    checkpoint_every: float = ...,
    max_together: int | None = ...,
    task: Any = ...,
    model: Any = ...,
) -> list[RunResult]: ...
@undisturbed
def train(
    experiments: Experiment | Sequence[Experiment],
    *,
    store: RunStore | None = None,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
    max_together: int | None = None,
    task: Any = None,
    model: Any = None,
) -> RunResult | list[RunResult]:
    """Train one experiment, or several as an ensemble that steps together, to its end; returns a result for each.

    Runs of an ensemble may differ in seeds, lr, weight decay, betas, α, λ and a few more fields (ValueError names one
    that may not); each does what it would do alone. A run ends after `schedule.steps`, or `schedule.stop_after` steps
    past generalising, or `schedule.patience` steps past memorising without it, or with status "diverged" once its loss,
    its gradient or, at its end, its weights are not finite; the others go on.

    With a store, evaluations are written about every second and a checkpoint every `checkpoint_every` seconds, so that
    a killed process loses no more than that; `resume` goes on from there. On Ctrl-C, SIGTERM or SIGHUP (in the main
    thread) the runs are saved at the next step and `Interrupted` is raised; without a store it is an ordinary
    KeyboardInterrupt. Same experiment, device and versions: the same bits.

    On a GPU all steps up to an evaluation, and it, are replayed at once, and the store, observers and Ctrl-C have their
    turn between evaluations. As many runs go together as its free memory takes, at most `max_together` anywhere; the
    others follow. Where memory runs out after all, the runs go on in two halves, one after the other, from where they
    were.

    `task` and `model` stand in the place of the experiment's own: parts, their names, or for `model` a function that
    makes an nn.Module of the data (see grokfast.models.Module).

    Blocks around the call, such as torch.inference_mode or autocast, change nothing.

    Raises TypeError or ValueError for bad experiments, before anything is stored; StoreError where the store fails;
    MemoryError, which says how much is needed, where one run alone is too large.
    """
    todo = [experiments] if isinstance(experiments, Experiment) else list(experiments)
    for experiment in todo:
        if not isinstance(experiment, Experiment):
            raise TypeError(f"experiments must be Experiment objects, got {type(experiment).__name__}")
    todo = [experiment.override(_instead(task, model)) for experiment in todo]
    _check(todo, checkpoint_every, max_together)
    if store is None and todo[0].schedule.snapshots is not None:
        raise ValueError(f"schedule.snapshots need a store, which must be given, got {todo[0].schedule.snapshots!r}")
    if store is not None:
        for experiment in todo:
            experiment.to_dict()  # what cannot be stored is said before anything is
    keep_freed_memory()
    with _engine(todo[0]), stop_requests() as stop:
        ensemble, wave = first_wave(todo, max_together)
        check_origins(todo, store, ensemble)
        ensemble.probes.try_out(ensemble.runs)
        runs = [Run(number=i, experiment=e, store=store) for i, e in enumerate(todo)]
        for run in runs:
            if store is not None:
                run.run_id = _create(store, run.experiment)
        if store is not None:
            store.sweeps.claim_all([run.run_id for run in runs if run.run_id is not None])
        loop = Loop(ensemble, runs, store, observers, checkpoint_every, stop, wave=wave)
        del ensemble  # the next wave needs its memory
        results = loop.run()
    return results[0] if isinstance(experiments, Experiment) else results


def resume(
    run_id: str,
    store: RunStore,
    *,
    steps: int | None = None,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
) -> RunResult:
    """Go on with an interrupted or killed run from its last checkpoint, to the same bits as without the interruption.

    With `steps`, the steps of its schedule in all, a run that has finished goes on, too, to the bits of one that was to
    be so long from the beginning; where `stop_after` or `patience` has ended it, that no longer counts. Nothing else of
    an experiment can be changed. The run keeps its id; its experiment in the store is the longer one from then on.

    The bits depend on the versions of grokfast and torch: a warning says where they are not those of the beginning.
    Raises ValueError where the run has ended already, or diverged, where `steps` are not more than it has taken, where
    it kept no checkpoint to go on from, or one that does not fit; CheckpointError where the checkpoint is corrupt,
    StoreError for an unknown run and for one that another process is training, MemoryError as `train`; nothing is
    changed then.
    """
    stored = store.get(run_id)
    experiment = _longer(store, stored, steps)
    if stored.version != version():
        warnings.warn(f"run {run_id} was begun with {stored.version}, this is {version()}", stacklevel=2)
    return go_on([run_id], store, experiments=[experiment], observers=observers, checkpoint_every=checkpoint_every)[0]


def _longer(store: RunStore, stored: StoredRun, steps: int | None) -> Experiment:
    """The experiment of a run that is resumed, with `steps` in all if given."""
    experiment, has_ended, run = stored_experiment(stored), stored.status in DONE, f"run {stored.run_id}"
    if stored.status == "diverged" or (has_ended and steps is None):
        hint = "" if stored.status == "diverged" else ", unless it is to take more steps (steps, --steps)"
        raise ValueError(f"{run} has ended already (status {stored.status}), there is nothing to resume{hint}")
    if steps is None:
        return experiment
    changes: dict[str, Any] = {"schedule.steps": checks.integer("steps", steps, minimum=1)}
    if has_ended:
        result = stored.result or {}
        if steps <= result["steps"]:
            raise ValueError(f"steps must be more than the {result['steps']} that {run} has taken, got {steps}")
        if not store.has_checkpoint(stored.run_id):
            raise ValueError(
                f"{run} has finished and has no checkpoint to go on from: an older grokfast deleted it, or its sweep "
                "did not keep it; train it anew, with more steps"
            )
        has_generalized = result["t_generalize"] is not None
        moment, name = ("t_generalize", "stop_after") if has_generalized else ("t_memorize", "patience")
        at, after = result[moment], getattr(experiment.schedule, name)
        if None not in (at, after) and result["steps"] >= at + after:
            changes[f"schedule.{name}"] = None
    return experiment.override(changes)


@undisturbed
def go_on(
    run_ids: Sequence[str],
    store: RunStore,
    *,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
    max_together: int | None = None,
    keep_weights: bool = True,
    keep_checkpoints: float = math.inf,
    experiments: Sequence[Experiment] | None = None,
) -> list[RunResult]:
    """Train runs that the store has, from their checkpoints, to their ends, as `train` does: in waves.

    They must have taken the same number of steps, 0 where there is no checkpoint. `experiments` are what they are from
    now on, None: what they were. Checkpoints of finished runs are kept up to `keep_checkpoints` bytes. Raises as
    `train` and `resume` do, and where a run does not fit before any is changed.
    """
    before = [stored_experiment(store.get(run_id)) for run_id in run_ids]
    experiments = before if experiments is None else experiments
    _check(experiments, checkpoint_every, max_together)
    keep_freed_memory()
    with _engine(experiments[0]), stop_requests() as stop:
        ensemble, wave = first_wave(experiments, max_together)
        runs = [
            Run(number=i, experiment=experiment, store=store, run_id=run_id)
            for i, (run_id, experiment) in enumerate(zip(run_ids, experiments))
        ]
        taken = [_steps_taken(store, run_id, ensemble) for run_id in run_ids]  # of all, before any is changed
        for run_id, steps, experiment in zip(run_ids, taken, experiments):
            if steps != taken[0]:
                raise ValueError(f"run {run_id} has taken {steps} steps, run {run_ids[0]} {taken[0]}")
            if steps > experiment.schedule.steps:
                wish = experiment.schedule.steps
                raise ValueError(f"steps must be at least {steps}, as run {run_id} goes on from there, got {wish}")
        if taken[0] == 0:
            ensemble.probes.try_out(ensemble.runs)
        for run_id, old, new in zip(run_ids, before, experiments):
            if new != old:
                store.reopen(run_id, new.to_dict())
        store.sweeps.claim_all(run_ids)
        loop = Loop(
            ensemble, runs, store, observers, checkpoint_every, stop, wave=wave, keep_weights=keep_weights,
            keep_checkpoints=keep_checkpoints,
        )  # fmt: skip
        del ensemble
        return loop.run()


def _instead(task: Any, model: Any) -> dict[str, Any]:
    """The parts that an experiment is to have instead of its own."""
    if model is not None and callable(model) and not isinstance(model, Part):
        model = Module(factory=model)
    return {name: part for name, part in (("task", task), ("model", model)) if part is not None}


def _check(experiments: Sequence[Experiment], checkpoint_every: float, max_together: int | None) -> None:
    """What is wrong with arguments is said before anything is stored."""
    if not experiments:
        raise ValueError("experiments must name at least one, got an empty sequence")
    checks.real("checkpoint_every", checkpoint_every, minimum=0)
    if max_together is not None:
        checks.integer("max_together", max_together, minimum=1)
    check_together(experiments)


def _steps_taken(store: RunStore, run_id: str, ensemble: Ensemble) -> int:
    """Those of the run's checkpoint; ValueError where it does not fit an ensemble of such runs."""
    state = stored_state(store, run_id)
    if state is None:
        return 0
    try:
        ensemble.check(fitted(state, ensemble).tensors)
    except ValueError as error:
        raise ValueError(f"run {run_id}: {error}") from error
    return state.steps


def _create(store: RunStore, experiment: Experiment) -> str:
    keep_attachments(store, [experiment])
    device = str(resolve_device(experiment.device))
    return store.create(experiment.to_dict(), preset=experiment.name, version=version(), device=device)


def keep_attachments(store: RunStore, experiments: Iterable[Experiment]) -> None:
    """Store what the experiments' tasks need beside their fields."""
    for task in {experiment.task for experiment in experiments}:
        for sha256, tensors in task.attachments().items():
            store.data.save(sha256, tensors)


def _engine(experiment: Experiment) -> Any:
    return backend.using("reference") if experiment.engine == "reference" else nullcontext()
