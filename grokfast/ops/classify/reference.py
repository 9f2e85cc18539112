"""Mean loss and accuracy per model in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classify(logits: Tensor, target: Tensor, loss: str, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits [E, N, C], target [E, N], exists bool [E, N] or None -> loss [E], accuracy [E]."""
    models, n, classes = logits.shape
    right = (logits.detach().argmax(-1) == target).to(logits.dtype)
    if loss == "mse":
        errors = (logits - F.one_hot(target, classes)).square()
        if exists is None:
            return errors.mean((1, 2)), right.mean(1)
        values = errors.mean(2)
    else:
        rows, answers = logits.reshape(-1, classes), target.reshape(-1)
        values = F.cross_entropy(rows, answers, reduction="none", ignore_index=-1 - 2**62)  # no target is passed over
        values = values.view(models, n)
        if exists is None:
            return values.mean(1), right.mean(1)
    counts = exists.sum(1)
    return torch.where(exists, values, 0).sum(1) / counts, torch.where(exists, right, 0).sum(1) / counts


LOSSES = ("cross_entropy", "mse")
