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
from grokfast.training.ensemble import Ensemble, check_together, resolve_device
from grokfast.training.experiment import Experiment
from grokfast.training.memory import keep_freed_memory
from grokfast.training.observer import Observer
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay, Window
from grokfast.training.result import RunResult, columns
from grokfast.training.waves import at_once, bytes_per_run, free_bytes, split, too_large

FLUSH_EVERY = 1.0  # seconds between writes of new evaluations to the store
FULL = 0.75  # share of a replayed ensemble's runs that must go on, or it is made anew of these only


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
    max_together: int | None = ...,
) -> RunResult: ...
@overload
def train(
    experiments: Sequence[Experiment],
    *,
    store: RunStore | None = ...,
    observers: Sequence[Observer] = ...,
    checkpoint_every: float = ...,
    max_together: int | None = ...,
) -> list[RunResult]: ...
def train(
    experiments: Experiment | Sequence[Experiment],
    *,
    store: RunStore | None = None,
    observers: Sequence[Observer] = (),
    checkpoint_every: float = 10.0,
    max_together: int | None = None,
) -> RunResult | list[RunResult]:
    """Train one experiment, or several as an ensemble that steps together, to its end; returns a result for each.

    Runs of an ensemble may differ in seeds, lr, weight decay, betas, α, λ and a few more fields (ValueError names one
    that may not); each does what it would do alone. A run ends after `schedule.steps`, or `schedule.stop_after` steps
    past generalising, or with status "diverged" once its loss or gradient is not finite; the others go on.

    With a store, evaluations are written about every second and a checkpoint every `checkpoint_every` seconds, so that
    a killed process loses no more than that; `resume` goes on from there. On Ctrl-C or SIGTERM (in the main thread)
    the runs are saved at the next step and `Interrupted` is raised; without a store it is an ordinary
    KeyboardInterrupt. Same experiment, device and versions: the same bits.

    On a GPU all steps up to an evaluation, and it, are replayed at once, and the store, observers and Ctrl-C have their
    turn between evaluations. As many runs go together as its free memory takes, at most `max_together` anywhere; the
    others follow. Where memory runs out after all, the runs go on in two halves, one after the other, from where they
    were.

    Raises TypeError or ValueError for bad experiments, before anything is stored; StoreError where the store fails;
    MemoryError, which says how much is needed, where one run alone is too large.
    """
    todo = [experiments] if isinstance(experiments, Experiment) else list(experiments)
    if not todo:
        raise ValueError("experiments must name at least one, got an empty sequence")
    for experiment in todo:
        if not isinstance(experiment, Experiment):
            raise TypeError(f"experiments must be Experiment objects, got {type(experiment).__name__}")
    checks.real("checkpoint_every", checkpoint_every, minimum=0)
    if max_together is not None:
        checks.integer("max_together", max_together, minimum=1)
    check_together(todo)
    keep_freed_memory()
    with _engine(todo[0]), stop_requests() as stop:
        size = min(at_once(todo), max_together or len(todo))
        try:
            ensemble = Ensemble(split(todo, size)[0])
        except torch.OutOfMemoryError:
            ensemble = None
        runs = [_Run(number=i, experiment=e, outcome=Outcome(e.criteria)) for i, e in enumerate(todo)]
        if store is not None:
            for run in runs:
                run.run_id = _create(store, run.experiment, resolve_device(run.experiment.device))
        results = _Loop(ensemble, runs, store, observers, checkpoint_every, stop, wave=size).run()
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
    with _engine(experiments[0]), stop_requests() as stop:
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
class _Begin:
    """The state that a run goes on from, where it is not the beginning, in CPU memory."""

    steps: int
    tensors: dict[str, Tensor]
    diverged_at: int


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
    row: int = 0  # in the ensemble
    begin: _Begin | None = None
    is_announced: bool = False

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
    """Trains runs to their ends, `wave` of them at a time; the first are `ensemble`, if there is one yet."""

    def __init__(
        self,
        ensemble: Ensemble | None,
        runs: list[_Run],
        store: RunStore | None,
        observers: Sequence[Observer],
        checkpoint_every: float,
        stop: threading.Event,
        *,
        wave: int | None = None,
        keep_weights: bool = True,
    ) -> None:
        self.stop, self.runs, self.keep_weights = stop, runs, keep_weights
        self.living, *self.later = split(runs, wave or len(runs))
        self.store, self.observers, self.checkpoint_every = store, observers, checkpoint_every
        self.begun = self.flushed = self.saved = time.monotonic()
        self.made: Ensemble | None = ensemble
        self.replay: Replay | None = None
        self.window: Window | None = None  # under way, or not yet read

    @property
    def ensemble(self) -> Ensemble:
        assert self.made is not None
        return self.made

    def run(self) -> list[RunResult]:
        try:
            while self.living:
                if not self._complete():
                    self._halve()
                self.living = self.later.pop(0) if self.later else []
            return [run.result for run in self.runs if run.result is not None]
        except Exception:
            for run in self.runs:
                if self.store is not None and run.run_id is not None and run.result is None:
                    with suppress(StoreError):
                        self.store.update(run.run_id, status="failed")
            raise

    def _complete(self) -> bool:
        """Train the living to their ends; False where memory ran out."""
        self.begun = time.monotonic()
        try:
            if self.made is None:
                self.made = self._ensemble()
            for row, run in enumerate(self.living):
                run.row = row
            if not self.living[0].is_announced:
                for observer in self.observers:
                    observer.started(self.ensemble, [run.run_id for run in self.living])
            for run in self.living:
                run.is_announced = True
            if self.ensemble.choice.why_no_replay:
                self._step_by_step()
            else:
                self._replayed()
        except torch.OutOfMemoryError:
            return False
        self.made = self.replay = None
        return True

    def _ensemble(self) -> Ensemble:
        """That of the living, each as it was."""
        ensemble = Ensemble([run.experiment for run in self.living])
        for i, run in enumerate(self.living):
            if run.begin is not None:
                ensemble.restore(i, run.begin.tensors, run.begin.steps)
                ensemble.diverged_at[i] = run.begin.diverged_at
        return ensemble

    def _halve(self) -> None:
        """Memory ran out: the living go on in two halves, each run from where it was."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # steps since the last evaluation may be under way
        self._take()
        for run in self.living:
            if self.made is not None:
                run.seconds_before = self._seconds(run)
                self._remember(run)
        self.made = self.replay = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(self.living) == 1:
            experiment = self.living[0].experiment
            device = resolve_device(experiment.device)
            free = free_bytes(device) if device.type == "cuda" else 0
            raise MemoryError(f"{experiment.name} {too_large(bytes_per_run(experiment), device, free)}")
        if self.living:
            self.later[:0] = split(self.living, -(-len(self.living) // 2))

    def _remember(self, run: _Run) -> None:
        if self.ensemble.optimizer.is_torn:  # in the middle of an update: from the beginning, to the same bits
            run.begin, run.records, run.outcome, run.stored = None, [], Outcome(run.experiment.criteria), 0
            if self.store is not None and run.run_id is not None:
                self.store.truncate(run.run_id, -1)
            return
        tensors = {name: t.cpu().clone() for name, t in self.ensemble.checkpoint(run.row).items()}
        run.begin = _Begin(self.ensemble.steps, tensors, int(self.ensemble.diverged_at[run.row]))

    def _step_by_step(self) -> None:
        ensemble = self.ensemble
        while True:
            if self._is_due():
                self._evaluate()
                if not self.living:
                    break
            if self.stop.is_set():
                self._interrupt()
            ensemble.step()
            for observer in self.observers:
                observer.stepped(ensemble.steps)

    def _replayed(self) -> None:
        """The device trains up to the next evaluation while the last one is looked at here."""
        ensemble = self.ensemble
        self.replay = Replay(ensemble, [run.outcome for run in self.living])
        if self._is_due() and self._is_recorded():
            for run in [run for run in self.living if run.is_over(ensemble.steps)]:
                self._finish(run, ensemble.weights(run.row), None)
                self.living.remove(run)
        elif self._is_due():
            self.window = self.replay.evaluate()
        while self.living:
            if self.stop.is_set():
                self._take()
                if self.living:
                    self._interrupt()
                return
            ahead = self.replay.launch() if ensemble.steps < ensemble.schedule.steps else None
            self._take()
            self.window = ahead
            is_sparse = len(self.living) <= FULL * len(ensemble.experiments)
            if is_sparse or time.monotonic() - self.saved >= self.checkpoint_every:
                self._take()
                if self.living and time.monotonic() - self.saved >= self.checkpoint_every:
                    self._checkpoint()
            if self.living and is_sparse:
                step, models = self.replay.step, [run.row for run in self.living]
                self._shrink()
                self.replay = Replay(ensemble, [run.outcome for run in self.living], step.keep(ensemble, models))

    def _take(self) -> None:
        """Look at the evaluation that is under way, if there is one, and end the runs that are over."""
        window, replay = self.window, self.replay
        self.window = None
        if window is None or replay is None:
            return
        reports = window.read()
        for run in list(self.living):
            record, diverged_at, ended_at = reports[run.row]
            self._record(run, record)
            if ended_at is not None:
                self._finish(run, self.ensemble.weights(run.row, replay.watch.kept), diverged_at)
                self.living.remove(run)
        for observer in self.observers:
            observer.stepped(window.steps)
        if time.monotonic() - self.flushed >= FLUSH_EVERY:
            self._flush()

    def _shrink(self) -> None:
        """Leave only the living in the ensemble."""
        self.replay = None
        self.ensemble.keep([run.row for run in self.living])
        for row, run in enumerate(self.living):
            run.row = row

    def _is_due(self) -> bool:
        """Whether now is a time for an evaluation."""
        steps, schedule = self.ensemble.steps, self.ensemble.schedule
        return steps % schedule.eval_every == 0 or steps >= schedule.steps

    def _is_recorded(self) -> bool:
        """Whether the runs, taken up again here, have this evaluation already."""
        records = self.living[0].records
        return bool(records) and records[-1].step == self.ensemble.steps

    def _record(self, run: _Run, record: Record) -> None:
        run.records.append(record)
        run.outcome.update(record)
        for observer in self.observers:
            observer.recorded(run.number, record, run.outcome)

    def _evaluate(self) -> None:
        """Record every living run, end those that are over, write what is due."""
        if not self._is_recorded():
            goes_on = self.ensemble.steps < self.ensemble.schedule.steps
            for run, record in zip(self.living, self.ensemble.evaluate(goes_on=goes_on)):
                self._record(run, record)
        diverged = self.ensemble.diverged_at.tolist()
        over = [run for run in self.living if diverged[run.row] >= 0 or run.is_over(self.ensemble.steps)]
        for run in over:
            self._finish(run, self.ensemble.weights(run.row), diverged[run.row] if diverged[run.row] >= 0 else None)
            self.living.remove(run)
        if over and self.living:
            self._shrink()
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
        for run in self.living:
            if run.run_id is not None:
                meta = {"steps": self.ensemble.steps, "seconds": self._seconds(run)}
                self.store.save_checkpoint(run.run_id, self.ensemble.checkpoint(run.row), meta)
        self.saved = time.monotonic()

    def _seconds(self, run: _Run) -> float:
        return run.seconds_before + time.monotonic() - self.begun

    def _finish(self, run: _Run, weights: dict[str, Tensor], diverged_at: int | None) -> None:
        store, outcome, steps = self.store, run.outcome, run.records[-1].step
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
        for run in (run for wave in self.later for run in wave):
            if run.begin is not None and run.run_id is not None:
                self._flush_run(run)
                meta = {"steps": run.begin.steps, "seconds": run.seconds_before}
                self.store.save_checkpoint(run.run_id, run.begin.tensors, meta)
        run_ids = [run.run_id for run in self.runs if run.run_id is not None and run.result is None]
        for run_id in run_ids:
            self.store.update(run_id, status="interrupted")
        raise Interrupted(run_ids)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
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
