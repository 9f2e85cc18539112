"""x weightᵀ + bias + skip[index] in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, index: Tensor | None) -> Tensor:
    """x [R, K], weight [O, K], bias [O] or None, skip [S, O] or None, index [R] or None -> [R, O]."""
    out = F.linear(x, weight, bias)
    if skip is None:
        return out
    return out + (skip if index is None else F.embedding(index, skip))
