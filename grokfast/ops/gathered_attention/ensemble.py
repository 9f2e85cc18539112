"""The core of gathered attention for every model of an ensemble: from tables of q, k and v to the heads' outputs."""

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


def gathered_heads(
    qkv: Tensor, keys: EnsembleIndex, own: EnsembleIndex | None = None, *, n_heads: int, backend: str | None = None
) -> Tensor:
    """out[e, r] = concat_h[softmax_j(q_h[own[e, r]] · k_h[keys[e, r, j]] / √d_head) v_h[keys[e, r, j]]].

    qkv [E, K, 3d], q, k and v one after the other, head after head in each; keys [E, R, S] into the K rows; own [E, R],
    None: r. Returns [E, R, d]. The kernels take fp32, S up to 64 and heads up to 1024, give the same bits for the same
    input, sum over the readers of a row in their order, and are differentiable once.
    Raises TypeError or ValueError naming the argument.
    """
    dispatch.check_options("ieee", backend)
    checks.integer("n_heads", n_heads, minimum=1)
    dispatch.check_tensor("qkv", qkv, ["E", "K", "3d"], qkv)
    n_models, n_rows, width = qkv.shape
    if width == 0 or width % (3 * n_heads):
        raise ValueError(f"qkv must be [E, K, 3d], d a multiple of {n_heads}, got {tuple(qkv.shape)}")
    for name, index, axes in (("keys", keys, 3), ("own", own, 2)):
        if index is None and name == "own":
            continue
        if not isinstance(index, EnsembleIndex):
            raise TypeError(f"{name} must be an EnsembleIndex, got {type(index).__name__}")
        if len(index.shape) != axes or index.shape[0] != n_models or index.n_rows != n_rows:
            accepted = f"[{n_models}, R{', S' if axes == 3 else ''}] into {n_rows} rows"
            raise ValueError(f"{name} must be {accepted}, got {list(index.shape)} into {index.n_rows}")
    if keys.shape[1] != (n_rows if own is None else own.shape[1]):
        raise ValueError(f"keys must have a row for each query, got {list(keys.shape)}")
    why_not = obstacle(width // 3, n_heads, keys.shape[2], qkv.dtype)
    if dispatch.uses_triton("gathered_attention", qkv, backend, why_not):
        return _GatheredHeads.apply(qkv, keys, own, n_heads)
    return reference(qkv, keys.index, None if own is None else own.index, n_heads)


def obstacle(d: int, n_heads: int, seq_len: int, dtype: torch.dtype) -> str:
    """What the kernels do not take, in words, or nothing."""
    if dtype != torch.float32:
        return f"they take fp32, got {dtype}"
    if d // n_heads > MAX_HEAD:
        return f"they take heads up to {MAX_HEAD}, got {d // n_heads}"
    return f"they take up to {MAX_KEYS} keys, got {seq_len}" if seq_len > MAX_KEYS else ""


def reference(qkv: Tensor, keys: Tensor, own: Tensor | None, n_heads: int) -> Tensor:
    """The same in plain PyTorch, any float precision and device; keys [E, R, S], -1 for none, own [E, R] or None."""
    n_models, _, width = qkv.shape
    models = torch.arange(n_models, device=qkv.device)[:, None]
    q, k, v = qkv.unflatten(2, (3, n_heads, width // 3 // n_heads)).unbind(2)  # [E, K, H, d_head]
    q = q if own is None else q[models, own]
    at = keys.clamp(min=0)
    k, v = k[models[..., None], at], v[models[..., None], at]  # [E, R, S, H, d_head]
    scores = (q.unsqueeze(2) * k).sum(-1) / math.sqrt(q.shape[-1])  # [E, R, S, H]
    weights = scores.masked_fill(keys.unsqueeze(3) < 0, -math.inf).softmax(2)
    return (weights.unsqueeze(4) * v).sum(2).flatten(2)


class _GatheredHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, keys: EnsembleIndex, own: EnsembleIndex | None, n_heads: int) -> Tensor:
        from grokfast.ops.gathered_attention import kernels

        qkv = qkv.contiguous()
        out, norm = kernels.forward(qkv, keys, own, n_heads)
        ctx.save_for_backward(out, norm, qkv)
        ctx.options = keys, own, n_heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from grokfast.ops.gathered_attention import kernels

        out, norm, qkv = ctx.saved_tensors
        keys, own, n_heads = ctx.options
        return kernels.backward(grad.contiguous(), out, norm, qkv, keys, own, n_heads), None, None, None
