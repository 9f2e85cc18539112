"""What a training loop tells whoever watches: a live display, TensorBoard, a test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from grokfast.store.records import Record
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult


class Observer:
    """Methods do nothing here; override what is of interest. `run` is the run's number in the call of `train`.

    An exception in one of them ends training as an error would, but in `finished`: there it is a warning.
    """

    def started(self, ensemble: Ensemble, run_ids: Sequence[str | None]) -> None:
        """Everything is built; `ensemble.steps` have been taken already where a run is resumed."""

    def stepped(self, steps: int) -> None:
        """One more step of every run has been taken, `steps` in all; on a GPU all those up to an evaluation."""

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        """An evaluation."""

    def finished(self, run: int, result: RunResult) -> None:
        """A run has ended, for whatever reason."""


def tell_result(tell: Callable[..., None], *news: Any) -> None:
    """Tell an observer of a result, which stands whatever the observer does: an exception in it becomes a warning."""
    try:
        tell(*news)
    except Exception as error:
        who = getattr(tell, "__qualname__", repr(tell))
        warnings.warn(f"the result stands, but {who} failed: {type(error).__name__}: {error}", stacklevel=2)
