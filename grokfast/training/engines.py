"""What the loop has train an ensemble from evaluation to evaluation: `Eager` here, or replay.py's `Replay`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from grokfast.store.records import Record
from grokfast.training.ensemble import Ensemble
from grokfast.training.moments import established
from grokfast.training.outcome import Outcome
from grokfast.training.snapshots import Times


class Report(NamedTuple):
    """An evaluation of one run; diverged_at is a step, None: it has not."""

    record: Record
    diverged_at: int | None


class Window(Protocol):
    """A stretch of training up to and with an evaluation, which may be under way."""

    steps: int

    def wait(self) -> None:
        """Until it is at its end."""

    def read(self) -> list[Report]:
        """Wait for its end; a report for each model, those that are over included."""


@dataclass(frozen=True)
class Hooks:
    """What an engine calls: `snapshot` at `times` between evaluations, with all work done that was begun; after a step
    `stepped`, and `is_stopped`, whether to leave the stretch at once."""

    times: Times = field(default_factory=lambda: Times(None))
    snapshot: Callable[[], None] = lambda: None
    stepped: Callable[[int], None] = lambda steps: None
    is_stopped: Callable[[], bool] = lambda: False


class Engine(Protocol):
    """Trains an ensemble, which is not to be stepped, restored or shrunk from elsewhere while a window is under way; a
    shrunk one is given an engine of its own.

    runs_ahead: `launch` returns at once, and the next stretch can be launched before this one is read. Then `stepped`
    is the loop's to say. share: of the runs that must go on, or the ensemble is worth making anew of these only.
    """

    runs_ahead: bool
    share: float

    def evaluate(self) -> Window:
        """Evaluate as the runs are now."""

    def launch(self) -> Window | None:
        """Train until the next evaluation is due, and evaluate; None: it was left before."""

    def weights(self, row: int) -> dict[str, Tensor]:
        """Those with which a run ended that is over."""


class Eager:
    """Step after step, each when the one before has returned: on any device, whatever is computed."""

    runs_ahead, share = False, 1.0

    def __init__(self, ensemble: Ensemble, outcomes: Sequence[Outcome], hooks: Hooks) -> None:
        self.ensemble, self.outcomes, self.hooks = ensemble, outcomes, hooks

    def evaluate(self) -> Evaluation:
        ensemble = self.ensemble
        records = ensemble.evaluate(goes_on=ensemble.steps < ensemble.schedule.steps)
        diverged = [at if at >= 0 else None for at in ensemble.diverged_at.tolist()]
        return Evaluation(ensemble.steps, list(map(Report, records, diverged)))

    def launch(self) -> Evaluation | None:
        ensemble, hooks = self.ensemble, self.hooks
        if ensemble.optimizer.waits:
            ensemble.optimizer.reached.copy_(established(self.outcomes))
        while True:
            ensemble.step()
            hooks.stepped(ensemble.steps)
            if ensemble.is_due:
                return self.evaluate()
            if ensemble.steps in hooks.times:
                hooks.snapshot()
            if hooks.is_stopped():
                return None

    def weights(self, row: int) -> dict[str, Tensor]:
        return self.ensemble.weights(row)


class Evaluation:
    """A window that is at its end."""

    def __init__(self, steps: int, reports: list[Report]) -> None:
        self.steps, self._reports = steps, reports

    def wait(self) -> None:
        pass

    def read(self) -> list[Report]:
        return self._reports
