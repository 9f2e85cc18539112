"""Precision and recall of every class, on every split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfast.analysis.alone import Alone, alone
from grokfast.tasks.data import Data, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionRecall:
    """Of E models and C classes, float64 [E, C] each; support: how many rows are of a class, int64 [E, C].

    precision: share of the rows said to be of a class that are; recall: share of those of a class that are said to be;
    f1: their harmonic mean. 0 where a class is never said, or never is; NaN where both: it counts in no mean.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    @property
    def macro(self) -> dict[str, Tensor]:
        """Means over classes, [E], of precision, recall and f1."""
        return {name: getattr(self, name).nanmean(1) for name in ("precision", "recall", "f1")}


def precision_recall(
    model: Any, task: Task | Data | None = None, *, split: str | None = None
) -> dict[str, PrecisionRecall]:  # fmt: skip
    """Of each split, or of one, by its name. Where rows have several answers each that is asked counts.

    model, task: see `subject`, which also says what is raised; ValueError where there is no such split, or targets are
    real numbers.
    """
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for one in alone(model, task):
        if one.data.is_real:
            raise ValueError("task must have classes as targets, got real numbers")
        for name in one.data.splits if split is None else [split]:
            found.setdefault(name, []).append(_scores(one.of(name)))
    names = ("precision", "recall", "f1", "support")
    stacked = {name: map(torch.stack, zip(*of_models)) for name, of_models in found.items()}
    return {name: PrecisionRecall(**dict(zip(names, tensors))) for name, tensors in stacked.items()}


@torch.no_grad()
def _scores(one: Alone) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[C] each."""
    outputs, asked = one.outputs()[0], one.targets >= 0
    said, right, n_classes = outputs[asked].argmax(-1), one.targets[asked], outputs.shape[-1]
    n_said, n_right = said.bincount(minlength=n_classes), right.bincount(minlength=n_classes)
    hits = said[said == right].bincount(minlength=n_classes).double()
    is_there = (n_said + n_right) > 0

    def share(of: Tensor) -> Tensor:
        return (hits / of.clamp(min=1)).where(is_there, torch.nan)

    return share(n_said), share(n_right), share((n_said + n_right) / 2), n_right
