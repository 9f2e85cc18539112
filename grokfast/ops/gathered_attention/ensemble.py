"""The attention of a layer over rows that are read by index, for every model of an ensemble."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.read_rows import EnsembleIndex

MAX_HEAD = 1024  # the kernels hold whole rows of a head
MAX_KEYS = 64


def ensemble_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    w_o: Tensor,
    b_o: Tensor | None,
    keys: EnsembleIndex,
    own: EnsembleIndex | None = None,
    *,
    n_heads: int,
    skip: Tensor | None = None,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor:
    """ops.gathered_attention of each model: x and skip (often x itself) [E, K, d] -> [E, R, d].

    out[r] = skip[own[r]] + concat_h[softmax_j(q_h[own[r]] · k_h[keys[r, j]] / √d_head) v_h[keys[r, j]]] w_oᵀ + b_o
    with q, k, v = x w_qkvᵀ + b_qkv; w_qkv [E, 3d, d], w_o [E, d, d], biases [E, 3d] and [E, d] or None; keys [E, R, S]
    into the K rows; own [E, R], None: r. Each row is among its own keys: own[r] is one of keys[r], once.

    precision: of the products with w_qkv and w_o, as in ops.mlp; backend likewise. The kernels take fp32, S up to 64
    and heads up to 1024, sum what a row gets from its readers in their order, so that the same input has the same bits,
    and are differentiable once.
    Raises TypeError or ValueError naming the argument.
    """
    dispatch.check_options(precision, backend)
    checks.integer("n_heads", n_heads, minimum=1)
    dispatch.check_tensor("x", x, ["E", "K", "d"], x)
    n_models, n_table, d = x.shape
    if d == 0 or d % n_heads:
        raise ValueError(f"x must be [E, K, d], d a multiple of {n_heads}, got {tuple(x.shape)}")
    dispatch.check_tensor("w_qkv", w_qkv, [n_models, 3 * d, d], x)
    dispatch.check_tensor("w_o", w_o, [n_models, d, d], x)
    optional = {"b_qkv": (b_qkv, [3 * d]), "b_o": (b_o, [d]), "skip": (skip, [n_table, d])}
    for name, (t, sizes) in optional.items():
        if t is not None:
            dispatch.check_tensor(name, t, [n_models, *sizes], x)
    for name, index, axes in (("keys", keys, 3), ("own", own, 2)):
        if index is None and name == "own":
            continue
        if not isinstance(index, EnsembleIndex):
            raise TypeError(f"{name} must be an EnsembleIndex, got {type(index).__name__}")
        if len(index.shape) != axes or index.shape[0] != n_models or index.n_rows != n_table:
            accepted = f"[{n_models}, R{', S' if axes == 3 else ''}] into {n_table} rows"
            raise ValueError(f"{name} must be {accepted}, got {list(index.shape)} into {index.n_rows}")
    n_queries = n_table if own is None else own.shape[1]
    if keys.shape[1] != n_queries:
        raise ValueError(f"keys must have a row for each of {n_queries} queries, got {keys.shape[1]}")
    why_not = obstacle(d, n_heads, keys.shape[2], x.dtype)
    if dispatch.uses_triton("gathered_attention", x, backend, why_not):
        return _EnsembleAttention.apply(x, w_qkv, b_qkv, w_o, b_o, skip, keys, own, n_heads, precision)
    at = None if own is None else own.index
    return reference(x, w_qkv, b_qkv, w_o, b_o, keys.index, at, n_heads, skip, precision)


def obstacle(d: int, n_heads: int, seq_len: int, dtype: torch.dtype) -> str:
    """What the kernels do not take, in words, or nothing."""
    if dtype != torch.float32:
        return f"they take fp32, got {dtype}"
    if d // n_heads > MAX_HEAD:
        return f"they take heads up to {MAX_HEAD}, got {d // n_heads}"
    return f"they take up to {MAX_KEYS} keys, got {seq_len}" if seq_len > MAX_KEYS else ""


def reference(
    x: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_o: Tensor, b_o: Tensor | None, keys: Tensor, own: Tensor | None,
    n_heads: int, skip: Tensor | None, precision: str,
) -> Tensor:  # fmt: skip
    """The same in plain PyTorch, any float precision and device; keys [E, R, S], -1 for none, own [E, R] or None."""
    models = torch.arange(len(x), device=x.device)[:, None]
    qkv = _linear(x, w_qkv, b_qkv, precision).unflatten(2, (3, n_heads, x.shape[2] // n_heads))
    q, k, v = qkv.unbind(2)  # [E, K, H, d_head]
    q = q if own is None else q[models, own]
    at = keys.clamp(min=0)
    k, v = k[models[..., None], at], v[models[..., None], at]  # [E, R, S, H, d_head]
    scores = (q.unsqueeze(2) * k).sum(-1) / math.sqrt(q.shape[-1])  # [E, R, S, H]
    weights = scores.masked_fill(keys.unsqueeze(3) < 0, -math.inf).softmax(2)
    out = _linear((weights.unsqueeze(4) * v).sum(2).flatten(2), w_o, b_o, precision)
    if skip is None:
        return out
    return out + (skip if own is None else skip[models, own])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    y = dispatch.product(x, weight.mT, precision)
    return y if bias is None else y + bias.unsqueeze(1)


class _EnsembleAttention(torch.autograd.Function):
    @staticmethod
    @dispatch.outside_autocast
    def forward(
        ctx: Any, x: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_o: Tensor, b_o: Tensor | None, skip: Tensor | None,
        keys: EnsembleIndex, own: EnsembleIndex | None, n_heads: int, precision: str,
    ) -> Tensor:  # fmt: skip
        from grokfast.ops.gathered_attention import kernels
        from grokfast.ops.linear import kernels as linear

        qkv = linear.forward(x, w_qkv, b_qkv, None, None, precision)
        heads, norm = kernels.forward(qkv, keys, own, n_heads)
        ctx.save_for_backward(x, w_qkv, w_o, qkv, heads, norm)
        ctx.options = keys, own, n_heads, precision
        ctx.has_bias = b_qkv is not None, b_o is not None
        ctx.has_skip, ctx.skip_is_x = skip is not None, skip is x
        return linear.forward(heads, w_o, b_o, skip, None if own is None else own.index, precision)

    @staticmethod
    @once_differentiable
    @dispatch.outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from grokfast.ops.gathered_attention import kernels
        from grokfast.ops.linear import kernels as linear

        x, w_qkv, w_o, qkv, heads, norm = ctx.saved_tensors
        keys, own, n_heads, precision = ctx.options
        grad, d = grad.contiguous(), x.shape[2]
        grad_w_o, grad_b_o = linear.backward_weight(grad, heads, ctx.has_bias[1], precision)
        grad_heads = linear.backward_x(grad, w_o, None, precision)
        of_skip = grad if ctx.has_skip else None
        tables = kernels.backward(grad_heads, of_skip, heads, norm, qkv, keys, own, n_heads)
        grad_qkv, grad_skip = tables[..., : 3 * d], tables[..., 3 * d :] if ctx.has_skip else None
        grad_w_qkv, grad_b_qkv = linear.backward_weight(grad_qkv, x, ctx.has_bias[0], precision)
        grad_x = linear.backward_x(grad_qkv, w_qkv, grad_skip if ctx.skip_is_x else None, precision)
        grad_skip = None if ctx.skip_is_x else grad_skip
        return grad_x, grad_w_qkv, grad_b_qkv, grad_w_o, grad_b_o, grad_skip, None, None, None, None
