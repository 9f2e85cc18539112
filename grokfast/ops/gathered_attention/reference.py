"""Attention over gathered rows in plain PyTorch, any float precision and device."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def gathered_attention(q: Tensor, kv: Tensor, keys: Tensor, query: Tensor | None, n_heads: int) -> Tensor:
    """q [Q, d], kv [K, 2d], keys [R, S] with -1 for none, query [R] or None -> [R, d]."""
    d_head = q.shape[1] // n_heads
    # F.embedding: the gradient of plain indexing is summed by several threads on a CPU, in any order
    rows = q if query is None else F.embedding(query, q)
    k, v = F.embedding(keys.clamp(min=0), kv).unflatten(-1, (2, n_heads, d_head)).unbind(2)  # [R, S, H, d_head]
    scores = (rows.unflatten(-1, (1, n_heads, d_head)) * k).sum(-1) / math.sqrt(d_head)  # [R, S, H]
    weights = scores.masked_fill(keys.unsqueeze(-1) < 0, -math.inf).softmax(1)
    return (weights.unsqueeze(-1) * v).sum(1).flatten(1)
