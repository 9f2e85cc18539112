"""A schedule: weight decay that comes and goes. grokfast run quick --schedule.changes my_change:Waves"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast.schedules import Change


@dataclass(frozen=True, kw_only=True)
class Waves(Change):
    """weight_decay · (1 + cos(2π step / period)) / 2."""

    period: int = 100

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        steps = torch.arange(begin, end, dtype=torch.float64)
        share = (1 + torch.cos(2 * math.pi * steps / self.period)) / 2
        return {"weight_decay": current["weight_decay"] * share}
