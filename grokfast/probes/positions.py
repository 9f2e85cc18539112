"""The accuracy of every answer position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
        return [f"{split}_accuracy_{i + 1}" for split, asked in data.asked.items() for i in asked]

    def measure(self, view: View, out: Tensor) -> None:
        at = 0
        for split, asked in view.data.asked.items():
            _, targets, exists = view.splits[split]
            of_all = position_accuracy(view.logits(split), targets, exists).unbind(1)
            torch.stack([of_all[i].double() for i in asked], 1, out=out[:, at : at + len(asked)])
            at += len(asked)
