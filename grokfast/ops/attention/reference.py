"""softmax(q kᵀ · scale) v in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast.ops.dispatch import product


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str) -> Tensor:
    """q, k, v [..., T, dh] -> [..., T, dh]; scores and softmax of 16-bit tensors in fp32."""
    scores = product(q, k.mT, precision)  # [..., T, T]
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return product((scores * scale).softmax(-1).to(v.dtype), v, precision)
