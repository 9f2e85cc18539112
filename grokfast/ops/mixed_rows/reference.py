"""Rows mixed of tables' rows by attention, in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mixed_rows(
    tables: Tensor,
    scores: Tensor,
    base: Tensor,
    keys: Tensor,
    query: Tensor | None,
    common: int | None = None,
    rate: float = 1.0,
) -> Tensor:
    """base[query[r]] + Σ_s Σ_h v[r, s, h] tables[h, keys[r, s]], v = rate · w + 1 − rate (csrc/grokfast.h).

    w[r, :, h] is the softmax over the keys of row r, and the key that is common to all rows, of
    scores[query[r], key, h]; the common key has no part in the sum.

    Args:
        tables: [H, K, W]. scores: [Q, K, H]. base: [Q, W].
        keys: [R, S] int64. query: [R] int64; None: Q is 1.

    Returns:
        [R, W].
    """
    n_heads, n_keys, _ = tables.shape
    at = keys if query is None else query[:, None] * n_keys + keys  # rows of scores
    own = F.embedding(at, scores.flatten(0, 1))  # [R, S, H]
    if common is not None:
        last = scores[:, common] if query is None else F.embedding(query, scores[:, common])  # [1 or R, H]
        own = F.pad(own, (0, 0, 0, 1)) + F.pad(last[:, None], (0, 0, keys.shape[1], 0))
    weights = rate * own.softmax(1)[:, : keys.shape[1]] + (1 - rate)
    mixed = base if query is None else F.embedding(query, base)
    for h in range(n_heads):
        for s in range(keys.shape[1]):
            mixed = mixed + weights[:, s, h, None] * F.embedding(keys[:, s], tables[h])
    return mixed
