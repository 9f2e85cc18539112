"""Loss and accuracy of a linear classifier in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast.ops.dispatch import product

LOSSES = ("cross_entropy", "stablemax", "mse")


def logits_of(x: Tensor, weight: Tensor, precision: str) -> Tensor:
    """x Wᵀ: x [..., N, d], weight [..., V, d] -> [..., N, V], fp32 of 16-bit tensors."""
    logits = product(x, weight.mT, precision)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def loss_of(logits: Tensor, target: Tensor, loss: str, with_accuracy: bool) -> tuple[Tensor, Tensor | None]:
    """logits [..., N, V], target [..., N] -> loss and, if asked, 1 (right) or 0 of rows [..., N]."""
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
