"""Which rows of the training set may be shown at a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks
from grokfast.parts import register
from grokfast.schedules.base import Change
from grokfast.tasks.data import Data

By = Literal["size", "order"]


@register("curriculum")
@dataclass(frozen=True, kw_only=True)
class Curriculum(Change):
    """Easy rows first (Bengio et al. 2009): the share of the training rows that may be shown grows evenly from `start`
    to all of them, over `steps` steps.

    by: "size", rows whose operands' sum is smallest first; "order", as the task has them.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"start", "steps"})

    steps: int
    start: float = 0.1
    by: By = "size"

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "curriculum.")
        fields.integer("steps", minimum=1)
        fields.real("start", minimum=0, maximum=1, open_minimum=True)
        fields.choice(by=get_args(By))

    def rows(self, begin: int, end: int, data: Data) -> Tensor | None:
        inputs = data.train.inputs
        share = self.start + (1 - self.start) * (torch.arange(begin, end, dtype=torch.float64) / self.steps).clamp(
            max=1
        )
        count = (share * len(inputs)).ceil().clamp(min=1)
        rank = torch.arange(len(inputs))
        if self.by == "size":
            order = inputs.flatten(1).sum(1).argsort(stable=True)
            rank = torch.empty_like(order).scatter_(0, order, rank)
        return rank < count[:, None]
