"""`train`: experiments in, results out; everything that is worth keeping goes to the store on the way."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, overload

import torch
from torch import Tensor

from grokfast import backend, checks
from grokfast.store import RunStore, StoreError
from grokfast.store.records import Record
from grokfast.training.ensemble import Ensemble, check_together
from grokfast.training.experiment import Experiment
from grokfast.training.memory import keep_freed_memory
from grokfast.training.observer import Observer
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult, columns

FLUSH_EVERY = 1.0  # seconds between writes of new evaluations to the store


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM; `run_ids` were saved and can be resumed."""

    def __init__(self, run_ids: Sequence[str]) -> None:
        super().__init__("training was interrupted")
        self.run_ids = list(run_ids)


@overload
def train(
    experiments: Experiment,
    *,
    store: RunStore | None = ...,
    observers: Sequence[Observer] = ...,
    checkpoint_every: float = ...,
) -> RunResult: ...
@overload
def train(
    experiments: Sequence[Experiment],
    *,
    store: RunStore | None = ...,
    observers: Sequence[Observer] = ...,
    checkpoint_every: float = ...,
) -> list[RunResult]: ...
def train(
    experiments: Experiment | Sequence[Experiment],
    *,
    store: RunStore | None = None,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
) -> RunResult | list[RunResult]:
    """Train one experiment, or several as an ensemble that steps together, to its end; returns a result for each.

    Runs of an ensemble may differ in seeds, lr, weight decay, betas, α, λ and a few more fields (ValueError names one
    that may not); each does what it would do alone. A run ends after `schedule.steps`, or `schedule.stop_after` steps
    past generalising, or with status "diverged" once its loss or gradient is not finite; the others go on.

    With a store, evaluations are written about every second and a checkpoint every `checkpoint_every` seconds, so that
    a killed process loses no more than that; `resume` goes on from there. On Ctrl-C or SIGTERM (in the main thread)
    the runs are saved at the next step and `Interrupted` is raised; without a store it is an ordinary
    KeyboardInterrupt. Same experiment, device and versions: the same bits.

    Raises TypeError or ValueError for bad experiments, before anything is stored; StoreError where the store fails.
    """
    todo = [experiments] if isinstance(experiments, Experiment) else list(experiments)
    if not todo:
        raise ValueError("experiments must name at least one, got an empty sequence")
    for experiment in todo:
        if not isinstance(experiment, Experiment):
            raise TypeError(f"experiments must be Experiment objects, got {type(experiment).__name__}")
    checks.real("checkpoint_every", checkpoint_every, minimum=0)
    check_together(todo)
    keep_freed_memory()
    with _engine(todo[0]), _stop_requests() as stop:
        ensemble = Ensemble(todo)
        runs = [_Run(number=i, experiment=e, outcome=Outcome(e.criteria)) for i, e in enumerate(todo)]
        if store is not None:
            for run in runs:
                run.run_id = _create(store, run.experiment, ensemble.device)
        results = _Loop(ensemble, runs, store, observers, checkpoint_every, stop).run()
    return results[0] if isinstance(experiments, Experiment) else results


def resume(
    run_id: str, store: RunStore, *, observers: Sequence[Observer] = (), checkpoint_every: float = 10.0
) -> RunResult:
    """Go on with an interrupted or killed run from its last checkpoint, to the same bits as without the interruption.

    The bits depend on the versions of grokfast and torch: a warning says where they are not those of the beginning.
    Raises ValueError where the run has ended already or its checkpoint does not fit, CheckpointError where the
    checkpoint is corrupt, StoreError for an unknown run; nothing is changed then.
    """
    stored = store.get(run_id)
    if stored.status in ("finished", "diverged"):
        raise ValueError(f"run {run_id} has ended already (status {stored.status}), there is nothing to resume")
    if stored.version != version():
        warnings.warn(f"run {run_id} was begun with {stored.version}, this is {version()}", stacklevel=2)
    return go_on([run_id], store, observers=observers, checkpoint_every=checkpoint_every)[0]


def go_on(
    run_ids: Sequence[str],
    store: RunStore,
    *,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
    keep_weights: bool = True,
) -> list[RunResult]:
    """Train runs that the store has, from their checkpoints, to their ends, as an ensemble.

    They must have taken the same number of steps, 0 where there is no checkpoint. Raises as `train` and `resume` do.
    """
    experiments = [Experiment.from_dict(store.get(run_id).config) for run_id in run_ids]
    check_together(experiments)
    keep_freed_memory()
    with _engine(experiments[0]), _stop_requests() as stop:
        ensemble = Ensemble(experiments)
        runs = []
        for i, (run_id, experiment) in enumerate(zip(run_ids, experiments)):
            run = _Run(number=i, experiment=experiment, outcome=Outcome(experiment.criteria), run_id=run_id)
            tensors, meta = store.load_checkpoint(run_id) if store.has_checkpoint(run_id) else ({}, {})
            steps = int(meta.get("steps", 0))
            if i > 0 and steps != ensemble.steps:
                raise ValueError(f"run {run_id} has taken {steps} steps, run {run_ids[0]} {ensemble.steps}")
            if tensors:
                ensemble.restore(i, tensors, steps)
                run.seconds_before = float(meta["seconds"])
            store.truncate(run_id, steps if tensors else -1)
            curves = store.curves(run_id)
            for row in zip(*(curves[name].tolist() for name in Record._fields)):
                run.take(Record(*row))
            store.update(run_id, status="running")
            runs.append(run)
        return _Loop(ensemble, runs, store, observers, checkpoint_every, stop, keep_weights=keep_weights).run()


def _create(store: RunStore, experiment: Experiment, device: torch.device) -> str:
    return store.create(experiment.to_dict(), preset=experiment.name, version=version(), device=str(device))


def version() -> str:
    """What a run's bits depend on, beside its experiment and device."""
    from grokfast import __version__

    return f"grokfast {__version__}, torch {torch.__version__}"


def _engine(experiment: Experiment) -> Any:
    return backend.using("reference") if experiment.engine == "reference" else nullcontext()


@dataclass
class _Run:
    """What the loop knows of one run."""

    number: int
    experiment: Experiment
    outcome: Outcome
    run_id: str | None = None
    records: list[Record] = field(default_factory=list)
    stored: int = 0  # so many records are in the store
    seconds_before: float = 0.0
    result: RunResult | None = None

    def take(self, record: Record) -> None:
        """A record that the store has already."""
        self.records.append(record)
        self.outcome.update(record)
        self.stored = len(self.records)

    def is_over(self, steps: int) -> bool:
        schedule, t_generalize = self.experiment.schedule, self.outcome.t_generalize
        early = schedule.stop_after is not None and t_generalize is not None
        return steps >= schedule.steps or (early and steps >= t_generalize + schedule.stop_after)  # type: ignore[operator]


class _Loop:
    def __init__(
        self,
        ensemble: Ensemble,
        runs: list[_Run],
        store: RunStore | None,
        observers: Sequence[Observer],
        checkpoint_every: float,
        stop: threading.Event,
        keep_weights: bool = True,
    ) -> None:
        self.stop, self.keep_weights = stop, keep_weights
        self.ensemble, self.runs, self.living = ensemble, runs, list(runs)
        self.store, self.observers, self.checkpoint_every = store, observers, checkpoint_every
        self.begun = self.flushed = self.saved = time.monotonic()

    def run(self) -> list[RunResult]:
        try:
            return self._run()
        except Exception:
            for run in self.living:
                if self.store is not None and run.run_id is not None:
                    with suppress(StoreError):
                        self.store.update(run.run_id, status="failed")
            raise

    def _run(self) -> list[RunResult]:
        ensemble, schedule = self.ensemble, self.ensemble.schedule
        for observer in self.observers:
            observer.started(ensemble, [run.run_id for run in self.runs])
        while True:
            if ensemble.steps % schedule.eval_every == 0 or ensemble.steps >= schedule.steps:
                self._evaluate()
                if not self.living:
                    break
            if self.stop.is_set():
                self._interrupt()
            ensemble.step()
            for observer in self.observers:
                observer.stepped(ensemble.steps)
        return [run.result for run in self.runs if run.result is not None]

    def _evaluate(self) -> None:
        """Record every living run, end those that are over, write what is due."""
        if self.living[0].records and self.living[0].records[-1].step == self.ensemble.steps:
            records = [run.records[-1] for run in self.living]  # resumed here: this evaluation is in the store
        else:
            records = self.ensemble.evaluate()
            for run, record in zip(self.living, records):
                run.records.append(record)
                run.outcome.update(record)
                for observer in self.observers:
                    observer.recorded(run.number, record, run.outcome)
        diverged = self.ensemble.diverged_at.tolist()
        over = [i for i, run in enumerate(self.living) if diverged[i] >= 0 or run.is_over(self.ensemble.steps)]
        for i in over:
            self._finish(self.living[i], self.ensemble.weights(i), diverged[i] if diverged[i] >= 0 else None)
        if over:
            rest = [i for i in range(len(self.living)) if i not in over]
            self.living = [self.living[i] for i in rest]
            if rest:
                self.ensemble.keep(rest)
        now = time.monotonic()
        if now - self.flushed >= FLUSH_EVERY:
            self._flush()
        if now - self.saved >= self.checkpoint_every:
            self._checkpoint()

    def _flush(self) -> None:
        if self.store is None:
            return
        for run in self.living:
            self._flush_run(run)
        self.flushed = time.monotonic()

    def _flush_run(self, run: _Run) -> None:
        if self.store is not None and run.run_id is not None and run.stored < len(run.records):
            self.store.append(run.run_id, run.records[run.stored :])
            run.stored = len(run.records)

    def _checkpoint(self) -> None:
        """Curves first, then the checkpoint: on resuming, the store never lacks what came before it."""
        if self.store is None:
            return
        self._flush()
        for i, run in enumerate(self.living):
            if run.run_id is not None:
                meta = {"steps": self.ensemble.steps, "seconds": self._seconds(run)}
                self.store.save_checkpoint(run.run_id, self.ensemble.checkpoint(i), meta)
        self.saved = time.monotonic()

    def _seconds(self, run: _Run) -> float:
        return run.seconds_before + time.monotonic() - self.begun

    def _finish(self, run: _Run, weights: dict[str, Tensor], diverged_at: int | None) -> None:
        store, outcome, steps = self.store, run.outcome, self.ensemble.steps
        run.result = RunResult(
            experiment=run.experiment,
            status="finished" if diverged_at is None else "diverged",
            phase=outcome.phase,
            t_memorize=outcome.t_memorize,
            t_generalize=outcome.t_generalize,
            collapsed=outcome.collapsed,
            diverged_at=diverged_at,
            sentence=outcome.sentence(steps, diverged_at),
            steps=steps,
            seconds=self._seconds(run),
            final=run.records[-1],
            curves=columns(run.records),
            weights=weights,
            run_id=run.run_id,
            directory=None if store is None or run.run_id is None else store.directory(run.run_id),
        )
        if store is not None and run.run_id is not None:
            self._flush_run(run)
            if self.keep_weights:
                store.save_weights(run.run_id, weights)
            store.update(run.run_id, status=run.result.status, result=run.result.summary())
        for observer in self.observers:
            observer.finished(run.number, run.result)

    def _interrupt(self) -> None:
        if self.store is None:
            raise KeyboardInterrupt
        self._checkpoint()
        run_ids = [run.run_id for run in self.living if run.run_id is not None]
        for run_id in run_ids:
            self.store.update(run_id, status="interrupted")
        raise Interrupted(run_ids)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set an event, so that no step is torn apart; a second one raises at once. Main thread only."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
