"""A layer's attention over gathered rows in plain PyTorch, any float precision and device."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def gathered_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    w_o: Tensor,
    b_o: Tensor | None,
    keys: Tensor,
    query: Tensor | None,
    n_heads: int,
    first: int,
    skip: Tensor | None,
) -> Tensor:
    """x and skip [K, d], keys [R, S] with -1 for none, query [R] or None, from row `first` on -> [R, d]."""
    d, d_head = x.shape[1], x.shape[1] // n_heads
    w_q, w_kv = w_qkv.split([d, 2 * d])
    b_q, b_kv = (None, None) if b_qkv is None else b_qkv.split([d, 2 * d])
    q = _read(F.linear(x[first:], w_q, b_q), query).unflatten(1, (1, n_heads, d_head))  # [R, 1, H, d_head]
    kv = F.embedding(keys.clamp(min=0), F.linear(x, w_kv, b_kv))  # [R, S, 2d]
    k, v = kv.unflatten(2, (2, n_heads, d_head)).unbind(2)  # [R, S, H, d_head]
    scores = (q * k).sum(-1) / math.sqrt(d_head)  # [R, S, H]
    weights = scores.masked_fill(keys.unsqueeze(2) < 0, -math.inf).softmax(1)
    out = F.linear((weights.unsqueeze(3) * v).sum(1).flatten(1), w_o, b_o)
    return out if skip is None else out + _read(skip[first:], query)


def _read(rows: Tensor, index: Tensor | None) -> Tensor:
    """rows[index] by F.embedding: on a CPU the gradient of plain indexing is summed by several threads in any order."""
    return rows if index is None else F.embedding(index, rows)
