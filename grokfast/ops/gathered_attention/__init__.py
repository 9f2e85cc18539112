"""The attention of a transformer's layer over rows that are read by index, instead of a batch of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.dispatch import outside_autocast
from grokfast.ops.gathered_attention.reference import gathered_attention as reference
from grokfast.ops.products import product
from grokfast.ops.rows import RowIndex, add_rows, sum_readers, sum_rows, threads_for


def gathered_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    w_o: Tensor,
    b_o: Tensor | None,
    keys: RowIndex,
    query: RowIndex | None = None,
    *,
    n_heads: int,
    first: int = 0,
    skip: Tensor | None = None,
) -> Tensor:
    """out[r] = skip[own] + concat_h[softmax_j(q_h[own] · k_h[keys[r, j]] / √d_head) v_h[keys[r, j]]] w_oᵀ + b_o.

    q, k, v = x w_qkvᵀ + b_qkv, and own = first + query[r], or first + r without a query: queries are worked out from
    row `first` on only, keys and values for all rows, each row once however many read it. x and skip (often x itself)
    [K, d], w_qkv [3d, d], w_o [d, d], biases [3d] and [d] or None; keys [R, S] into the K rows, -1 for none; query [R]
    into the K - first rows. Returns [R, d].

    The gradient of a row is the sum over those that read it, in their order: the same bits for any number of threads
    but for what matrix products do. On CPU fp32 tensors with the extension what lies between the products is one pass;
    differentiable once there. Under autocast it is plain PyTorch, whose products follow it.
    Raises ValueError or TypeError naming the argument.
    """
    tensors = {"x": x, "w_qkv": w_qkv, "b_qkv": b_qkv, "w_o": w_o, "b_o": b_o, "skip": skip}
    given = {name: t for name, t in tensors.items() if t is not None}
    _check(given, keys, query, n_heads, first)
    is_own = backend.extension() is not None and all(map(backend.plain, given.values()))
    if not is_own or torch.is_autocast_enabled("cpu"):
        at = None if query is None else query.index
        return reference(x, w_qkv, b_qkv, w_o, b_o, keys.index, at, n_heads, first, skip)
    x = x.contiguous()
    skip = x if skip is tensors["x"] else skip
    return _GatheredAttention.apply(x, w_qkv, b_qkv, w_o, b_o, skip, keys, query, n_heads, first)


def _check(given: dict[str, Tensor], keys: RowIndex, query: RowIndex | None, n_heads: int, first: int) -> None:
    x = given["x"]
    checks.integer("n_heads", n_heads, minimum=1)
    if x.ndim != 2 or not x.is_floating_point() or 0 in x.shape or x.shape[1] % n_heads:
        raise ValueError(
            f"x must be [K, d] of a float dtype, d a multiple of {n_heads}, got {tuple(x.shape)} {x.dtype}"
        )
    rows, d = x.shape
    checks.integer("first", first, minimum=0, maximum=rows - 1)
    shapes = {"x": (rows, d), "w_qkv": (3 * d, d), "b_qkv": (3 * d,), "w_o": (d, d), "b_o": (d,), "skip": (rows, d)}
    for name, t in given.items():
        if t.shape != shapes[name] or t.dtype != x.dtype or t.device != x.device:
            accepted = f"{list(shapes[name])} {x.dtype} on {x.device}"
            raise ValueError(f"{name} must be {accepted}, got {list(t.shape)} {t.dtype} on {t.device}")
    for name, index, axes, into in (("keys", keys, 2, rows), ("query", query, 1, rows - first)):
        if index is None and name == "query":
            continue
        if not isinstance(index, RowIndex):
            raise TypeError(f"{name} must be a RowIndex, got {type(index).__name__}")
        if len(index.shape) != axes or index.n_rows != into or index.device != x.device:
            accepted = f"{'[R]' if axes == 1 else '[R, S]'} into {into} rows on {x.device}"
            raise ValueError(
                f"{name} must be {accepted}, got {list(index.shape)} into {index.n_rows} rows on {index.device}"
            )
    if not keys.shape[1]:
        raise ValueError(f"keys must have a slot at least, got {list(keys.shape)}")
    n_queries = rows - first if query is None else query.shape[0]
    if keys.shape[0] != n_queries:
        raise ValueError(f"keys must have a row for each of {n_queries} queries, got {keys.shape[0]}")


class _GatheredAttention(torch.autograd.Function):
    @staticmethod
    @outside_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        w_qkv: Tensor,
        b_qkv: Tensor | None,
        w_o: Tensor,
        b_o: Tensor | None,
        skip: Tensor | None,
        keys: RowIndex,
        query: RowIndex | None,
        n_heads: int,
        first: int,
    ) -> Tensor:
        d = x.shape[1]
        if first == 0:
            q, kv = product(x, w_qkv, b_qkv).split([d, 2 * d], 1)
        else:
            b_q, b_kv = (None, None) if b_qkv is None else b_qkv.split([d, 2 * d])
            q, kv = product(x[first:], w_qkv[:d], b_q), product(x, w_qkv[d:], b_kv)
        heads, weights = x.new_empty(keys.shape[0], d), x.new_empty(*keys.shape, n_heads)
        at = None if query is None else query.index
        backend.load_extension().gathered_attention_forward(
            q, kv, at, keys.index, n_heads, heads, weights, threads_for(heads, cost=4 * keys.shape[1])
        )
        own = None if skip is None else skip[first:]
        if query is None or own is None:
            out = product(heads, w_o, b_o, own)
        else:
            out = product(heads, w_o)
            add_rows(out, b_o, own, query)
        ctx.save_for_backward(x, w_qkv, w_o, q, kv, weights, heads)
        ctx.plan = keys, query, first
        ctx.has_bias = b_qkv is not None, b_o is not None
        ctx.has_skip, ctx.skip_is_x = skip is not None, skip is x
        return out

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w_qkv, w_o, q, kv, weights, heads = ctx.saved_tensors
        keys, query, first = ctx.plan
        d, grad = x.shape[1], grad.contiguous()
        grad_b_qkv, grad_b_o = (x.new_empty(n) if has else None for has, n in zip(ctx.has_bias, (3 * d, d)))
        if grad_b_o is not None:
            sum_rows(grad, grad_b_o)
        grad_w_o = grad.T @ heads
        grad_heads = product(grad, w_o.T)
        if first == 0:
            grad_qkv = grad.new_empty(len(x), 3 * d)
            grad_q, grad_kv = grad_qkv.split([d, 2 * d], 1)
        else:
            grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
        start, items = (torch.arange(len(q) + 1), None) if query is None else query.readers
        backend.load_extension().gathered_attention_backward(
            q, kv, None if query is None else query.index, keys.index, weights.shape[2], start, items, *keys.readers,
            weights, grad_heads, grad_q, grad_kv, threads_for(grad_heads, cost=8 * keys.shape[1]),
        )  # fmt: skip
        if first == 0:
            grad_w_qkv, grad_x = grad_qkv.T @ x, product(grad_qkv, w_qkv.T)
            if grad_b_qkv is not None:
                sum_rows(grad_qkv, grad_b_qkv)
        else:
            grad_w_qkv = torch.empty_like(w_qkv)
            torch.mm(grad_q.T, x[first:], out=grad_w_qkv[:d])
            torch.mm(grad_kv.T, x, out=grad_w_qkv[d:])
            if grad_b_qkv is not None:
                sum_rows(grad_q, grad_b_qkv[:d])
                sum_rows(grad_kv, grad_b_qkv[d:])
            grad_x = product(grad_kv, w_qkv[d:].T)
            grad_x[first:].addmm_(grad_q, w_qkv[:d])
        grad_skip = None
        if ctx.has_skip:
            own = grad if query is None else sum_readers(grad, query)
            if ctx.skip_is_x:
                grad_x[first:].add_(own)
            else:
                grad_skip = own if first == 0 else torch.cat([own.new_zeros(first, d), own])
        return grad_x, grad_w_qkv, grad_b_qkv, grad_w_o, grad_b_o, grad_skip, None, None, None, None
