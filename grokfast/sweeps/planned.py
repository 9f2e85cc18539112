"""`PlannedSweep`: a sweep that is ready to be trained, its training, and whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grokfast.sweeps.progress import Progress
from grokfast.sweeps.result import SweepResult
from grokfast.sweeps.runner import Event, Group, Runner
from grokfast.training.experiment import Experiment
from grokfast.training.interrupt import stop_requests
from grokfast.training.observer import tell_result


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was stopped by Ctrl-C, SIGTERM or SIGHUP; what was done is saved, and the sweep can be resumed."""

    def __init__(self, sweep_id: str) -> None:
        super().__init__(f"sweep {sweep_id} was interrupted")
        self.sweep_id = sweep_id


class SweepObserver:
    """Whoever watches a sweep; methods do nothing here. All are called in the thread that called `sweep`."""

    def planned(self, plan: PlannedSweep) -> None:
        """Everything is checked and stored, nothing has begun."""

    def happened(self, event: Event, progress: Progress) -> None:
        """News of one run; `progress` counts it already."""

    def ended(self, result: SweepResult) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class PlannedSweep:
    """A sweep that is stored and checked, and what is left to do of it.

    runs: all its experiments by run id, in order. statuses: of each. groups: of the runs that have not ended.
    """

    sweep_id: str
    root: Path
    axes: list[str]
    runs: dict[str, Experiment]
    statuses: dict[str, str]
    groups: list[Group]
    runner: Runner

    @property
    def todo(self) -> int:
        """Runs that have not ended."""
        return sum(len(group.runs) for group in self.groups)

    def train(self, observers: Sequence[SweepObserver] = ()) -> SweepResult:
        """Train what is left. Raises SweepInterrupted when it is told to stop, and as `Runner.run` does."""
        limits = {run_id: experiment.schedule.steps for run_id, experiment in self.runs.items()}
        progress = Progress(limits, self.statuses)

        def report(event: Event) -> None:
            progress.take(event)
            for observer in observers:
                observer.happened(event, progress)

        for observer in observers:
            observer.planned(self)
        try:
            with stop_requests(at_once=True):
                if self.groups:
                    self.runner.run(self.groups, self.root, report)
        except KeyboardInterrupt as error:
            raise SweepInterrupted(self.sweep_id) from error
        result = SweepResult(sweep_id=self.sweep_id, root=self.root, axes=self.axes, errors=progress.errors)
        for observer in observers:
            tell_result(observer.ended, result)
        return result
