"""`Change`: what changes with the step: rates, other hyper-parameters, which rows are shown and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grokfast.parts import Part
from grokfast.store.records import Record
from grokfast.tasks.data import Data

Moment = Literal["memorizing", "generalizing"]


@dataclass(frozen=True)
class Change(Part):
    """Base of the changes over time (`schedule.changes`). One of one's own is a frozen dataclass with one of these.

    A change is a function of the step alone, so that a resumed run sees the same, or of the evaluations, see
    `following`. `after`, where a kind has it, begins it at a moment of the run instead: its one value, that of step 0,
    holds from `delay` steps after the evaluation that established that the run has memorised, or generalised; the first
    step after that evaluation is 0 steps after it.
    """

    family: ClassVar[str] = "change"
    after: ClassVar[Moment | None] = None
    delay: ClassVar[int] = 0

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        """Of each hyper-parameter that it changes ("lr", "weight_decay", "alpha", "lamb", a transform's own, ...) its
        values, float64 [end - begin], of the steps from `begin` up to `end`; NaN where it leaves the field's own value.

        current: the values of the experiment's own fields, and "steps", how many it takes.
        """
        return {}

    def rows(self, begin: int, end: int, data: Data) -> Tensor | None:
        """bool [end - begin, N], which rows of the training set may be shown at each step; None: all."""
        return None

    def augment(self, inputs: Tensor, targets: Tensor, step: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """A batch [E, B, ...] as it is shown at `step`, int64 [E], to runs of these seeds, int64 [E]: what a graph can
        hold, on the device."""
        return inputs, targets

    def following(self, record: Record) -> Change:
        """The change as it is from an evaluation on, given as it was before: of the same kind. A kind that has this
        needs the host, and steps go one at a time."""
        return self

    def check(self, data: Data) -> None:
        """Raise ValueError where the change does not suit a task's data."""

    def check_schedule(self, steps: int, eval_every: int) -> None:
        """Raise ValueError where the change does not suit a run of so many steps with evaluations so often."""
