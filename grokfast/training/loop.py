"""The training loop: runs, a wave at a time, to their ends, by an engine that steps or replays."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from grokfast.store import RunStore, StoreError
from grokfast.store.records import Record
from grokfast.training.engines import Eager, Engine, Hooks, Window
from grokfast.training.ensemble import Ensemble
from grokfast.training.interrupt import Interrupted, StopRequest
from grokfast.training.observer import Observer, tell_result
from grokfast.training.replay import Replay
from grokfast.training.result import RunResult
from grokfast.training.run import Run
from grokfast.training.snapshots import Times
from grokfast.training.state import State
from grokfast.training.waves import forget, split, too_large

FLUSH_EVERY = 1.0  # seconds between writes of new evaluations to the store


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
        self.engine: Engine | None = None
        self.window: Window | None = None  # under way, or not yet read
        self.gaps: set[str] = set()  # columns of probes that have been not finite
        times = Times(runs[0].experiment.schedule.snapshots if store is not None else None)
        self.hooks = Hooks(times, self._snapshot, self._stepped, stop.is_set)

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
            self._train()
        except torch.OutOfMemoryError:
            return False
        self.made = self.engine = None
        return True

    def _ensemble(self) -> Ensemble:
        """That of the living, each as it was saved."""
        ensemble, self.fresh = self.fresh or Ensemble([run.experiment for run in self.living]), None
        for row, run in enumerate(self.living):
            run.row, state = row, run.take_up(ensemble)
            if state is not None:
                ensemble.restore(row, state.tensors, state.steps, state.begun)
                ensemble.diverged_at[row] = state.diverged_at
            for record in run.records:
                ensemble.told(row, record)
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
        self.made = self.engine = None
        forget()
        if len(self.living) == 1:
            raise too_large(self.living[0].experiment)
        if self.living:
            self.later[:0] = split(self.living, -(-len(self.living) // 2))

    def _train(self) -> None:
        """The device may train up to the next evaluation while the last one is looked at here."""
        ensemble, engine = self.ensemble, self._begin()
        if ensemble.is_due and self._is_recorded():
            over: dict[Run, int | None] = {run: None for run in self.living if run.is_over(ensemble.steps)}
            self._end(over, ensemble.weights)
        elif ensemble.is_due:
            self.window = engine.evaluate()
        while self.living:
            if self.stop.is_set():
                self._take()
                if self.living:
                    self._interrupt()
                return
            if ensemble.steps in self.hooks.times:
                if self.window is not None:
                    self.window.wait()
                self._snapshot()
            ahead = engine.launch() if engine.runs_ahead and ensemble.steps < ensemble.schedule.steps else None
            self._take(ahead)
            self.window = ahead
            n, is_to_be_saved = len(self.living), self._is_to_be_saved()
            is_sparse = n < len(ensemble.experiments) and n <= engine.share * len(ensemble.experiments)
            if is_sparse or is_to_be_saved:
                self._take()
                if self.living and is_to_be_saved:
                    self._save()
            if self.living and is_sparse:
                engine = self._shrink()
            if self.living and not engine.runs_ahead:
                self.window = engine.launch()

    def _begin(self) -> Engine:
        """An engine for the ensemble as it is."""
        kind = Eager if self.ensemble.choice.why_no_replay else Replay
        self.engine = kind(self.ensemble, [run.outcome for run in self.living], self.hooks)
        return self.engine

    def _take(self, ahead: Window | None = None) -> None:
        """Look at the evaluation that is under way, if there is one, and end the runs that are over.

        `ahead` is the stretch after it, if that has been launched.
        """
        window, engine = self.window, self.engine
        self.window = None
        if window is None or engine is None:
            return
        reports = window.read()
        over: dict[Run, int | None] = {}
        for run in self.living:
            record, diverged_at = reports[run.row]
            self._record(run, record)
            if diverged_at is not None or run.is_over(record.step):
                over[run] = diverged_at
        self._end(over, engine.weights, ahead)
        if engine.runs_ahead:
            self._stepped(window.steps)
        if time.monotonic() - self.flushed >= FLUSH_EVERY:
            self._flush()

    def _end(
        self, over: Mapping[Run, int | None], weights: Callable[[int], dict[str, Tensor]], ahead: Window | None = None
    ) -> None:
        """End these runs, which have diverged at some step, or not (None)."""
        for run, diverged_at in over.items():
            self._finish(run, weights(run.row), diverged_at, ahead)
            self.living.remove(run)

    def _stepped(self, steps: int) -> None:
        for observer in self.observers:
            observer.stepped(steps)

    def _shrink(self) -> Engine:
        """Leave only the living in the ensemble, with an engine of its own."""
        self.engine = None
        self.ensemble.keep([run.row for run in self.living])
        for row, run in enumerate(self.living):
            run.row = row
        return self._begin()

    def _is_recorded(self) -> bool:
        """Whether the runs, taken up again here, have this evaluation already."""
        records = self.living[0].records
        return bool(records) and records[-1].step == self.ensemble.steps

    def _record(self, run: Run, record: Record) -> None:
        record = self._with_gaps(run, record)
        run.record(record)
        self.ensemble.told(run.row, record)
        for observer in self.observers:
            observer.recorded(run.number, record, run.outcome)

    def _with_gaps(self, run: Run, record: Record) -> Record:
        """With a gap where a probe has measured what is not finite, which is said once of each column."""
        bad = [name for name in self.ensemble.probes.names if math.isinf(record[name])]
        if math.isfinite(record["train_loss"]):  # else it is not the probe's doing
            for name in (name for name in bad if name not in self.gaps):
                self.gaps.add(name)
                warnings.warn(
                    f"the probes' column {name!r} is NaN or infinite in {run.run_id or run.experiment.name} at step "
                    f"{record.step:,}: it has gaps where it is",
                    stacklevel=2,
                )
        return Record(record.step, {**record.values, **dict.fromkeys(bad, math.nan)}) if bad else record

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
