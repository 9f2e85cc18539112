"""How far logits are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import parts
from grokfast.probes.base import Probe, View
from grokfast.tasks.data import Data


@parts.register("spread")
@dataclass(frozen=True)
class Spread(Probe):
    """How far a split's logits are apart: the mean over rows of the largest minus the mean logit.

    It grows without bound where nothing holds the logits (softmax collapse, Prieto et al. 2025, arXiv 2501.04697).
    split: of the data.
    """

    split: str = "train"

    def columns(self, data: Data) -> Sequence[str]:
        return [f"{self.split}_logit_spread"]

    def measure(self, view: View, out: Tensor) -> None:
        logits = view.logits(self.split).flatten(1, -2)
        spread = logits.amax(-1) - logits.mean(-1)  # [E, N]
        exists = view.splits[self.split][2]
        out[:, 0] = torch.where(exists, spread, 0).sum(1) / exists.sum(1) if exists is not None else spread.mean(1)
