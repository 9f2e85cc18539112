"""x weightᵀ + bias + skip[own] of every model in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast.ops.dispatch import product


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, own: Tensor | None, precision: str
) -> Tensor:
    """x [E, N, d], weight [E, o, d], bias [E, o], skip [E, K, o], own [E, N] -> [E, N, o], model after model."""
    y = torch.stack([product(rows, w.mT, precision) for rows, w in zip(x, weight)])
    y = y if bias is None else y + bias.unsqueeze(1)
    if skip is None:
        return y
    return y + (skip if own is None else torch.stack([s[i] for s, i in zip(skip, own)]))
