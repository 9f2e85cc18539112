"""`Change`: what changes with the step: rates, other hyper-parameters, which rows are shown and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grokfast.parts import Part
from grokfast.tasks.data import Data


@dataclass(frozen=True)
class Change(Part):
    """Base of the changes over time (`schedule.changes`). One of one's own is a frozen dataclass with one of these.

    A change is a function of the step alone, so that a resumed run sees the same. `after`, where a kind has it, begins
    it at "memorizing" or "generalizing" instead of at a step: then steps are counted from that moment on.
    """

    family: ClassVar[str] = "change"

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        """Of each hyper-parameter that it changes ("lr", "weight_decay", "alpha", "lamb", "dropout",
        "label_smoothing", ...) its values, float64 [end - begin], of the steps from `begin` up to `end`.

        current: the values of the experiment's own fields."""
        return {}

    def rows(self, begin: int, end: int, data: Data) -> Tensor | None:
        """bool [end - begin, N], which rows of the training set may be shown at each step; None: all."""
        return None

    def augment(self, inputs: Tensor, targets: Tensor, step: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """A batch [E, B, ...] as it is shown at `step`, int64 [E]: what a graph can hold, on the device."""
        return inputs, targets
