"""`weight_norms` and `logit_scale` of runs and live models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grokfast.analysis.alone import alone, module_of
from grokfast.measures import norms
from grokfast.tasks.data import Data, Task


def weight_norms(model: Any) -> dict[str, Tensor]:
    """`measures.norms.weight_norms` of a run, several, a live model, or parameters [E, ...] by name: {name: [E]}."""
    if not isinstance(model, Mapping):
        model = dict(module_of(model).named_parameters())
    return norms.weight_norms(model)


def logit_scale(model: Any, task: Task | Data | None = None, *, split: str = "test") -> Tensor:
    """`measures.norms.logit_scale`, float64 [E], on a split of what the model learns; of logits [..., N, C]: [...].

    model, task: see `subject`; a tensor is logits. Raises as `subject` does, ValueError where there is no such split.
    """
    if isinstance(model, Tensor):
        return norms.logit_scale(model)
    with torch.no_grad():
        return torch.stack(
            [norms.logit_scale(one.outputs()[0].flatten(0, -2)) for one in alone(model, task, split=split)]
        )
