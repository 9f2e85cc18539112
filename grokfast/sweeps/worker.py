"""What a worker does with a group of runs: take up each where the store left it, and train it to its end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from grokfast import backend
from grokfast.store import CheckpointError, RunStore, StoredRun, StoreError
from grokfast.store.records import Record
from grokfast.store.run import DONE
from grokfast.sweeps.runner import Event, Group, Report
from grokfast.training.ensemble import Ensemble
from grokfast.training.entry import go_on
from grokfast.training.observer import Observer
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult
from grokfast.training.run import stored_state

TELL_EVERY = 0.5  # seconds between two events of a run that only say how far it is
RUNS_PER_SECOND = 200  # of such events in all
KEPT = 16 << 20  # bytes of a finished run's checkpoint: a sweep has thousands of them
ASK_EVERY = 0.5  # seconds between two looks at runs that another process trains


def train_group(group: Group, root: Path, report: Report) -> None:
    """Train the group's runs to their ends, from their checkpoints where there are; ended ones are left alone.

    A run that another process is training is waited for. An exception of the training (a bad device) marks the runs
    failed, is reported, and is not raised. Of a group that memory cannot hold, waves train one after the other.
    Raises StoreError where the store fails, Interrupted (a KeyboardInterrupt) on Ctrl-C, SIGTERM or SIGHUP: then all
    is saved.
    """
    with RunStore(root, create=False) as store, _threads(group.device):
        todo = list(group.runs)
        while todo:
            claimed = store.sweeps.claim(todo)
            for together in _by_steps(store, claimed):
                _train(store, together, group, report)
            todo = [run_id for run_id in todo if run_id not in claimed]
            for run_id in list(todo):
                stored = store.get(run_id)
                if stored.status in DONE:
                    todo.remove(run_id)
                    report(ended(stored))
            if todo:
                time.sleep(ASK_EVERY)


def ended(stored: StoredRun) -> Event:
    """What is reported of a run that another process has trained to its end."""
    result = stored.result or {}
    names = ("steps", "phase", "t_memorize", "t_generalize")
    return Event(run_id=stored.run_id, status=stored.status, **{name: result[name] for name in names})


def give_up(group: Group, root: Path, why: str, report: Report) -> None:
    """Mark the runs of the group that have not ended as failed, and report them."""
    with RunStore(root, create=False) as store:
        for run_id in group.runs:
            if store.get(run_id).status not in DONE:
                store.update(run_id, status="failed")
                report(Event(run_id=run_id, status="failed", error=why))


def _train(store: RunStore, run_ids: Sequence[str], group: Group, report: Report) -> None:
    teller = _Teller(run_ids, report)
    try:
        with backend.using(group.backend):
            go_on(
                run_ids,
                store,
                observers=[teller],
                checkpoint_every=group.checkpoint_every,
                keep_weights=group.keep_weights,
                keep_checkpoints=KEPT if group.keep_weights else 0,
            )
    except StoreError:
        raise
    except Exception as error:
        for run_id in [run_id for run_id in run_ids if store.get(run_id).status not in DONE]:
            store.update(run_id, status="failed")
            report(Event(run_id=run_id, status="failed", error=f"{type(error).__name__}: {error}"))


def _by_steps(store: RunStore, run_ids: Sequence[str]) -> list[list[str]]:
    """The runs by the steps that they have taken, the farthest last; a damaged checkpoint is the beginning again."""
    steps: dict[int, list[str]] = {}
    for run_id in run_ids:
        state = None
        try:
            state = stored_state(store, run_id)
        except CheckpointError as error:
            warnings.warn(f"run {run_id} begins again: {error}", stacklevel=2)
            store.drop_checkpoint(run_id)
        steps.setdefault(0 if state is None else state.steps, []).append(run_id)
    return [steps[taken] for taken in sorted(steps)]


class _Teller(Observer):
    """Turns what the loop says into events."""

    def __init__(self, run_ids: Sequence[str], report: Report) -> None:
        self.run_ids, self.report = run_ids, report
        self.every = max(TELL_EVERY, len(run_ids) / RUNS_PER_SECOND)
        self._said: dict[int, tuple[str, float]] = {}

    def started(self, ensemble: Ensemble, run_ids: Sequence[str | None]) -> None:
        for run_id in filter(None, run_ids):  # a wave of the group
            self.report(Event(run_id=run_id, status="running", steps=ensemble.steps))

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        now = time.monotonic()
        stage, at = self._said.get(run, ("", 0.0))
        if outcome.stage != stage or now - at >= self.every:
            self._said[run] = outcome.stage, now
            self.report(
                Event(
                    run_id=self.run_ids[run],
                    status="running",
                    steps=record.step,
                    stage=outcome.stage,
                    t_memorize=outcome.t_memorize,
                    t_generalize=outcome.t_generalize,
                )
            )

    def finished(self, run: int, result: RunResult) -> None:
        self.report(
            Event(
                run_id=self.run_ids[run],
                status=result.status,
                steps=result.steps,
                phase=result.phase,
                t_memorize=result.t_memorize,
                t_generalize=result.t_generalize,
            )
        )


@contextmanager
def _threads(device: str) -> Iterator[None]:
    """One thread for runs on a CPU, wherever they train: their bits depend on it, and each core has its own run."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
