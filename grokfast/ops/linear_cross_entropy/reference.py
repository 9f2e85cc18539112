"""Loss and accuracy of a linear classifier in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast.ops.dispatch import product

LOSSES = ("cross_entropy", "stablemax", "mse")


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str, with_accuracy: bool
) -> tuple[Tensor, Tensor | None]:
    """x [..., N, d], weight [..., V, d], target [..., N] -> loss and, if asked, 1 (right) or 0 of rows [..., N]."""
    logits = product(x, weight.mT, precision)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits  # [..., N, V]
    is_right = (logits.detach().argmax(-1) == target).to(logits.dtype) if with_accuracy else None
    if loss == "mse":
        return (logits - F.one_hot(target, logits.shape[-1])).square().mean(-1), is_right
    if loss == "stablemax":
        logits = log_stable(logits)
    rows = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none", ignore_index=-1 - 2**62)
    return rows.view(target.shape), is_right


def log_stable(z: Tensor) -> Tensor:
    """log s(z): s(z) = z + 1 for z >= 0, else 1 / (1 - z)."""
    return torch.where(z >= 0, z.clamp(min=0).log1p(), -(-z.clamp(max=0)).log1p())
