"""Multi-head attention whose queries, keys and values are rows of tables, read by index instead of copied out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.gathered_attention.reference import gathered_attention as reference
from grokfast.ops.rows import RowIndex, threads_for


def gathered_attention(q: Tensor, kv: Tensor, keys: RowIndex, query: RowIndex | None = None, *, n_heads: int) -> Tensor:
    """out[r] = softmax_j(q[query[r]] · k[keys[r, j]] / √d_head) v[keys[r, j]] in each head; k, v the halves of kv.

    q [Q, d], kv [K, 2d], heads one after the other in each third; keys [R, S] into kv's rows, -1 for none; query [R]
    into q's rows, None: row r has query r. Returns [R, d]. Nothing is shared between rows but what the indices say.
    The gradient of a table row is the sum over the rows that read it, in their order: the same bits every time, for
    any number of threads. On CPU fp32 tensors with the extension each direction is one pass; differentiable once there.
    Raises ValueError or TypeError naming the argument.
    """
    _check(q, kv, keys, query, n_heads)
    if backend.extension() is None or not (backend.plain(q) and backend.plain(kv)) or not q.shape[1]:
        return reference(q, kv, keys.index, None if query is None else query.index, n_heads)
    return _GatheredAttention.apply(q.contiguous(), kv.contiguous(), keys, query, n_heads)


def _check(q: Tensor, kv: Tensor, keys: RowIndex, query: RowIndex | None, n_heads: int) -> None:
    checks.integer("n_heads", n_heads, minimum=1)
    if q.ndim != 2 or not q.is_floating_point() or q.shape[1] % n_heads:
        raise ValueError(f"q must be [Q, d] of a float dtype, d a multiple of {n_heads}, got {tuple(q.shape)} {q.dtype}")
    if kv.ndim != 2 or kv.shape[1] != 2 * q.shape[1] or kv.dtype != q.dtype or kv.device != q.device:
        accepted = f"[K, {2 * q.shape[1]}] {q.dtype} on {q.device}"
        raise ValueError(f"kv must be {accepted}, got {tuple(kv.shape)} {kv.dtype} on {kv.device}")
    for name, index, axes, rows in (("keys", keys, 2, len(kv)), ("query", query, 1, len(q))):
        if index is None:
            continue
        if not isinstance(index, RowIndex):
            raise TypeError(f"{name} must be a RowIndex, got {type(index).__name__}")
        if index.index.ndim != axes or index.n_rows != rows or index.device != q.device:
            accepted = f"{'[R]' if axes == 1 else '[R, S]'} into {rows} rows on {q.device}"
            raise ValueError(
                f"{name} must be {accepted}, got {tuple(index.shape)} into {index.n_rows} rows on {index.device}"
            )
    n_queries = len(q) if query is None else query.shape[0]
    if keys.shape[0] != n_queries:
        raise ValueError(f"keys must have a row for each of {n_queries} queries, got {keys.shape[0]}")


class _GatheredAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, keys: RowIndex, query: RowIndex | None, n_heads: int) -> Tensor:
        out = q.new_empty(keys.shape[0], q.shape[1])
        weights = q.new_empty(*keys.shape, n_heads)
        backend.load_extension().gathered_attention_forward(
            _tables(q, kv, keys, query, n_heads), out.data_ptr(), weights.data_ptr(), threads_for(out)
        )
        ctx.save_for_backward(q, kv, weights)
        ctx.indices = keys, query
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, weights = ctx.saved_tensors
        keys, query = ctx.indices
        grad = grad.contiguous()
        grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
        extension = backend.load_extension()
        rows = torch.arange(len(q) + 1) if query is None else None
        start, items = (rows, None) if query is None else query.readers
        by_query = extension.Readers(start.data_ptr(), 0 if items is None else items.data_ptr(), len(q))
        by_key = extension.Readers(*(t.data_ptr() for t in keys.readers), len(kv))
        extension.gathered_attention_backward(
            _tables(q, kv, keys, query, weights.shape[2]), by_query, by_key, weights.data_ptr(), grad.data_ptr(),
            grad_q.data_ptr(), grad_kv.data_ptr(), threads_for(grad),
        )  # fmt: skip
        return grad_q, grad_kv, None, None, None


def _tables(q: Tensor, kv: Tensor, keys: RowIndex, query: RowIndex | None, n_heads: int) -> Any:
    return backend.load_extension().GatheredAttention(
        q.data_ptr(), kv.data_ptr(), 0 if query is None else query.index.data_ptr(), keys.index.data_ptr(),
        *keys.shape, len(q), len(kv), n_heads, q.shape[1] // n_heads,
    )  # fmt: skip
