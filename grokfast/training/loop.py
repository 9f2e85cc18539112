"""The training loop: runs, a wave at a time, to their ends, step by step or replayed on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from grokfast.store import RunStore, StoreError
from grokfast.store.records import Record
from grokfast.training.ensemble import Ensemble
from grokfast.training.interrupt import Interrupted, StopRequest
from grokfast.training.moments import established
from grokfast.training.observer import Observer, tell_result
from grokfast.training.replay import Replay, Window
from grokfast.training.result import RunResult
from grokfast.training.run import Run
from grokfast.training.snapshots import Times
from grokfast.training.state import State
from grokfast.training.waves import forget, split, too_large

FLUSH_EVERY = 1.0  # seconds between writes of new evaluations to the store
FULL = 0.75  # share of a replayed ensemble's runs that must go on, or it is made anew of these only


class Loop:
    """Trains runs, from where they were saved, to their ends, `wave` of them at a time.

    `ensemble` is that of the first wave, not yet stepped or restored. Runs of a wave have taken the same steps.
    Of a run that has finished the store keeps its checkpoint, up to `keep_checkpoints` bytes: it may go on further.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        runs: list[Run],
        store: RunStore | None,
        observers: Sequence[Observer],
        checkpoint_every: float,
        stop: StopRequest,
        *,
        wave: int,
        keep_weights: bool = True,
        keep_checkpoints: float = math.inf,
    ) -> None:
        self.stop, self.runs = stop, runs
        self.keep_weights, self.keep_checkpoints = keep_weights, keep_checkpoints
        self.living, *self.later = split(runs, wave)
        self.store, self.observers, self.checkpoint_every = store, observers, checkpoint_every
        self.begun = self.flushed = self.saved = time.monotonic()
        self.fresh: Ensemble | None = ensemble
        self.made: Ensemble | None = None
        self.replay: Replay | None = None
        self.window: Window | None = None  # under way, or not yet read
        self.times = Times(runs[0].experiment.schedule.snapshots if store is not None else None)

    @property
    def ensemble(self) -> Ensemble:
        """That of the living, once it is made."""
        assert self.made is not None
        return self.made

    def run(self) -> list[RunResult]:
        """The results, in the order of the runs. Raises as `train` does; what has not ended is then marked as failed,
        or saved and marked as interrupted."""
        try:
            while self.living:
                if not self._complete():
                    self._halve()
                self.living = self.later.pop(0) if self.later else []
            return [run.result for run in self.runs if run.result is not None]
        except Exception:
            for run in self.runs:
                if run.result is None:
                    with suppress(StoreError):
                        run.set_status("failed")
            raise

    def _complete(self) -> bool:
        """Train the living to their ends; False where memory ran out."""
        self.begun = time.monotonic()
        try:
            self.made = self._ensemble()
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
        """That of the living, each as it was saved."""
        ensemble, self.fresh = self.fresh or Ensemble([run.experiment for run in self.living]), None
        for row, run in enumerate(self.living):
            run.row, state = row, run.take_up(ensemble)
            if state is not None:
                ensemble.restore(row, state.tensors, state.steps, state.begun)
                ensemble.diverged_at[row] = state.diverged_at
        return ensemble

    def _halve(self) -> None:
        """Memory ran out: the living go on in two halves, each run from where it was."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # steps since the last evaluation may be under way
        self._take()
        if self.made is not None:
            if not self.ensemble.optimizer.is_torn:  # in the middle of an update: from where they were saved before
                self._save()
            for run in self.living:
                run.seconds_before = self._seconds(run)
        self.made = self.replay = None
        forget()
        if len(self.living) == 1:
            raise too_large(self.living[0].experiment)
        if self.living:
            self.later[:0] = split(self.living, -(-len(self.living) // 2))

    def _step_by_step(self) -> None:
        ensemble = self.ensemble
        while True:
            if self._is_due():
                self._evaluate()
                if not self.living:
                    break
            elif ensemble.steps in self.times:
                self._snapshot()
            if self.stop.is_set():
                self._interrupt()
            if (tables := ensemble.optimizer.tables) is not None:
                tables.begun.copy_(established([run.outcome for run in self.living]))
            ensemble.step()
            for observer in self.observers:
                observer.stepped(ensemble.steps)

    def _replayed(self) -> None:
        """The device trains up to the next evaluation while the last one is looked at here."""
        ensemble = self.ensemble
        self.replay = self._replay()
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
            if ensemble.steps in self.times:
                if self.window is not None:
                    self.window.wait()
                self._snapshot()
            ahead = self.replay.launch() if ensemble.steps < ensemble.schedule.steps else None
            self._take(ahead)
            self.window = ahead
            is_sparse = len(self.living) <= FULL * len(ensemble.experiments)
            if is_sparse or self._is_to_be_saved():
                self._take()
                if self.living and self._is_to_be_saved():
                    self._save()
            if self.living and is_sparse:
                self._shrink()
                self.replay = self._replay()

    def _replay(self) -> Replay:
        outcomes = [run.outcome for run in self.living]
        return Replay(self.ensemble, outcomes, self.times, self._snapshot)

    def _take(self, ahead: Window | None = None) -> None:
        """Look at the evaluation that is under way, if there is one, and end the runs that are over.

        `ahead` is the stretch after it, if that has been launched.
        """
        window, replay = self.window, self.replay
        self.window = None
        if window is None or replay is None:
            return
        reports = window.read()
        for run in list(self.living):
            record, diverged_at, ended_at = reports[run.row]
            self._record(run, record)
            if ended_at is not None:
                self._finish(run, self.ensemble.weights(run.row, replay.watch.kept), diverged_at, ahead)
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

    def _record(self, run: Run, record: Record) -> None:
        run.record(record)
        for observer in self.observers:
            observer.recorded(run.number, record, run.outcome)

    def _evaluate(self) -> None:
        """Record every living run, end those that are over, write what is due."""
        if not self._is_recorded():
            goes_on = self.ensemble.steps < self.ensemble.schedule.steps
            for run, record in zip(self.living, self.ensemble.evaluate(goes_on=goes_on)):
                self._record(run, record)
        if self.ensemble.steps in self.times:
            self._snapshot()
        diverged = self.ensemble.diverged_at.tolist()
        over = [run for run in self.living if diverged[run.row] >= 0 or run.is_over(self.ensemble.steps)]
        for run in over:
            self._finish(run, self.ensemble.weights(run.row), diverged[run.row] if diverged[run.row] >= 0 else None)
            self.living.remove(run)
        if over and self.living:
            self._shrink()
        if time.monotonic() - self.flushed >= FLUSH_EVERY:
            self._flush()
        if self._is_to_be_saved():
            self._save()

    def _is_to_be_saved(self) -> bool:
        return self.store is not None and time.monotonic() - self.saved >= self.checkpoint_every

    def _flush(self) -> None:
        for run in self.living:
            run.flush()
        self.flushed = time.monotonic()

    def _save(self) -> None:
        with self.stop.saving():
            for run in self.living:
                run.save(self._state(run))
        self.flushed = self.saved = time.monotonic()

    def _snapshot(self) -> None:
        """Keep the weights of all living runs as they are now; of those that have diverged there is nothing to keep."""
        with self.stop.saving():
            for run in self.living:
                state = self._state(run)
                if state.diverged_at < 0:
                    run.keep_snapshot(self.ensemble.weights(run.row), state)

    def _state(self, run: Run) -> State:
        """All that a run needs to go on from here."""
        ensemble = self.ensemble
        tensors, diverged_at = ensemble.checkpoint(run.row), int(ensemble.diverged_at[run.row])
        return State(ensemble.steps, self._seconds(run), tensors, diverged_at, ensemble.optimizer.begun)

    def _seconds(self, run: Run) -> float:
        return run.seconds_before + time.monotonic() - self.begun

    def _finish(
        self, run: Run, weights: dict[str, Tensor], diverged_at: int | None, ahead: Window | None = None
    ) -> None:
        last = run.records[-1]
        if diverged_at is None and not (math.isfinite(last["train_loss"]) and math.isfinite(last["weight_norm"])):
            diverged_at = last.step  # another step would have seen it
        state = self._kept(run, ahead) if diverged_at is None else None
        result = run.end(weights, diverged_at, self._seconds(run), keep_weights=self.keep_weights, state=state)
        for observer in self.observers:
            tell_result(observer.finished, run.number, result)

    def _kept(self, run: Run, ahead: Window | None) -> State | None:
        """From what a run that is over could go on, if that is to be kept; where the device is ahead, from there."""
        tensors = self.ensemble.checkpoint(run.row).values()
        if self.store is None or sum(t.numel() * t.element_size() for t in tensors) > self.keep_checkpoints:
            return None
        if ahead is not None:
            ahead.wait()
        return self._state(run)

    def _interrupt(self) -> None:
        if self.store is None:
            raise KeyboardInterrupt
        left = [run for run in self.runs if run.result is None]
        with self.stop.saving():
            self._save()
            for run in left:
                run.set_status("interrupted")
        raise Interrupted([run.run_id for run in left if run.run_id is not None])
