"""softmax(q kᵀ · scale) v in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast.ops.dispatch import product


def attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str, mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """q, k, v [..., T, dh] -> [..., T, dh]; scores and softmax of 16-bit tensors in fp32. What sees nothing is 0."""
    scores = product(q, k.mT, precision)  # [..., T, T]
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    if mask is None and not causal:
        weights = (scores * scale).softmax(-1)
    else:
        seen = visible(q.shape[-2], causal, mask, q.device)
        blind = ~seen.any(-1, keepdim=True)  # these see all, and then it is dropped: softmax has no gradient otherwise
        weights = (scores.masked_fill(~(seen | blind), -torch.inf) * scale).softmax(-1).masked_fill(blind, 0)
    if dropout:
        weights = F.dropout(weights, dropout)
    return product(weights.to(v.dtype), v, precision)


def visible(length: int, causal: bool, mask: Tensor | None, device: torch.device) -> Tensor:
    """True where position t (the last axis but one) sees another: [T, T], or as `mask` is."""
    if not causal:
        assert mask is not None
        return mask
    earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return earlier if mask is None else earlier & mask
