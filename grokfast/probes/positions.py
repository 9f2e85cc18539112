"""The accuracy of every answer position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grokfast import parts
from grokfast.ops.classify import position_accuracy
from grokfast.probes.base import Probe, View
from grokfast.tasks.data import Data


@parts.register("positions")
@dataclass(frozen=True)
class Positions(Probe):
    """Of each split the share of rows whose i-th answer is right, i from 1; {split}_accuracy is of all of them.

    Every run whose data have several answers a row has it.
    """

    def columns(self, data: Data) -> Sequence[str]:
        return [f"{split}_accuracy_{i + 1}" for split in data.splits for i in range(data.n_positions or 0)]

    def measure(self, view: View, out: Tensor) -> None:
        n = view.data.n_positions or 0
        for i, (split, (_, targets, exists)) in enumerate(view.splits.items()):
            out[:, i * n : (i + 1) * n] = position_accuracy(view.logits(split), targets, exists)
